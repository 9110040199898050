import json
import os
from pathlib import Path

import pytest

from sememe.errors import OutputError
from sememe.workflows.outputs import OutputFiles


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    OutputFiles.beside(tmp_path / "a.mp4", tmp_path / "a.png").check([tmp_path / "nothing.mp4"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/a.mp4", "does not exist"), ("file/a.mp4", "not a folder"), ("a" * 300 + ".mp4", "too long")],
)
def test_places_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=message):
        OutputFiles.beside(tmp_path / name).check([])


def test_a_folder_in_the_way_of_the_sidecar(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OutputError, match="got the folder"):
        OutputFiles.beside(tmp_path / "a.mp4").check([])


@pytest.mark.parametrize(
    "content",
    [
        '{"mine": "precious notes"}',
        '{"output": {"path": "/elsewhere/a.webm"}}',
        '{"output": "a.mp4"}',
        '["a.mp4"]',
        "[" * 100_000,
        "dear diary",
        "",
    ],
)
def test_a_json_file_of_a_person_is_not_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(OutputError, match=r"a\.json .* would be lost; move it or choose another output"):
        OutputFiles.beside(tmp_path / "a.mp4").check([])
    assert (tmp_path / "a.json").read_text() == content
    assert os.listdir(tmp_path) == ["a.json"]


def test_one_file_is_not_written_twice_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for sheet in (Path("a.mp4"), tmp_path / "a.mp4", Path("link/a.mp4")):
        with pytest.raises(OutputError, match="expected different files to write"):
            OutputFiles.beside(Path("a.mp4"), sheet).check([])


def test_the_record_of_an_earlier_video_of_this_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"output": {"path": "/before/the/move/a.mp4"}}))
    OutputFiles.beside(tmp_path / "a.mp4").check([])


def test_files_appear_together(tmp_path: Path) -> None:
    files = OutputFiles.beside(tmp_path / "a.mp4", tmp_path / "a.png")
    with files.replace_together() as parts:
        for part in (parts.video, parts.sidecar, parts.sheet):
            assert part is not None
            part.write_text("x")
        assert not files.video.exists()
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.mp4", "a.png"]
