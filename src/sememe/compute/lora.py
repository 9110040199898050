"""LoRA weights of the backbone in a pipeline with an expert: the loaders of diffusers, each for its own backbone.

Weights made for a stock Wan or CogVideoX serve as they are, step-distilled ones included: load them, turn guidance off
(`guidance_scale` 1, and `reference_guidance_scale` 1) and ask for as few steps as they were made for. Loading, fusing
and unloading leave the expert alone. Adapters of an expert are in `sememe.compute.expert_lora`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.loaders import WanLoraLoaderMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from sememe.compute.expert_lora import check_adapter, check_can_adapt, without_injection_warnings
from sememe.compute.placement import without_offload
from sememe.compute.weight_storage import find_storage
from sememe.errors import InputError, ModelError

_PREFIX = "transformer."


class BackboneAdapterMixin(WanLoraLoaderMixin):
    """`load_lora_weights` for the pipeline's backbone; the other methods are those of diffusers."""

    _lora_loadable_modules: ClassVar[list[str]] = ["transformer"]

    def load_lora_weights(
        self: Any,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,  # noqa: FBT001, FBT002 (the stock signature)
        **kwargs: Any,
    ) -> None:
        """Loads LoRA weights of the backbone, from safetensors only.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, a repository on the hub, or tensors by name.
            adapter_name: under which it is switched and scaled (`set_adapters`); None for a name of its own.
            hotswap: whether it takes the place of the loaded adapter of that name.
            kwargs: as diffusers takes them, such as `weight_name`.

        Raises:
            ModelError: where there are no such weights, they were made for another backbone, or the backbone is
                stored as 8-bit floats.
        """
        source = pretrained_model_name_or_path_or_dict
        shown = "the given tensors" if isinstance(source, dict) else str(source)
        low_memory = {key: kwargs.pop(key) for key in ("low_cpu_mem_usage",) if key in kwargs}
        tensors, metadata = self._read_lora(source, shown, kwargs)
        own = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(_PREFIX)}
        if not own:
            raise ModelError(
                f"{shown} holds no LoRA weights of a transformer ('{_PREFIX}...'); it has {_show(tensors)}"
            )
        check_adapter(self.transformer, own, shown, of_expert=False)
        if not hotswap:
            check_can_adapt(self.transformer, of_expert=False)
        if adapter_name in getattr(self.transformer, "peft_config", {}) and not hotswap:
            raise InputError(f"an adapter {adapter_name!r} is loaded already; choose another adapter_name or unload it")
        with without_injection_warnings(), _changeable(self):
            self.load_lora_into_transformer(
                tensors,
                transformer=self.transformer,
                adapter_name=adapter_name,
                metadata=metadata,
                _pipeline=self,
                hotswap=hotswap,
                **low_memory,
            )

    def fuse_lora(self: Any, *arguments: Any, **settings: Any) -> None:
        """Adds loaded weights to those of the model, as diffusers does.

        Raises:
            InputError: these are stored in fewer bits.
        """
        _check_can_fuse(self.transformer)
        with _changeable(self):
            super().fuse_lora(*arguments, **settings)
            _maybe_remove_and_reapply_group_offloading(self.transformer)

    def unfuse_lora(self: Any, *arguments: Any, **settings: Any) -> None:
        """Takes fused weights out again, as diffusers does.

        Raises:
            InputError: the model's weights are stored in fewer bits.
        """
        _check_can_fuse(self.transformer)
        with _changeable(self):
            super().unfuse_lora(*arguments, **settings)
            _maybe_remove_and_reapply_group_offloading(self.transformer)

    def _read_lora(self: Any, source: Any, shown: str, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        _check_lora_source(source, options.get("weight_name"))
        loader = self.family.lora_loader
        given = dict(source) if isinstance(source, dict) else str(source)
        # Without the first of these diffusers falls back on pickled files.
        options = {"use_safetensors": True, "return_lora_metadata": True} | options
        if not options["use_safetensors"]:
            raise InputError("LoRA weights are read from safetensors only; leave use_safetensors out")
        try:
            tensors, metadata = loader.lora_state_dict(given, **options)
        except (OSError, ValueError, SafetensorError, LookupError, TypeError, AttributeError) as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            raise ModelError(
                f"{shown} holds no LoRA weights for {self.family.name} in safetensors: {reason}"
            ) from error
        if hasattr(loader, "_maybe_expand_t2v_lora_for_i2v"):
            tensors = loader._maybe_expand_t2v_lora_for_i2v(self.transformer, tensors)
        return tensors, metadata


def _check_lora_source(source: Any, weight_name: str | None) -> None:
    """Refuse what is not safetensors, which diffusers would unpickle, and a file that does not exist.

    Raises:
        ModelError: `source` or `weight_name` is not the name of safetensors weights.
    """
    if isinstance(source, dict):
        return
    path = Path(source)
    if path.suffix == ".safetensors" and not path.is_file():
        raise ModelError(f"expected LoRA weights in {path}, but there is no such file")
    names = [path.name] if path.is_file() else []
    if weight_name is not None:
        names.append(weight_name)
    for name in names:
        if Path(name).suffix != ".safetensors":
            raise ModelError(f"expected LoRA weights in a .safetensors file, got {name}; pickles can run code")


@contextmanager
def _changeable(pipeline: Any) -> Iterator[None]:
    """Sets aside what is hooked on the transformer while its layers change, and puts the same on again.

    diffusers does so for some offloads, but not to the device that was chosen, and not in the way of a feature cache.
    """
    with pipeline.transformer._without_feature_cache(), without_offload(pipeline):
        yield


def _check_can_fuse(transformer: Any) -> None:
    adapted = (module for module in transformer.modules() if isinstance(module, BaseTunerLayer))
    storage = find_storage(weight for module in adapted for weight in module.parameters())
    if storage is not None:
        raise InputError(
            f"LoRA weights cannot be fused with weights in fewer bits ({storage}), nor taken out of them; leave them "
            "loaded, or load the pipeline again, fuse, and choose the storage after that"
        )


def check_unadapted(transformer: Any) -> None:
    """Raises `InputError` for a transformer that cannot be saved because adapters are loaded."""
    names = sorted(getattr(transformer, "peft_config", {}))
    if names:
        raise InputError(
            f"adapters are loaded ({', '.join(names)}); fuse them if they are to stay, then call unload_lora_weights "
            "and save"
        )


def _show(tensors: dict[str, Any]) -> str:
    return next(iter(tensors), "nothing at all")
