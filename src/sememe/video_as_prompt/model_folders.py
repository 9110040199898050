"""A Video-As-Prompt model on disk.

model_index.json
transformer/     the frozen backbone, as diffusers writes it
expert/          the expert's tensors alone
vae/ text_encoder/ tokenizer/ scheduler/, and image_encoder/ image_processor/ for backbones that read CLIP

Three kinds of folder can be read, by the pipeline class that `model_index.json` names:

own         what sememe writes, as above: a stock folder with the expert in a folder of its own
published   what the released Video-As-Prompt models are: the expert is merged with the backbone in transformer/
stock       a Wan or CogVideoX folder as diffusers knows it, without any expert
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn

from sememe.backbones.autoencoder import Autoencoder, latent_grid
from sememe.checkpoints import saving
from sememe.checkpoints.components import (
    Dtypes,
    check_files,
    choose_dtype,
    find_class,
    load_component,
    read_entry,
)
from sememe.checkpoints.headers import MODEL_INDEX, read_json, read_stored_tensors
from sememe.checkpoints.zoo import find_folder
from sememe.errors import ModelError
from sememe.video_as_prompt.settings import RELEASED
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
from sememe.video_as_prompt.transformer_files import (
    FORMATS,
    TransformerFormat,
    check_pair,
    format_of_class,
    format_of_model,
    load_merged,
)

EXPERT_FOLDER = "expert"
OWN_CLASS = "VideoAsPromptPipeline"
STOCK_CLASSES = frozenset(
    {"WanImageToVideoPipeline", "WanPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXPipeline"}
)

Kind = Literal["own", "published", "stock"]
_HALVES = {"BF16": "bfloat16", "F16": "float16"}

OPTIONAL_COMPONENTS = frozenset({"image_encoder", "image_processor"})
COMPONENTS = ("transformer", "vae", "text_encoder", "image_encoder", "scheduler", "tokenizer", "image_processor")


@dataclass(frozen=True)
class ModelLayout:
    """A model folder, by its index.

    Attributes:
        folder: Where it is.
        kind: Where its transformer and expert are.
        format: Format of its transformer.
        index: What `model_index.json` holds.
    """

    folder: Path
    kind: Kind
    format: TransformerFormat
    index: Mapping[str, Any]

    def has(self, component: str) -> bool:
        """Return whether the model has a component, which may be one that some models do without."""
        entry = self.index.get(component)
        return component not in OPTIONAL_COMPONENTS or bool(entry and entry[0] is not None)

    @property
    def has_token_timesteps(self) -> bool:
        """Whether each token has its own timestep, as in Wan2.2-TI2V."""
        return bool(self.index.get("expand_timesteps"))

    @property
    def defaults_name(self) -> str:
        """The name in `RELEASED` of the settings that such a model has if its folder states none."""
        return f"{self.format.name}-ti2v" if self.has_token_timesteps else self.format.name


def read_layout(folder: Path) -> ModelLayout:
    """Read the index of a model folder.

    Raises:
        ModelError: There is none, or it names another pipeline or transformer, or a setting that does not go with it.
    """
    index = read_json(folder / MODEL_INDEX)
    class_name = str(index.get("_class_name"))
    published = [known.official_pipeline for known in FORMATS]
    if class_name == OWN_CLASS:
        kind: Kind = "own"
    elif class_name in published:
        kind = "published"
    elif class_name in STOCK_CLASSES:
        kind = "stock"
    else:
        known = ", ".join([OWN_CLASS, *published, *sorted(STOCK_CLASSES)])
        raise ModelError(
            f"expected a model of one of the classes {known} in {folder}, its {MODEL_INDEX} names {class_name}"
        )
    second = index.get("transformer_2")
    if isinstance(second, list) and second and second[0] is not None:
        raise ModelError(
            f"expected a model with one transformer, but {folder} has two (transformer_2 takes over at low noise), "
            "which is not supported; use a model with one"
        )
    layout = ModelLayout(folder, kind, _format_of_index(folder, kind, index), index)
    if layout.defaults_name not in RELEASED:
        raise ModelError(
            f"expected expand_timesteps with a Wan transformer alone, but {folder} has a {layout.format.stock_class}; "
            f"take it out of its {MODEL_INDEX}"
        )
    return layout


def check_whole(layout: ModelLayout, given: Collection[str], *, needs_expert: bool) -> None:
    """Check for the files of a model but for given components, and name all that are missing at once.

    Raises:
        ModelError: Some are missing.
    """
    folders = [name for name in COMPONENTS if name not in given and layout.has(name)]
    check_files(layout.folder, folders + [EXPERT_FOLDER] * needs_expert)


def _format_of_index(folder: Path, kind: Kind, index: Mapping[str, Any]) -> TransformerFormat:
    library, class_name = read_entry("transformer", folder / "transformer", index.get("transformer"))
    known = format_of_class(class_name) if library == "diffusers" else None
    named = None if known is None else known.official_class if kind == "published" else known.stock_class
    if known is None or class_name != named:
        expected = [each.official_class if kind == "published" else each.stock_class for each in FORMATS]
        raise ModelError(
            f"transformer of {folder} is a {library}.{class_name}; expected one of "
            f"{', '.join(f'diffusers.{name}' for name in expected)}"
        )
    return known


def released_defaults(name: str, transformer: nn.Module, vae: Autoencoder) -> dict[str, Any]:
    """Return the `generation_defaults` of a released model.

    A transformer with learned positions has only one size, which replaces the usual one, and so does the length of
    text for which it was made. `name` is one of `RELEASED`.
    """
    settings = RELEASED[name]
    config: FrozenDict = transformer.config
    if config.get("max_text_seq_length") is not None:
        settings = settings.override(max_sequence_length=config.max_text_seq_length)
    if config.get("use_learned_positional_embeddings"):
        ratio = latent_grid(vae).spatial_ratio
        settings = settings.override(
            height=config.sample_height * ratio,
            width=config.sample_width * ratio,
            num_frames=config.sample_frames,
        )
    return settings.to_config()


def find_expert(name: str | Path) -> Path:
    """Return the folder of an expert alone: that folder, or the one of a model which has an expert.

    Raises:
        ModelError: There is none.
    """
    folder = find_folder(name, system=VIDEO_AS_PROMPT.name)
    if (folder / "config.json").is_file():
        return folder
    if (folder / EXPERT_FOLDER / "config.json").is_file():
        return folder / EXPERT_FOLDER
    raise ModelError(
        f"expected an expert in {folder} (config.json and safetensors, or a folder {EXPERT_FOLDER}/ of it)"
    )


def read_own_dtype(source: str | Path, expert: Path | None = None) -> str:
    """Return the precision in which a model is to be computed, by the headers of its files.

    A model with an autoencoder of sememe's own class was trained by its recipes as a whole, and is computed in float32
    however it is stored. One with a stock autoencoder is computed in the precision that most of its bytes have.

    Args:
        source: Folder of the model, or the name of a released one.
        expert: Folder of an expert that goes with a stock model; None for the model's own.

    Raises:
        ModelError: It is not whole.
    """
    if isinstance(source, str):
        return "bfloat16"
    folder, layout = source, read_layout(source)
    library, _ = read_entry("vae", folder / "vae", layout.index.get("vae"))
    if library == "sememe":
        return "float32"
    tensors = [*read_stored_tensors(folder / "transformer").values()]
    if layout.kind != "published":
        tensors += read_stored_tensors(expert or folder / EXPERT_FOLDER).values()
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.num_bytes
    [(kind, size)] = sizes.most_common(1)
    return _HALVES.get(kind, "float32") if 2 * size > sizes.total() else "float32"


def load_components(
    folder: Path,
    torch_dtype: Dtypes | None,
    given: Mapping[str, Any],
    class_name: str,
    expert: str | Path | None = None,
    device: torch.device | None = None,
    store: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Load what `model_index.json` names, and the settings of the pipeline; see `SystemPipeline.load_components`.

    Raises:
        ModelError: The folder is not a model of this kind, is not whole, or has no expert.
    """
    layout = read_layout(folder)
    source = None
    if "transformer" not in given:
        source = choose_expert(layout, class_name, expert)
    elif expert is not None:
        raise ModelError(f"expected an expert or a transformer that has one, got both: {expert} and the transformer")
    check_whole(layout, given.keys(), needs_expert=source == folder / EXPERT_FOLDER)
    dtypes = dict(torch_dtype) if isinstance(torch_dtype, Mapping) else {}
    if isinstance(torch_dtype, torch.dtype):
        dtypes["default"] = torch_dtype
    elif "default" not in dtypes:
        own = torch.float32 if "transformer" in given else getattr(torch, read_own_dtype(folder, source))
        dtypes["default"] = own
    parts = dict(given)
    classes = {name: find_component_class(layout, name) for name in COMPONENTS if name not in ("transformer", *given)}
    if "transformer" not in given:
        backbone, precision = folder / "transformer", choose_dtype("transformer", dtypes)
        if source is None:
            transformer = load_merged(backbone, precision)
        else:
            check_pair(backbone, source)
            transformer = layout.format.transformer.from_folders(backbone, source, precision)
        if store is not None:
            store(transformer)
        parts["transformer"] = transformer if device is None else transformer.to(device)
    for name, found in classes.items():
        parts[name] = None if found is None else load_component(name, folder / name, dtypes, found, device)
    defaults = layout.index.get("generation_defaults")
    if not isinstance(defaults, dict | None):
        raise ModelError(
            f"expected generation_defaults as an object in the {MODEL_INDEX} of {folder}, got {defaults!r}"
        )
    if defaults is None:
        defaults = released_defaults(layout.defaults_name, parts["transformer"], parts["vae"])
    settings = {"generation_defaults": defaults, "expand_timesteps": layout.has_token_timesteps}
    return {name: parts[name] for name in COMPONENTS} | settings


def save_components(
    folder: Path,
    components: Mapping[str, Any],
    settings: Mapping[str, Any],
    class_name: str,
    max_shard_size: int | str | None,
) -> None:
    """Write every component to its folder, the expert to its own, and `model_index.json` at the end.

    Raises:
        OutputError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    transformer, known = components["transformer"], format_of_model(components["transformer"])
    transformer.save_backbone(folder / "transformer", **size)
    transformer.save_expert(folder / EXPERT_FOLDER, **size)
    index = {EXPERT_FOLDER: ["sememe", known.expert_class], "transformer": ["diffusers", known.stock_class]}
    others = {name: component for name, component in components.items() if name != "transformer"}
    saving.save_components(folder, others, index | dict(settings), class_name, max_shard_size)


def choose_expert(layout: ModelLayout, class_name: str, expert: str | Path | None) -> Path | None:
    """Return the folder of the expert that goes with a model, or None where it is merged with the backbone.

    `expert` is what `find_expert` takes, or None for the model's own.

    Raises:
        ModelError: The model has no expert, cannot be given another, or the expert is for another backbone.
    """
    if layout.kind == "published":
        if expert is not None:
            raise ModelError(
                f"expected a stock model to put the expert {expert} on, but {layout.folder} has an expert merged in; "
                "leave expert out, or split that model with `sememe convert` first"
            )
        return None
    if expert is not None:
        found = find_expert(expert)
        check_pair(layout.folder / "transformer", found)
        return found
    if layout.kind == "stock":
        raise ModelError(
            f"expected a {class_name}, but {layout.folder} is a stock {layout.index['_class_name']} without an expert; "
            "say which expert goes with it (expert=FOLDER)"
        )
    return layout.folder / EXPERT_FOLDER


def find_component_class(layout: ModelLayout, name: str) -> Any:
    """Return the class of a component, or None where the model does without it.

    Raises:
        ModelError: The index names none, or one that is not loaded here.
    """
    folder = layout.folder / name
    return find_class(name, folder, read_entry(name, folder, layout.index.get(name))) if layout.has(name) else None
