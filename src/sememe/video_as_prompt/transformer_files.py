"""Transformers with experts in files: stock backbone and expert in two folders, or merged as released.

A released folder holds the configuration of the official class (its name, the stock arguments, and those of the expert)
and safetensors in which an expert's tensor has the name of its twin with a suffix. The released models are two-way:
target and reference read each other.
"""

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin

from sememe.checkpoints.headers import CONFIG_NAME, STEMS, StoredTensor, check_sizes, read_json, read_stored_tensors
from sememe.checkpoints.tensor_files import check_tensors, iterate_stored, leave_out, set_tensor, write_tensors
from sememe.errors import ModelError
from sememe.records import to_plain
from sememe.video_as_prompt.expert_files import KeyMap
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer


@dataclass(frozen=True)
class TransformerFormat:
    """One kind of transformer in files.

    Attributes:
        name: `wan` or `cogvideox`.
        transformer: Our class.
        official_class: Class in a released folder, where the expert is merged with the backbone.
        official_pipeline: Class of a released model, which diffusers lacks.
        unique_argument: Argument that only this kind's configuration has.
        reference_timestep: Timestep at which the released models read their reference; None for the target's own.
        released_num_layers: Number of blocks of the released model.
        released_expert_blocks: Those of them that have an expert.
        ablations: Settings of the official training's ablations, which a released configuration states as off.
    """

    name: str
    transformer: type[ExpertModel]
    official_class: str
    official_pipeline: str
    unique_argument: str
    reference_timestep: float | None
    released_num_layers: int
    released_expert_blocks: tuple[int, ...]
    ablations: tuple[str, ...] = ()

    @property
    def stock_class(self) -> str:
        """The class in a folder of the backbone alone."""
        return self.transformer.backbone_class.__name__

    @property
    def expert_class(self) -> str:
        """The class in a folder of the expert alone."""
        return self.transformer.expert_class_name

    @property
    def keys(self) -> KeyMap:
        """The names of the expert's tensors."""
        return self.transformer.key_map

    def released_settings(self, expert_blocks: Sequence[int]) -> dict[str, Any]:
        """Return the arguments that only our class has, as the released models were trained."""
        values = {
            "expert_blocks": [*expert_blocks],
            "attention_mode": "joint",
            "reference_timestep": self.reference_timestep,
            "first_frame_fill": "grey",
            "num_reference_embeddings": 0,
        }
        return {name: values[name] for name in self.transformer.own_settings}

    def to_official_name(self, key: str) -> str:
        """Return the name in a released folder of one of our tensors."""
        return self.keys.to_official_key(key) if self.keys.is_expert_key(key) else key

    def to_own_name(self, official_key: str) -> str:
        """Return our name of a tensor of a released folder.

        Raises:
            KeyError: It is an expert's, and belongs to no known part.
        """
        is_expert = self.keys.is_official_expert_key(official_key)
        return self.keys.from_official_key(official_key) if is_expert else official_key


WAN = TransformerFormat(
    name="wan",
    transformer=WanVideoAsPromptTransformer,
    official_class="WanTransformer3DMOTModel",
    official_pipeline="WanImageToVideoMOTPipeline",
    unique_argument="added_kv_proj_dim",
    reference_timestep=1.0,
    released_num_layers=40,
    released_expert_blocks=tuple(range(0, 40, 4)),
)
COGVIDEOX = TransformerFormat(
    name="cogvideox",
    transformer=CogVideoXVideoAsPromptTransformer,
    official_class="CogVideoXTransformer3DMOTModel",
    official_pipeline="CogVideoXImageToVideoMOTPipeline",
    unique_argument="max_text_seq_length",
    reference_timestep=None,
    released_num_layers=42,
    released_expert_blocks=tuple(range(41)),
    ablations=("ablation_single_encoder", "ablation_residual_addition"),
)
FORMATS = (WAN, COGVIDEOX)


def format_of_model(model: ModelMixin) -> TransformerFormat:
    """Return the format of one of our transformers.

    Raises:
        ModelError: The model is of another class.
    """
    for known in FORMATS:
        if isinstance(model, known.transformer):
            return known
    names = " or ".join(known.transformer.__name__ for known in FORMATS)
    raise ModelError(f"expected a {names}, got a {type(model).__name__}")


def format_of_class(class_name: str) -> TransformerFormat | None:
    """Return the format whose backbone, merged model or expert has this class name in files, or None."""
    for known in FORMATS:
        if class_name in (known.stock_class, known.official_class, known.expert_class):
            return known
    return None


def format_of_config(config: Mapping[str, Any]) -> TransformerFormat | None:
    """Return the format of a configuration: by its class name, else by an argument that only one kind has."""
    named = config.get("_class_name")
    if named is not None:
        return format_of_class(str(named))
    return next((known for known in FORMATS if known.unique_argument in config), None)


@dataclass(frozen=True)
class StoredTransformer:
    """A transformer in files, not loaded; all its tensors are there and fit its settings.

    Attributes:
        format: Format of the transformer.
        settings: Arguments of our class.
        skeleton: Our class, on the meta device.
        tensors: Where each tensor is, by our name of it.
    """

    format: TransformerFormat
    settings: Mapping[str, Any]
    skeleton: ExpertModel
    tensors: Mapping[str, StoredTensor]


def build_on_meta(transformer: type[ExpertModel], settings: Mapping[str, Any], path: Path) -> ExpertModel:
    """Return one of our transformers without memory for its tensors.

    Raises:
        ModelError: The settings, which came from the file `path`, do not describe one.
    """
    try:
        with torch.device("meta"):
            return transformer(**settings)
    except ModelError as error:
        raise ModelError(f"{path} does not describe a whole model: {error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} does not describe a {transformer.__name__}: {reason}") from error


_STEMS = ("diffusion_pytorch_model",)


def open_separate(backbone_folder: str | Path, expert_folder: str | Path) -> StoredTransformer:
    """Check a stock backbone folder and an expert folder without loading them.

    Raises:
        ModelError: One of them is not what was expected or is not whole, or the expert is for another backbone.
    """
    backbone, expert = Path(backbone_folder), Path(expert_folder)
    known = check_pair(backbone, expert)
    own = known.transformer.read_expert_config(expert)
    config = read_json(backbone / CONFIG_NAME)
    files = {folder: read_stored_tensors(folder, _STEMS) for folder in (backbone, expert)}
    check_sizes(backbone / CONFIG_NAME, config, len(files[backbone]))
    # As diffusers does, which ignores settings that only a later version knows.
    taken = inspect.signature(known.transformer.__init__).parameters.keys()
    config = {name: value for name, value in config.items() if name in taken}
    settings = config | {name: own[name] for name in known.transformer.own_settings}
    skeleton = build_on_meta(known.transformer, settings, backbone / CONFIG_NAME)
    for name, value in own.items():
        if (
            not name.startswith("_")
            and name not in known.transformer.own_settings
            and to_plain(skeleton.config.get(name)) != value
        ):
            raise ModelError(
                f"the expert in {expert} was made for a backbone with {name} = {value}, but that in {backbone} has "
                f"{to_plain(skeleton.config.get(name))}; give the backbone that it was made for"
            )
    shapes = {key: tensor.shape for key, tensor in skeleton.state_dict().items()}
    tensors: dict[str, StoredTensor] = {}
    for folder, is_expert in ((backbone, False), (expert, True)):
        stored = leave_out(files[folder], skeleton)
        expected = {key: shape for key, shape in shapes.items() if known.keys.is_expert_key(key) == is_expert}
        check_tensors(folder, expected, stored)
        tensors |= stored
    return StoredTransformer(known, settings, skeleton, tensors)


def write_separate(
    stored: StoredTransformer,
    backbone_folder: str | Path,
    expert_folder: str | Path,
    max_shard_size: int | str,
    on_tensor: Callable[[], None],
) -> None:
    """Copy a transformer from other files to a stock backbone folder and an expert folder.

    Raises:
        ModelError: A file cannot be read.
        OutputError: A folder cannot be written.
    """
    known = stored.format
    backbone = Path(backbone_folder), stored.skeleton.backbone_config()
    expert = Path(expert_folder), stored.skeleton.expert_config()
    for is_expert, (folder, config) in ((False, backbone), (True, expert)):
        part = {key: tensor for key, tensor in stored.tensors.items() if known.keys.is_expert_key(key) == is_expert}
        write_tensors(folder, part, config, max_shard_size, on_tensor)


def check_pair(backbone_folder: Path, expert_folder: Path) -> TransformerFormat:
    """Check that an expert is made for this kind of backbone, and return their format.

    Raises:
        ModelError: It is not, or one of the folders holds something else.
    """
    stock = str(read_json(backbone_folder / CONFIG_NAME).get("_class_name"))
    known = format_of_class(stock)
    if known is None or stock != known.stock_class:
        names = " or ".join(each.stock_class for each in FORMATS)
        raise ModelError(f"expected a {names} in {backbone_folder}, its {CONFIG_NAME} names {stock}")
    class_name = str(read_json(expert_folder / CONFIG_NAME).get("_class_name"))
    other = format_of_class(class_name)
    if other is not None and class_name == other.official_class:
        raise ModelError(
            f"expected a folder of an expert alone, but {expert_folder} is a {class_name} with its backbone merged in; "
            "split that model with `sememe convert` first"
        )
    if class_name != known.expert_class:
        raise ModelError(
            f"expected a {known.expert_class} for the {stock} in {backbone_folder}, but {expert_folder} holds a "
            f"{class_name}; give an expert that was made for this backbone"
        )
    return known


BLOCKS_SETTING = "block_idx_with_mot_ref"
# Settings of the official classes that no released model uses and that are not supported here.
_UNSUPPORTED = {
    "attention_head_dim_mot_ref": "an expert whose heads have a size of their own",
    "reference_train_mode": "an expert with an output of its own for the reference",
    "supported_effect_types": "learned embeddings of named effects",
    "num_ref_embeddings": "learned embeddings of the references' places",
}

logger = logging.getLogger(__name__)


def open_merged(folder: str | Path, stems: tuple[str, ...] = STEMS) -> StoredTransformer:
    """Check a released transformer folder without loading it.

    Args:
        folder: Folder of `config.json` and safetensors, in shards with an index or one file.
        stems: Names of the files of weights, without `.safetensors`.

    Raises:
        ModelError: It is no such folder, is not whole, asks for what is not supported here, or its tensors (by their
            official names) are not those of its configuration.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    config = read_json(path)
    known = format_of_config(config)
    if known is None or config.get("_class_name") not in (None, known.official_class):
        names = " or ".join(each.official_class for each in FORMATS)
        came = config.get("_class_name", "no class that is known")
        raise ModelError(f"expected a {names} in {folder}, its {CONFIG_NAME} names {came}; give a released folder")
    settings = _read_settings(path, config, known)
    stored = read_stored_tensors(folder, stems)
    check_sizes(path, config, len(stored))
    skeleton = build_on_meta(known.transformer, settings, path)
    stored = leave_out(stored, skeleton)
    expected = {known.to_official_name(key): tensor.shape for key, tensor in skeleton.state_dict().items()}
    check_tensors(folder, expected, stored)
    return StoredTransformer(known, settings, skeleton, {known.to_own_name(key): stored[key] for key in stored})


def load_merged(
    folder: str | Path, torch_dtype: torch.dtype | None = None, stems: tuple[str, ...] = STEMS
) -> ExpertModel:
    """Load a released transformer folder, tensor by tensor, so that there is never more than one copy of the model.

    Args:
        folder: As in `open_merged`.
        torch_dtype: Precision of the weights; what diffusers keeps in float32 stays so, in the expert as well. None
            for the precision in which each tensor is stored.
        stems: As in `open_merged`.

    Returns:
        A `WanVideoAsPromptTransformer` or `CogVideoXVideoAsPromptTransformer`, two-way, in evaluation mode.

    Raises:
        ModelError: As `open_merged`.
    """
    stored = open_merged(folder, stems)
    known = stored.format
    with init_empty_weights(include_buffers=False):
        model = known.transformer(**stored.settings)
    kept = set(model._keep_in_fp32_modules or ()) if torch_dtype is not None else set()
    for key, tensor in iterate_stored(stored.tensors):
        twin = known.keys.to_backbone_key(key) if known.keys.is_expert_key(key) else key
        dtype = torch.float32 if kept & set(twin.split(".")) else torch_dtype
        # A copy: tensors inside a mapped file are not aligned, and another alignment rounds otherwise.
        set_tensor(model, key, tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype, copy=True))
    return model.eval()


def save_merged(
    model: ModelMixin,
    folder: str | Path,
    max_shard_size: int | str = "5GB",
    stored: Mapping[str, StoredTensor] | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write one of our transformers as a released folder: backbone and expert in one, under the official names.

    Args:
        model: The transformer.
        folder: Folder to write.
        max_shard_size: Size of each file.
        stored: Its tensors in other files by our names, for a model on the meta device; None for the model's own.
        on_tensor: Called after each tensor that was read from another file.

    Raises:
        ModelError: The model is none of ours, or has a setting that such a folder cannot state; or a file cannot be
            read.
        OutputError: The folder cannot be written.
    """
    known, config = format_of_model(model), official_config(model)
    found: Mapping[str, Any] = model.state_dict() if stored is None else stored
    tensors = {known.to_official_name(key): tensor for key, tensor in found.items()}
    write_tensors(Path(folder), tensors, config, max_shard_size, on_tensor)


def official_config(model: ModelMixin) -> dict[str, Any]:
    """Return the configuration with which a released folder describes one of our transformers.

    Raises:
        ModelError: It has a setting that the official class does not know.
    """
    known = format_of_model(model)
    given = {name: to_plain(value) for name, value in model.config.items() if not name.startswith("_")}
    released = known.released_settings(given["expert_blocks"])
    for name, value in released.items():
        if given[name] != value:
            raise ModelError(
                f"expected a model with {name} = {value}, which is what a released folder always means, got "
                f"{given[name]}; keep the expert of this model in a folder of its own"
            )
    return (
        {name: value for name, value in given.items() if name not in released}
        | dict.fromkeys(_UNSUPPORTED)
        | dict.fromkeys(known.ablations, False)
        | {"_class_name": known.official_class, BLOCKS_SETTING: given["expert_blocks"]}
    )


def _read_settings(path: Path, config: Mapping[str, Any], known: TransformerFormat) -> dict[str, Any]:
    """Return the arguments of our class, from those of the official one."""
    ablations = {name: "an ablation of the official training" for each in FORMATS for name in each.ablations}
    for name, what in (_UNSUPPORTED | ablations).items():
        if config.get(name):
            raise ModelError(
                f"expected a model as the released ones are, but {path} asks for {what} ({name} = "
                f"{json.dumps(config[name])}), which is not supported"
            )
    own = known.released_settings(_find_expert_blocks(path, config, known))
    taken = inspect.signature(known.transformer.__init__).parameters.keys() - own.keys()
    settings = {name: value for name, value in config.items() if name in taken}
    ignored = {
        name: value
        for name, value in config.items()
        if name not in taken and name != BLOCKS_SETTING and not name.startswith("_") and value not in (None, False)
    }
    if ignored:
        described = ", ".join(f"{name} = {json.dumps(value)}" for name, value in ignored.items())
        logger.warning("%s has settings that are not known here and are ignored: %s", path, described)
    return settings | own


def _find_expert_blocks(path: Path, config: Mapping[str, Any], known: TransformerFormat) -> list[int]:
    blocks = config.get(BLOCKS_SETTING)
    if blocks is not None:
        if not isinstance(blocks, list) or not all(isinstance(index, int) for index in blocks):
            raise ModelError(f"expected a list of numbers of blocks as {BLOCKS_SETTING} in {path}, got {blocks!r}")
        return blocks
    if config.get("num_layers") != known.released_num_layers:
        raise ModelError(
            f"expected {BLOCKS_SETTING} (the blocks that carry an expert) in {path}; it may be absent for the released "
            f"model of {known.released_num_layers} blocks, this one has {config.get('num_layers')}; add it"
        )
    logger.warning(
        "%s does not say which blocks carry an expert (%s); taken to be those of the released model: %s",
        path,
        BLOCKS_SETTING,
        list(known.released_expert_blocks),
    )
    return list(known.released_expert_blocks)
