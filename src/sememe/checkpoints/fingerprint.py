"""What identifies a model: the hashes of its files, and of its encoder."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sememe.errors import SememeError
from sememe.files import hash_file, write_bytes

# Only what loading reads: a corrected card, or somebody's notes, is not another model.
_READ = ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt")
_KEPT_FROM = 50_000_000  # bytes; smaller files are hashed in a moment
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
    """Hash the files of a model folder that loading reads.

    Files that did not change since the last call are not read again; hashes of large ones are kept in the user's cache.
    """
    paths = sorted(path for pattern in _READ for path in folder.glob(pattern) if path.is_file())
    files = {path.relative_to(folder).as_posix(): _model_file_hash(path) for path in paths}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return ModelFingerprint(hashlib.sha256(lines.encode()).hexdigest(), files, folder.name if is_snapshot else None)


def identify_model(folder: Path) -> str:
    """Return the beginning of the hash of what a model's folder holds."""
    return fingerprint_model(folder).sha256[:16]


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
    return _hash_unchanged(target, found.st_size, (found.st_ino, found.st_mtime_ns, found.st_ctime_ns))


@functools.lru_cache(maxsize=1024)
def _hash_unchanged(path: Path, size: int, state: tuple[int, ...]) -> str:
    if size < _KEPT_FROM:
        return hash_file(path)
    try:
        kept = _find_kept(f"{path} {size} {state}")
        known = kept.read_text(encoding="utf-8") if kept.is_file() else ""
    except (OSError, ValueError, RuntimeError):  # there is no such home, or it cannot be read
        return hash_file(path)
    if _SHA256.fullmatch(known):
        return known
    digest = hash_file(path)
    with suppress(OSError, SememeError):  # without a cache it is read again the next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, digest.encode())
    return digest


def _find_kept(state: str) -> Path:
    """Return where the hash of a file in a state is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "sememe" / "hashes" / hashlib.sha256(state.encode(errors="surrogateescape")).hexdigest()
