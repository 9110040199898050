"""What identifies a model: the hashes of its files, and of its encoder."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sememe.files import hash_file

# Only what loading reads: a corrected card is not another model.
_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt"})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelFingerprint:
    """Hashes of a model's files.

    Attributes:
        sha256: SHA-256 of the lines `<sha256>  <path>` of all files, sorted by path, as the tool sha256sum prints them.
        files: SHA-256 of each file, by its path inside the folder.
        revision: Commit, where the folder is a snapshot of a repository on the Hugging Face hub.
    """

    sha256: str
    files: Mapping[str, str]
    revision: str | None


def fingerprint_model(folder: Path) -> ModelFingerprint:
    """Hash the files of a model folder; those that did not change since the last call are not read again."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    files = {path.relative_to(folder).as_posix(): _model_file_hash(path) for path in paths}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return ModelFingerprint(hashlib.sha256(lines.encode()).hexdigest(), files, folder.name if is_snapshot else None)


def fingerprint_encoder(autoencoder: Any) -> str:
    """Return the sha256 of all that decides on latents: the encoder's weights and the latents' statistics.

    The decoder is left out: it may be trained further while cached latents stay valid.
    """
    config = autoencoder.config
    about = {name: config.get(name) for name in ("_class_name", "latents_mean", "latents_std", "scaling_factor")}
    tensors = autoencoder.state_dict().items()
    return hash_tensors(about, (item for item in tensors if item[0].startswith(("encoder.", "quant_conv."))))


def hash_tensors(about: Mapping[str, Any], tensors: Iterable[tuple[str, Any]]) -> str:
    """Return the sha256 of settings that JSON can hold and of named tensors, whose values are taken as float32."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _model_file_hash(path: Path) -> str:
    target = path.resolve()
    # The hub's cache names large files by their sha256, which spares reading tens of gigabytes.
    if path.is_symlink() and target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    found = target.stat()
    return _hash_unchanged(target, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _hash_unchanged(path: Path, size: int, changed: int) -> str:
    return hash_file(path)
