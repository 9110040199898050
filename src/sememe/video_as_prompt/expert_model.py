"""Share between transformers with experts how experts are added to a backbone and which weights are trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from sememe.compute.lora import restrict_to_backbone
from sememe.compute.speed import check_two_way, enable_checked
from sememe.errors import ModelError
from sememe.video_as_prompt.context_parallel import check_ranks
from sememe.video_as_prompt.expert_files import TwoFolderFiles
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.shapes import FrameFirstLatents, VideoLatents


@dataclass(frozen=True)
class RefreshedPrediction:
    """A prediction, and the reference's KV cache of that step."""

    sample: VideoLatents | FrameFirstLatents
    reference: ReferenceCache


class ExpertModel(TwoFolderFiles):
    """Methods of a transformer with experts; list the stock class after it among the bases.

    Attributes:
        may_follow_target: Whether the reference may be read at the target's timestep.
    """

    may_follow_target: ClassVar[bool] = False

    @classmethod
    def _put_on_backbone(cls: Any, backbone: Any, own_settings: Mapping[str, Any]) -> Any:
        """Move the modules of a backbone into a new model whose experts are copies of their blocks."""
        settings = {key: value for key, value in backbone.config.items() if not key.startswith("_")}
        with init_empty_weights(include_buffers=False):
            model = cls(**settings, **own_settings)
        list_name = cls.key_map.blocks
        blocks = getattr(model, list_name)
        for index, block in enumerate(getattr(backbone, list_name)):
            for name in ("attn1", "attn2"):
                if hasattr(block, name):
                    getattr(block, name).set_processor(getattr(blocks[index], name).processor)
            if index not in model.config.expert_blocks:
                blocks[index] = block
                continue
            _move_weights(block, blocks[index])
        _move_weights(backbone, model, skip=list_name)
        model.copy_backbone_to_expert()
        model.gradient_checkpointing = backbone.gradient_checkpointing
        return model.train(backbone.training)

    @torch.no_grad()
    def copy_backbone_to_expert(self: Any) -> None:
        """Set every expert tensor to a copy of the backbone's, with the same dtype and device."""
        tensors, names = self.state_dict(), self.key_map
        copies = {key: tensors[names.to_backbone_key(key)].clone() for key in tensors if names.is_expert_key(key)}
        self.load_state_dict(copies, strict=False, assign=True)
        # Move tables that are computed, not stored, to the device of the weights.
        embedder = self.expert_embedder
        embedder.to(next(embedder.parameters()).device)

    def expert_named_parameters(self: Any) -> list[tuple[str, nn.Parameter]]:
        """Return names and parameters of the expert."""
        return [entry for entry in self.named_parameters() if self.key_map.is_expert_key(entry[0])]

    def trainable_parameters(self: Any) -> list[nn.Parameter]:
        """Return the expert's parameters except those after its last attention, whose result is unused."""
        prefix = f"{self.key_map.blocks}.{self.config.expert_blocks[-1]}.expert."
        unread = tuple(prefix + part for part in ("output.", "projection.to_q.", "projection.norm_q."))
        return [parameter for name, parameter in self.expert_named_parameters() if not name.startswith(unread)]

    def add_adapter(self: Any, adapter_config: Any, adapter_name: str = "default") -> None:
        """Add a PEFT adapter to the backbone; for the expert see `sememe.compute.lora`.

        Args:
            adapter_config: PEFT configuration such as `LoraConfig`; its targets are matched outside the expert only.
            adapter_name: Name of the adapter.
        """
        super().add_adapter(restrict_to_backbone(self, adapter_config), adapter_name)  # type: ignore[misc]

    def enable_cache(self: Any, config: Any) -> None:
        """Enable one of diffusers' feature caches; `sememe.compute.speed` lists those that work.

        Raises:
            ModelError: If the cache would have no effect or give wrong results.
        """
        enable_checked(self, config, super().enable_cache)  # type: ignore[misc]

    def freeze_backbone(self: Any) -> None:
        """Require gradients for `trainable_parameters` only."""
        self.requires_grad_(False)
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    def _check_settings(
        self,
        expert_blocks: Sequence[int] | None,
        attention_mode: str,
        reference_timestep: float | None,
        num_layers: int,
    ) -> list[int]:
        """Check the settings for a backbone of `num_layers` blocks and return the sorted indices of expert blocks."""
        indices = sorted(range(num_layers) if expert_blocks is None else expert_blocks)
        if not indices or len(set(indices)) < len(indices) or not 0 <= indices[0] <= indices[-1] < num_layers:
            raise ModelError(f"expert_blocks must be different indices within 0..{num_layers - 1}, got {indices}")
        if attention_mode not in ("joint", "cached"):
            raise ModelError(f"attention_mode must be 'joint' or 'cached', got {attention_mode!r}")
        if reference_timestep is None and not (self.may_follow_target and attention_mode == "joint"):
            raise ModelError(
                f"reference_timestep must be a number within 0..1000 for attention_mode {attention_mode!r} of a "
                f"{type(self).__name__}, got None"
            )
        if reference_timestep is not None and not 0 <= reference_timestep <= 1000:
            raise ModelError(f"reference_timestep must be within 0..1000, got {reference_timestep}")
        return indices

    @contextmanager
    def _without_feature_cache(self: Any) -> Iterator[None]:
        """Disable the feature cache, which compares successive steps of a target, while a reference is encoded."""
        cache_config = self._cache_config
        if cache_config is not None:
            self.disable_cache()
        try:
            yield
        finally:
            if cache_config is not None:
                self.enable_cache(cache_config)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def refresh_reference(
        self: Any, *arguments: Any, reference: ReferenceTokens, reference_strength: float = 1.0, **settings: Any
    ) -> RefreshedPrediction:
        """Run a two-way forward and return the reference's KV cache too, for `forward` at the steps that follow.

        The cache holds the keys and values of this step, in which the reference read the target; at other steps it is
        approximate.

        Args:
            arguments: As in `forward`.
            reference: Result of `embed_reference`.
            reference_strength: As in `forward`, but above 0.
            settings: As in `forward`.

        Raises:
            ModelError: If the model was trained one-way, or reference and target do not fit together.
        """
        if self.config.attention_mode != "joint":
            raise ModelError("this expert was trained one-way: encode_reference gives its exact keys and values")
        check_strength(reference_strength)
        assert reference_strength > 0.0
        if self.is_cache_enabled:
            raise ModelError("reference_refresh and a feature cache both skip steps; disable one of them")
        kept: list[Any] = []
        output = self._forward_with_reference(
            *arguments, reference=reference, strength=reference_strength, kept=kept, **settings
        )
        keys, values = tuple(encoded.key for encoded in kept), tuple(encoded.value for encoded in kept)
        return RefreshedPrediction(output.sample, ReferenceCache(keys, values, reference.grid, reference.num_ranks))

    def _check_may_encode(self: Any, *, approximate: bool) -> None:
        if self.config.attention_mode != "cached" and not approximate:
            raise ModelError(
                "this expert was trained two-way (attention_mode 'joint'), so its reference cannot be encoded once "
                "for all steps; pass approximate=True to do so nevertheless, or use the joint mode"
            )

    def _prepare_reference(
        self: Any, reference: ReferenceCache | ReferenceTokens | ReferenceInputs, **step: Any
    ) -> ReferenceCache | ReferenceTokens:
        """Convert a reference to the form for this model's mode; `step` holds arguments of the encoding."""
        if not isinstance(reference, ReferenceInputs):
            check_ranks(reference, self._parallel_config)
        if isinstance(reference, ReferenceCache):
            _check_cache(reference, self.config)
            return reference
        tokens = self.embed_reference(reference) if isinstance(reference, ReferenceInputs) else reference
        if self.config.attention_mode == "joint":
            if self.is_cache_enabled:
                check_two_way(self, len(tokens.stream.lengths))
            return tokens
        if self.is_cache_enabled:
            raise ModelError("with a feature cache on, pass what encode_reference returned, not the reference")
        return self._encode_tokens(tokens, **step)

    def _run_block(self: Any, index: int, *arguments: Any) -> Any:
        block = getattr(self, self.key_map.blocks)[index]
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)


def check_strength(strength: float) -> None:
    """Raise `ModelError` for a strength of the reference outside 0..1."""
    if not 0.0 <= strength <= 1.0:
        raise ModelError(f"reference_strength must be within 0..1, got {strength}")


def check_grid(reference: ReferenceCache | ReferenceTokens, grid: tuple[int, int]) -> None:
    """Raise `ModelError` if the grids of tokens (rows, columns) of reference and target differ."""
    if reference.grid != grid:
        raise ModelError(
            f"reference and target must have the same height and width: got {reference.grid} and {grid} "
            "(rows, columns of tokens)"
        )


def _check_cache(cache: ReferenceCache, config: Any) -> None:
    expected = (len(config.expert_blocks), config.num_attention_heads, config.attention_head_dim)
    got = (len(cache.keys), *cache.keys[0].shape[2:])
    if got != expected:
        raise ModelError(
            f"this reference was encoded by another model: it has {got} experts, heads and channels of a head, this "
            f"model has {expected}"
        )


def _move_weights(source: nn.Module, target: nn.Module, skip: str = "") -> None:
    for name, module in source.named_children():
        if name != skip:
            setattr(target, name, module)
    for name, parameter in source.named_parameters(recurse=False):
        setattr(target, name, parameter)
