"""Add experts for a reference video to diffusers' Wan transformer.

Follows arXiv 2510.20888 (Video-As-Prompt), section 3. An expert is trained for one of two attention modes:

- `joint` (two-way): target and reference read each other, as in the released models, so the reference runs through the
  network at every denoising step.
- `cached` (one-way): the target reads the reference, the reference only itself. The reference's keys and values are the
  same at every step and are computed once.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn

from sememe.backbones.cross_attention import KeptText, TextAttnProcessor, project_text
from sememe.backbones.first_frame import FirstFrameFill, check_fill
from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_wan import EncodedReference, WanVideoAsPromptBlock
from sememe.video_as_prompt.context_parallel import SPLIT_TOKENS, TokenSplit, count_ranks, split_reference
from sememe.video_as_prompt.expert_files import WAN_KEYS, KeyMap
from sememe.video_as_prompt.expert_model import ExpertModel, check_grid, check_strength
from sememe.video_as_prompt.reference_attention import ReferenceAttention, ReferenceStream
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.rotary import ReferenceRotaryPosEmbed, RotaryTables
from sememe.video_as_prompt.shapes import ImageEmbeds, TextEmbeds, Timesteps, Tokens, TokenTimesteps, VideoLatents


class WanExpertEmbedder(nn.Module):
    """Embed references as tokens: patches, captions, timestep and positions."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim = config.num_attention_heads * config.attention_head_dim
        self.patch_size = tuple(config.patch_size)
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, self.patch_size, stride=self.patch_size)
        self.condition_embedder = WanTimeTextImageEmbedding(
            dim=dim,
            time_freq_dim=config.freq_dim,
            time_proj_dim=dim * 6,
            text_embed_dim=config.text_dim,
            image_embed_dim=config.image_dim,
            pos_embed_seq_len=config.pos_embed_seq_len,
        )
        self.rope = ReferenceRotaryPosEmbed(config.attention_head_dim, self.patch_size, config.rope_max_seq_len)

    def forward(self, inputs: ReferenceInputs, timestep: float) -> ReferenceTokens:
        """Embed references at one timestep in 0..1000."""
        # per reference (batch, dim, frame, row, column)
        patches = [self.patch_embedding(latents) for latents in inputs.latents]
        grids = {tuple(patch.shape[-2:]) for patch in patches}
        if len(grids) != 1:
            raise ModelError(f"all references must have one size, got {sorted(grids)} (rows, columns of tokens)")
        height, width = grids.pop()

        # One entry serves the whole batch: the timestep of references is fixed.
        time = torch.full((1,), timestep, device=patches[0].device)
        texts = []
        for index, embeds in enumerate(inputs.text_embeds):
            image = None if inputs.image_embeds is None else inputs.image_embeds[index]
            _, temb, text, image = self.condition_embedder(time, embeds, image)
            # (batch, image token + text token, dim)
            texts.append(text if image is None else torch.cat([image, text], dim=1))
        frames, extent = [patch.shape[2] for patch in patches], inputs.extent
        if extent is None:
            rotary = self.rope(sum(frames), height, width)
        else:
            rotary = self.rope.spread(frames, height, width, extent)
        stream = ReferenceStream(
            texts=tuple(texts),
            lengths=tuple(count * height * width for count in frames),
            temb=temb.unflatten(1, (6, -1)),  # (1, 6 * dim) -> (1, 6, dim)
            rotary=rotary,
        )
        # per reference (batch, dim, frame, row, column) -> (batch, token, dim), joined on the token axis
        tokens = torch.cat([patch.flatten(2).transpose(1, 2) for patch in patches], dim=1).contiguous()
        grid = (height, width) if extent is None else (extent.height, extent.width)
        return ReferenceTokens(tokens, stream, grid)


class WanVideoAsPromptTransformer(ExpertModel, WanTransformer3DModel):
    """`WanTransformer3DModel` with experts; without a reference it equals the stock class, bit for bit.

    Args:
        expert_blocks: Indices of the blocks with an expert; None for all.
        attention_mode: Mode that the expert was trained for, `joint` (two-way) or `cached` (one-way).
        reference_timestep: Fixed timestep of the reference, in 0..1000. The released models use 1.
        first_frame_fill: Frames that follow the first one in the first-frame latents: `grey`, as in the released
            models, or `repeat` (see `sememe.backbones.first_frame`).

    The other arguments are those of the stock class.
    """

    _no_split_modules: ClassVar[list[str]] = ["WanTransformerBlock", "WanVideoAsPromptBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["WanTransformerBlock", "WanVideoAsPromptBlock"]
    # Unlike the stock plan, split tokens before the first block, because the block may also take a reference.
    _cp_plan: ClassVar[dict[str, Any]] = {
        "rope": {place: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True) for place in (0, 1)},
        "split": SPLIT_TOKENS,
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    # Small and sensitive to rounding, so kept in full precision when weights are stored in 8 bits.
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "patch_embedding",
        "condition_embedder",
        "norm",
        "expert_embedder",
    ]
    # These also run outside `forward`, for references, so group offload must fetch their weights separately.
    _group_offload_block_modules: ClassVar[list[str]] = [
        "expert_embedder",
        "rope",
        "patch_embedding",
        "condition_embedder",
        "norm_out",
        "proj_out",
    ]
    backbone_class: ClassVar[Any] = WanTransformer3DModel
    expert_class_name: ClassVar[str] = "WanVideoAsPromptExpert"
    own_settings: ClassVar[tuple[str, ...]] = (
        "expert_blocks",
        "attention_mode",
        "reference_timestep",
        "first_frame_fill",
    )
    shared_settings: ClassVar[tuple[str, ...]] = (
        "patch_size",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "text_dim",
        "freq_dim",
        "ffn_dim",
        "num_layers",
        "cross_attn_norm",
        "image_dim",
        "added_kv_proj_dim",
        "pos_embed_seq_len",
    )
    key_map: ClassVar[KeyMap] = WAN_KEYS

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,  # noqa: FBT001, FBT002 (the stock signature)
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        expert_blocks: Sequence[int] | None = None,
        attention_mode: str = "joint",
        reference_timestep: float = 1.0,
        first_frame_fill: FirstFrameFill = "grey",
    ) -> None:
        super().__init__(
            patch_size=tuple(patch_size),
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        indices = self._check_settings(expert_blocks, attention_mode, reference_timestep, num_layers)
        check_fill(first_frame_fill)
        self.register_to_config(
            expert_blocks=indices, attention_mode=attention_mode, reference_timestep=reference_timestep
        )
        dim = num_attention_heads * attention_head_dim
        for index in indices:
            self.blocks[index] = WanVideoAsPromptBlock(
                dim,
                ffn_dim,
                num_attention_heads,
                qk_norm or "",
                cross_attn_norm,
                eps,
                added_kv_proj_dim,
                is_last_expert=index == indices[-1],
            )
        for block in self.blocks:
            block.attn2.set_processor(TextAttnProcessor())
        self.expert_embedder = WanExpertEmbedder(self.config)
        self.split = TokenSplit()

    @classmethod
    def from_backbone(
        cls,
        backbone: WanTransformer3DModel,
        expert_blocks: Sequence[int] | None = None,
        attention_mode: str = "cached",
        reference_timestep: float = 1.0,
        first_frame_fill: FirstFrameFill = "grey",
    ) -> "WanVideoAsPromptTransformer":
        """Add experts to a backbone, each a copy of its block.

        The new model takes over the backbone's modules without copying them, so do not use `backbone` afterwards.

        Raises:
            ModelError: If a setting does not fit the backbone.
        """
        own = (expert_blocks, attention_mode, reference_timestep, first_frame_fill)
        return cls._put_on_backbone(backbone, dict(zip(cls.own_settings, own, strict=True)))

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        """Embed references once, for all steps of a two-way model.

        Raises:
            ModelError: If the inputs do not fit the model.
        """
        channels = {latents.shape[1] for latents in inputs.latents}
        if channels != {self.config.in_channels}:
            raise ModelError(
                f"reference latents need {self.config.in_channels} channels (latents, mask and first-frame latents), "
                f"got {sorted(channels)}"
            )
        if (inputs.image_embeds is None) != (self.config.image_dim is None):
            state = "needs" if self.config.image_dim else "does not take"
            raise ModelError(f"this model {state} image embeddings of its references (image_dim in its config)")
        tokens: ReferenceTokens = self.expert_embedder(inputs, self.config.reference_timestep)
        if self._parallel_config is None:
            return tokens
        return split_reference(self.split, tokens, count_ranks(self._parallel_config), has_text_tokens=False)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode_reference(
        self,
        inputs: ReferenceInputs,
        *,
        approximate: bool = False,
    ) -> ReferenceCache:
        """Run references through the expert alone and keep their keys and values; differentiable.

        Args:
            inputs: References, of which the first counts as the farthest in time.
            approximate: Allow this for a two-way model, whose result then deviates.

        Raises:
            ModelError: If the model was trained two-way and `approximate` is False, or the inputs do not fit.
        """
        with self._without_feature_cache():
            return self._encode_tokens(self.embed_reference(inputs), approximate=approximate)

    def _encode_tokens(self, reference: ReferenceTokens, *, approximate: bool = False) -> ReferenceCache:
        self._check_may_encode(approximate=approximate)
        hidden_states, keys, values = reference.hidden_states, [], []
        for index in self.config.expert_blocks:
            encoded: EncodedReference = self._run_block(index, hidden_states, None, None, None, reference.stream)
            hidden_states = encoded.hidden_states
            keys.append(encoded.key)
            values.append(encoded.value)
        return ReferenceCache(tuple(keys), tuple(values), reference.grid, reference.num_ranks)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def rotary_tables(self, latents: VideoLatents) -> RotaryTables:
        """Compute `image_rotary_emb` of `forward` for all latents of this size."""
        return RotaryTables(*self.rope(latents))

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def cache_text(self, text_embeds: TextEmbeds, image_embeds: ImageEmbeds | None = None) -> KeptText:
        """Project a text to the keys and values of every block, for `forward` at all steps.

        Args:
            text_embeds: Output of the text encoder.
            image_embeds: Output of the image encoder, for backbones that read it.
        """
        text = self.condition_embedder.text_embedder(text_embeds)
        if image_embeds is not None:
            text = torch.cat([self.condition_embedder.image_embedder(image_embeds), text], dim=1)
        # condition_embedder needs a text, of the right dtype, even where only the timestep is to be embedded.
        stub = text_embeds.new_zeros(text_embeds.shape[0], 1, text_embeds.shape[2])
        return KeptText(tuple(project_text(block.attn2, text) for block in self.blocks), stub)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def cache_captions(self, reference: ReferenceTokens) -> ReferenceTokens:
        """Project the captions of a two-way model's references to the keys and values of every expert."""
        experts = [self.blocks[index].expert.output for index in self.config.expert_blocks[:-1]]
        projected = [tuple(project_text(expert.attn2, text) for text in reference.stream.texts) for expert in experts]
        # The last expert computes no result for the reference, so it needs no caption.
        return replace(reference, text_keys=(*projected, ()))

    def forward(
        self,
        hidden_states: VideoLatents,
        timestep: Timesteps | TokenTimesteps,
        encoder_hidden_states: TextEmbeds | KeptText,
        encoder_hidden_states_image: ImageEmbeds | None = None,
        return_dict: bool = True,  # noqa: FBT001, FBT002 (the stock signature)
        attention_kwargs: dict[str, Any] | None = None,
        reference: ReferenceCache | ReferenceTokens | ReferenceInputs | None = None,
        reference_strength: float = 1.0,
        image_rotary_emb: RotaryTables | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity of a target, optionally with a reference.

        Args:
            hidden_states: Noisy latents, followed on the channel axis by the mask and first-frame latents.
            timestep: Timesteps in 0..1000, per target or per token.
            encoder_hidden_states: Embedded text, or the result of `cache_text`.
            encoder_hidden_states_image: Image embeddings; None with the result of `cache_text`.
            return_dict: Return an output record rather than a tuple.
            attention_kwargs: `scale` of LoRA weights.
            reference: None for the stock forward, a KV cache to read, or references to attend to in the model's
                mode. A cache of batch size 1 is used for every target.
            reference_strength: Factor in 0..1 on the weight of the reference's tokens in the target's softmax, before
                it is normalised: 0 is the stock forward, 1 is how the model was trained.
            image_rotary_emb: Result of `rotary_tables`; None to compute it.

        Raises:
            ModelError: If reference and target do not fit together.
        """
        check_strength(reference_strength)
        reference = None if reference_strength == 0.0 else reference
        # With context parallelism the stock forward would not split the target as `_cp_plan` says.
        if reference is None and not isinstance(encoder_hidden_states, KeptText) and self._parallel_config is None:
            return super().forward(
                hidden_states,
                timestep,
                encoder_hidden_states,
                encoder_hidden_states_image,
                return_dict=return_dict,
                attention_kwargs=attention_kwargs,
            )
        return self._forward_with_reference(
            hidden_states,
            timestep,
            encoder_hidden_states,
            encoder_hidden_states_image,
            reference=reference,
            strength=reference_strength,
            return_dict=return_dict,
            attention_kwargs=attention_kwargs,
            image_rotary_emb=image_rotary_emb,
        )

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def _forward_with_reference(
        self,
        latents: VideoLatents,
        timestep: Timesteps | TokenTimesteps,
        text: TextEmbeds | KeptText,
        image: ImageEmbeds | None = None,
        *,
        reference: ReferenceCache | ReferenceTokens | ReferenceInputs | None,
        strength: float = 1.0,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        kept: list[EncodedReference] | None = None,
        image_rotary_emb: RotaryTables | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        given = None if reference is None else self._prepare_reference(reference)
        if given is not None:
            _, patch_height, patch_width = self.config.patch_size
            check_grid(given, (latents.shape[-2] // patch_height, latents.shape[-1] // patch_width))
            given = given.expand(latents.shape[0])

        rotary = self.rope(latents) if image_rotary_emb is None else image_rotary_emb
        # (batch, channel, frame, height, width) -> (batch, dim, frame, row, column) -> (batch, token, dim)
        patches = self.patch_embedding(latents)
        tokens = self.split(patches.flatten(2).transpose(1, 2)).contiguous()
        timestep = self.split(timestep) if timestep.ndim == 2 else timestep
        tokens_per_step = timestep.shape[1] if timestep.ndim == 2 else None
        embeds = text.stub if isinstance(text, KeptText) else text
        temb, modulation, embedded, image = self.condition_embedder(
            timestep.flatten(), embeds, image, timestep_seq_len=tokens_per_step
        )
        modulation = modulation.unflatten(-1, (6, -1))  # (..., 6 * dim) -> (..., 6, dim)
        if image is not None:
            embedded = torch.cat([image, embedded], dim=1)

        texts = text.blocks if isinstance(text, KeptText) else (embedded,) * len(self.blocks)
        arguments = [(block_text, modulation, rotary) for block_text in texts]
        if given is None or isinstance(given, ReferenceCache):
            tokens = self._read_cache(tokens, arguments, given, strength)
        else:
            stream = given.stream._replace(strength=strength)
            tokens = self._attend_jointly(tokens, arguments, given, stream, kept)
        sample = self._project_out(tokens, temb, patches.shape[2:])
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _read_cache(
        self, tokens: Tokens, arguments: Sequence[tuple], cache: ReferenceCache | None, strength: float
    ) -> Tokens:
        """Run all blocks on the target, whose experts read the KV cache."""
        pairs: dict[int, ReferenceAttention] = {}
        if cache is not None:
            entries = zip(self.config.expert_blocks, cache.keys, cache.values, strict=True)
            pairs = {index: ReferenceAttention(None, key, value, strength) for index, key, value in entries}
        for index in range(len(self.blocks)):
            read = (pairs[index],) if index in pairs else ()
            tokens = self._run_block(index, tokens, *arguments[index], *read)
        return tokens

    def _attend_jointly(
        self,
        tokens: Tokens,
        arguments: Sequence[tuple],
        reference: ReferenceTokens,
        stream: ReferenceStream,
        kept: list[EncodedReference] | None,
    ) -> Tokens:
        """Run all blocks on target and reference, which attend to each other; `kept` collects the reference's keys."""
        source = reference.hidden_states
        lengths = [tokens.shape[1], source.shape[1]]
        places = {block: place for place, block in enumerate(self.config.expert_blocks)}
        for index in range(len(self.blocks)):
            if index not in places:
                tokens = self._run_block(index, tokens, *arguments[index])
                continue
            if kept is not None:
                kept.append(self._run_block(index, source, None, None, None, stream._replace(keys_only=True)))
            if reference.text_keys is not None:
                stream = stream._replace(texts=reference.text_keys[places[index]])
            # (batch, target token + reference token, dim)
            both = self._run_block(index, torch.cat([tokens, source], dim=1), *arguments[index], stream)
            tokens, source = both.split(lengths, dim=1)
        return tokens

    def _project_out(
        self,
        tokens: Tokens,
        temb: Float[Tensor, "time_batch dim"] | Float[Tensor, "batch time_token dim"],
        grid: torch.Size,
    ) -> VideoLatents:
        """Apply the stock output head: modulated norm, projection, and patches back to latents."""
        table = self.scale_shift_table.to(temb.device)
        # (1, 2, dim) + (batch, 1, dim), or (1, 1, 2, dim) + (batch, token, 1, dim): shift and scale per target or token
        both = table + temb.unsqueeze(1) if temb.ndim == 2 else table.unsqueeze(0) + temb.unsqueeze(2)
        shift, scale = (part.to(tokens.device) for part in both.unbind(dim=-2))
        if temb.ndim == 2:
            # (batch, dim) -> (batch, 1, dim)
            shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
        tokens = self.proj_out((self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens))

        patch = tuple(self.config.patch_size)
        # (batch, token, patch) -> (batch, frame, row, column, patch frame, patch row, patch column, channel)
        tokens = tokens.unflatten(1, tuple(grid)).unflatten(-1, (*patch, -1))
        # -> (batch, channel, frame, patch frame, row, patch row, column, patch column)
        tokens = tokens.permute(0, 7, 1, 4, 2, 5, 3, 6)
        # -> (batch, channel, frame, height, width)
        return tokens.flatten(6, 7).flatten(4, 5).flatten(2, 3)
