"""Files to files: what the process of generating makes of the inputs of Gen-1."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen1.model_factories import make_picture, make_pipeline, make_source
from sememe.errors import InputError, OutputError, VideoError
from sememe.gen1.generation import Gen1Inputs
from sememe.gen1.settings import Settings
from sememe.video import Clip, VideoLimits, read_clip, read_image, write_clip, write_image
from sememe.workflows.generate import GenerationRequest, generate
from sememe.workflows.loading import LoadedModel, load_model
from sememe.workflows.systems import SYSTEMS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a source of 6 frames, a mask of its left half, and a picture."""
    folder = tmp_path_factory.mktemp("gen1")
    make_pipeline(folder / "vocabulary").save_pretrained(folder / "model")
    write_clip(make_smooth_source(), folder / "source.mkv", lossless=True)
    mask = np.zeros((16, 24, 3), np.uint8)
    mask[:, :12] = 255
    write_image(mask, folder / "mask.png")
    write_clip(Clip(np.repeat(mask[None], 6, axis=0), 8.0), folder / "mask.mkv", lossless=True)
    write_image(make_picture(), folder / "look.png")
    return folder


@pytest.fixture(scope="module")
def loaded(files: Path) -> LoadedModel:
    return load_model(SYSTEMS["gen1"], str(files / "model"))


def make_smooth_source() -> Clip:
    """Six frames of a ramp that moves, which files with loss keep nearly as they are."""
    ramp = np.add.outer(np.arange(6) * 4, np.arange(24) * 6).astype(np.uint8)
    return Clip(np.broadcast_to(ramp[:, None, :, None], (6, 16, 24, 3)).copy(), 8.0)


def ask(files: Path, output: Path, sheet: Path | None = None, **inputs: Any) -> GenerationRequest:
    given = {"source": files / "source.mkv"} | inputs
    model = str(files / "model")
    return GenerationRequest(inputs=Gen1Inputs(**given), output=output, model=model, seed=3, sheet=sheet)


@pytest.mark.parametrize("mask", ["mask.png", "mask.mkv"])
def test_the_beginning_of_a_source_is_edited_inside_a_mask(
    mask: str, files: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    request = ask(
        files,
        tmp_path / "out.mkv",
        sheet=tmp_path / "sheet.png",
        content_image=files / "look.png",
        mask=files / mask,
        seconds=0.5,
        save_structure=tmp_path / "structure.mkv",
    )
    result = generate(request, loaded=loaded)
    source, made = read_clip(files / "source.mkv"), read_clip(result.output)
    assert made.frames.shape == (4, 16, 24, 3)
    size, settings = result.document["output"], result.document["settings"]
    assert (size["num_frames"], settings["height"], settings["width"], settings["num_frames"]) == (4, 16, 24, 4)
    assert result.document["model"]["content_space"] == loaded.pipeline.config.content_space
    assert read_clip(tmp_path / "structure.mkv").num_frames == 4
    # Rows for source, structure and result, and one more for a mask that is a video.
    rows = 3 + mask.endswith("mkv")
    assert read_image(tmp_path / "sheet.png").shape[0] > rows * 16
    difference = np.abs(made.frames.astype(int) - source.frames[:4])
    # Videos are written with loss; the seam blurs a little.
    assert difference[:, :, 14:].mean() < difference[:, :, :10].mean() / 4


def test_a_text_gives_the_whole_source_another_look(files: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    result = generate(ask(files, tmp_path / "out.mp4", content="gold"), loaded=loaded)
    assert read_clip(result.output).num_frames == 6
    assert (result.document["content"], result.document["inputs"].keys()) == ("gold", {"source"})


def test_memory_is_planned_for_the_models_own_size_before_that_of_a_source(files: Path, tmp_path: Path) -> None:
    planned: dict[str, Any] = {**Gen1Inputs(source=files / "source.mkv", content="gold").workload(Settings())}
    pipeline = make_pipeline(tmp_path)
    found = [pipeline.list_phases(**planned).settings]
    pipeline.register_to_config(generation_defaults=Settings().override(height=32, width=32).to_dict())
    found.append(pipeline.list_phases(**planned).settings)
    assert [(each["num_frames"], each["height"], each["width"]) for each in found] == [(6, 16, 24), (6, 32, 32)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "--content TEXT or --content-image PICTURE, got neither"),
        ({"content": "gold", "content_image": Path("a.png")}, "--content-image, got both"),
        ({"content": "gold", "seconds": 0.0}, "seconds above 0, got 0"),
    ],
)
def test_mistakes_are_found_before_a_file_is_read(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gen1Inputs(source=Path("a.mp4"), **inputs).check(Settings())


def test_the_name_of_a_saved_structure_is_checked_before_a_file_is_read() -> None:
    inputs = Gen1Inputs(source=Path("a.mp4"), content="gold", save_structure=Path("a.png"))
    with pytest.raises(OutputError, match=r"a file name ending in \.mp4, .* got a\.png"):
        inputs.check(Settings())


def test_an_unknown_kind_of_structure_is_found_before_a_file_is_read() -> None:
    settings = Settings().override(structure_kinds={"edges": 1.0, "depht": 1.0})
    with pytest.raises(InputError, match="structure_kinds out of depth, edges, motion, got 'depht'"):
        Gen1Inputs(source=Path("a.mp4"), content="gold", structure=Path("b.mp4")).check(settings)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"seconds": 2.0}, "source of at least 2 seconds, got 0.75 in"),
        ({"structure": "short.mkv"}, "structure clip of at least the source's 6 frames, got 3"),
        ({"mask": "short.mkv"}, "mask of 1 frame or of at least the source's 6, got 3"),
        ({"mask": "square.png"}, "mask with the proportions of the source"),
    ],
)
def test_files_that_do_not_fit_the_source_are_refused(
    inputs: dict[str, Any], message: str, files: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    write_clip(make_source(3, 16, 24), files / "short.mkv")
    write_image(np.full((16, 16, 3), 255, np.uint8), files / "square.png")
    given = {name: files / value if isinstance(value, str) else value for name, value in inputs.items()}
    with pytest.raises(InputError, match=message):
        generate(ask(files, tmp_path / "out.mp4", content="gold", **given), loaded=loaded)


def test_a_source_and_a_mask_may_have_one_frame(files: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    for name in ("source", "mask"):
        write_clip(Clip(read_clip(files / f"{name}.mkv").frames[:1], 8.0), tmp_path / f"{name}.mkv", lossless=True)
    for source, count in ((files / "source.mkv", 6), (tmp_path / "source.mkv", 1)):
        request = ask(files, tmp_path / "out.mkv", content="gold", source=source, mask=tmp_path / "mask.mkv")
        assert read_clip(generate(request, loaded=loaded).output).num_frames == count


def test_more_frames_than_the_source_has_are_refused(files: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    request = replace(ask(files, tmp_path / "out.mp4", content="gold"), settings={"num_frames": 7})
    with pytest.raises(InputError, match=r"source of at least 7 frames, got 6 \(0\.75 seconds\)"):
        generate(request, loaded=loaded)


@pytest.mark.parametrize("over", [{}, {"mask": "mask.png"}, {"mask": "fast.mkv", "structure": "fast.mkv"}])
@pytest.mark.parametrize("num_frames", [None, 4, 1])
def test_of_a_source_of_any_length_the_beginning_is_read(
    over: dict[str, str],
    num_frames: int | None,
    files: Path,
    loaded: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Frames belong together whatever the rates are: these are 0.5 seconds of 16 frames a second.
    write_clip(Clip(np.full((8, 16, 24, 3), 255, np.uint8), 16.0), files / "fast.mkv", lossless=True)
    monkeypatch.setattr("sememe.video.source.VideoLimits", partial(VideoLimits, max_duration=0.6))
    given = {name: files / value for name, value in over.items()}
    with pytest.raises(VideoError, match=r"at most 0\.6 s of video, but .* lasts 0\.8 s"):
        generate(ask(files, tmp_path / "out.mp4", content="gold", **given), loaded=loaded)
    seconds = None if num_frames else 0.5
    request = ask(files, tmp_path / "out.mp4", content="gold", seconds=seconds, **given)
    result = generate(replace(request, settings={"num_frames": num_frames} if num_frames else {}), loaded=loaded)
    assert read_clip(result.output).num_frames == (num_frames or 4)
    read = [each[0]["num_frames"] for each in result.document["inputs"].values() if isinstance(each, list)]
    assert set(read) == {num_frames or 4}


def test_a_long_source_is_announced(files: Path) -> None:
    inputs = Gen1Inputs(source=files / "source.mkv", content="gold")
    two_hours = Settings().override(height=256, width=448, num_frames=57_600)
    (told,) = inputs.announce(None, two_hours)
    assert told.startswith("57600 frames of 448x256 pixels, 120.0 minutes, are held")
    assert [*inputs.announce(None, two_hours.override(num_frames=480))]
    assert not [*inputs.announce(None, two_hours.override(num_frames=400))]
