import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sememe.data.manifest import (
    MANIFEST_NAME,
    BenchmarkSample,
    VideoSample,
    add_hashes,
    read_manifest,
    read_samples,
    read_vap_data,
    write_benchmark,
    write_manifest,
    write_vap_data,
)
from sememe.errors import InputError, OutputError

SAMPLES = (
    VideoSample(path="videos/a1.mp4", caption='a "red" ball, rolling', condition="melt", references=("videos/a2.mp4",)),
    VideoSample(path="videos/a2.mp4", caption="two\nlines", condition="melt", split="test", score=40.0),
    VideoSample(path="videos/b1.mp4", caption="a tree\u2028alone", condition="spin", score=5.0),
)
HEADER = "video_paths,ref_video_paths,tar_video_caption,kind,split,reference_alignment_score"


def write_csv(folder: Path, *rows: str, header: str = HEADER) -> None:
    (folder / "vap_data.csv").write_text("\n".join((header, *rows)) + "\n")


def test_samples_survive_the_csv(tmp_path: Path) -> None:
    write_vap_data(SAMPLES, tmp_path)
    assert read_vap_data(tmp_path) == (replace(SAMPLES[0], score=100.0), *SAMPLES[1:])


def test_a_hash_may_be_in_upper_case(tmp_path: Path) -> None:
    write_manifest([replace(SAMPLES[0], sha256="AB12")], tmp_path / MANIFEST_NAME)
    assert read_manifest(tmp_path / MANIFEST_NAME) == (replace(SAMPLES[0], sha256="ab12"),)


def test_samples_are_kept_by_score_and_validity(tmp_path: Path) -> None:
    write_vap_data(SAMPLES, tmp_path)
    assert [sample.path[-6:] for sample in read_samples(tmp_path, 5.0)] == ["a1.mp4", "a2.mp4"]
    with pytest.raises(InputError, match=r"score above 100 in .*, got none of 3"):
        read_samples(tmp_path, 100.0)
    write_manifest(SAMPLES, tmp_path / MANIFEST_NAME)
    assert read_samples(tmp_path, 39.0) == SAMPLES[:2], "without a score it stays"
    rows = [f"v{valid}.mp4,[],c,melt,train,50,{valid}" for valid in ("1", "0", "True", "False", "", "-1")]
    write_csv(tmp_path, *rows, header=HEADER + ",_valid")
    assert [sample.path for sample in read_vap_data(tmp_path)] == ["v1.mp4", "vTrue.mp4"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('v.mp4,"[""a.mp4""",c,melt,train,5', "line 3: ref_video_paths must be a JSON list of strings"),
        ('v.mp4,"{""a"": 1}",c,melt,train,5', "line 3: ref_video_paths must be a JSON list"),
        ("v.mp4,[1],c,melt,train,5", "line 3: ref_video_paths must be a JSON list"),
        ("v.mp4,[],c,melt,train,high", "line 3: reference_alignment_score must be a number, got 'high'"),
        ("v.mp4,[],c,melt,train,inf", "line 3: reference_alignment_score must be a number"),
        ("v.mp4,[],c, ,train,5", "line 3: kind must name a condition"),
        ("../v.mp4,[],c,melt,train,5", "line 3: a path must stay inside the dataset"),
        ('v.mp4,"[""/etc/passwd""]",c,melt,train,5', "line 3: a path must stay inside the dataset"),
        ("v.mp4,[],c,melt,train", "line 3: expected 6 cells"),
        ("v.mp4,[],c,melt,train,5,6", "line 3: expected 6 cells"),
        ('v.mp4,[],"c,melt,train,5', "not a valid csv row"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    write_csv(tmp_path, "good.mp4,[],c,melt,train,5", row)
    with pytest.raises(InputError, match=message):
        read_vap_data(tmp_path)


def test_missing_columns_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*vap_data\.csv"):
        read_vap_data(tmp_path)
    write_csv(tmp_path, header="video_paths,tar_video_caption,kind,reference_alignment_score")
    with pytest.raises(InputError, match=r"it lacks ref_video_paths, split$"):
        read_vap_data(tmp_path)
    (tmp_path / "vap_data.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_vap_data(tmp_path)
    with pytest.raises(OutputError):
        write_vap_data(SAMPLES, tmp_path / "nowhere")


def test_cells_longer_than_the_default_limit_are_read_and_the_limit_is_left_alone(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    references = tuple(f"videos/{number:06d}.mp4" for number in range(10_000))
    write_vap_data([replace(SAMPLES[0], references=references)], tmp_path)
    assert read_vap_data(tmp_path)[0].references == references
    assert csv.field_size_limit() == limit


def test_a_benchmark_is_a_csv(tmp_path: Path) -> None:
    rows = [BenchmarkSample(path="a.mp4", caption="x, y", reference="b.mp4", reference_caption="")]
    path = write_benchmark(rows, tmp_path)
    header = "video_paths,ref_video_path,tar_video_caption,ref_video_caption"
    assert path.read_text().splitlines() == [header, 'a.mp4,b.mp4,"x, y",']


def test_a_manifest_keeps_everything_and_hashes_tell_what_changed(tmp_path: Path) -> None:
    for sample in SAMPLES:
        file = tmp_path / sample.path
        file.parent.mkdir(exist_ok=True)
        file.write_text(sample.path)
    segments = ((1.5, "a ball"), (4.0, "a ball; it melts"))
    known = [replace(sample, scene="7", full_caption="all", segments=segments) for sample in SAMPLES]
    samples = add_hashes(known, tmp_path)
    write_manifest(samples, tmp_path / "manifest.jsonl")
    assert read_manifest(tmp_path / "manifest.jsonl") == samples


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected a JSON object"),
        ('{"path": "a.mp4", "caption": ""}', "missing: condition, unknown: none"),
        ('{"path": "a.mp4", "caption": "", "condition": "c", "kind": "c"}', "unknown: kind"),
        ('{"path": "a.mp4", "caption": 3, "condition": "c"}', "the rest texts"),
        ('{"path": "../a.mp4", "caption": "", "condition": "c"}', "a path must stay inside"),
        *(
            (f'{{"path": "a.mp4", "caption": "", "condition": "c", "segments": {segments}}}', "must be a list of pairs")
            for segments in (
                '"a"',
                '[[1, "a"], [1, "b"]]',
                '[[0, "a"]]',
                '[[NaN, "a"]]',
                '[[true, "a"]]',
                "[[1, 2]]",
                "[1]",
            )
        ),
    ],
)
def test_a_bad_manifest_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_manifest([], tmp_path / "m.jsonl")
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"must begin with|line 1"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_list_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    (tmp_path / "vap_data.csv").write_text(f"{HEADER}\n")
    with pytest.raises(InputError, match=r"expected videos in the list of .*, got none; add some"):
        read_samples(tmp_path)
    (tmp_path / "vap_data.csv").write_text(f"{HEADER}\na.mp4,[],a cat,melt,,0\n")
    with pytest.raises(InputError, match=r"above 0 in .*, got none of 1; correct the scores"):
        read_samples(tmp_path)
    write_manifest(
        [VideoSample(path="a.mp4", caption="a cat", condition="melt", score=math.nan)], tmp_path / MANIFEST_NAME
    )
    with pytest.raises(InputError, match="score a number"):
        read_samples(tmp_path)


def test_a_video_of_no_split_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "vap_data.csv").write_text(f"{HEADER}\na.mp4,[],a cat,melt,,1\n")
    assert [sample.split for sample in read_samples(tmp_path)] == ["train"]
