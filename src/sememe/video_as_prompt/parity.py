"""Does a model compute what the official implementation computed with the same weights?

A folder of parity vectors holds a tiny configuration, its weights under the official names, inputs and outputs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sememe.checkpoints.headers import read_json
from sememe.errors import InputError
from sememe.video_as_prompt.formats import format_of_config
from sememe.video_as_prompt.parity_forward import compare_forward
from sememe.video_as_prompt.parity_pipeline import compare_generation

TOLERANCE = 1e-4
LATENTS_TOLERANCE = 5e-3
_FORWARD_FILES = ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors")
_PIPELINE_FILES = ("call.json", "inputs.safetensors", "outputs.safetensors")


@dataclass(frozen=True)
class ParityResult:
    """The outcome of a check.

    Attributes:
        kind: `forward` for one pass of the transformer, `pipeline` for a whole generation.
        family: `wan` or `cogvideox`.
        max_abs_error: the largest difference between any two numbers; for a generation, of what the transformer was
            given and returned at its first calls.
        tolerance: what it may be.
        ok: whether all errors are within their tolerances.
        latents_error: for a generation, the largest difference between the final latents.
        latents_tolerance: what that may be.
    """

    kind: str
    family: str
    max_abs_error: float
    tolerance: float
    ok: bool
    latents_error: float | None = None
    latents_tolerance: float | None = None

    def to_document(self) -> dict[str, Any]:
        """Plain values, without those that do not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_parity(folder: Path) -> ParityResult:
    """Runs a model on the inputs of a parity folder and compares.

    Raises:
        InputError: the folder holds no parity vectors.
        ModelError: its weights are not those of its configuration.
    """
    kind = _find_kind(folder)
    given, expected = _read(folder / "inputs.safetensors"), _read(folder / "outputs.safetensors")
    if kind == "pipeline":
        family = _family_of_pipeline(folder)
        errors = compare_generation(folder, family, given, expected)
        is_ok = errors.calls <= TOLERANCE and errors.latents <= LATENTS_TOLERANCE
        return ParityResult(kind, family, errors.calls, TOLERANCE, is_ok, errors.latents, LATENTS_TOLERANCE)
    family = _family_of_config(folder)
    error = compare_forward(folder, given, expected)
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


def _family_of_config(folder: Path) -> str:
    known = format_of_config(read_json(folder / "config.json"))
    if known is None:
        raise InputError(f"expected the arguments of a Wan or CogVideoX transformer in {folder / 'config.json'}")
    return known.name


def _family_of_pipeline(folder: Path) -> str:
    name = str(read_json(folder / "checkpoint" / "model_index.json").get("_class_name"))
    for family, prefix in (("wan", "Wan"), ("cogvideox", "CogVideoX")):
        if name.startswith(prefix):
            return family
    raise InputError(f"expected a Wan or CogVideoX pipeline in {folder / 'checkpoint'}, got {name}")


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy the folder again") from error
