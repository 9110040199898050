"""LoRA on the backbone of a pipeline, and on an expert; each leaves the other alone.

Weights made for a stock Wan or CogVideoX serve as they are, step-distilled ones included: load them with
`load_lora_weights`, turn guidance off (`guidance_scale` 1, and `reference_guidance_scale` 1) and ask for as few steps
as they were made for. An adapter names the layers it changes by endings such as `to_q`, which both backbone and expert
have; the functions here restrict PEFT to one of the two."""

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from sememe.compute.placement import without_offload
from sememe.compute.speed import without_feature_cache
from sememe.compute.storage import ADAPTER_LAYER_PATTERN, find_storage
from sememe.errors import InputError, ModelError, tell_reason

LoraSource = str | Path | dict[str, torch.Tensor]
"""A folder, a file, a repository on the hub, or tensors by name."""
LORA_NAME = "pytorch_lora_weights.safetensors"
"""File of an adapter in a folder, as diffusers names it."""
_log = logging.getLogger(__name__)
_ADAPTER_PART = re.compile(ADAPTER_LAYER_PATTERN + ".*")


def check_can_adapt(model: ModelMixin, *, of_expert: bool) -> None:
    """Check that new adapters can be put on the expert, or on the backbone.

    Raises:
        ModelError: Its weights are 8-bit floats (quantised ones may be adapted), or out of reach.
    """
    weights = [weight for name, weight in model.named_parameters() if _is_expert_key(model, name) == of_expert]
    part = "expert" if of_expert else "backbone"
    if find_storage(weights) == "fp8":
        raise ModelError(
            f"the {part}'s weights are stored as 8-bit floats (fp8), to which no adapter can be added; load the model "
            "again, then the adapter, and choose the storage after that"
        )
    if of_expert and any(weight.is_meta for weight in weights):
        raise ModelError(
            "the expert's weights are offloaded layer by layer, so that no adapter can be added; load the adapter "
            "first and choose the offload after that"
        )


def restrict_to_backbone(model: ModelMixin, config: PeftConfig) -> PeftConfig:
    """Return a PEFT configuration whose targets are those of `config` outside the expert."""
    return _exclude(config, _expert_pattern(model))


def restrict_to_expert(model: ModelMixin, config: PeftConfig) -> PeftConfig:
    """Return a PEFT configuration whose targets are those of `config` inside the expert."""
    return _exclude(config, rf"(?!{_expert_pattern(model)}$).*")


def add_expert_adapter(model: ModelMixin, config: PeftConfig, name: str = "default") -> None:
    """Put a new adapter on the expert alone.

    Args:
        model: A transformer with experts.
        config: PEFT configuration, such as `LoraConfig`; its targets are looked for in the expert.
        name: Name of the adapter.

    Raises:
        ModelError: No layer of the expert is a target, or the expert cannot be changed as it is.
    """
    check_can_adapt(model, of_expert=True)
    with _refetched(model):
        try:
            PeftAdapterMixin.add_adapter(model, restrict_to_expert(model, config), name)
        except ValueError as error:
            raise ModelError(f"no layer of the expert can take the adapter {name!r}: {tell_reason(error)}") from error


@torch.no_grad()
def save_expert_adapter(model: ModelMixin, folder: str | Path, name: str = "default") -> None:
    """Write an adapter of the expert, safetensors only.

    Raises:
        ModelError: There is no such adapter, or it is not the expert's.
    """
    from peft import get_peft_model_state_dict

    if name not in getattr(model, "peft_config", {}):
        raise ModelError(f"this model has no adapter {name!r}, only {sorted(getattr(model, 'peft_config', {}))}")
    strangers = [key for key in get_peft_model_state_dict(model, adapter_name=name) if not _is_expert_key(model, key)]
    if strangers:
        raise ModelError(f"the adapter {name!r} is not one of the expert: it changes {strangers[0]}")
    model.save_lora_adapter(folder, adapter_name=name, weight_name=LORA_NAME)


def load_expert_adapter(model: ModelMixin, source: str | Path, name: str | None = "default") -> None:
    """Read what `save_expert_adapter` wrote.

    Args:
        model: A transformer with experts.
        source: The folder, or the file in it.
        name: Name of the adapter; None for the next free one (`default_0`, ...).

    Raises:
        ModelError: There is no such adapter, it does not fit this model's expert, or the expert cannot be changed as
            it is.
    """
    path = Path(source)
    path = path if path.suffix == ".safetensors" else path / LORA_NAME
    if not path.is_file():
        raise ModelError(f"expected an adapter of an expert at {path}, found nothing there")
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file: {tell_reason(error)}") from error
    check_adapter(model, tensors, str(path), of_expert=True)
    check_can_adapt(model, of_expert=True)
    with without_injection_warnings(), _refetched(model):
        model.load_lora_adapter(
            path.parent,
            prefix=None,
            adapter_name=name,
            weight_name=path.name,
            use_safetensors=True,
            local_files_only=True,
        )


@contextmanager
def without_adapters(model: PeftAdapterMixin) -> Iterator[None]:
    """Turn all adapters of a model off within the block, so that it is as it was without them."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
        # PEFT has all of an adapter trained whenever it is turned on.
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _refetched(model: ModelMixin) -> Iterator[None]:
    """Under offload 'group', blocks are then fetched with the layers that are new, and a feature cache stays on."""
    with without_feature_cache(model):
        yield
        _maybe_remove_and_reapply_group_offloading(model)


@contextmanager
def without_injection_warnings() -> Iterator[None]:
    """Silence warnings that do not apply here.

    Weights name their layers, so it does not matter that their settings match others as well; and fusing with weights
    of torchao is refused in any case.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="While injecting the PEFT adapters")
        warnings.filterwarnings("ignore", message="You have passed exclude_modules")
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")
        yield


def check_adapter(model: ModelMixin, tensors: Mapping[str, torch.Tensor], source: str, *, of_expert: bool) -> None:
    """Check the tensors of an adapter against the layers that they name.

    Args:
        model: A transformer, with experts or without.
        tensors: Tensors by name within the model, with PEFT's endings.
        source: Where the tensors come from, for the message.
        of_expert: Whether they must lie in the expert, or outside it.

    Raises:
        ModelError: They do not fit.
    """
    layers = dict(model.named_modules())
    for key, tensor in tensors.items():
        path = _ADAPTER_PART.sub("", key)
        if _is_expert_key(model, key) != of_expert:
            place, advice = ("expert", "load_expert_adapter") if not of_expert else ("backbone", "load_lora_weights")
            raise ModelError(f"{source} holds an adapter of the {place} ({path}); use {advice} for that")
        if path not in layers:
            raise ModelError(
                f"{source} was made for another model: it changes {path}, which a {type(model).__name__} such as this "
                "does not have"
            )
        _check_shape(layers[path], key, tensor, source)


def _is_expert_key(model: ModelMixin, key: str) -> bool:
    keys: Any = getattr(model, "key_map", None)
    return keys is not None and keys.is_expert_key(key)


def _check_shape(layer: Any, key: str, tensor: torch.Tensor, source: str) -> None:
    layer = getattr(layer, "base_layer", layer)
    is_linear = hasattr(layer, "in_features")
    place = {"lora_A": 1, "lora_B": 0}.get(key.split(".")[-2])
    if place is None or tensor.ndim < 2 or not (is_linear or hasattr(layer, "in_channels")):
        return
    sizes = (layer.out_features, layer.in_features) if is_linear else (layer.out_channels, layer.in_channels)
    if tensor.shape[place] != sizes[place]:
        raise ModelError(
            f"{source} was made for another model: {key} has width {tensor.shape[place]}, where this one has "
            f"{sizes[place]}"
        )


def _expert_pattern(model: ModelMixin) -> str:
    return rf"(?:{model.key_map.blocks}\.\d+\.expert|expert_embedder)(?:\..*)?"


def _exclude(config: PeftConfig, pattern: str) -> PeftConfig:
    """The configuration with one more pattern of what it leaves alone."""
    given = getattr(config, "exclude_modules", None)
    if given and not isinstance(given, str):
        given = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, given))})"
    restricted = copy.copy(config)
    restricted.exclude_modules = f"(?:{pattern})|(?:{given})" if given else pattern
    return restricted


class AdapterMixin(LoraBaseMixin):
    """`load_lora_weights` for the network that denoises; list a loader mixin of diffusers after it among the bases."""

    _lora_loadable_modules: ClassVar[list[str]] = ["transformer"]
    lora_loader: Any
    """Class of diffusers whose `lora_state_dict` reads files of such weights."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: LoraSource,
        adapter_name: str | None = None,
        hotswap: bool = False,  # noqa: FBT001, FBT002 (the stock signature)
        **kwargs: Any,
    ) -> None:
        """Load LoRA weights of the network that denoises or of its expert, from safetensors only.

        Args:
            pretrained_model_name_or_path_or_dict: A folder, a file, a repository on the hub, or tensors by name; those
                of an expert are in a folder or file, as `save_expert_adapter` writes it.
            adapter_name: Name by which `set_adapters` switches and scales it; None for the next free one.
            hotswap: Whether it takes the place of the loaded adapter of that name.
            kwargs: As diffusers takes them, such as `weight_name`.

        Raises:
            ModelError: There are no such weights, they were made for another network, or the network is stored as
                8-bit floats.
        """
        source, (part,) = pretrained_model_name_or_path_or_dict, self._lora_loadable_modules
        if not hotswap and not isinstance(source, dict) and _is_of_expert(self.transformer, Path(source), kwargs):
            load_expert_adapter(self.transformer, source, adapter_name)
            return
        shown = "the given tensors" if isinstance(source, dict) else str(source)
        low_memory = {key: kwargs.pop(key) for key in ("low_cpu_mem_usage",) if key in kwargs}
        tensors, alphas, metadata = self._read_lora(source, shown, kwargs)
        if not any(key.startswith(f"{part}.") for key in tensors):  # a file of the network alone
            tensors, metadata = _add_prefix(tensors, metadata, part, self.transformer)
        own = {key.removeprefix(f"{part}."): each for key, each in tensors.items() if key.startswith(f"{part}.")}
        if not own:
            raise ModelError(f"{shown} holds no LoRA weights of a {part} ('{part}....'); it has {_show(tensors)}")
        check_adapter(self.transformer, own, shown, of_expert=False)
        if not hotswap:
            check_can_adapt(self.transformer, of_expert=False)
        if adapter_name in getattr(self.transformer, "peft_config", {}) and not hotswap:
            raise InputError(f"an adapter {adapter_name!r} is loaded already; choose another adapter_name or unload it")
        if others := sorted({key.partition(".")[0] for key in tensors if key.startswith("text_encoder")}):
            _log.warning("%s also holds weights of the %s, which are not read", shown, " and ".join(others))
        with without_injection_warnings(), _changeable(self):
            self.transformer.load_lora_adapter(
                {f"{part}.{key}": tensor for key, tensor in own.items()},
                prefix=part,
                network_alphas=alphas,
                adapter_name=adapter_name,
                metadata=metadata,
                _pipeline=self,
                hotswap=hotswap,
                **low_memory,
            )

    def fuse_lora(self, *arguments: Any, **settings: Any) -> None:
        """Add loaded weights to those of the model, as diffusers does.

        Raises:
            InputError: These are stored in fewer bits.
        """
        self._fuse(super().fuse_lora, arguments, settings)

    def unfuse_lora(self, *arguments: Any, **settings: Any) -> None:
        """Take fused weights out again, as diffusers does.

        Raises:
            InputError: The model's weights are stored in fewer bits.
        """
        self._fuse(super().unfuse_lora, arguments, settings)

    def _fuse(self, work: Callable[..., None], arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        settings = settings if arguments else {"components": self._lora_loadable_modules} | settings
        _check_can_fuse(self.transformer)
        with _changeable(self):
            work(*arguments, **settings)
            _maybe_remove_and_reapply_group_offloading(self.transformer)

    def _read_lora(self, source: LoraSource, shown: str, options: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        """Return tensors, their scales where the file states them apart, and what else the file says."""
        _check_lora_source(source, options.get("weight_name"))
        loader = self.lora_loader
        given = dict(source) if isinstance(source, dict) else str(source)
        # Without the first of these diffusers falls back on pickled files.
        options = {"use_safetensors": True, "return_lora_metadata": True} | options
        if not options["use_safetensors"]:
            raise InputError("LoRA weights are read from safetensors only; leave use_safetensors out")
        try:
            tensors, *alphas, metadata = loader.lora_state_dict(given, **options)
        except (OSError, ValueError, SafetensorError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{shown} holds no LoRA weights for a {type(self.transformer).__name__} in safetensors: "
                f"{tell_reason(error)}"
            ) from error
        if hasattr(loader, "_maybe_expand_t2v_lora_for_i2v"):
            tensors = loader._maybe_expand_t2v_lora_for_i2v(self.transformer, tensors)
        return tensors, next(iter(alphas), None), metadata


def _add_prefix(
    tensors: Mapping[str, Any], metadata: Mapping[str, Any] | None, part: str, network: ModelMixin
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return tensors and metadata with the network's name before theirs; tensors of other networks as they are."""
    children = tuple(f"{name}." for name, _ in network.named_children())
    named = {f"{part}.{key}" if key.startswith(children) else key: tensor for key, tensor in tensors.items()}
    return named, None if metadata is None else {f"{part}.{key}": value for key, value in metadata.items()}


def _is_of_expert(model: ModelMixin, path: Path, options: Mapping[str, Any]) -> bool:
    """Whether a folder or file holds an adapter of the expert; what cannot be read is refused elsewhere."""
    file = path if path.suffix == ".safetensors" else path / LORA_NAME
    if options.get("weight_name") is not None or not file.is_file():
        return False
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return any(_is_expert_key(model, key) for key in opened.keys())  # noqa: SIM118 (no mapping)
    except SafetensorError:
        return False


def _check_lora_source(source: LoraSource, weight_name: str | None) -> None:
    """Raise `ModelError` for a file that does not exist, and what is not safetensors: diffusers would unpickle it."""
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
def _changeable(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Take offload and feature cache off the transformer within the block, in which its layers change.

    diffusers does so for some offloads, but puts them back for another device than the chosen one, and leaves feature
    caches on.
    """
    with without_feature_cache(pipeline.transformer), without_offload(pipeline):
        yield


def _check_can_fuse(transformer: ModelMixin) -> None:
    adapted = (module for module in transformer.modules() if isinstance(module, BaseTunerLayer))
    storage = find_storage(weight for module in adapted for weight in module.parameters())
    if storage is not None:
        raise InputError(
            f"LoRA weights cannot be fused with weights in fewer bits ({storage}), nor taken out of them; leave them "
            "loaded, or load the pipeline again, fuse, and choose the storage after that"
        )


def check_unadapted(transformer: ModelMixin) -> None:
    """Raise `InputError` for a transformer that cannot be saved because adapters are loaded."""
    names = sorted(getattr(transformer, "peft_config", {}))
    if names:
        raise InputError(
            f"adapters are loaded ({', '.join(names)}); fuse them if they are to stay, then call unload_lora_weights "
            "and save"
        )


def _show(tensors: dict[str, Any]) -> str:
    return next(iter(tensors), "nothing at all")
