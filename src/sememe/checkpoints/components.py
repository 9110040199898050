"""The components of a model: which classes are loaded, and how.

Only JSON and safetensors are read, only classes of one table are loaded, and every tensor is accounted for.
"""

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from sememe.checkpoints.headers import (
    CONFIG_NAME,
    StoredTensor,
    check_sizes,
    list_missing_shards,
    read_json,
    read_stored_tensors,
)
from sememe.checkpoints.tensor_files import iterate_stored
from sememe.checkpoints.zoo import config_name
from sememe.errors import InputError, ModelError

ALLOWED_CLASSES: Mapping[str, Mapping[str, str]] = {
    "transformer": dict.fromkeys(("WanTransformer3DModel", "CogVideoXTransformer3DModel"), "diffusers"),
    "vae": {"LinearVideoAutoencoder": "sememe.backbones.linear_autoencoder"}
    | dict.fromkeys(("AutoencoderKLWan", "AutoencoderKLCogVideoX", "AutoencoderKL"), "diffusers"),
    "unet": dict.fromkeys(("UNet2DConditionModel", "UNetMotionModel"), "diffusers"),
    "controlnet": {"ControlNetModel": "diffusers"},
    "motion_adapter": {"MotionAdapter": "diffusers"},
    "prior": {"PriorTransformer": "diffusers"},
    "prior_scheduler": dict.fromkeys(("DDIMScheduler", "UnCLIPScheduler"), "diffusers"),
    "scheduler": dict.fromkeys(
        (
            "FlowMatchEulerDiscreteScheduler",
            "FlowMatchHeunDiscreteScheduler",
            "UniPCMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "CogVideoXDDIMScheduler",
            "CogVideoXDPMScheduler",
            "DDIMScheduler",
        ),
        "diffusers",
    ),
    "text_encoder": dict.fromkeys(
        ("UMT5EncoderModel", "T5EncoderModel", "CLIPTextModel", "CLIPTextModelWithProjection"), "transformers"
    ),
    "tokenizer": dict.fromkeys(
        (
            "T5Tokenizer",
            "T5TokenizerFast",
            "CLIPTokenizer",
            "CLIPTokenizerFast",
            "PreTrainedTokenizerFast",
            "TokenizersBackend",
        ),
        "transformers",
    ),
    "image_encoder": dict.fromkeys(("CLIPVisionModel", "CLIPVisionModelWithProjection"), "transformers"),
    "image_processor": dict.fromkeys(
        ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"), "transformers"
    ),
    "depth_estimator": dict.fromkeys(("DPTForDepthEstimation", "DepthAnythingForDepthEstimation"), "transformers"),
    "depth_processor": dict.fromkeys(
        ("DPTImageProcessor", "DPTImageProcessorFast", "DPTImageProcessorPil"), "transformers"
    ),
}
"""The module of each class that is loaded as a component, whatever else a folder names."""

# These names now stand for another resizing where torchvision is installed; released models mean that of PIL.
_READ_AS = {
    "CLIPImageProcessor": "CLIPImageProcessorPil",
    "DPTImageProcessor": "DPTImageProcessorPil",
    "DPTImageProcessorFast": "DPTImageProcessorPil",
}
# A network may lack a head that its files hold; the libraries' own loaders leave it out as well.
_LEFT_OUT = {"CLIPVisionModel": frozenset({"visual_projection.weight"})}
Dtypes = torch.dtype | Mapping[str, torch.dtype]
"""One precision for all networks, or one by the name of a component and "default" for the others, as in diffusers."""
# Their errors of a few per cent are visible, and they are small: these stay in float32 unless they are named.
FULL_PRECISION = frozenset({"vae", "image_encoder", "depth_estimator"})
_MAX_FILE = 100_000_000  # bytes; of files beside weights, the largest vocabularies take some tens of millions
_MAX_SIDE = 2048  # pixels; processors give 224 to 518 a side
_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    SafetensorError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    StrictDataclassError,
)


def find_class(name: str, folder: Path, entry: object = None) -> Any:
    """Return the class of a component.

    Args:
        name: Component, such as "vae".
        folder: Its folder.
        entry: Library and class, as a model's index names them; None for the class that its own configuration names.

    Raises:
        ModelError: It is none of the classes that are loaded here.
    """
    if entry is None:
        class_name = _read_class_name(folder / config_name(name))
        named = class_name
    else:
        library, class_name = read_entry(name, folder, entry)
        named = f"{library}.{class_name}"
    module = ALLOWED_CLASSES[name].get(class_name)
    if module is None or (entry is not None and library != module.split(".")[0]):
        known = ", ".join(ALLOWED_CLASSES[name])
        raise ModelError(f"expected one of {known} as the {name} in {folder}, got {named}")
    return getattr(importlib.import_module(module), _READ_AS.get(class_name, class_name))


def read_entry(name: str, folder: Path, entry: object) -> tuple[str, str]:
    """Return library and class of a component, as `model_index.json` names them.

    Raises:
        ModelError: `entry` is not a list of two strings.
    """
    match entry:
        case [str() as library, str() as class_name]:
            return library, class_name
    raise ModelError(f"expected library and class of {name} in the model_index.json of {folder.parent}, got {entry}")


# What diffusers takes when it loads a pipeline, and what stands for it here.
_ELSEWHERE = {
    "dtype": "say torch_dtype",
    "variant": "weights come in the precision of torch_dtype, from the files without a variant",
    "quantization_config": "say storage='nf4', or call place(vram, storage='nf4') later",
    "max_memory": "load the model, then call place(vram)",
    "trust_remote_code": "no code of a repository is run",
    "custom_pipeline": "no code of a repository is run",
    "use_safetensors": "nothing but safetensors is read",
}


def check_components(known: Collection[str], given: Mapping[str, Any], dtypes: Dtypes | None = None) -> None:
    """Check the arguments with which a pipeline is loaded, before anything is read.

    Args:
        known: What the pipeline consists of.
        given: Loaded components by name.
        dtypes: Precisions.

    Raises:
        InputError: A name is none of the pipeline's, or a precision is none of floating point.
    """
    for name in given.keys() - known:
        advice = _ELSEWHERE.get(name, f"its components are {', '.join(known)}")
        raise InputError(f"expected components of the pipeline, got {name}; {advice}")
    by_name = dtypes if isinstance(dtypes, Mapping) else {} if dtypes is None else {"default": dtypes}
    for name, dtype in by_name.items():
        if name not in (*known, "default"):
            raise InputError(f"expected a torch_dtype for default or one of {', '.join(known)}, got one for {name}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f"expected a torch_dtype of floating point, such as torch.bfloat16, got {dtype}")


def check_files(folder: Path, parts: Collection[str]) -> None:
    """Check for the files of a model, and name all that are missing at once; check the headers of its weights.

    Args:
        folder: Folder of the model.
        parts: Names of its folders that are to be read.

    Raises:
        ModelError: Some are missing, or weights are damaged or cut short.
    """
    missing = [
        f"{name}/{file}"
        for name in parts
        for file in (config_name(name), *list_missing_shards(folder / name))
        if not (folder / name / file).is_file()
    ]
    if missing:
        raise ModelError(
            f"expected a whole model in {folder}, {len(missing)} of its files are missing: {', '.join(missing)}; "
            "download it again while the hub can be reached"
        )
    for name in parts:
        if any((folder / name).glob("*.safetensors")):
            read_stored_tensors(folder / name)


def load_component(
    name: str,
    folder: Path,
    dtype: Dtypes | None = None,
    component: Any = None,
    device: torch.device | None = None,
    store: Callable[[Any], None] | None = None,
) -> Any:
    """Load one component; a network comes in evaluation mode.

    Args:
        name: Component, such as "vae".
        folder: Its folder.
        dtype: Precision of the weights; None for float32. Autoencoders and encoders of pictures have float32 unless
            they are named.
        component: Class, as `find_class` returns it; None for the one that the folder's configuration names.
        device: Where a network goes; None for the CPU. On the meta device it has no weights, and none are read.
        store: Called with a network that is read, before it goes to its device.

    Raises:
        ModelError: The folder is not whole, does not fit its configuration, or names a class that is not loaded here.
    """
    if name == "tokenizer":
        return _load_tokenizer(folder)
    component = component or find_class(name, folder)
    if not issubclass(component, torch.nn.Module):
        return _load_without_weights(component, folder)
    precision = choose_dtype(name, dtype)
    if device is not None and device.type == "meta":
        network = sketch_network(component, folder)
        return network if precision == torch.float32 else network.to(precision)
    network = load_strictly(component, folder, precision)
    if store is not None:
        store(network)
    return network if device is None else network.to(device)


def build_network(component: Any, config: Mapping[str, Any]) -> Any:
    """Return a network of diffusers or transformers as a configuration describes it, without stored weights."""
    if not _is_of_transformers(component):
        return component.from_config(dict(config)).eval()
    # A whole CLIP configuration holds that of its image encoder.
    return component(_make_config(component, dict(config.get("vision_config", config)))).eval()


def sketch_network(component: Any, folder: Path) -> Any:
    """Return the network of a folder on the meta device, without its weights.

    Raises:
        ModelError: The folder's configuration does not describe such a network.
    """
    config = read_json(folder / CONFIG_NAME)
    try:
        with torch.device("meta"):
            return build_network(component, config)
    except _LOADING_ERRORS as error:
        raise _cannot_load(component, folder, error) from error


def choose_dtype(name: str, dtype: Dtypes | None) -> torch.dtype:
    """Return the precision in which a component is loaded, see `load_component`."""
    chosen = dtype if isinstance(dtype, Mapping) else {} if dtype is None else {"default": dtype}
    return chosen.get(name) or (None if name in FULL_PRECISION else chosen.get("default")) or torch.float32


@dataclass(frozen=True)
class ModelPart:
    """A network that is saved inside a larger one, such as the vision tower of a language model.

    Attributes:
        config_key: Setting of the larger one's configuration that holds the part's own.
        prefixes: What the names of its tensors may begin with there.
    """

    config_key: str
    prefixes: tuple[str, ...]


def load_strictly(
    component: Any,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    *,
    part: ModelPart | None = None,
    **settings: Any,
) -> Any:
    """Load a network of diffusers or transformers, in evaluation mode; every tensor must fit its configuration.

    The libraries themselves warn and go on with random weights where one does not.

    Args:
        component: The class to load.
        folder: A local folder with config.json and safetensors.
        dtype: Precision of the weights; None for the class's own choice.
        part: Where in the folder's model the network is, for classes of transformers; None for all of it. Nothing else
            of the model is read.
        settings: Passed on to `from_pretrained`.

    Raises:
        ModelError: The folder is incomplete or damaged, does not fit, or chooses code to run.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_NAME)
    is_of_transformers = _is_of_transformers(component)
    if dtype is not None:
        settings["dtype" if is_of_transformers else "torch_dtype"] = dtype
    try:
        tensors = read_stored_tensors(folder)
        check_sizes(folder / CONFIG_NAME, config, len(tensors))
        if part is not None:
            assert is_of_transformers
            config, tensors = config.get(part.config_key) or {}, _take_part(tensors, part.prefixes)
        if is_of_transformers:
            # Given a folder, transformers would also take adapters, other weights and other configs from it.
            left_out = _LEFT_OUT.get(component.__name__, frozenset())
            kept = {key: stored for key, stored in tensors.items() if key not in left_out}
            settings |= {"config": _make_config(component, config), "state_dict": dict(iterate_stored(kept))}
        else:
            _check_numbers(component, config)
        model, info = component.from_pretrained(
            None if "config" in settings else folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **settings,
        )
    except _LOADING_ERRORS as error:
        raise _cannot_load(component, folder, error) from error
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(kind) or ())
        if names:
            problems.append(f"{len(names)} {kind.replace('_', ' ')}: {', '.join(names[:3])}")
    if problems:
        raise ModelError(f"the tensors in {folder} do not fit its config; {'; '.join(problems)}")
    return model.eval()


def _take_part(tensors: Mapping[str, StoredTensor], prefixes: tuple[str, ...]) -> dict[str, StoredTensor]:
    lengths = {key: len(prefix) for key in tensors for prefix in prefixes if key.startswith(prefix)}
    return {key[length:]: tensors[key] for key, length in lengths.items()}


def _read_class_name(path: Path) -> str:
    config = read_json(path)
    # transformers writes `architectures` or, of processors, `image_processor_type`; diffusers `_class_name`.
    match config.get("architectures"):
        case [str() as class_name, *_]:
            return class_name
    return str(config.get("_class_name", config.get("image_processor_type")))


def _load_without_weights(component: Any, folder: Path) -> Any:
    from transformers import BaseImageProcessor

    for path in folder.glob("*"):
        # The libraries open several files of their own choice; a pipe or a device would never end.
        if not path.is_dir() and not (path.is_file() and path.stat().st_size <= _MAX_FILE):
            raise ModelError(f"expected {path} to be a file of at most {_MAX_FILE / 1e6:g} MB")
    for path in sorted(folder.glob("*config.json")):
        config = read_json(path)
        if path.name != "tokenizer_config.json":  # where a number without meaning stands for no limit
            check_sizes(path, config)
    try:
        loaded = component.from_pretrained(folder, local_files_only=True)
        if isinstance(loaded, BaseImageProcessor):
            _try_picture(loaded)
    except _LOADING_ERRORS as error:
        raise _cannot_load(component, folder, error) from error
    return loaded


def _try_picture(processor: Any) -> None:
    """Raise an error where a processor of pictures has settings with which it cannot take one."""
    for name in ("size", "crop_size", "pad_size"):
        sides = {key: side for key, side in dict(getattr(processor, name, None) or {}).items() if side is not None}
        for key, side in sides.items():
            if not (isinstance(side, int) and 1 <= side <= _MAX_SIDE):
                raise ValueError(f"expected 1 to {_MAX_SIDE} whole pixels as {key} of its {name}, got {side!r}")
    processor(images=[np.zeros((8, 8, 3), np.uint8)], return_tensors="pt")


def _load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer as its tokenizer.json says, or from its vocabulary where it has no such file."""
    # Not AutoTokenizer, which asks to run the code of a folder; T5's own class ignores most of a tokenizer.json.
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast, T5Tokenizer

    vocabularies: Mapping[Any, Collection[str]] = {
        PreTrainedTokenizerFast: ["tokenizer.json"],
        CLIPTokenizer: ["vocab.json", "merges.txt"],
        T5Tokenizer: ["spiece.model"],
    }
    for component, names in vocabularies.items():
        if all((folder / name).is_file() for name in names):
            return _load_without_weights(component, folder)
    # Without one the library would make a tokenizer that knows no word.
    known = ", ".join(" with ".join(names) for names in vocabularies.values())
    raise ModelError(f"expected the vocabulary of a tokenizer in {folder} ({known}), it has none; download it again")


def _is_of_transformers(component: Any) -> bool:
    from transformers import PreTrainedModel

    return issubclass(component, PreTrainedModel)


def _check_numbers(component: Any, config: Mapping[str, Any]) -> None:
    """Raise `TypeError` where a network of diffusers wants a fraction and would fail in the middle of a generation."""
    for name, parameter in inspect.signature(component).parameters.items():
        if isinstance(parameter.default, float) and not isinstance(config.get(name), int | float | None):
            raise TypeError(f"expected a number as {name}, got {config[name]!r}")


def _make_config(component: Any, config: dict[str, Any]) -> Any:
    """Make the config of a transformers model from those settings alone that its class has."""
    config_class = component.config_class
    known = {name for name in vars(config_class()) if not name.startswith("_")} | set(config_class.attribute_map)
    return config_class.from_dict({name: value for name, value in config.items() if name in known})


def _cannot_load(component: Any, folder: Path, error: Exception) -> ModelError:
    reason = str(error) if isinstance(error, ModelError) else " ".join(str(error).split())[:300]
    return ModelError(f"the {component.__name__} in {folder} cannot be loaded: {reason}")
