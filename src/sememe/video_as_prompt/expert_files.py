"""An expert's tensors: their names, and their folder beside that of the stock backbone.

In a released checkpoint every expert tensor has the name of its twin in the backbone, with `_mot_ref` appended to one
component of the path. The twin is also the tensor from which the expert's is initialised.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import diffusers
import torch
from diffusers import ModelMixin

from sememe.checkpoints.components import load_strictly
from sememe.checkpoints.headers import CONFIG_NAME, read_json
from sememe.checkpoints.tensor_files import align_weights, iterate_tensors, set_tensor, write_tensors
from sememe.compute.storage import check_savable
from sememe.errors import ModelError
from sememe.records import to_plain

E = TypeVar("E", bound="TwoFolderFiles")

_SUFFIX = "_mot_ref"
_EMBEDDER = "expert_embedder."
_WITHOUT_TWIN = _EMBEDDER + "reference_embeddings"


@dataclass(frozen=True)
class KeyMap:
    """The names on one kind of backbone.

    Attributes:
        blocks: Name of its list of blocks.
        embedders: Modules at its top that have a twin in the expert.
        parts: Pairs of a path inside our expert of a block and the path inside the backbone's block, each a prefix
            that ends at a dot or a name.
    """

    blocks: str
    embedders: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]

    def is_expert_key(self, key: str) -> bool:
        """Return whether a key of our state dict belongs to the expert."""
        return key.startswith(_EMBEDDER) or self._split(key)[1].startswith("expert.")

    def is_official_expert_key(self, key: str) -> bool:
        """Return whether a key of a released checkpoint belongs to the expert."""
        return any(part.endswith(_SUFFIX) for part in key.split("."))

    def to_backbone_key(self, key: str) -> str:
        """Return the backbone's twin of one of our expert keys.

        So `blocks.3.expert.projection.to_q.bias` gives `blocks.3.attn1.to_q.bias`.

        Raises:
            KeyError: `key` names no expert tensor.
        """
        if key.startswith(_EMBEDDER) and key != _WITHOUT_TWIN:
            return key.removeprefix(_EMBEDDER)
        block, path = self._split(key)
        for own, stock in self.parts:
            if path.startswith("expert." + own):
                return block + stock + path.removeprefix("expert." + own)
        raise KeyError(key)

    def find_twin(self, key: str) -> str | None:
        """Return the backbone's twin of one of our expert keys; None for the embeddings of references."""
        return None if key == _WITHOUT_TWIN else self.to_backbone_key(key)

    def to_official_key(self, key: str) -> str:
        """Return the name in a released checkpoint of one of our expert keys.

        Raises:
            KeyError: `key` names no expert tensor.
        """
        twin = self.to_backbone_key(key).split(".")
        twin[2 if twin[0] == self.blocks else 0] += _SUFFIX
        return ".".join(twin)

    def from_official_key(self, key: str) -> str:
        """Return our name of an expert tensor of a released checkpoint.

        Raises:
            KeyError: `key` names no expert tensor that this model has.
        """
        if self.is_official_expert_key(key):
            twin = ".".join(part.removesuffix(_SUFFIX) for part in key.split("."))
            own = self._from_backbone_key(twin)
            if own is not None and self.to_official_key(own) == key:
                return own
        raise KeyError(key)

    def _from_backbone_key(self, key: str) -> str | None:
        if key.split(".", maxsplit=1)[0] in self.embedders:
            return _EMBEDDER + key
        block, path = self._split(key)
        for own, stock in self.parts:
            if block and path.startswith(stock):
                return f"{block}expert.{own}{path.removeprefix(stock)}"
        return None

    def _split(self, key: str) -> tuple[str, str]:
        """Return a block's prefix, such as `blocks.3.`, and the path inside it; both are empty outside the blocks."""
        parts = key.split(".", 2)
        if len(parts) == 3 and parts[0] == self.blocks and parts[1].isdecimal():
            return f"{parts[0]}.{parts[1]}.", parts[2]
        return "", ""


WAN_KEYS = KeyMap(
    blocks="blocks",
    embedders=("patch_embedding", "condition_embedder"),
    parts=(
        ("modulation.scale_shift_table", "scale_shift_table"),
        ("projection.to_q.", "attn1.to_q."),
        ("projection.to_k.", "attn1.to_k."),
        ("projection.to_v.", "attn1.to_v."),
        ("projection.norm_q.", "attn1.norm_q."),
        ("projection.norm_k.", "attn1.norm_k."),
        ("output.to_out.", "attn1.to_out."),
        ("output.norm2.", "norm2."),
        ("output.attn2.", "attn2."),
        ("output.ffn.", "ffn."),
    ),
)
"""So `blocks.3.expert.projection.to_q.bias` is `blocks.3.attn1_mot_ref.to_q.bias` in a released checkpoint."""

COGVIDEOX_KEYS = KeyMap(
    blocks="transformer_blocks",
    embedders=("patch_embed", "time_embedding"),
    parts=(
        ("projection.norm1.", "norm1."),
        ("projection.to_q.", "attn1.to_q."),
        ("projection.to_k.", "attn1.to_k."),
        ("projection.to_v.", "attn1.to_v."),
        ("projection.norm_q.", "attn1.norm_q."),
        ("projection.norm_k.", "attn1.norm_k."),
        ("output.to_out.", "attn1.to_out."),
        ("output.norm2.", "norm2."),
        ("output.ff.", "ff."),
    ),
)
"""The learned positions are a tensor of the patch embedding, and each stream has its own."""


class TwoFolderFiles(ModelMixin):
    """Save and load methods of a transformer with experts.

    Attributes:
        backbone_class: Stock class whose folder holds the backbone.
        expert_class_name: Class name in the configuration of an expert's folder.
        own_settings: Arguments that the stock class does not have, with what `from_backbone` takes them to be.
        settings_of_use: Those of them that say how the expert is used and change no name or shape of a tensor.
        shared_settings: Arguments of the stock class on which the expert's tensors depend; its backbone must agree in
            them.
        key_map: Names of the expert's tensors.
    """

    backbone_class: ClassVar[type[ModelMixin]]
    expert_class_name: ClassVar[str]
    own_settings: ClassVar[Mapping[str, Any]]
    settings_of_use: ClassVar[tuple[str, ...]] = ("attention_mode", "reference_timestep", "first_frame_fill")
    shared_settings: ClassVar[tuple[str, ...]]
    key_map: ClassVar[KeyMap]

    def save_pretrained(self, *arguments: Any, **settings: Any) -> None:
        """Write backbone and expert to one folder, as the stock method does.

        Raises:
            ModelError: Weights are stored in fewer bits.
        """
        check_savable(self.parameters())
        super().save_pretrained(*arguments, **settings)

    def save_expert(self, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write the expert alone: its tensors, its settings and those that its backbone must share.

        Raises:
            ModelError: The expert's weights are stored in fewer bits.
            OutputError: The folder cannot be written.
        """
        self._save_part(folder, self.expert_config(), max_shard_size, is_expert=True)

    def expert_config(self) -> dict[str, Any]:
        """Return the configuration that an expert's folder holds."""
        names = (*self.own_settings, *self.shared_settings)
        return {"_class_name": self.expert_class_name} | {name: to_plain(self.config[name]) for name in names}

    @torch.no_grad()
    def load_expert(self, folder: str | Path, *, for_any_use: bool = False) -> None:
        """Read an expert into this model, each tensor in the precision and on the device of its twin.

        Args:
            folder: As written by `save_expert`.
            for_any_use: Whether it may have been trained for another use (`settings_of_use`), as weights that a
                training begins with may; this model's use stays as it is.

        Raises:
            ModelError: The folder's settings or tensors are not those of this model's expert.
        """
        config = self.read_expert_config(folder)
        free = self.settings_of_use if for_any_use else ()
        for name in (*self.own_settings, *self.shared_settings):
            if name not in free and config.get(name) != to_plain(self.config[name]):
                raise ModelError(
                    f"the expert in {folder} was made for {name} = {config.get(name)}, but the model at hand has "
                    f"{to_plain(self.config[name])}"
                )
        # Precisions and places, and not the tensors, so that each tensor that is replaced is given up at once.
        twins = {key: (tensor.device, tensor.dtype) for key, tensor in self.state_dict().items()}
        expected = {key: tensor.shape for key, tensor in self.state_dict().items() if self.key_map.is_expert_key(key)}
        for key, tensor in iterate_tensors(Path(folder), expected):
            device, dtype = twins[self.key_map.find_twin(key) or key]
            # A copy: tensors inside a mapped file are not aligned, and another alignment rounds otherwise.
            set_tensor(self, key, tensor.to(device, dtype, copy=True))

    def save_backbone(self, folder: str | Path, max_shard_size: int | str = "10GB") -> None:
        """Write the frozen backbone as a folder of the stock class, without the expert.

        Raises:
            ModelError: Its weights are stored in fewer bits.
        """
        self._save_part(folder, self.backbone_config(), max_shard_size, is_expert=False)

    def _save_part(
        self, folder: str | Path, config: Mapping[str, Any], max_shard_size: int | str, *, is_expert: bool
    ) -> None:
        check_savable(each for key, each in self.named_parameters() if self.key_map.is_expert_key(key) == is_expert)
        tensors = {key: each for key, each in self.state_dict().items() if self.key_map.is_expert_key(key) == is_expert}
        write_tensors(Path(folder), tensors, config, max_shard_size)

    def backbone_config(self) -> dict[str, Any]:
        """Return the configuration of the backbone alone, as diffusers writes it."""
        names = {"_class_name": self.backbone_class.__name__, "_diffusers_version": diffusers.__version__}
        return names | {
            name: to_plain(value)
            for name, value in self.config.items()
            if not name.startswith("_") and name not in self.own_settings
        }

    @classmethod
    def from_folders(  # noqa: PYI019 (beartype checks methods one by one and refuses Self)
        cls: type[E],
        backbone_folder: str | Path,
        expert_folder: str | Path,
        torch_dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> E:
        """Load a stock backbone folder and an expert folder into one model, in evaluation mode.

        Args:
            backbone_folder: As written by `save_backbone` or by diffusers.
            expert_folder: As written by `save_expert`.
            torch_dtype: Precision of the weights; what diffusers keeps in float32 stays so, in the expert as well.
            settings: Passed to diffusers when it loads the backbone (quantisation, device map, ...).

        Raises:
            ModelError: A folder, setting or tensor is not what was expected.
        """
        config = cls.read_expert_config(expert_folder)
        backbone = load_strictly(cls.backbone_class, backbone_folder, torch_dtype, **settings)
        align_weights(backbone)
        model = cls.from_backbone(backbone, **{name: config[name] for name in cls.own_settings})
        model.load_expert(expert_folder)
        return model

    @classmethod
    def read_expert_config(cls, folder: str | Path) -> dict[str, Any]:
        """Return the settings of a folder with an expert for this class.

        Raises:
            ModelError: There is no such expert in it.
        """
        config = read_json(Path(folder) / CONFIG_NAME)
        if config.get("_class_name") != cls.expert_class_name:
            raise ModelError(
                f"{folder} was expected to hold a {cls.expert_class_name}, its config says {config.get('_class_name')}"
            )
        # Experts were saved before they could have these.
        config.setdefault("num_reference_embeddings", 0)
        missing = [name for name in cls.own_settings if name not in config]
        if missing:
            raise ModelError(f"the config of the expert in {folder} lacks {', '.join(missing)}; save the expert again")
        return config
