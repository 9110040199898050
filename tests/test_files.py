import errno
import os
from pathlib import Path

import pytest

from sememe import files
from sememe.errors import InputError, OutputError


def test_content_appears_at_once(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with files.atomic_path(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
        assert part.parent == tmp_path
        assert part.suffix == ".json"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_everybody_may_read_what_a_library_wrote_for_its_owner(tmp_path: Path) -> None:
    def replace_secretly(path: Path) -> None:
        (path.parent / "other").touch(mode=0o600)
        (path.parent / "other").replace(path)

    files.write_text(tmp_path / "plain", "")
    with files.atomic_path(tmp_path / "a.safetensors") as part:
        replace_secretly(part)
    with files.atomic_folder(tmp_path / "model") as folder:
        (folder / "vae").mkdir()
        replace_secretly(folder / "vae" / "b.safetensors")
    usual = (tmp_path / "plain").stat().st_mode
    assert usual & 0o444 == 0o444
    assert (tmp_path / "a.safetensors").stat().st_mode == usual
    assert (tmp_path / "model" / "vae" / "b.safetensors").stat().st_mode == usual


def fail_halfway(target: Path, failure: BaseException | type[BaseException]) -> None:
    with files.atomic_path(target) as part:
        part.write_text("half")
        raise failure


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_is_left_of_a_failure(tmp_path: Path, exception: type[BaseException]) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(exception):
        fail_halfway(target, exception)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full") as caught:
        fail_halfway(tmp_path / "a.bin", OSError(errno.ENOSPC, "No space left on device"))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_missing_folder_folder_as_file_and_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="does not exist"):
        files.write_text(tmp_path / "nowhere" / "a.txt", "")
    with pytest.raises(OutputError, match="got the folder"):
        files.write_text(tmp_path, "")
    with pytest.raises(OutputError, match="not a folder"):
        files.write_text(tmp_path / "file" / "a.txt", "")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests as root may write everywhere
    with pytest.raises(OutputError, match="no permission"):
        files.write_text(tmp_path / "a.txt", "")


def test_too_long_a_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        files.write_text(tmp_path / ("a" * 300), "")


def test_a_folder_appears_at_once_and_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    for text in ("old", "new"):
        with files.atomic_folder(target) as part:
            (part / "inner").mkdir()
            (part / "inner" / text).touch()
            assert not (target / "inner" / text).exists()
        assert os.listdir(target / "inner") == [text]
    assert os.listdir(tmp_path / "runs") == ["model"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), RuntimeError(), OSError(errno.ENOSPC, "")])
def test_an_older_folder_stays_where_writing_fails(tmp_path: Path, exception: BaseException) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(OutputError if isinstance(exception, OSError) else type(exception)):
        _fail_in_folder(target, exception)
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["model"]


def test_an_older_folder_comes_back_where_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if "writing" in path.name:
            raise OSError(errno.EACCES, "refused")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match="no permission"), files.atomic_folder(target):
        pass
    assert os.listdir(target) == ["old"]


def _fail_in_folder(target: Path, exception: BaseException) -> None:
    with files.atomic_folder(target) as part:
        (part / "new").touch()
        raise exception


def test_a_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.hash_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
    with pytest.raises(InputError, match="b cannot be read"):
        files.hash_file(tmp_path / "b")
