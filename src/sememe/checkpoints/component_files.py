"""Strict loading of one component from its folder: safetensors only, every tensor accounted for."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sememe.checkpoints.weight_files import check_weight_files
from sememe.errors import ModelError


def load_strictly(component: type, folder: str | Path, **settings: Any) -> Any:
    """Loads a diffusers or transformers model and refuses a folder whose tensors do not fit its config.

    The libraries themselves warn and go on with random weights in that case.

    Args:
        component: the class to load.
        folder: a local folder with config.json and safetensors.
        settings: passed on to `from_pretrained`.

    Raises:
        ModelError: where the folder is incomplete, damaged or does not fit.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"a folder with the config.json of a {component.__name__} was expected at {folder}")
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        check_weight_files(Path(folder))
    except ModelError as error:
        raise ModelError(f"the {component.__name__} in {folder} cannot be loaded: {error}") from error
    try:
        model, info = component.from_pretrained(  # type: ignore[attr-defined]
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **settings
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the {component.__name__} in {folder} cannot be loaded: {reason}") from error
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(kind) or ())
        if names:
            problems.append(f"{len(names)} {kind.replace('_', ' ')}: {', '.join(names[:3])}")
    if problems:
        raise ModelError(f"the tensors in {folder} do not fit its config; {'; '.join(problems)}")
    return model.eval()
