"""Where a part of a model lies: in a run's folder, in a whole model, or in a folder of its own."""

import json
from collections.abc import Mapping
from pathlib import Path

from sememe.checkpoints.zoo import resolve_model
from sememe.errors import ModelError

# What a part's folder holds once it is written.
_MARKS: Mapping[str, str] = {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}
_CLASSES: Mapping[str, frozenset[str]] = {
    "vae": frozenset({"LinearVideoAutoencoder", "AutoencoderKLWan", "AutoencoderKLCogVideoX"}),
    "transformer": frozenset({"WanTransformer3DModel", "CogVideoXTransformer3DModel"}),
    "text_encoder": frozenset({"UMT5EncoderModel", "T5EncoderModel"}),
    "expert": frozenset({"WanVideoAsPromptExpert", "CogVideoXVideoAsPromptExpert"}),
}
PARTS = (*_CLASSES, *_MARKS)


def find_part(source: str | Path, part: str) -> Path:
    """The folder of one part.

    Args:
        source: a run's folder (its `model/` is looked into), a model's folder, a built-in name, or the part's own
            folder.
        part: `vae`, `transformer`, `text_encoder`, `tokenizer`, `scheduler` or `expert`.

    Raises:
        ModelError: it is not there.
    """
    assert part in PARTS, part
    folder = resolve_model(source)
    for place in (folder / "model" / part, folder / part, folder / "model", folder):
        if _holds(place, part):
            return place
    if (folder / "checkpoints").is_dir() and not (folder / "model").is_dir():
        raise ModelError(f"the run in {folder} is not complete, so it has no {part} yet; go on with it, or export one")
    raise ModelError(f"expected a run, a model or a folder with the {part}, but {source} holds none")


def _holds(folder: Path, part: str) -> bool:
    mark = folder / _MARKS.get(part, "config.json")
    if not mark.is_file():
        return False
    if part in _MARKS:
        return True
    try:
        config = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"expected the settings of the {part} in {mark}, but it cannot be read") from error
    # transformers writes `architectures`, diffusers `_class_name`.
    names = config.get("architectures") or [config.get("_class_name")] if isinstance(config, dict) else []
    return any(name in _CLASSES[part] for name in names)
