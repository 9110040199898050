"""Loading and saving of a Video-As-Prompt transformer as two folders: the stock backbone and the expert alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanTransformer3DModel

from sememe.errors import ModelError
from sememe.models.component_files import load_strictly
from sememe.models.key_map_wan import is_expert_key, to_backbone_key
from sememe.models.tensor_files import CONFIG_NAME, iterate_tensors, read_json, write_tensors

if TYPE_CHECKING:
    from sememe.models.wan import WanVideoAsPromptTransformer

EXPERT_CLASS = "WanVideoAsPromptExpert"
OWN_SETTINGS = ("expert_blocks", "attention_mode", "reference_timestep", "first_frame_fill")
# What an expert's tensors depend on: it can only serve a backbone that agrees in these.
_SHARED_SETTINGS = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "image_dim",
    "added_kv_proj_dim",
    "pos_embed_seq_len",
)


class TwoFolderFiles:
    """Save and load methods of the transformer."""

    def save_expert(self: Any, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Writes the expert alone: its tensors, its settings and what it expects of a backbone.

        Raises:
            OutputError: where the folder cannot be written.
        """
        names = OWN_SETTINGS + _SHARED_SETTINGS
        config = {"_class_name": EXPERT_CLASS} | {name: _to_plain(self.config[name]) for name in names}
        tensors = {key: tensor for key, tensor in self.state_dict().items() if is_expert_key(key)}
        write_tensors(Path(folder), tensors, config, max_shard_size)

    @torch.no_grad()
    def load_expert(self: Any, folder: str | Path) -> None:
        """Reads an expert into this model, each tensor in the precision and on the device of its twin.

        Raises:
            ModelError: where the folder's settings or tensors are not those of this model's expert.
        """
        config = read_expert_config(folder)
        for name in OWN_SETTINGS + _SHARED_SETTINGS:
            if config.get(name) != _to_plain(self.config[name]):
                raise ModelError(
                    f"the expert in {folder} was made for {name} = {config.get(name)}, but the model at hand has "
                    f"{_to_plain(self.config[name])}"
                )
        tensors = self.state_dict()
        expected = {key: tensors[key].shape for key in tensors if is_expert_key(key)}
        for key, tensor in iterate_tensors(Path(folder), expected):
            twin = tensors[to_backbone_key(key)]
            # A copy: tensors inside a mapped file are not aligned, and another alignment rounds otherwise.
            copy = tensor.to(twin.device, twin.dtype, copy=True)
            self.load_state_dict({key: copy}, strict=False, assign=True)

    def save_backbone(self: Any, folder: str | Path, max_shard_size: int | str = "10GB") -> None:
        """Writes the frozen backbone as a stock `WanTransformer3DModel` folder, without the expert."""
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            stock = WanTransformer3DModel(**{key: config[key] for key in config.keys() - set(OWN_SETTINGS)})
        tensors = {key: tensor for key, tensor in self.state_dict().items() if not is_expert_key(key)}
        stock.load_state_dict(tensors, strict=True, assign=True)
        stock.save_pretrained(folder, max_shard_size=max_shard_size)

    @classmethod
    def from_folders(
        cls: Any,
        backbone_folder: str | Path,
        expert_folder: str | Path,
        torch_dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> "WanVideoAsPromptTransformer":
        """Loads a stock backbone folder and an expert folder into one model, in evaluation mode.

        Args:
            backbone_folder: as written by `save_backbone` or by diffusers.
            expert_folder: as written by `save_expert`.
            torch_dtype: precision of the weights; what diffusers keeps in float32 stays so, in the expert as well.
            settings: passed to diffusers when it loads the backbone (quantisation, device map, ...).

        Raises:
            ModelError: where a folder, setting or tensor is not what was expected.
        """
        config = read_expert_config(expert_folder)
        backbone = load_strictly(WanTransformer3DModel, backbone_folder, torch_dtype=torch_dtype, **settings)
        model = cls.from_backbone(backbone, **{name: config[name] for name in OWN_SETTINGS})
        model.load_expert(expert_folder)
        return model


def read_expert_config(folder: str | Path) -> dict[str, Any]:
    """The settings of an expert folder.

    Raises:
        ModelError: where there is no expert in it.
    """
    config = read_json(Path(folder) / CONFIG_NAME)
    missing = [name for name in OWN_SETTINGS if name not in config]
    if config.get("_class_name") != EXPERT_CLASS:
        raise ModelError(f"{folder} was expected to hold a {EXPERT_CLASS}, its config says {config.get('_class_name')}")
    if missing:
        raise ModelError(f"the config of the expert in {folder} lacks {', '.join(missing)}; save the expert anew")
    return config


def _to_plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
