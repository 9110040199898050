"""Video-As-Prompt on Wan: diffusers' transformer, frozen, with an expert for a reference video in some of its blocks.

After arXiv 2510.20888 (Video-As-Prompt), section 3. Two ways of attending, chosen when an expert is trained:

- `joint`: target and reference read each other, as in the released models. The reference has to be carried through
  every denoising step.
- `cached`: the target reads the reference, the reference only itself. Its keys and values are the same at every step,
  so that they are computed once.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from sememe.errors import ModelError
from sememe.models.condition import FirstFrameFill, check_fill
from sememe.models.key_map_wan import is_expert_key, to_backbone_key
from sememe.models.reference import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.models.rotary import ReferenceRotaryPosEmbed
from sememe.models.wan_expert import (
    EncodedReference,
    JointAttnProcessor,
    ReferenceAttention,
    ReferenceStream,
    WanVideoAsPromptBlock,
)
from sememe.models.wan_files import OWN_SETTINGS, TwoFolderFiles


class WanExpertEmbedder(nn.Module):
    """Turns references into tokens: the expert's patch embedding, condition embedder and reference positions."""

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
        """Embeds references at one timestep, in 0..1000."""
        patches = [self.patch_embedding(latents) for latents in inputs.latents]
        grids = {tuple(patch.shape[-2:]) for patch in patches}
        if len(grids) != 1:
            raise ModelError(f"all references must have one size, got {sorted(grids)} (rows, columns of tokens)")
        height, width = grids.pop()

        # One row serves the whole batch: the reference's timestep never differs within it.
        time = torch.full((1,), timestep, device=patches[0].device)
        texts = []
        for index, embeds in enumerate(inputs.text_embeds):
            image = None if inputs.image_embeds is None else inputs.image_embeds[index]
            _, temb, text, image = self.condition_embedder(time, embeds, image)
            texts.append(text if image is None else torch.cat([image, text], dim=1))
        stream = ReferenceStream(
            texts=tuple(texts),
            lengths=tuple(patch.shape[2] * height * width for patch in patches),
            temb=temb.unflatten(1, (6, -1)),
            rotary=self.rope(sum(patch.shape[2] for patch in patches), height, width),
        )
        tokens = torch.cat([patch.flatten(2).transpose(1, 2) for patch in patches], dim=1).contiguous()
        return ReferenceTokens(tokens, stream, (height, width))


class WanVideoAsPromptTransformer(TwoFolderFiles, WanTransformer3DModel):
    """`WanTransformer3DModel` with experts; without a reference it computes what the stock class computes, bitwise.

    Args:
        expert_blocks: indices of the blocks that carry an expert; None means all of them.
        attention_mode: `joint` (two-way) or `cached` (one-way); what the expert was trained for.
        reference_timestep: the fixed timestep, in 0..1000, at which the reference is read. The released models use 1.
        first_frame_fill: what follows the first frame in the condition that the model was trained with: `grey`, as in
            the released models, or `repeat` (see `sememe.models.condition`).

    The other arguments are those of the stock class.
    """

    _no_split_modules: ClassVar[list[str]] = ["WanTransformerBlock", "WanVideoAsPromptBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["WanTransformerBlock", "WanVideoAsPromptBlock"]

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
        indices = _check_settings(expert_blocks, attention_mode, reference_timestep, num_layers)
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
        self.expert_embedder = WanExpertEmbedder(self.config)

    @classmethod
    def from_backbone(
        cls,
        backbone: WanTransformer3DModel,
        expert_blocks: Sequence[int] | None = None,
        attention_mode: str = "cached",
        reference_timestep: float = 1.0,
        first_frame_fill: FirstFrameFill = "grey",
    ) -> "WanVideoAsPromptTransformer":
        """Puts experts on a backbone, each a copy of the block that it serves.

        The backbone's modules move into the new model (they are not copied): do not use `backbone` further.

        Raises:
            ModelError: where a setting does not fit the backbone.
        """
        settings = {key: value for key, value in backbone.config.items() if not key.startswith("_")}
        own = (expert_blocks, attention_mode, reference_timestep, first_frame_fill)
        settings |= dict(zip(OWN_SETTINGS, own, strict=True))
        with init_empty_weights(include_buffers=False):
            model = cls(**settings)
        for name, module in backbone.named_children():
            if name != "blocks":
                setattr(model, name, module)
        model.scale_shift_table = backbone.scale_shift_table
        for index, block in enumerate(backbone.blocks):
            if index not in model.config.expert_blocks:
                model.blocks[index] = block
                continue
            for name, module in block.named_children():
                setattr(model.blocks[index], name, module)
            model.blocks[index].scale_shift_table = block.scale_shift_table
            block.attn1.set_processor(JointAttnProcessor())
        model.copy_backbone_to_expert()
        model.gradient_checkpointing = backbone.gradient_checkpointing
        return model.train(backbone.training)

    @torch.no_grad()
    def copy_backbone_to_expert(self) -> None:
        """Sets every expert tensor to a copy of its twin in the backbone, of the same dtype and on the same device."""
        tensors = self.state_dict()
        copies = {key: tensors[to_backbone_key(key)].clone() for key in tensors if is_expert_key(key)}
        self.load_state_dict(copies, strict=False, assign=True)
        self.expert_embedder.rope.to(self.rope.freqs_cos.device)

    def expert_named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the expert."""
        return [(name, parameter) for name, parameter in self.named_parameters() if is_expert_key(name)]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The expert's parameters, without those behind its last attention, whose result nobody reads."""
        prefix = f"blocks.{self.config.expert_blocks[-1]}.expert."
        unread = tuple(prefix + part for part in ("output.", "projection.to_q.", "projection.norm_q."))
        return [parameter for name, parameter in self.expert_named_parameters() if not name.startswith(unread)]

    def freeze_backbone(self) -> None:
        """Leaves `trainable_parameters` to be trained and nothing else."""
        self.requires_grad_(False)
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        """Embeds references; in `joint` mode this saves doing it at every step.

        Raises:
            ModelError: where the inputs do not fit the model.
        """
        channels = {latents.shape[1] for latents in inputs.latents}
        if channels != {self.config.in_channels}:
            raise ModelError(
                f"reference latents need {self.config.in_channels} channels (latents, mask and condition), "
                f"got {sorted(channels)}"
            )
        if (inputs.image_embeds is None) != (self.config.image_dim is None):
            state = "needs" if self.config.image_dim else "does not take"
            raise ModelError(f"this model {state} image embeddings of its references (image_dim in its config)")
        return self.expert_embedder(inputs, self.config.reference_timestep)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode_reference(
        self,
        reference_latents: torch.Tensor | Sequence[torch.Tensor],
        reference_text_embeds: torch.Tensor | Sequence[torch.Tensor],
        reference_image_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        *,
        approximate: bool = False,
    ) -> ReferenceCache:
        """Runs the reference through the expert alone and keeps its keys and values; differentiable.

        Args:
            reference_latents: (batch, channel, frame, height, width) with mask and condition channels; a sequence of
                them for several references, of which the first counts as the farthest in time.
            reference_text_embeds: (batch, text token, text_dim), the embedded caption; one per reference.
            reference_image_embeds: (batch, image token, image_dim), for backbones that read image embeddings.
            approximate: allows this for a model that was trained two-way, whose result then deviates.

        Raises:
            ModelError: where the model was trained two-way and `approximate` is False, or the inputs do not fit.
        """
        inputs = ReferenceInputs(
            _as_tuple(reference_latents),
            _as_tuple(reference_text_embeds),
            None if reference_image_embeds is None else _as_tuple(reference_image_embeds),
        )
        # Caches of features compare successive steps of a target; a reference has but one.
        cache_config = self._cache_config
        if cache_config is not None:
            self.disable_cache()
        try:
            return self._encode_tokens(self.embed_reference(inputs), approximate=approximate)
        finally:
            if cache_config is not None:
                self.enable_cache(cache_config)

    def _encode_tokens(self, reference: ReferenceTokens, *, approximate: bool = False) -> ReferenceCache:
        if self.config.attention_mode != "cached" and not approximate:
            raise ModelError(
                "this expert was trained two-way (attention_mode 'joint'), so its reference cannot be encoded once "
                "for all steps; say approximate=True to do so all the same, or use the joint mode"
            )
        hidden_states, keys, values = reference.hidden_states, [], []
        for index in self.config.expert_blocks:
            encoded: EncodedReference = self._run_block(index, hidden_states, None, None, None, reference.stream)
            hidden_states = encoded.hidden_states
            keys.append(encoded.key)
            values.append(encoded.value)
        return ReferenceCache(tuple(keys), tuple(values), reference.grid)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        return_dict: bool = True,  # noqa: FBT001, FBT002 (the stock signature)
        attention_kwargs: dict[str, Any] | None = None,
        reference: ReferenceCache | ReferenceTokens | ReferenceInputs | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predicts, for a target that reads a reference.

        Args:
            hidden_states: (batch, channel, frame, height, width): noisy latents, then mask and condition.
            timestep: (batch,), or (batch, token) where it differs within a target, in 0..1000.
            encoder_hidden_states: (batch, text token, text_dim).
            encoder_hidden_states_image: (batch, image token, image_dim).
            reference: None for the stock forward; a `ReferenceCache` to read; or references that are attended to in
                the model's own mode. A cache of batch 1 serves every target.

        Raises:
            ModelError: where reference and target do not fit together.
        """
        if reference is None:
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
            reference,
            return_dict=return_dict,
            attention_kwargs=attention_kwargs,
        )

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def _forward_with_reference(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        image: torch.Tensor | None,
        reference: ReferenceCache | ReferenceTokens | ReferenceInputs,
        *,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        given = self._prepare_reference(reference)
        _, patch_height, patch_width = self.config.patch_size
        grid = (latents.shape[-2] // patch_height, latents.shape[-1] // patch_width)
        _check_grid(given, grid)
        given = given.expand(latents.shape[0])

        rotary = self.rope(latents)
        patches = self.patch_embedding(latents)
        tokens = patches.flatten(2).transpose(1, 2).contiguous()
        tokens_per_step = timestep.shape[1] if timestep.ndim == 2 else None
        temb, modulation, text, image = self.condition_embedder(
            timestep.flatten(), text, image, timestep_seq_len=tokens_per_step
        )
        modulation = modulation.unflatten(-1, (6, -1))
        if image is not None:
            text = torch.cat([image, text], dim=1)

        arguments = (text, modulation, rotary)
        if isinstance(given, ReferenceCache):
            tokens = self._read_cache(tokens, arguments, given)
        else:
            tokens = self._attend_jointly(tokens, arguments, given)
        sample = self._project_out(tokens, temb, patches.shape[2:])
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _prepare_reference(
        self, reference: ReferenceCache | ReferenceTokens | ReferenceInputs
    ) -> ReferenceCache | ReferenceTokens:
        """The reference as the blocks take it in this model's mode."""
        if isinstance(reference, ReferenceCache):
            return reference
        tokens = self.embed_reference(reference) if isinstance(reference, ReferenceInputs) else reference
        if self.config.attention_mode == "joint":
            return tokens
        if self.is_cache_enabled:
            raise ModelError("with a feature cache on, pass what encode_reference returned, not the reference")
        return self._encode_tokens(tokens)

    def _run_block(self, index: int, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(self.blocks[index], *arguments)
        return self.blocks[index](*arguments)

    def _read_cache(self, tokens: torch.Tensor, arguments: tuple, cache: ReferenceCache) -> torch.Tensor:
        pairs = dict(zip(self.config.expert_blocks, zip(cache.keys, cache.values, strict=True), strict=True))
        for index in range(len(self.blocks)):
            reading = (ReferenceAttention(None, *pairs[index]),) if index in pairs else ()
            tokens = self._run_block(index, tokens, *arguments, *reading)
        return tokens

    def _attend_jointly(self, tokens: torch.Tensor, arguments: tuple, reference: ReferenceTokens) -> torch.Tensor:
        source = reference.hidden_states
        lengths = [tokens.shape[1], source.shape[1]]
        for index in range(len(self.blocks)):
            if index in self.config.expert_blocks:
                both = self._run_block(index, torch.cat([tokens, source], dim=1), *arguments, reference.stream)
                tokens, source = both.split(lengths, dim=1)
            else:
                tokens = self._run_block(index, tokens, *arguments)
        return tokens

    def _project_out(self, tokens: torch.Tensor, temb: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        """The stock output head: modulated norm, projection, and patches back to (batch, channel, frame, h, w)."""
        table = self.scale_shift_table.to(temb.device)
        # temb is (batch, dim), or (batch, token, dim): one shift and scale per target or per token.
        both = table + temb.unsqueeze(1) if temb.ndim == 2 else table.unsqueeze(0) + temb.unsqueeze(2)
        shift, scale = (part.to(tokens.device) for part in both.unbind(dim=-2))
        if temb.ndim == 2:
            shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
        tokens = self.proj_out((self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens))

        patch = tuple(self.config.patch_size)
        tokens = tokens.unflatten(1, tuple(grid)).unflatten(-1, (*patch, -1))
        tokens = tokens.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return tokens.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _as_tuple(tensors: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)


def _check_settings(
    expert_blocks: Sequence[int] | None, attention_mode: str, reference_timestep: float, num_layers: int
) -> list[int]:
    """The sorted indices of expert blocks; all settings valid for a backbone of `num_layers` blocks."""
    indices = sorted(range(num_layers) if expert_blocks is None else expert_blocks)
    if not indices or len(set(indices)) < len(indices) or not 0 <= indices[0] <= indices[-1] < num_layers:
        raise ModelError(f"expert_blocks must be different indices within 0..{num_layers - 1}, got {indices}")
    if attention_mode not in ("joint", "cached"):
        raise ModelError(f"attention_mode must be 'joint' or 'cached', got {attention_mode!r}")
    if not 0 <= reference_timestep <= 1000:
        raise ModelError(f"reference_timestep must be within 0..1000, got {reference_timestep}")
    return indices


def _check_grid(reference: ReferenceCache | ReferenceTokens, grid: tuple[int, int]) -> None:
    if reference.grid != grid:
        raise ModelError(
            f"reference and target must have the same height and width: got {reference.grid} and {grid} "
            "(rows, columns of tokens)"
        )
