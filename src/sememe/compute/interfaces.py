"""Protocols of the pipelines and networks that this package places, speeds up and adapts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Transformer(Protocol):
    """A network that denoises, transformer or U-Net, as the models of diffusers are."""

    _repeated_blocks: Sequence[str] | None

    @property
    def config(self) -> Any:
        """Arguments of its constructor, as attributes."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of its weights."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Predict."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the network and all modules in it."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the network and all modules in it, with their names."""

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the modules directly in it, with their names."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return its weights."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return its weights with their names."""

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module in it by its name."""

    def set_attention_backend(self, backend: str) -> None:
        """Choose the backend of its attention by name."""

    def enable_layerwise_casting(
        self, storage_dtype: torch.dtype, compute_dtype: torch.dtype, skip_modules_pattern: tuple[str, ...]
    ) -> None:
        """Store its layers in one precision, except those whose names match, and cast each to another to compute."""


@runtime_checkable
class KeyMap(Protocol):
    """What the names of a transformer's weights say.

    Attributes:
        blocks: Name of the list of its blocks.
    """

    blocks: str

    def is_expert_key(self, key: str) -> bool:
        """Return whether a weight is one of the expert."""


@runtime_checkable
class CachingTransformer(Transformer, Protocol):
    """A transformer that can keep results of earlier steps, as diffusers' feature caches do it."""

    _cache_config: Any

    def _reset_stateful_cache(self) -> None: ...

    @property
    def is_cache_enabled(self) -> bool:
        """Whether one of the caches is at work."""

    def disable_cache(self) -> None:
        """Take the cache off."""


@runtime_checkable
class ExpertTransformer(CachingTransformer, Protocol):
    """A transformer with experts beside its blocks."""

    @property
    def key_map(self) -> KeyMap:
        """What the names of its weights say."""

    def save_lora_adapter(self, save_directory: Any, adapter_name: str, **options: Any) -> None:
        """Write an adapter."""

    def load_lora_adapter(self, pretrained_model_name_or_path_or_dict: Any, **options: Any) -> None:
        """Read an adapter."""


@runtime_checkable
class DenoisingPipeline(Protocol):
    """A pipeline of any system."""

    @property
    def transformer(self) -> Any:
        """The network that denoises, a `Transformer`."""

    @property
    def vae(self) -> Any:
        """The autoencoder; None without one."""


@runtime_checkable
class Pipeline(DenoisingPipeline, Protocol):
    """A pipeline of diffusers."""

    current_timestep: float | None
    _exclude_from_cpu_offload: Sequence[str]
    _offload: Any
    _part_offloads: Sequence[Any]

    @property
    def components(self) -> Mapping[str, Any]:
        """Networks, tokenizers and schedulers by name; None for what it does without."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision in which the transformer computes."""

    @property
    def _execution_device(self) -> torch.device: ...

    def remove_all_hooks(self) -> None:
        """Undo every offload of whole components or single layers."""

    def enable_model_cpu_offload(self, *, device: torch.device | str) -> None:
        """Have each component come to a device when it is called, and leave when the next one is."""
