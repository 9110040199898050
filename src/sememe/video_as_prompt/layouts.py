"""The three kinds of model folder that can be read, told by the pipeline class that `model_index.json` names.

own         what sememe writes: a stock folder with the expert in a folder of its own
published   what the released Video-As-Prompt models are: the expert is merged with the backbone in transformer/
stock       a Wan or CogVideoX folder as diffusers knows it, without any expert
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sememe.checkpoints.headers import list_missing_shards
from sememe.checkpoints.tensor_files import read_json
from sememe.errors import ModelError
from sememe.video_as_prompt.formats import FORMATS, TransformerFormat, format_of_class

INDEX_NAME = "model_index.json"
EXPERT_FOLDER = "expert"
OWN_CLASS = "VideoAsPromptPipeline"
# The official classes, which diffusers lacks.
PUBLISHED_CLASSES = {"wan": "WanImageToVideoMOTPipeline", "cogvideox": "CogVideoXImageToVideoMOTPipeline"}
STOCK_CLASSES = frozenset(
    {"WanImageToVideoPipeline", "WanPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXPipeline"}
)

Kind = Literal["own", "published", "stock"]

# The file by which a component's folder is known to be one.
_CONFIG_FILES = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "image_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
}
OPTIONAL_COMPONENTS = frozenset({"image_encoder", "image_processor"})
COMPONENTS = tuple(_CONFIG_FILES)


@dataclass(frozen=True)
class ModelLayout:
    """A model folder, by its index.

    Attributes:
        folder: where it is.
        kind: how its transformer and expert lie.
        format: of its transformer.
        index: what `model_index.json` holds.
    """

    folder: Path
    kind: Kind
    format: TransformerFormat
    index: Mapping[str, Any]

    def has(self, component: str) -> bool:
        """Whether the model has a component that some do without."""
        entry = self.index.get(component)
        return component not in OPTIONAL_COMPONENTS or bool(entry and entry[0] is not None)

    @property
    def has_token_timesteps(self) -> bool:
        """Whether each token has a timestep of its own, as in Wan2.2-TI2V."""
        return bool(self.index.get("expand_timesteps"))


def read_layout(folder: Path) -> ModelLayout:
    """Looks at the index of a model folder.

    Raises:
        ModelError: it has none, or one that names another pipeline or transformer, or what that cannot do.
    """
    index = read_json(folder / INDEX_NAME)
    class_name = index.get("_class_name")
    if class_name == OWN_CLASS:
        kind: Kind = "own"
    elif class_name in PUBLISHED_CLASSES.values():
        kind = "published"
    elif class_name in STOCK_CLASSES:
        kind = "stock"
    else:
        known = ", ".join([OWN_CLASS, *PUBLISHED_CLASSES.values(), *sorted(STOCK_CLASSES)])
        raise ModelError(
            f"expected a model of one of the classes {known} in {folder}, its {INDEX_NAME} names {class_name}"
        )
    if _names_class(index.get("transformer_2")):
        raise ModelError(
            f"expected a model with one transformer, but {folder} has two (transformer_2 takes over at low noise), "
            "which is not supported; use a model with one"
        )
    layout = ModelLayout(folder, kind, _format_of_index(folder, kind, index), index)
    if layout.has_token_timesteps and layout.format.name != "wan":
        raise ModelError(
            f"expected expand_timesteps with a Wan transformer alone, but {folder} has a {layout.format.stock_class}; "
            f"take it out of its {INDEX_NAME}"
        )
    return layout


def check_whole(layout: ModelLayout, given: Collection[str], *, needs_expert: bool) -> None:
    """Looks for files that every model has, so that all that are missing are named at once.

    Args:
        layout: of the folder.
        given: components that come from elsewhere.
        needs_expert: whether the folder must hold an expert of its own.

    Raises:
        ModelError: some are not there.
    """
    missing = []
    folders = {name: file for name, file in _CONFIG_FILES.items() if name not in given and layout.has(name)}
    if needs_expert:
        folders[EXPERT_FOLDER] = "config.json"
    for name, file in folders.items():
        if not (layout.folder / name / file).is_file():
            missing.append(f"{name}/{file}")
        missing += [f"{name}/{shard}" for shard in list_missing_shards(layout.folder / name)]
    if missing:
        raise ModelError(
            f"expected a whole model in {layout.folder}, {len(missing)} of its files are missing: "
            f"{', '.join(missing)}; download it again while the hub can be reached"
        )


def _names_class(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def _format_of_index(folder: Path, kind: Kind, index: Mapping[str, Any]) -> TransformerFormat:
    entry = index.get("transformer")
    if not isinstance(entry, list) or len(entry) != 2:
        raise ModelError(f"{folder / INDEX_NAME} must name the library and class of transformer, it says {entry}")
    library, class_name = entry
    known = format_of_class(str(class_name)) if library == "diffusers" else None
    named = None if known is None else known.official_class if kind == "published" else known.stock_class
    if known is None or class_name != named:
        expected = [each.official_class if kind == "published" else each.stock_class for each in FORMATS]
        raise ModelError(
            f"transformer of {folder} is a {library}.{class_name}; expected one of "
            f"{', '.join(f'diffusers.{name}' for name in expected)}"
        )
    return known
