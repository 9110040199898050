"""The models that come with the package, and those that others have released."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sememe.checkpoints.zoo import find_folder, is_hub_id, list_models
from sememe.errors import ModelError
from sememe.workflows.systems import SYSTEMS, find_system


def list_built_in_models() -> list[dict[str, Any]]:
    """Return the built-in models as plain values, sorted by name."""
    documents = []
    for record in list_models():
        known = asdict(record) | {"folder": str(record.folder)}
        system = find_system(known.pop("pipeline")).name
        documents.append({"name": known.pop("name"), "system": system, **known})
    return documents


def list_released_models() -> list[dict[str, str]]:
    """Return the released models that are known by a name: that name, the system, and the repository on the hub."""
    return [
        {"name": name, "system": system.name, "repository": repository}
        for system in SYSTEMS.values()
        for name, repository in system.checkpoints.released.items()
    ]


def download_model(name: str, revision: str | None = None) -> Path:
    """Fetch a model of the hub into its cache.

    Args:
        name: Name of a released model, or repository.
        revision: Branch, tag or commit; None for the newest.

    Returns:
        Its folder in the cache.

    Raises:
        ModelError: It is no repository, or cannot be fetched.
    """
    released = {model["name"]: model["repository"] for model in list_released_models()}
    repository = released.get(name, name)
    if not is_hub_id(repository):
        known = ", ".join(released)
        raise ModelError(f"expected a released model ({known}) or a repository of the hub (owner/name), got {name}")
    return find_folder(repository, revision)
