"""Add experts for a reference video to diffusers' CogVideoX transformer.

Follows arXiv 2510.20888 (Video-As-Prompt), section 3, with the attention modes of `sememe.video_as_prompt.network_wan`.
Unlike on Wan, a reference's caption attends together with its video, and the released model reads its (clean) reference
at the target's timestep, so the reference's tokens change with every step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import CogVideoXTransformer3DModel, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models._modeling_parallel import ContextParallelOutput
from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float, Num
from torch import Tensor, nn

from sememe.backbones.stock_arguments import takes_arguments_of
from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_cogvideox import (
    CogVideoXDispatchedAttnProcessor,
    CogVideoXVideoAsPromptBlock,
    TextAndVideo,
)
from sememe.video_as_prompt.context_parallel import SPLIT_TOKENS, TokenSplit, split_rotary
from sememe.video_as_prompt.expert_files import COGVIDEOX_KEYS, KeyMap
from sememe.video_as_prompt.expert_model import ExpertModel, add_reference_embedding, check_strength
from sememe.video_as_prompt.reference_attention import ReferenceStream
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.rotary import RotaryTables, cogvideox_reference_rotary, cogvideox_rotary
from sememe.video_as_prompt.shapes import (
    FrameFirstLatents,
    Heads,
    RotaryTable,
    TextEmbeds,
    TimeEmbeds,
    Timesteps,
    Tokens,
)

Offset = Float[Tensor, " batch_or_1"]
"""The `ofs` of CogVideoX 1.5."""

ReferenceTimestep = float | Num[Tensor, ""] | Num[Tensor, " time_batch"]
"""Timestep at which a reference is read: one for the whole batch, or one per target."""


class CogVideoXExpertEmbedder(nn.Module):
    """The expert's patch embedding and time embedding.

    `forward` embeds one reference. `time_embedding` is called separately: at every step if the reference follows the
    target's timestep.
    """

    def __init__(self, config: FrozenDict) -> None:
        super().__init__()
        dim = config.num_attention_heads * config.attention_head_dim
        self.patch_embed = CogVideoXPatchEmbed(
            patch_size=config.patch_size,
            patch_size_t=config.patch_size_t,
            in_channels=config.in_channels,
            embed_dim=dim,
            text_embed_dim=config.text_embed_dim,
            bias=config.patch_bias,
            sample_width=config.sample_width,
            sample_height=config.sample_height,
            sample_frames=config.sample_frames,
            temporal_compression_ratio=config.temporal_compression_ratio,
            max_text_seq_length=config.max_text_seq_length,
            spatial_interpolation_scale=config.spatial_interpolation_scale,
            temporal_interpolation_scale=config.temporal_interpolation_scale,
            use_positional_embeddings=not config.use_rotary_positional_embeddings,
            use_learned_positional_embeddings=config.use_learned_positional_embeddings,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.time_embedding = TimestepEmbedding(dim, config.time_embed_dim, config.timestep_activation_fn)
        number = config.num_reference_embeddings
        self.reference_embeddings = nn.Parameter(torch.zeros(number, dim)) if number else None

    def forward(self, text: TextEmbeds, latents: FrameFirstLatents, place: int, count: int) -> TextAndVideo:
        """Embed a reference of several at the same learned or sine positions as a target."""
        # (batch, text token + video token, dim)
        both = self.dropout(self.patch_embed(text, latents))
        both = add_reference_embedding(both, self.reference_embeddings, place, count)
        return TextAndVideo(*both.tensor_split([text.shape[1]], dim=1))


class CogVideoXVideoAsPromptTransformer(ExpertModel, CogVideoXTransformer3DModel):
    """`CogVideoXTransformer3DModel` with experts; without a reference it equals the stock class, bit for bit.

    Args:
        expert_blocks: Indices of the blocks with an expert; None for all. The released model has one in all but the
            last block.
        attention_mode: Mode that the expert was trained for, `joint` (two-way) or `cached` (one-way).
        reference_timestep: Fixed timestep of the reference, in 0..1000, which `cached` needs; None for the target's
            timestep, as in the released model.
        num_reference_embeddings: Largest number of references, each with a learned embedding that is added to its
            tokens; 0 for any number, without embeddings.

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
    backbone_class: ClassVar[type[ModelMixin]] = CogVideoXTransformer3DModel
    expert_class_name: ClassVar[str] = "CogVideoXVideoAsPromptExpert"
    own_settings: ClassVar[Mapping[str, Any]] = {
        "expert_blocks": None,
        "attention_mode": "joint",
        "reference_timestep": None,
        "num_reference_embeddings": 0,
    }
    has_text_tokens: ClassVar[bool] = True
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
    @takes_arguments_of(CogVideoXTransformer3DModel)
    def __init__(
        self,
        *arguments: Any,
        expert_blocks: Sequence[int] | None = None,
        attention_mode: str = "joint",
        reference_timestep: float | None = None,
        num_reference_embeddings: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        for block in self.transformer_blocks:
            block.attn1.set_processor(CogVideoXDispatchedAttnProcessor())
        self._add_experts(CogVideoXVideoAsPromptBlock, expert_blocks, attention_mode, reference_timestep)
        self.expert_embedder = CogVideoXExpertEmbedder(self.config)
        self.split = TokenSplit()

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

    def _embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        height, width = _check_reference(self.config, inputs)
        embedded = [
            self.expert_embedder(text, latents, place, len(inputs.latents))
            for place, (text, latents) in enumerate(zip(inputs.text_embeds, inputs.latents, strict=True))
        ]
        num_frames, device = sum(latents.shape[1] for latents in inputs.latents), inputs.latents[0].device
        rotary = None
        if self.config.use_rotary_positional_embeddings:
            rotary = cogvideox_reference_rotary(self.config, num_frames, height, width, device)
        # The timestep enters later, in `forward` or `encode_reference`, because it may be the target's.
        stream = ReferenceStream(
            texts=tuple(tokens.text for tokens in embedded),
            lengths=tuple(tokens.video.shape[1] for tokens in embedded),
            temb=None,
            rotary=rotary,
        )
        patch = self.config.patch_size
        videos = torch.cat([tokens.video for tokens in embedded], dim=1)
        return ReferenceTokens(videos, stream, (height // patch, width // patch))

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
    ) -> Transformer2DModelOutput | tuple[Float[Tensor, "batch frame out height width"]]:
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
        kept: list[tuple[Heads, Heads]] | None = None,
    ) -> Transformer2DModelOutput | tuple[Float[Tensor, "batch frame out height width"]]:
        if (image_rotary_emb is not None) != self.config.use_rotary_positional_embeddings:
            raise ModelError("image_rotary_emb must be what rotary_tables gives for the target's size")
        grid = (latents.shape[3] // self.config.patch_size, latents.shape[4] // self.config.patch_size)
        given = self._prepare_reference(reference, grid, latents.shape[0], ofs=ofs)

        temb = self._embed_time(self.time_embedding, timestep, latents.dtype, ofs, timestep_cond)
        # (batch, text token + video token, dim)
        both = self.embedding_dropout(self.patch_embed(text, latents))
        tokens = TextAndVideo(*both.tensor_split([text.shape[1]], dim=1))
        rotary = image_rotary_emb
        if self._parallel_config is not None:
            rotary = rotary and split_rotary(self.split, RotaryTables(*rotary), [tokens.video.shape[1]])
            tokens = TextAndVideo(*map(self.split, tokens))
        arguments = [(temb, rotary, attention_kwargs)] * len(self.transformer_blocks)
        step = {"timestep": timestep if self.config.reference_timestep is None else None, "ofs": ofs}
        video, _ = self._run_blocks((tokens.video, tokens.text), arguments, given, strength, kept, **step)
        sample = self._project_out(video, temb, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def denoise_reference(self, inputs: ReferenceInputs, timestep: Timesteps) -> FrameFirstLatents:
        """Predict for one noisy reference by the expert alone and the backbone's output head.

        Args:
            inputs: The reference, its latents noisy.
            timestep: Its timesteps in 0..1000.
        """
        tokens = self._split_tokens(self._embed_reference(inputs))
        dtype = tokens.hidden_states.dtype
        temb = self._embed_time(self.expert_embedder.time_embedding, timestep, dtype, None)
        (video, _), _ = self._run_experts(tokens, tokens.stream._replace(temb=temb, finishes=True))
        return self._project_out(video, self._embed_time(self.time_embedding, timestep, dtype, None), tokens.grid)

    def _make_stream(
        self, reference: ReferenceTokens, timestep: ReferenceTimestep | None = None, ofs: Offset | None = None
    ) -> ReferenceStream:
        follows_target = self.config.reference_timestep is None
        if follows_target != (timestep is not None):
            state = "the target's timestep" if follows_target else f"its own timestep {self.config.reference_timestep}"
            advice = "say which with timestep=" if follows_target else "leave timestep= out"
            raise ModelError(f"this model reads its reference at {state}; {advice}")
        time = timestep if follows_target else self.config.reference_timestep
        time = torch.as_tensor(time, device=reference.hidden_states.device).reshape(-1)
        temb = self._embed_time(self.expert_embedder.time_embedding, time, reference.hidden_states.dtype, ofs)
        return reference.stream._replace(temb=temb)

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

    def _project_out(self, tokens: Tokens, temb: TimeEmbeds, grid: tuple[int, int]) -> FrameFirstLatents:
        """Apply the stock output head: norms, projection, and patches back to latents."""
        tokens = self.proj_out(self.norm_out(self.norm_final(tokens), temb=temb))
        patch = (self.config.patch_size_t or 1, self.config.patch_size, self.config.patch_size)
        # (batch, token, patch) -> (batch, frame, row, column, channel, patch frame, patch row, patch column)
        tokens = tokens.unflatten(1, (-1, *grid)).unflatten(-1, (-1, *patch))
        # -> (batch, frame, patch frame, channel, row, patch row, column, patch column)
        # -> (batch, frame, channel, height, width)
        return tokens.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)


def _check_reference(config: FrozenDict, inputs: ReferenceInputs) -> tuple[int, int]:
    """Check references against the model's configuration and return their (height, width) in latents.

    Raises:
        ModelError: If they do not fit.
    """
    if inputs.image_embeds is not None:
        raise ModelError("CogVideoX does not take image embeddings of its references")
    channels = {latents.shape[2] for latents in inputs.latents}
    if channels != {config.in_channels}:
        raise ModelError(
            f"reference latents need {config.in_channels} channels (latents and condition), got {sorted(channels)}"
        )
    sizes = {(latents.shape[3], latents.shape[4]) for latents in inputs.latents}
    if len(sizes) != 1:
        raise ModelError(f"all references must have one size, got {sorted(sizes)} (rows, columns of latents)")
    height, width = sizes.pop()
    if height % config.patch_size or width % config.patch_size:
        raise ModelError(
            f"reference latents must divide into patches of {config.patch_size}x{config.patch_size}, "
            f"got {height}x{width}"
        )
    native = (config.sample_height, config.sample_width)
    if config.use_learned_positional_embeddings and (height, width) != native:
        raise ModelError(
            f"this model has learned positions for {native[0]}x{native[1]} latents, got references of {height}x{width}"
        )
    num_frames = [latents.shape[1] for latents in inputs.latents]
    if any(number % (config.patch_size_t or 1) for number in num_frames):
        raise ModelError(
            f"the latent frames of a reference must be a multiple of {config.patch_size_t}, got {num_frames}"
        )
    lengths = {text.shape[1] for text in inputs.text_embeds}
    has_positions = config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings
    if has_positions and lengths != {config.max_text_seq_length}:
        raise ModelError(f"captions of references need {config.max_text_seq_length} tokens, got {sorted(lengths)}")
    return height, width
