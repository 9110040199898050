"""The models that come with the package."""

from dataclasses import asdict
from typing import Any

from sememe.checkpoints.zoo import list_models
from sememe.workflows.systems import find_system


def list_built_in_models() -> list[dict[str, Any]]:
    """Return the built-in models as plain values, sorted by name."""
    documents = []
    for record in list_models():
        known = asdict(record) | {"folder": str(record.folder)}
        system = find_system(known.pop("pipeline")).name
        documents.append({"name": known.pop("name"), "system": system, **known})
    return documents
