"""The record of how a file was made: what the JSON beside it holds, and the little that goes into the file itself."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sememe
from sememe.files import write_bytes
from sememe.workflows.input_files import ImageFile, ReferenceFile
from sememe.workflows.loading import LoadedModel
from sememe.workflows.plan import list_dtype_shortcuts, plan_document

_PACKAGES = ("torch", "diffusers", "transformers", "av", "numpy")


def describe_software() -> dict[str, str]:
    """Versions of what computed."""
    found = {"sememe": sememe.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # vendored or built in some way of its own
            found[package] = "unknown"
    return found


def describe_machine(device: str) -> dict[str, Any]:
    """What computed: the same seed gives the same bytes where all of this is the same."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {"device": device, "device_name": name, "system": platform.system(), "num_threads": torch.get_num_threads()}


def describe_model_used(model: LoadedModel) -> dict[str, Any]:
    """Name, hashes and precision of a model."""
    return {
        "name": model.name,
        "sha256": model.fingerprint.sha256,
        "revision": model.fingerprint.revision,
        "files": dict(model.fingerprint.files),
        "expert": None if model.expert is None else {"folder": str(model.expert.folder), "sha256": model.expert.sha256},
        "dtype": _computing_dtype(model),
        "own_dtype": model.own_dtype,
        "attention_mode": model.pipeline.transformer.config.attention_mode,
    }


def describe_computing(model: LoadedModel) -> dict[str, Any]:
    """How it computed: attention backend, compilation, and the memory plan that was applied."""
    return {
        "attention": model.attention,
        "compiled": model.is_compiled,
        "plan": None if model.plan is None else plan_document(model.plan),
    }


def describe_inputs(
    image: ImageFile,
    references: Sequence[ReferenceFile],
    prompts: Sequence[str],
    last_image: ImageFile | None = None,
    negative_references: Sequence[ReferenceFile] = (),
) -> dict[str, Any]:
    """Paths, hashes and shapes of what was read; `prompts` are the references' captions."""
    described: dict[str, Any] = {
        "image": _describe_picture(image),
        "references": [
            _describe_video(reference) | {"prompt": prompt}
            for reference, prompt in zip(references, prompts, strict=True)
        ],
    }
    if last_image is not None:
        described["last_image"] = _describe_picture(last_image)
    if negative_references:
        described["negative_references"] = [_describe_video(reference) for reference in negative_references]
    return described


def _describe_picture(image: ImageFile) -> dict[str, Any]:
    height, width = image.pixels.shape[:2]
    return {"path": str(image.path), "sha256": image.sha256, "height": height, "width": width}


def _describe_video(reference: ReferenceFile) -> dict[str, Any]:
    return {
        "path": str(reference.path),
        "sha256": reference.sha256,
        "num_frames": reference.num_frames,
        "height": reference.height,
        "width": reference.width,
        "fps": reference.fps,
    }


def describe_exactness(settings: Mapping[str, Any], model: LoadedModel) -> dict[str, Any]:
    """Whether anything was switched on that departs from what the model was trained for, and what.

    The label is `exact`, `adapted` where nothing but LoRA weights makes the result another than the model's own, or
    `approximate`.
    """
    from sememe.compute.exactness import find_departures

    shortcuts = [f"autocast {settings['autocast']}"] if settings.get("autocast", "off") != "off" else []
    if settings.get("approximate"):
        refresh = settings.get("reference_refresh")
        shortcuts.append("reference encoded once" if refresh is None else f"reference refreshed every {refresh} steps")
    if settings.get("reference_strength", 1.0) not in (0.0, 1.0):
        shortcuts.append(f"reference strength {settings['reference_strength']:g}")
    if settings.get("reference_downscale", 1) > 1:
        shortcuts.append(f"references smaller by {settings['reference_downscale']}")
    if settings.get("reference_positions", "dense") != "dense":
        shortcuts.append(f"reference positions {settings['reference_positions']}")
    stored = None if model.plan is None else model.plan.strategy.storage
    size = (settings["height"], settings["width"])
    departures = find_departures(model.pipeline, *size, storage=None if stored == "full" else stored)
    shortcuts += [*departures.shortcuts, *list_dtype_shortcuts(model.own_dtype, _computing_dtype(model))]
    label = "approximate" if shortcuts else "adapted" if departures.adapters else "exact"
    return {"label": label, "shortcuts": shortcuts, "adapters": list(departures.adapters)}


def _computing_dtype(model: LoadedModel) -> str:
    return model.dtype if model.plan is None else model.plan.strategy.dtype


def peak_memory(device: str) -> dict[str, int | None]:
    """Bytes, the most that this process has held since it began, and that it has held on its GPU."""
    import torch

    on_device = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    try:
        import resource
    except ImportError:  # Windows
        return {"process_bytes": None, "device_bytes": on_device}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_bytes": peak if sys.platform == "darwin" else 1024 * peak, "device_bytes": on_device}


def make_comment(document: Mapping[str, Any]) -> dict[str, str]:
    """What the video file itself says. Nothing of it differs between two runs of one seed: no times, no paths."""
    settings, inputs = document["settings"], document["inputs"]
    return {
        "sememe": document["versions"]["sememe"],
        "system": document["system"],
        "model": Path(document["model"]["name"]).name,
        "model_sha256": document["model"]["sha256"],
        "seed": str(document["seed"]),
        "prompt": document["prompt"],
        "image_sha256": inputs["image"]["sha256"],
        "reference_sha256": ",".join(reference["sha256"] for reference in inputs["references"]),
        "num_inference_steps": str(settings["num_inference_steps"]),
        "guidance_scale": f"{settings['guidance_scale']:g}",
        "reference_guidance_scale": f"{settings['reference_guidance_scale']:g}",
        "guidance_interval": " ".join(f"{end:g}" for end in settings["guidance_interval"]),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_sidecar(document: Mapping[str, Any], path: Path) -> None:
    """Write the record as JSON.

    Raises:
        OutputError: It cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    # Paths may hold bytes that are no UTF-8; what stands for them is valid JSON when it is escaped.
    write_bytes(path, text.encode(errors="backslashreplace"))
