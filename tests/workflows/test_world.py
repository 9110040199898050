"""The world's verbs: clips, datasets and the gallery as files."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cli.runs import refused, run_here
from sememe.data.manifest import add_hashes, read_manifest, read_vap_data
from sememe.errors import InputError, OutputError
from sememe.video import read_clip
from sememe.workflows.gallery import draw_gallery
from sememe.workflows.world import (
    DatasetSettings,
    Shape,
    parse_size,
    render_world_clip,
    write_gallery,
    write_world_dataset,
)
from sememe.world import RenderedClip, Scene, conditions, random_scene, render

SMALL = Shape(height=32, width=48, num_frames=3)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DatasetSettings:
    """A dataset of twelve clips and two pairs, written once."""
    made = DatasetSettings(
        folder=tmp_path_factory.mktemp("made") / "dataset", num_clips=12, num_benchmark=2, shape=SMALL
    )
    write_world_dataset(made)
    return made


def test_a_clip_is_the_render(tmp_path: Path) -> None:
    path = tmp_path / "melt.mp4"
    shot = render_world_clip(["melt"], 5, path, SMALL)
    truth = render(random_scene(5), "melt", num_frames=3, size=(32, 48))
    assert np.array_equal(shot.clip.frames, truth.clip.frames)
    written = read_clip(path)
    assert written.frames.shape == (3, 32, 48, 3)
    assert np.abs(written.frames.astype(int) - truth.clip.frames).mean() < 12


def test_several_conditions_happen_at_once_and_none_is_neutral(tmp_path: Path) -> None:
    both = render_world_clip(["melt", "zoom_in"], 5, tmp_path / "a.mp4", SMALL)
    assert both.full_caption.endswith("it melts into a puddle and the camera zooms in")
    neutral = render_world_clip([], 5, tmp_path / "b.gif", SMALL)
    assert (neutral.clip.frames == neutral.clip.frames[:1]).all()


def test_mistakes_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean melt"):
        render_world_clip(["mellt"], 5, tmp_path / "a.mp4", SMALL)
    with pytest.raises(OutputError, match="does not exist"):
        render_world_clip(["melt"], 5, tmp_path / "no" / "a.mp4", SMALL)
    with pytest.raises(InputError, match="seed of 0 or more"):
        render_world_clip(["melt"], -5, tmp_path / "a.mp4", SMALL)
    assert not list(tmp_path.iterdir())


def test_a_dataset_is_read_as_vap_data(settings: DatasetSettings) -> None:
    samples = read_vap_data(settings.folder)
    assert len(samples) == 12
    assert {sample.condition for sample in samples} <= set(conditions(split="seen"))
    assert all((settings.folder / sample.path).is_file() for sample in samples)
    conditions_of = {sample.path: sample.condition for sample in samples}
    for sample in samples:
        assert sample.references
        assert {conditions_of[path] for path in sample.references} == {sample.condition}
        assert sample.path not in sample.references
    first = read_clip(settings.folder / samples[0].path)
    assert first.frames.shape == (3, 32, 48, 3)


def test_its_manifest_knows_more(settings: DatasetSettings) -> None:
    samples = read_manifest(settings.folder / "manifest.jsonl")
    assert [sample.path for sample in samples] == [sample.path for sample in read_vap_data(settings.folder)]
    assert samples == add_hashes(samples, settings.folder)
    for sample in samples:
        assert sample.scene is not None
        assert int(sample.scene) < 5_000_000
        truth = render(random_scene(int(sample.scene)), sample.condition, num_frames=1, size=16)
        assert (sample.caption, sample.full_caption) == (truth.caption, truth.full_caption)


def test_its_benchmark_is_of_unseen_conditions(settings: DatasetSettings) -> None:
    with (settings.folder / "benchmark.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 2
    for pair in pairs:
        assert (settings.folder / pair["video_paths"]).is_file()
        assert (settings.folder / pair["ref_video_path"]).is_file()
        assert any(f"_{name}_target" in pair["video_paths"] for name in conditions(split="unseen"))
        assert pair["tar_video_caption"] != pair["ref_video_caption"]


def test_a_dataset_is_repeatable(settings: DatasetSettings, tmp_path: Path) -> None:
    write_world_dataset(replace(settings, folder=tmp_path))
    for name in ("vap_data.csv", "benchmark.csv", "manifest.jsonl"):
        assert (tmp_path / name).read_bytes() == (settings.folder / name).read_bytes()


def test_a_dataset_is_not_written_over(settings: DatasetSettings) -> None:
    with pytest.raises(InputError, match="holds a dataset already"):
        write_world_dataset(settings)
    with pytest.raises(InputError, match="num_clips of 2 or more"):
        write_world_dataset(replace(settings, num_clips=1))
    with pytest.raises(InputError, match="expected a split of"):
        write_world_dataset(replace(settings, folder=settings.folder / "new", split="sene"))
    assert not (settings.folder / "new").exists()


@pytest.mark.parametrize(("text", "size"), [("64", (64, 64)), ("64x96", (64, 96)), ("32X16", (32, 16))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "a", "64x64x3", "-4", "6.5"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(InputError, match="expected a size such as 64"):
        parse_size(text)


def test_gallery_shows_every_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def watched(_: Scene, name: str, size: int) -> RenderedClip:
        shown.append(name)
        return render(random_scene(1), name, size=size, num_frames=2)

    monkeypatch.setattr("sememe.workflows.gallery.render", watched)
    monkeypatch.setattr("sememe.workflows.world.draw_gallery", partial(draw_gallery, size=16))
    path = tmp_path / "gallery.png"
    write_gallery(path)
    assert sorted(shown) == sorted(conditions() + conditions(split="novel"))
    assert path.stat().st_size > 10_000


def test_gallery_checks_its_place_first(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_gallery(tmp_path / "no" / "gallery.png")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.mp4"
    size = ("--size", "32", "--num-frames", "3")
    done = run_here(capsys, "world", "render", "melt", "--scene", "3", *size, "-o", path, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["full_caption"].endswith("it melts into a puddle")
    assert path.is_file()
    listed = json.loads(run_here(capsys, "world", "conditions", "--split", "unseen", "--json").out)
    assert [row["name"] for row in listed] == conditions(split="unseen")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("render", "melt"), "either --output for one clip or --dataset"),
        (("render", "mellt", "-o", "a.mp4"), "did you mean melt"),
        (("render", "melt", "-o", "a.mp4", "--num-clips", "3"), "--num-clips has no effect with --output"),
        (("render", "melt", "--dataset", "a"), "a condition has no effect with --dataset"),
        (("conditions", "--split", "sene"), "expected a split of seen, unseen, novel"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(run_here(capsys, "world", *arguments))
