"""What in the state of a pipeline makes its results differ from those of its model as it was trained."""

from dataclasses import dataclass
from typing import Any

from diffusers.hooks.layerwise_casting import _is_layerwise_casting_active

from sememe.compute.speed import list_attention
from sememe.compute.storage import find_library
from sememe.compute.strategy import list_vae_shortcuts

# Backends that compute in 8 bits.
_APPROXIMATE_ATTENTION = ("sage", "_sage")


@dataclass(frozen=True)
class ModelChanges:
    """How a pipeline differs from its model.

    Attributes:
        shortcuts: What is computed with less work or memory than the model asks for; empty where it is exact.
        adapters: Names of LoRA weights that act, loaded or fused; what they give is not the model's own.
    """

    shortcuts: tuple[str, ...]
    adapters: tuple[str, ...]


def find_model_changes(pipeline: Any, height: int, width: int, storage: str | None = None) -> ModelChanges:
    """Return how a pipeline differs from its model.

    Args:
        pipeline: A pipeline with a `transformer` and a `vae`, which may be None.
        height: Height of the result in pixels; an autoencoder works in tiles only where it is above a tile's.
        width: Width of the result in pixels, the same.
        storage: Form in which a plan stored the transformer's weights in fewer bits; None without one.
    """
    transformer = pipeline.transformer
    library = find_library(transformer)
    found = []
    if storage is not None or _is_layerwise_casting_active(transformer):
        found.append(f"weights stored as {storage or 'fp8'}")
    elif library is not None:
        found.append(f"weights quantised by {library}")
    if pipeline.vae is not None:
        found += list_vae_shortcuts(str(pipeline.vae.dtype).removeprefix("torch."))
    if _is_tiled(pipeline.vae, height, width):
        found.append("autoencoder in tiles")
    if getattr(transformer, "is_cache_enabled", False):
        found.append(f"feature cache {type(transformer._cache_config).__name__.removesuffix('Config')}")
    in_use = [name for name in list_attention(pipeline) if name.startswith(_APPROXIMATE_ATTENTION)]
    found += [f"attention backend {name}" for name in in_use]
    return ModelChanges(tuple(found), _list_adapters(pipeline))


def _is_tiled(vae: Any, height: int, width: int) -> bool:
    if not getattr(vae, "use_tiling", False):
        return False
    return height > vae.tile_sample_min_height or width > vae.tile_sample_min_width


def _list_adapters(pipeline: Any) -> tuple[str, ...]:
    """Return the adapters that act, in the order of their names."""
    fused = set(getattr(pipeline, "fused_loras", ()))
    if not getattr(pipeline.transformer, "peft_config", None):
        return tuple(sorted(fused))
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in pipeline.transformer.modules() if isinstance(module, BaseTunerLayer)]
    active = {name for layer in layers if not layer.disable_adapters for name in layer.active_adapters}
    return tuple(sorted(fused | active))
