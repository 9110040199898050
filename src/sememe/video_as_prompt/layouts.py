"""The three kinds of model folder that can be read, by the pipeline class that `model_index.json` names.

own         what sememe writes: a stock folder with the expert in a folder of its own
published   what the released Video-As-Prompt models are: the expert is merged with the backbone in transformer/
stock       a Wan or CogVideoX folder as diffusers knows it, without any expert
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sememe.checkpoints.components import read_entry
from sememe.checkpoints.headers import list_missing_shards, read_json
from sememe.checkpoints.zoo import config_name
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


def read_layout(folder: Path) -> ModelLayout:
    """Read the index of a model folder.

    Raises:
        ModelError: There is none, or it names another pipeline or transformer, or a setting that does not go with it.
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
    """Check for the files that every model has, and name all that are missing at once.

    Args:
        layout: Layout of the folder.
        given: Components that come from elsewhere.
        needs_expert: Whether the folder must hold an expert of its own.

    Raises:
        ModelError: Some are missing.
    """
    missing = []
    folders = [name for name in COMPONENTS if name not in given and layout.has(name)]
    for name in folders + [EXPERT_FOLDER] * needs_expert:
        file = config_name(name)
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
