"""Does a model compute what the official implementation computed with the same weights?

A folder of parity vectors holds a tiny configuration, its weights under the official names, inputs and outputs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sememe.errors import InputError, ModelError
from sememe.models.key_map_wan import from_official_key, is_official_expert_key
from sememe.models.reference import ReferenceInputs
from sememe.models.tensor_files import check_tensors, read_json
from sememe.models.wan import WanVideoAsPromptTransformer

TOLERANCE = 1e-4
_FORWARD_FILES = ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors")
_PIPELINE_FILES = ("call.json", "inputs.safetensors", "outputs.safetensors")


@dataclass(frozen=True)
class ParityResult:
    """The outcome of a check.

    Attributes:
        kind: `forward` for one pass of the transformer, `pipeline` for a whole generation.
        family: `wan` or `cogvideox`.
        max_abs_error: the largest difference between any two numbers.
        tolerance: what it may be.
        ok: whether it is.
    """

    kind: str
    family: str
    max_abs_error: float
    tolerance: float
    ok: bool

    def to_document(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_parity(folder: Path) -> ParityResult:
    """Runs a model on the inputs of a parity folder and compares.

    Raises:
        InputError: the folder holds no parity vectors, or those of a kind or family that is not supported yet.
        ModelError: its weights are not those of its configuration.
    """
    kind = _find_kind(folder)
    if kind == "pipeline":
        family = _family_of_pipeline(folder)
        raise InputError(
            f"{folder} holds a whole generation of {family}, which is not supported yet; only forward passes of wan are"
        )
    config = read_json(folder / "config.json")
    family = _family_of_config(folder, config)
    if family != "wan":
        raise InputError(f"{folder} holds a forward pass of {family}, which is not supported yet; only that of wan is")
    error = _forward_error_wan(folder, config)
    return ParityResult(kind, family, error, TOLERANCE, ok=error <= TOLERANCE)


def _find_kind(folder: Path) -> str:
    if all((folder / name).is_file() for name in _FORWARD_FILES):
        return "forward"
    if all((folder / name).is_file() for name in _PIPELINE_FILES) and (folder / "checkpoint").is_dir():
        return "pipeline"
    raise InputError(
        f"expected a folder of parity vectors ({', '.join(_FORWARD_FILES)}; or {', '.join(_PIPELINE_FILES)} and "
        f"checkpoint/), but {folder} is none"
    )


def _family_of_config(folder: Path, config: Mapping[str, Any]) -> str:
    """Told by arguments that only one of the official classes has."""
    if "added_kv_proj_dim" in config:
        return "wan"
    if "max_text_seq_length" in config:
        return "cogvideox"
    raise InputError(f"expected the arguments of a Wan or CogVideoX transformer in {folder / 'config.json'}")


def _family_of_pipeline(folder: Path) -> str:
    name = str(read_json(folder / "checkpoint" / "model_index.json").get("_class_name"))
    for family, prefix in (("wan", "Wan"), ("cogvideox", "CogVideoX")):
        if name.startswith(prefix):
            return family
    raise InputError(f"expected a Wan or CogVideoX pipeline in {folder / 'checkpoint'}, got {name}")


@torch.no_grad()
def _forward_error_wan(folder: Path, config: Mapping[str, Any]) -> float:
    given, expected = _read(folder / "inputs.safetensors"), _read(folder / "outputs.safetensors")
    try:
        timestep = given["timestep_mot_ref"].item()
        reference = ReferenceInputs(
            (given["hidden_states_mot_ref"],),
            (given["encoder_hidden_states_mot_ref"],),
            _optional(given.get("encoder_hidden_states_image_mot_ref")),
        )
        model = _load_official_wan(folder, config, timestep)
        sample = model(
            given["hidden_states"],
            given["timestep"],
            given["encoder_hidden_states"],
            given.get("encoder_hidden_states_image"),
            return_dict=False,
            reference=reference,
        )[0]
        return _max_abs_error(sample, expected["sample"])
    except KeyError as error:
        raise InputError(
            f"expected a tensor {error} among the inputs and outputs in {folder}, there is none"
        ) from error


def _optional(tensor: torch.Tensor | None) -> tuple[torch.Tensor] | None:
    return None if tensor is None else (tensor,)


def _load_official_wan(folder: Path, config: Mapping[str, Any], timestep: float) -> WanVideoAsPromptTransformer:
    """The transformer of an official configuration and its merged weights, trained two-way as all released ones."""
    settings = {name: value for name, value in config.items() if name != "block_idx_with_mot_ref"}
    try:
        model = WanVideoAsPromptTransformer(
            expert_blocks=config["block_idx_with_mot_ref"],
            attention_mode="joint",
            reference_timestep=timestep,
            **settings,
        ).eval()
    except (TypeError, KeyError) as error:
        raise ModelError(f"{folder / 'config.json'} is not that of an official Wan transformer: {error}") from error
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in _read(folder / "weights.safetensors").items():
        try:
            own = from_official_key(key) if is_official_expert_key(key) else key
        except KeyError as error:
            raise ModelError(f"{folder / 'weights.safetensors'} holds a tensor of no known part: {key}") from error
        tensors[own] = tensor
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    check_tensors(folder / "weights.safetensors", expected, {key: tensor.shape for key, tensor in tensors.items()})
    model.load_state_dict(tensors)
    return model


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy the folder again") from error


def _max_abs_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    if got.shape != expected.shape:
        raise InputError(
            f"expected an output of shape {tuple(got.shape)} among the vectors, got {tuple(expected.shape)}"
        )
    return float((got.float() - expected.float()).abs().max())
