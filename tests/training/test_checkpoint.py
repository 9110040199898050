import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sememe.errors import ModelError, OutputError
from sememe.training.checkpoint import (
    Checkpoint,
    find_damage,
    find_latest,
    list_checkpoints,
    load_checkpoint,
)
from sememe.training.checkpoint_writer import CheckpointWriter, remove_leftovers
from sememe.training.process import Distribution


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    writer = CheckpointWriter(folder, Distribution(device=torch.device("cpu")))
    writer.begin(checkpoint)
    try:
        return writer.complete()
    finally:
        writer.close()


def make_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        weights={"a": torch.full((3, 2), float(step)), "b": torch.arange(4, dtype=torch.bfloat16)},
        average={"a": torch.zeros(3, 2)},
        optimizer={"a/step": torch.tensor(float(step)), "a/moment": torch.ones(2, 3).T},
        state={"stage": "small", "seconds": 1.5},
    )


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = save_checkpoint(make_checkpoint(123), tmp_path)
    loaded = load_checkpoint(path)
    assert path.name == "step_000123"
    assert (loaded.step, dict(loaded.state)) == (123, {"stage": "small", "seconds": 1.5})
    assert loaded.weights["b"].dtype == torch.bfloat16
    assert torch.equal(loaded.weights["a"], torch.full((3, 2), 123.0))
    assert torch.equal(loaded.optimizer["a/moment"], torch.ones(3, 2))
    assert sorted(json.loads((path / "manifest.json").read_text())["files"]) == [
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_the_newest_are_kept_by_number(tmp_path: Path) -> None:
    for step in (5, 999_999, 1_000_000):
        save_checkpoint(make_checkpoint(step), tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_999999", "step_1000000"]
    assert find_latest(tmp_path) == tmp_path / "step_1000000"


def test_a_step_can_be_written_anew(tmp_path: Path) -> None:
    path = save_checkpoint(make_checkpoint(1), tmp_path)
    (path / "weights.safetensors").write_bytes(b"")
    save_checkpoint(make_checkpoint(1), tmp_path)
    assert find_latest(tmp_path) == path


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "state.json", "manifest.json"])
def test_damage_is_found_and_passed_over(tmp_path: Path, name: str) -> None:
    older = save_checkpoint(make_checkpoint(1), tmp_path)
    newer = save_checkpoint(make_checkpoint(2), tmp_path)
    content = bytearray((newer / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newer / name).write_bytes(content)
    assert find_damage(newer) is not None
    assert find_latest(tmp_path) == older
    with pytest.raises(ModelError, match="not a complete checkpoint"):
        load_checkpoint(newer)
    (newer / name).unlink()
    assert find_damage(newer) == f"{name} is missing"
    assert find_latest(tmp_path) == older


def test_a_manifest_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    path = save_checkpoint(make_checkpoint(1), tmp_path)
    (tmp_path / "outside").write_bytes(b"x")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../outside"] = {"size": 1, "sha256": "0" * 64}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "size" in (find_damage(path) or "")


class KilledError(BaseException):
    """Stands for SIGKILL: nothing may clean up after it."""


def test_killed_at_any_point_a_save_leaves_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: dict[str, Callable[..., object]] = {
        "fsync": os.fsync,
        "rename": Path.rename,
        "save": save_file,
        "tree": shutil.rmtree,
    }
    left = [0]

    def count(name: str) -> None:
        if left[0] == 1:
            raise KilledError(name)  # from then on, at every call
        left[0] -= 1

    def wrap(name: str):  # type: ignore[no-untyped-def]
        def act(*args: object, **keywords: object) -> object:
            count(name)
            return real[name](*args, **keywords)

        return act

    monkeypatch.setattr(os, "fsync", wrap("fsync"))
    monkeypatch.setattr(Path, "rename", wrap("rename"))
    monkeypatch.setattr("sememe.checkpoints.tensor_files.save_file", wrap("save"))
    monkeypatch.setattr(shutil, "rmtree", wrap("tree"))
    points = 0
    for point in range(1, 100):
        folder = tmp_path / str(point)
        left[0] = 0
        for step in (1, 2):
            save_checkpoint(make_checkpoint(step), folder)
        left[0] = point
        try:
            save_checkpoint(make_checkpoint(3), folder)
        except KilledError:
            points += 1
        else:
            break
        finally:
            left[0] = 0
        latest = find_latest(folder)
        assert latest is not None
        assert load_checkpoint(latest).step in (2, 3)
        remove_leftovers(folder)
        save_checkpoint(make_checkpoint(4), folder)
        assert [path.name[-1] for path in list_checkpoints(folder)][-1] == "4"
        assert not list(folder.glob(".*"))
    assert points > 8


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(make_checkpoint(1), tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sememe.checkpoints.tensor_files.save_file", refuse)
    with pytest.raises(OutputError, match="disk is full"):
        save_checkpoint(make_checkpoint(2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
