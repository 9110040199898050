"""Add experts for a reference video to diffusers' CogVideoX transformer.

Follows arXiv 2510.20888 (Video-As-Prompt), section 3, with the attention modes of `sememe.video_as_prompt.network_wan`.
Unlike on Wan, a reference's caption attends together with its video, and the released model reads its (clean) reference
at the target's timestep, so the reference's tokens change with every step.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models._modeling_parallel import ContextParallelOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float, Num
from torch import Tensor, nn

from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_cogvideox import (
    CogVideoXDispatchedAttnProcessor,
    CogVideoXVideoAsPromptBlock,
    EncodedReference,
    TextAndVideo,
    TwoPartStream,
)
from sememe.video_as_prompt.context_parallel import SPLIT_TOKENS, TokenSplit, count_ranks, split_reference, split_rotary
from sememe.video_as_prompt.embedder_cogvideox import CogVideoXExpertEmbedder, check_reference
from sememe.video_as_prompt.expert_files import COGVIDEOX_KEYS, KeyMap
from sememe.video_as_prompt.expert_model import ExpertModel, check_grid, check_strength
from sememe.video_as_prompt.reference_attention import ReferenceAttention, ReferenceStream
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.rotary import RotaryTables, cogvideox_reference_rotary, cogvideox_rotary
from sememe.video_as_prompt.shapes import FrameFirstLatents, RotaryTable, TextEmbeds, TimeEmbeds, Timesteps, Tokens

Offset = Float[Tensor, " batch_or_1"]
"""The `ofs` of CogVideoX 1.5."""

ReferenceTimestep = float | Num[Tensor, ""] | Num[Tensor, " time_batch"]
"""Timestep at which a reference is read: one for the whole batch, or one per target."""


class CogVideoXVideoAsPromptTransformer(ExpertModel, CogVideoXTransformer3DModel):
    """`CogVideoXTransformer3DModel` with experts; without a reference it equals the stock class, bit for bit.

    Args:
        expert_blocks: Indices of the blocks with an expert; None for all. The released model has one in all but the
            last block.
        attention_mode: Mode that the expert was trained for, `joint` (two-way) or `cached` (one-way).
        reference_timestep: Fixed timestep of the reference, in 0..1000, which `cached` needs; None for the target's
            timestep, as in the released model.

    The other arguments are those of the stock class.
    """

    _no_split_modules: ClassVar[list[str]] = ["CogVideoXBlock", "CogVideoXVideoAsPromptBlock", "CogVideoXPatchEmbed"]
    _repeated_blocks: ClassVar[list[str]] = ["CogVideoXBlock", "CogVideoXVideoAsPromptBlock"]
    # The stock class has no plan. Texts attend together with the videos, so they are split too.
    _cp_plan: ClassVar[dict[str, Any]] = {
        "split": SPLIT_TOKENS,
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    # Small and sensitive to rounding, so kept in full precision when weights are stored in 8 bits.
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "patch_embed",
        "time_embedding",
        "ofs_embedding",
        "norm",
        "expert_embedder",
    ]
    # These also run outside `forward`, for references, so group offload must fetch their weights separately.
    _group_offload_block_modules: ClassVar[list[str]] = [
        "expert_embedder",
        "patch_embed",
        "time_embedding",
        "ofs_embedding",
        "norm_final",
        "norm_out",
        "proj_out",
    ]
    may_follow_target: ClassVar[bool] = True
    backbone_class: ClassVar[Any] = CogVideoXTransformer3DModel
    expert_class_name: ClassVar[str] = "CogVideoXVideoAsPromptExpert"
    own_settings: ClassVar[tuple[str, ...]] = ("expert_blocks", "attention_mode", "reference_timestep")
    shared_settings: ClassVar[tuple[str, ...]] = (
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "flip_sin_to_cos",
        "freq_shift",
        "time_embed_dim",
        "ofs_embed_dim",
        "text_embed_dim",
        "num_layers",
        "attention_bias",
        "sample_width",
        "sample_height",
        "sample_frames",
        "patch_size",
        "patch_size_t",
        "temporal_compression_ratio",
        "max_text_seq_length",
        "activation_fn",
        "timestep_activation_fn",
        "norm_elementwise_affine",
        "norm_eps",
        "spatial_interpolation_scale",
        "temporal_interpolation_scale",
        "use_rotary_positional_embeddings",
        "use_learned_positional_embeddings",
        "patch_bias",
    )
    key_map: ClassVar[KeyMap] = COGVIDEOX_KEYS

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_attention_heads: int = 30,
        attention_head_dim: int = 64,
        in_channels: int = 16,
        out_channels: int | None = 16,
        flip_sin_to_cos: bool = True,  # noqa: FBT001, FBT002 (the stock signature, as are the next)
        freq_shift: int = 0,
        time_embed_dim: int = 512,
        ofs_embed_dim: int | None = None,
        text_embed_dim: int = 4096,
        num_layers: int = 30,
        dropout: float = 0.0,
        attention_bias: bool = True,  # noqa: FBT001, FBT002
        sample_width: int = 90,
        sample_height: int = 60,
        sample_frames: int = 49,
        patch_size: int = 2,
        patch_size_t: int | None = None,
        temporal_compression_ratio: int = 4,
        max_text_seq_length: int = 226,
        activation_fn: str = "gelu-approximate",
        timestep_activation_fn: str = "silu",
        norm_elementwise_affine: bool = True,  # noqa: FBT001, FBT002
        norm_eps: float = 1e-5,
        spatial_interpolation_scale: float = 1.875,
        temporal_interpolation_scale: float = 1.0,
        use_rotary_positional_embeddings: bool = False,  # noqa: FBT001, FBT002
        use_learned_positional_embeddings: bool = False,  # noqa: FBT001, FBT002
        patch_bias: bool = True,  # noqa: FBT001, FBT002
        expert_blocks: Sequence[int] | None = None,
        attention_mode: str = "joint",
        reference_timestep: float | None = None,
    ) -> None:
        super().__init__(
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            flip_sin_to_cos=flip_sin_to_cos,
            freq_shift=freq_shift,
            time_embed_dim=time_embed_dim,
            ofs_embed_dim=ofs_embed_dim,
            text_embed_dim=text_embed_dim,
            num_layers=num_layers,
            dropout=dropout,
            attention_bias=attention_bias,
            sample_width=sample_width,
            sample_height=sample_height,
            sample_frames=sample_frames,
            patch_size=patch_size,
            patch_size_t=patch_size_t,
            temporal_compression_ratio=temporal_compression_ratio,
            max_text_seq_length=max_text_seq_length,
            activation_fn=activation_fn,
            timestep_activation_fn=timestep_activation_fn,
            norm_elementwise_affine=norm_elementwise_affine,
            norm_eps=norm_eps,
            spatial_interpolation_scale=spatial_interpolation_scale,
            temporal_interpolation_scale=temporal_interpolation_scale,
            use_rotary_positional_embeddings=use_rotary_positional_embeddings,
            use_learned_positional_embeddings=use_learned_positional_embeddings,
            patch_bias=patch_bias,
        )
        indices = self._check_settings(expert_blocks, attention_mode, reference_timestep, num_layers)
        self.register_to_config(
            expert_blocks=indices, attention_mode=attention_mode, reference_timestep=reference_timestep
        )
        for block in self.transformer_blocks:
            block.attn1.set_processor(CogVideoXDispatchedAttnProcessor())
        for index in indices:
            self.transformer_blocks[index] = CogVideoXVideoAsPromptBlock(
                num_attention_heads * attention_head_dim,
                num_attention_heads,
                attention_head_dim,
                time_embed_dim,
                dropout,
                activation_fn,
                attention_bias,
                norm_elementwise_affine,
                norm_eps,
                is_last_expert=index == indices[-1],
            )
        self.expert_embedder = CogVideoXExpertEmbedder(self.config)
        self.split = TokenSplit()

    @classmethod
    def from_backbone(
        cls,
        backbone: CogVideoXTransformer3DModel,
        expert_blocks: Sequence[int] | None = None,
        attention_mode: str = "joint",
        reference_timestep: float | None = None,
    ) -> "CogVideoXVideoAsPromptTransformer":
        """Add experts to a backbone, each a copy of its block.

        The new model takes over the backbone's modules without copying them, so do not use `backbone` afterwards.

        Raises:
            ModelError: If a setting does not fit the backbone.
        """
        own = (expert_blocks, attention_mode, reference_timestep)
        return cls._put_on_backbone(backbone, dict(zip(cls.own_settings, own, strict=True)))

    def fuse_qkv_projections(self) -> None:
        """Refuse fused projections.

        Raises:
            ModelError: Always, because fusing replaces the attention processor that reads the reference.
        """
        raise ModelError("fused query, key and value projections are not supported on CogVideoX with experts")

    def rotary_tables(
        self, num_frames: int, height: int, width: int, device: torch.device | str | None = None
    ) -> RotaryTables | None:
        """Compute `image_rotary_emb` of `forward` for latents of this size; None on a backbone without rotation.

        Raises:
            ModelError: If the size exceeds the model's grid of positions.
        """
        if not self.config.use_rotary_positional_embeddings:
            return None
        return cogvideox_rotary(self.config, num_frames, height, width, device)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        """Embed references once, for all steps of a two-way model.

        Their timestep enters later, in `forward` or `encode_reference`, because it may be the target's.

        Raises:
            ModelError: If the inputs do not fit the model.
        """
        height, width = check_reference(self.config, inputs)
        embedded = [
            self.expert_embedder(text, latents)
            for text, latents in zip(inputs.text_embeds, inputs.latents, strict=True)
        ]
        num_frames, device = sum(latents.shape[1] for latents in inputs.latents), inputs.latents[0].device
        rotary = None
        if self.config.use_rotary_positional_embeddings:
            rotary = cogvideox_reference_rotary(self.config, num_frames, height, width, device)
        stream = ReferenceStream(
            texts=tuple(tokens.text for tokens in embedded),
            lengths=tuple(tokens.video.shape[1] for tokens in embedded),
            temb=None,
            rotary=rotary,
        )
        patch = self.config.patch_size
        videos = torch.cat([tokens.video for tokens in embedded], dim=1)
        tokens = ReferenceTokens(videos, stream, (height // patch, width // patch))
        if self._parallel_config is None:
            return tokens
        return split_reference(self.split, tokens, count_ranks(self._parallel_config), has_text_tokens=True)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode_reference(
        self,
        inputs: ReferenceInputs,
        *,
        approximate: bool = False,
        timestep: ReferenceTimestep | None = None,
        ofs: Offset | None = None,
    ) -> ReferenceCache:
        """Run references through the expert alone and keep their keys and values; differentiable.

        Args:
            inputs: References, of which the first counts as the farthest in time; without image embeddings.
            approximate: Allow this for a two-way model, whose result then deviates.
            timestep: Timestep of the target, in 0..1000, for a model whose reference follows it
                (`reference_timestep` None in the config). The cache is approximate at other timesteps.
            ofs: As in `forward`, for CogVideoX 1.5.

        Raises:
            ModelError: If the model was trained two-way and `approximate` is False, or the inputs do not fit.
        """
        with self._without_feature_cache():
            tokens = self.embed_reference(inputs)
            return self._encode_tokens(tokens, approximate=approximate, timestep=timestep, ofs=ofs)

    def _encode_tokens(
        self,
        reference: ReferenceTokens,
        *,
        approximate: bool = False,
        timestep: ReferenceTimestep | None = None,
        ofs: Offset | None = None,
    ) -> ReferenceCache:
        self._check_may_encode(approximate=approximate)
        follows_target = self.config.reference_timestep is None
        if follows_target != (timestep is not None):
            state = "the target's timestep" if follows_target else f"its own timestep {self.config.reference_timestep}"
            advice = "say which with timestep=" if follows_target else "leave timestep= out"
            raise ModelError(f"this model reads its reference at {state}; {advice}")
        stream = self._make_stream(reference, timestep, ofs)
        videos, texts = reference.hidden_states, torch.cat(reference.stream.texts, dim=1)
        keys, values = [], []
        for index in self.config.expert_blocks:
            encoded: EncodedReference = self._run_block(index, videos, texts, None, None, None, stream)
            videos, texts = encoded.hidden_states, encoded.encoder_hidden_states
            keys.append(encoded.key)
            values.append(encoded.value)
        return ReferenceCache(tuple(keys), tuple(values), reference.grid, reference.num_ranks)

    def forward(
        self,
        hidden_states: FrameFirstLatents,
        encoder_hidden_states: TextEmbeds,
        timestep: Timesteps,
        timestep_cond: TimeEmbeds | None = None,
        ofs: Offset | None = None,
        image_rotary_emb: tuple[RotaryTable, RotaryTable] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,  # noqa: FBT001, FBT002 (the stock signature)
        reference: ReferenceCache | ReferenceTokens | ReferenceInputs | None = None,
        reference_strength: float = 1.0,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity of a target, optionally with a reference.

        Args:
            hidden_states: Noisy latents, followed on the channel axis by the first-frame latents.
            encoder_hidden_states: Embedded text.
            timestep: Timesteps in 0..1000.
            timestep_cond: Embedding to add to the timestep's, for backbones that take it.
            ofs: Offset of CogVideoX 1.5 image-to-video.
            image_rotary_emb: Result of `rotary_tables` for this size.
            attention_kwargs: `scale` of LoRA weights, and arguments of the attention processors.
            return_dict: Return an output record rather than a tuple.
            reference: None for the stock forward, a KV cache to read, or references to attend to in the model's
                mode. A cache of batch size 1 is used for every target.
            reference_strength: Factor in 0..1 on the weight of the reference's tokens in the target's softmax, before
                it is normalised: 0 is the stock forward, 1 is how the model was trained.

        Raises:
            ModelError: If reference and target do not fit together.
        """
        arguments: dict[str, Any] = {
            "timestep_cond": timestep_cond,
            "ofs": ofs,
            "image_rotary_emb": image_rotary_emb,
            "attention_kwargs": attention_kwargs,
            "return_dict": return_dict,
        }
        check_strength(reference_strength)
        reference = None if reference_strength == 0.0 else reference
        # With context parallelism the stock forward would not split the target as `_cp_plan` says.
        if reference is None and self._parallel_config is None:
            return super().forward(hidden_states, encoder_hidden_states, timestep, **arguments)
        return self._forward_with_reference(
            hidden_states,
            encoder_hidden_states,
            timestep,
            reference=reference,
            strength=reference_strength,
            **arguments,
        )

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def _forward_with_reference(
        self,
        latents: FrameFirstLatents,
        text: TextEmbeds,
        timestep: Timesteps,
        timestep_cond: TimeEmbeds | None = None,
        ofs: Offset | None = None,
        image_rotary_emb: tuple[RotaryTable, RotaryTable] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,  # noqa: FBT001, FBT002 (as in forward)
        *,
        reference: ReferenceCache | ReferenceTokens | ReferenceInputs | None,
        strength: float = 1.0,
        kept: list[EncodedReference] | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        if (image_rotary_emb is not None) != self.config.use_rotary_positional_embeddings:
            raise ModelError("image_rotary_emb must be what rotary_tables gives for the target's size")
        grid = (latents.shape[3] // self.config.patch_size, latents.shape[4] // self.config.patch_size)
        given = None if reference is None else self._prepare_reference(reference, ofs=ofs)
        if given is not None:
            check_grid(given, grid)
            given = given.expand(latents.shape[0])

        temb = self._embed_time(self.time_embedding, timestep, latents.dtype, ofs, timestep_cond)
        # (batch, text token + video token, dim)
        both = self.embedding_dropout(self.patch_embed(text, latents))
        tokens = TextAndVideo(*both.tensor_split([text.shape[1]], dim=1))
        rotary = image_rotary_emb
        if self._parallel_config is not None:
            rotary = rotary and split_rotary(self.split, RotaryTables(*rotary), [tokens.video.shape[1]])
            tokens = TextAndVideo(*map(self.split, tokens))
        arguments = (temb, rotary, attention_kwargs)
        if given is None or isinstance(given, ReferenceCache):
            tokens = self._read_cache(tokens, arguments, given, strength)
        else:
            follows_target = self.config.reference_timestep is None
            stream = self._make_stream(given, timestep if follows_target else None, ofs)._replace(strength=strength)
            tokens = self._attend_jointly(tokens, arguments, given, stream, kept)
        sample = self._project_out(tokens.video, temb, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _make_stream(
        self, reference: ReferenceTokens, timestep: ReferenceTimestep | None, ofs: Offset | None
    ) -> TwoPartStream:
        """Make the blocks' inputs for the reference at a timestep; None for the model's fixed one."""
        time = self.config.reference_timestep if timestep is None else timestep
        time = torch.as_tensor(time, device=reference.hidden_states.device).reshape(-1)
        temb = self._embed_time(self.expert_embedder.time_embedding, time, reference.hidden_states.dtype, ofs)
        num_text_tokens = sum(text.shape[1] for text in reference.stream.texts)
        return TwoPartStream(num_text_tokens, sum(reference.stream.lengths), temb, reference.stream.rotary)

    def _embed_time(
        self,
        embedding: nn.Module,
        timestep: Timesteps,
        dtype: torch.dtype,
        ofs: Offset | None,
        condition: TimeEmbeds | None = None,
    ) -> TimeEmbeds:
        embedded = embedding(self.time_proj(timestep).to(dtype), condition)
        if self.ofs_embedding is None:
            return embedded
        # Target and reference share it: it does not depend on the content.
        return embedded + self.ofs_embedding(self.ofs_proj(ofs).to(dtype))

    def _read_cache(
        self, tokens: TextAndVideo, arguments: tuple, cache: ReferenceCache | None, strength: float
    ) -> TextAndVideo:
        """Run all blocks on the target, whose experts read the KV cache."""
        pairs: dict[int, ReferenceAttention] = {}
        if cache is not None:
            entries = zip(self.config.expert_blocks, cache.keys, cache.values, strict=True)
            pairs = {index: ReferenceAttention(None, key, value, strength) for index, key, value in entries}
        for index in range(len(self.transformer_blocks)):
            read = (pairs[index],) if index in pairs else ()
            video, text = self._run_block(index, tokens.video, tokens.text, *arguments, *read)
            tokens = TextAndVideo(text, video)
        return tokens

    def _attend_jointly(
        self,
        tokens: TextAndVideo,
        arguments: tuple,
        reference: ReferenceTokens,
        stream: TwoPartStream,
        kept: list[EncodedReference] | None,
    ) -> TextAndVideo:
        """Run all blocks on target and reference, which attend to each other; `kept` collects the reference's keys."""
        source = TextAndVideo(torch.cat(reference.stream.texts, dim=1), reference.hidden_states)
        for index in range(len(self.transformer_blocks)):
            if index not in self.config.expert_blocks:
                video, text = self._run_block(index, tokens.video, tokens.text, *arguments)
                tokens = TextAndVideo(text, video)
                continue
            if kept is not None:
                alone = (source.video, source.text, None, None, None, stream._replace(keys_only=True))
                kept.append(self._run_block(index, *alone))
            # (batch, target token + reference token, dim), of video and of text
            joined = (torch.cat([tokens.video, source.video], dim=1), torch.cat([tokens.text, source.text], dim=1))
            videos, texts = self._run_block(index, *joined, *arguments, stream)
            video, source_video = videos.tensor_split([tokens.video.shape[1]], dim=1)
            text, source_text = texts.tensor_split([tokens.text.shape[1]], dim=1)
            tokens, source = TextAndVideo(text, video), TextAndVideo(source_text, source_video)
        return tokens

    def _project_out(self, tokens: Tokens, temb: TimeEmbeds, grid: tuple[int, int]) -> FrameFirstLatents:
        """Apply the stock output head: norms, projection, and patches back to latents."""
        tokens = self.proj_out(self.norm_out(self.norm_final(tokens), temb=temb))
        patch = (self.config.patch_size_t or 1, self.config.patch_size, self.config.patch_size)
        # (batch, token, patch) -> (batch, frame, row, column, channel, patch frame, patch row, patch column)
        tokens = tokens.unflatten(1, (-1, *grid)).unflatten(-1, (-1, *patch))
        # -> (batch, frame, patch frame, channel, row, patch row, column, patch column)
        # -> (batch, frame, channel, height, width)
        return tokens.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)
