"""The record of how a file was made: what the JSON beside it holds, and the little that goes into the file itself."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sememe
from sememe.compute.strategy import list_dtype_shortcuts
from sememe.files import hash_file, write_bytes
from sememe.workflows.loading import LoadedModel

_PACKAGES = ("torch", "diffusers", "transformers", "av", "numpy")


def describe_software() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute."""
    found = {"sememe": sememe.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # vendored or built in some way of its own
            found[package] = "unknown"
    return found


def describe_machine(device: str) -> dict[str, Any]:
    """Return the device and the machine; one seed gives the same bytes where these and the versions are the same."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {"device": device, "device_name": name, "system": platform.system(), "num_threads": torch.get_num_threads()}


def describe_model_used(model: LoadedModel) -> dict[str, Any]:
    """Return name, hashes and precision of a model."""
    return {
        "name": model.name,
        "sha256": model.fingerprint.sha256,
        "revision": model.fingerprint.revision,
        "files": dict(model.fingerprint.files),
        "expert": None if model.expert is None else {"folder": str(model.expert.folder), "sha256": model.expert.sha256},
        "lora": [{"file": str(path), "sha256": hash_file(path), "scale": scale} for path, scale in model.adapters],
        "dtype": _computing_dtype(model),
        "own_dtype": model.own_dtype,
        **model.pipeline.describe(),
    }


def describe_exactness(settings: Any, model: LoadedModel) -> dict[str, Any]:
    """Describe what departs from how the model was trained to be used.

    The label is `exact`, `adapted` where nothing but LoRA weights makes the result another than the model's own, or
    `approximate`.
    """
    from sememe.compute.exactness import find_model_changes

    stored = None if model.plan is None else model.plan.strategy.storage
    size = (settings.size.height, settings.size.width)
    model_changes = find_model_changes(model.pipeline, *size, storage=None if stored == "full" else stored)
    shortcuts = [*settings.list_shortcuts(), *model_changes.shortcuts]
    shortcuts += list_dtype_shortcuts(model.own_dtype, _computing_dtype(model))
    label = "approximate" if shortcuts else "adapted" if model_changes.adapters else "exact"
    return {"label": label, "shortcuts": shortcuts, "adapters": list(model_changes.adapters)}


def _computing_dtype(model: LoadedModel) -> str:
    return model.dtype if model.plan is None else model.plan.strategy.dtype


def make_comment(document: Mapping[str, Any], texts: Mapping[str, Any], settings: Any) -> dict[str, str]:
    """Return the metadata of the video file, which is the same for all runs with one seed."""
    inputs = document["inputs"]
    files = {name: file if isinstance(file, list) else [file] for name, file in inputs.items()}
    return {
        "sememe": document["versions"]["sememe"],
        "system": document["system"],
        "model": Path(document["model"]["name"]).name,
        "model_sha256": document["model"]["sha256"],
        "seed": str(document["seed"]),
        **{name: text for name, text in texts.items() if isinstance(text, str)},
        **{f"{name}_sha256": ",".join(file["sha256"] for file in found) for name, found in files.items()},
        # Ways to compute are left out: one seed gives the same file in all that are exact.
        "settings": json.dumps(settings.sampling.to_dict() | settings.guidance.to_dict()),
    }


def write_sidecar(document: Mapping[str, Any], path: Path) -> None:
    """Write the record as JSON.

    Raises:
        OutputError: It cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    # Paths may hold bytes that are not UTF-8; escaped, their surrogates are valid JSON.
    write_bytes(path, text.encode(errors="backslashreplace"))
