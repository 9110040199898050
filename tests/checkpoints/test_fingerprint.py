import hashlib
from pathlib import Path

import pytest

from sememe.checkpoints import fingerprint as module
from sememe.checkpoints.fingerprint import fingerprint_model
from sememe.files import hash_file


def make_folder(folder: Path) -> Path:
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "vae" / "weights.safetensors").write_bytes(b"abc")
    (folder / "README.md").write_text("a card")
    return folder


def test_the_hash_is_that_of_the_list_that_sha256sum_prints(tmp_path: Path) -> None:
    found = fingerprint_model(make_folder(tmp_path))
    abc, empty = hashlib.sha256(b"abc").hexdigest(), hashlib.sha256(b"{}").hexdigest()
    assert found.files == {"model_index.json": empty, "vae/weights.safetensors": abc}
    lines = f"{empty}  model_index.json\n{abc}  vae/weights.safetensors\n"
    assert found.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert found.revision is None


def test_weights_change_it_and_the_card_does_not(tmp_path: Path) -> None:
    before = fingerprint_model(make_folder(tmp_path)).sha256
    (tmp_path / "README.md").write_text("a better card")
    assert fingerprint_model(tmp_path).sha256 == before
    (tmp_path / "vae" / "weights.safetensors").write_bytes(b"abcd")
    assert fingerprint_model(tmp_path).sha256 != before


def test_unchanged_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(module, "hash_file", counted)
    assert fingerprint_model(tmp_path) == fingerprint_model(tmp_path)
    assert sorted(read) == ["model_index.json", "weights.safetensors"]


def test_hashes_of_large_files_are_kept_from_process_to_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = make_folder(tmp_path / "model"), tmp_path / "cache"
    (folder / "notes.txt").write_text("not a part of the model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(module, "_KEPT_FROM", 3)
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(module, "hash_file", counted)

    def again() -> list[str]:
        """Do as a new process does, and return what is read."""
        module._hash_unchanged.cache_clear()
        read.clear()
        found = fingerprint_model(folder)
        assert found.files["vae/weights.safetensors"] == hash_file(folder / "vae" / "weights.safetensors")
        assert "notes.txt" not in found.files
        return sorted(read)

    assert again() == ["model_index.json", "weights.safetensors"]
    assert again() == ["model_index.json"]
    (folder / "vae" / "weights.safetensors").write_bytes(b"abd")
    assert again() == ["model_index.json", "weights.safetensors"]
    for path in (cache / "sememe" / "hashes").iterdir():
        path.write_text("not a hash")
    assert again() == ["model_index.json", "weights.safetensors"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "model_index.json"))  # a folder cannot be made there
    assert again() == again() == ["model_index.json", "weights.safetensors"]


def test_the_cache_of_the_hub_tells_hashes_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "snapshots" / ("1" * 40)
    folder.mkdir(parents=True)
    digest = "a" * 64
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_bytes(b"large")
    (folder / "model.safetensors").symlink_to(tmp_path / "blobs" / digest)
    monkeypatch.setattr(module, "hash_file", None)
    found = fingerprint_model(folder)
    assert found.files == {"model.safetensors": digest}
    assert found.revision == "1" * 40
