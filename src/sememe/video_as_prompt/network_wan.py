"""Add experts for a reference video to diffusers' Wan transformer.

Follows arXiv 2510.20888 (Video-As-Prompt), section 3. An expert is trained for one of two attention modes:

- `joint` (two-way): target and reference read each other, as in the released models, so the reference runs through the
  network at every denoising step.
- `cached` (one-way): the target reads the reference, the reference only itself. The reference's keys and values are the
  same at every step and are computed once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin, WanTransformer3DModel
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float, Num
from torch import Tensor, nn

from sememe.backbones.cross_attention import KeptText, TextAttnProcessor, project_text
from sememe.backbones.first_frame import FirstFrameFill, check_fill
from sememe.backbones.stock_arguments import takes_arguments_of
from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_wan import JointAttnProcessor, WanVideoAsPromptBlock
from sememe.video_as_prompt.context_parallel import SPLIT_TOKENS, TokenSplit
from sememe.video_as_prompt.expert_files import WAN_KEYS, KeyMap
from sememe.video_as_prompt.expert_model import ExpertModel, add_reference_embedding, check_strength
from sememe.video_as_prompt.reference_attention import ReferenceStream
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.rotary import ReferenceRotaryPosEmbed, RotaryTables
from sememe.video_as_prompt.shapes import (
    Heads,
    ImageEmbeds,
    TextEmbeds,
    Timesteps,
    Tokens,
    TokenTimesteps,
    VideoLatents,
)


class WanExpertEmbedder(nn.Module):
    """Embed references as tokens: patches, captions, timestep and positions."""

    def __init__(self, config: FrozenDict) -> None:
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
        number = config.num_reference_embeddings
        self.reference_embeddings = nn.Parameter(torch.zeros(number, dim)) if number else None

    def forward(self, inputs: ReferenceInputs, timestep: Timesteps | Num[Tensor, " 1"]) -> ReferenceTokens:
        """Embed references at a timestep in 0..1000, of each or of all."""
        # per reference (batch, dim, frame, row, column)
        patches = [self.patch_embedding(latents) for latents in inputs.latents]
        grids = {tuple(patch.shape[-2:]) for patch in patches}
        if len(grids) != 1:
            raise ModelError(f"all references must have one size, got {sorted(grids)} (rows, columns of tokens)")
        height, width = grids.pop()

        texts = []
        for index, embeds in enumerate(inputs.text_embeds):
            image = None if inputs.image_embeds is None else inputs.image_embeds[index]
            _, temb, text, image = self.condition_embedder(timestep, embeds, image)
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
            temb=temb.unflatten(1, (6, -1)),  # (time_batch, 6 * dim) -> (time_batch, 6, dim)
            rotary=rotary,
        )
        # per reference (batch, dim, frame, row, column) -> (batch, token, dim), joined on the token axis
        streams = [
            add_reference_embedding(patch.flatten(2).transpose(1, 2), self.reference_embeddings, place, len(patches))
            for place, patch in enumerate(patches)
        ]
        tokens = torch.cat(streams, dim=1).contiguous()
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
        num_reference_embeddings: Largest number of references, each with a learned embedding that is added to its
            tokens; 0 for any number, without embeddings.

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
    backbone_class: ClassVar[type[ModelMixin]] = WanTransformer3DModel
    expert_class_name: ClassVar[str] = "WanVideoAsPromptExpert"
    own_settings: ClassVar[Mapping[str, Any]] = {
        "expert_blocks": None,
        "attention_mode": "cached",
        "reference_timestep": 1.0,
        "first_frame_fill": "grey",
        "num_reference_embeddings": 0,
    }
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
    @takes_arguments_of(WanTransformer3DModel)
    def __init__(
        self,
        *arguments: Any,
        expert_blocks: Sequence[int] | None = None,
        attention_mode: str = "joint",
        reference_timestep: float | None = 1.0,
        first_frame_fill: FirstFrameFill = "grey",
        num_reference_embeddings: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        # A file holds a list.
        self.register_to_config(patch_size=tuple(self.config.patch_size))
        check_fill(first_frame_fill)
        self._add_experts(WanVideoAsPromptBlock, expert_blocks, attention_mode, reference_timestep)
        for block in self.blocks:
            block.attn1.set_processor(JointAttnProcessor())
            block.attn2.set_processor(TextAttnProcessor())
        self.expert_embedder = WanExpertEmbedder(self.config)
        self.split = TokenSplit()

    def _embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        channels = {latents.shape[1] for latents in inputs.latents}
        if channels != {self.config.in_channels}:
            raise ModelError(
                f"reference latents need {self.config.in_channels} channels (latents, mask and first-frame latents), "
                f"got {sorted(channels)}"
            )
        if (inputs.image_embeds is None) != (self.config.image_dim is None):
            state = "needs" if self.config.image_dim else "does not take"
            raise ModelError(f"this model {state} image embeddings of its references (image_dim in its config)")
        # One entry serves the whole batch: the timestep of references is fixed.
        time = torch.full((1,), self.config.reference_timestep, device=inputs.latents[0].device)
        tokens: ReferenceTokens = self.expert_embedder(inputs, time)
        return tokens

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def denoise_reference(self, inputs: ReferenceInputs, timestep: Timesteps) -> VideoLatents:
        """Predict the velocity of one noisy reference by the expert alone and the backbone's output head.

        Args:
            inputs: The reference, its latents noisy.
            timestep: Its timesteps in 0..1000.
        """
        tokens: ReferenceTokens = self.expert_embedder(inputs, timestep)
        rows, columns = tokens.grid
        grid = torch.Size((tokens.hidden_states.shape[1] // (rows * columns), rows, columns))
        tokens = self._split_tokens(tokens)
        (finished,), _ = self._run_experts(tokens, tokens.stream._replace(finishes=True))
        embedder = self.condition_embedder
        temb = embedder.time_embedder(embedder.timesteps_proj(timestep).to(finished.dtype))
        return self._project_out(finished, temb, grid)

    def _make_stream(self, reference: ReferenceTokens) -> ReferenceStream:
        return reference.stream

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def rotary_tables(self, latents: VideoLatents) -> RotaryTables:
        """Compute `image_rotary_emb` of `forward` for all latents of this size."""
        return RotaryTables(*self.rope(latents))

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def cache_text(self, text_embeds: TextEmbeds, image_embeds: ImageEmbeds | None = None) -> KeptText:
        """Project a text to the keys and values of every block, for `forward` at all steps."""
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
    ) -> Transformer2DModelOutput | tuple[Float[Tensor, "batch out frame height width"]]:
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
        arguments = (hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image)
        options: dict[str, Any] = {"return_dict": return_dict, "attention_kwargs": attention_kwargs}
        # With context parallelism the stock forward would not split the target as `_cp_plan` says.
        if reference is None and not isinstance(encoder_hidden_states, KeptText) and self._parallel_config is None:
            return super().forward(*arguments, **options)
        options |= {"image_rotary_emb": image_rotary_emb}
        return self._forward_with_reference(*arguments, reference=reference, strength=reference_strength, **options)

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
        kept: list[tuple[Heads, Heads]] | None = None,
        image_rotary_emb: RotaryTables | None = None,
    ) -> Transformer2DModelOutput | tuple[Float[Tensor, "batch out frame height width"]]:
        _, patch_height, patch_width = self.config.patch_size
        grid = (latents.shape[-2] // patch_height, latents.shape[-1] // patch_width)
        given = self._prepare_reference(reference, grid, latents.shape[0])

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
        (tokens,) = self._run_blocks((tokens,), arguments, given, strength, kept)
        sample = self._project_out(tokens, temb, patches.shape[2:])
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

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
