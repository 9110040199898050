"""What there is to load."""

from typing import Any

from sememe.checkpoints.zoo import ModelRecord, list_models


def list_built_in_models() -> list[ModelRecord]:
    """The models that come with the package, sorted by name."""
    return list_models()


def model_document(record: ModelRecord) -> dict[str, Any]:
    """A record as plain values."""
    return {
        "name": record.name,
        "system": record.system,
        "description": record.description,
        "license": record.license,
        "source": record.source,
        "height": record.height,
        "width": record.width,
        "num_frames": record.num_frames,
        "fps": record.fps,
        "num_parameters": record.num_parameters,
        "num_bytes": record.num_bytes,
        "folder": str(record.folder),
    }
