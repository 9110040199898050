"""The transformers that carry experts, and how files name them: ours, diffusers' and the released checkpoints'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sememe.errors import ModelError
from sememe.video_as_prompt.keys import KeyMap
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer


@dataclass(frozen=True)
class TransformerFormat:
    """One kind of transformer in files.

    Attributes:
        name: `wan` or `cogvideox`.
        transformer: our class.
        official_class: the class in a released folder, where the expert is merged with the backbone.
        mark: an argument that only this kind's configuration has.
        reference_timestep: at which the released models read their reference; None for the target's own.
        released_num_layers: blocks of the released model.
        released_expert_blocks: those of them that carry an expert.
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
        """Arguments that only our class has, as the released models were trained: two-way, grey behind the picture."""
        values = {
            "expert_blocks": [*expert_blocks],
            "attention_mode": "joint",
            "reference_timestep": self.reference_timestep,
            "first_frame_fill": "grey",
        }
        return {name: values[name] for name in self.transformer.own_settings}

    def name_officially(self, key: str) -> str:
        """The name in a released folder of any tensor of ours."""
        return self.keys.to_official_key(key) if self.keys.is_expert_key(key) else key

    def name_our_way(self, official_key: str) -> str:
        """Our name of any tensor of a released folder.

        Raises:
            KeyError: it is an expert's, and of no known part.
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
    """The format of one of our transformers.

    Raises:
        ModelError: it is none.
    """
    for known in FORMATS:
        if isinstance(model, known.transformer):
            return known
    names = " or ".join(known.transformer.__name__ for known in FORMATS)
    raise ModelError(f"expected a {names}, got a {type(model).__name__}")


def format_of_class(class_name: str) -> TransformerFormat | None:
    """The format whose backbone, merged model or expert has this class name in files; None where there is none."""
    for known in FORMATS:
        if class_name in (known.stock_class, known.official_class, known.expert_class):
            return known
    return None


def format_of_config(config: Mapping[str, Any]) -> TransformerFormat | None:
    """The format of a transformer's configuration: by its class name, else by arguments that only one kind has."""
    named = config.get("_class_name")
    if named is not None:
        return format_of_class(str(named))
    return next((known for known in FORMATS if known.mark in config), None)
