"""The transformers that have experts, and what files call them: ours, diffusers' and the released checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sememe.checkpoints.headers import StoredTensor
from sememe.errors import ModelError
from sememe.video_as_prompt.keys import KeyMap
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer


@dataclass(frozen=True)
class TransformerFormat:
    """One kind of transformer in files.

    Attributes:
        name: `wan` or `cogvideox`.
        transformer: Our class.
        official_class: Class in a released folder, where the expert is merged with the backbone.
        mark: Argument that only this kind's configuration has.
        reference_timestep: Timestep at which the released models read their reference; None for the target's own.
        released_num_layers: Number of blocks of the released model.
        released_expert_blocks: Those of them that have an expert.
    """

    name: str
    transformer: Any
    official_class: str
    mark: str
    reference_timestep: float | None
    released_num_layers: int
    released_expert_blocks: tuple[int, ...]

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
        }
        return {name: values[name] for name in self.transformer.own_settings}

    def name_officially(self, key: str) -> str:
        """Return the name in a released folder of one of our tensors."""
        return self.keys.to_official_key(key) if self.keys.is_expert_key(key) else key

    def name_our_way(self, official_key: str) -> str:
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
    mark="added_kv_proj_dim",
    reference_timestep=1.0,
    released_num_layers=40,
    released_expert_blocks=tuple(range(0, 40, 4)),
)
COGVIDEOX = TransformerFormat(
    name="cogvideox",
    transformer=CogVideoXVideoAsPromptTransformer,
    official_class="CogVideoXTransformer3DMOTModel",
    mark="max_text_seq_length",
    reference_timestep=None,
    released_num_layers=42,
    released_expert_blocks=tuple(range(41)),
)
FORMATS = (WAN, COGVIDEOX)


def format_of_model(model: Any) -> TransformerFormat:
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
    return next((known for known in FORMATS if known.mark in config), None)


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
    skeleton: Any
    tensors: Mapping[str, StoredTensor]


def build_on_meta(transformer: Any, settings: Mapping[str, Any], path: Path) -> Any:
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
