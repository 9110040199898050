import json
from pathlib import Path
from typing import Any

import pytest

from cli.runs import refused, run_here
from sememe.data.manifest import MANIFEST_NAME, add_hashes, write_manifest
from sememe.errors import OutputError, VideoError
from sememe.video import Clip, read_clip, read_image
from sememe.workflows import data_check
from sememe.workflows.data_check import check_data
from workflows.painted_videos import make_sample, paint


def test_a_dataset_is_told_what_is_wrong_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        paint(tmp_path / f"{number}.mp4", 40 * number, num_frames=4 if number else 24)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:200])
    paint(tmp_path / "other.mp4", 7)
    (other,) = add_hashes([make_sample("other.mp4")], tmp_path)
    paint(tmp_path / "other.mp4", 9)
    samples = [
        make_sample("0.mp4", references=("1.mp4", "gone.mp4", "3.mp4")),
        make_sample("1.mp4", caption="They MELT away"),
        make_sample("1.mp4", "zoom_in", caption="A slow zoom in."),
        make_sample("2.mp4", "zoom_in", caption=" "),
        make_sample("3.mp4", "jump"),
        make_sample("2.mp4", "fall", split="test"),
        make_sample("cut.mp4"),
        make_sample("gone.mp4", "zoom_in"),
        other,
    ]
    write_manifest(samples, tmp_path / MANIFEST_NAME)
    report = check_data(tmp_path, tmp_path / "sheet.png")
    assert (report.num_videos, report.splits) == (9, {"train": 8, "test": 1})
    assert report.conditions == {"melt": 4, "zoom_in": 3, "jump": 1, "fall": 1}
    assert report.seconds == pytest.approx([0.5, 0.5, 3.0])
    errors = [(each.message.partition(";")[0], list(each.examples)) for each in report.findings if each.is_error]
    assert [message for message, _ in errors] == ["3 of 9 videos cannot be used"]
    assert ["cut.mp4" in errors[0][1][0], "gone.mp4" in errors[0][1][1]] == [True, True]
    assert "other.mp4 is not the file that the manifest describes" in errors[0][1][2]
    notes = {each.message.partition(";")[0]: list(each.examples) for each in report.findings if not each.is_error}
    assert notes == {
        "1 conditions have one scene only": ["jump"],
        "2 videos are listed under several conditions": ["1.mp4", "2.mp4"],
        "1 captions are empty": ["2.mp4"],
        "2 captions name their condition, which makes the reference superfluous": ["1.mp4", "1.mp4"],
        "2 listed references are not in the list, or of another condition": ["3.mp4", "gone.mp4"],
        "videos last from 0.5 to 3.0 s: with clips.sampling=even they play at different speeds": [],
    }
    # Four conditions, each with a line of text and a row of frames.
    assert read_image(tmp_path / "sheet.png").shape[0] > 4 * 128
    told = run_here(capsys, "data", "check", tmp_path)
    assert told.code == 1
    assert "9 videos of 4 conditions, 1 or more each; test 1, train 8" in told.out
    assert "error: 3 of 9 videos cannot be used" in told.out


def test_a_good_dataset_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected manifest.jsonl" in refused(run_here(capsys, "data", "check", tmp_path))
    for number in range(2):
        paint(tmp_path / f"{number}.mp4", 40 * number)
    write_manifest([make_sample(f"{number}.mp4") for number in range(2)], tmp_path / MANIFEST_NAME)
    told = run_here(capsys, "data", "check", tmp_path)
    assert (told.code, told.out.splitlines()[-1]) == (0, "nothing wrong was found")
    report = json.loads(run_here(capsys, "data", "check", tmp_path, "--json").out)
    assert (report["conditions"], report["findings"]) == ({"melt": 2}, [])


def test_a_video_that_breaks_after_its_first_frame_leaves_the_sheet_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_broken(path: Path, **options: Any) -> Clip:
        if path.name == "0.mp4" and options["num_frames"] > 1:
            raise VideoError(f"{path} ends early")
        return read_clip(path, **options)

    for number in range(3):
        paint(tmp_path / f"{number}.mp4", 40 * number, num_frames=4 if number else 24)
    write_manifest([make_sample(f"{number}.mp4") for number in range(3)], tmp_path / MANIFEST_NAME)
    monkeypatch.setattr(data_check, "read_clip", read_broken)
    report = check_data(tmp_path, tmp_path / "sheet.png")
    assert [(each.is_error, each.examples) for each in report.findings] == [
        (True, [f"{tmp_path / '0.mp4'} ends early"])
    ]
    assert report.seconds == pytest.approx([0.5, 0.5, 0.5]), "the broken one lasts 3 seconds"
    assert (tmp_path / "sheet.png").is_file()


def test_a_sheet_that_is_no_picture_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"ending in \.png"):
        check_data(tmp_path, tmp_path / "sheet.txt")
