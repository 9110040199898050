"""Bad input through the command: one line, exit code 2, nothing half-written."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.torch import load_file, save_file

from cli.runs import Outcome, refused, run_here
from model_folders import save_model
from sememe.video import write_image
from sememe.workflows import generate
from video_files import Recipe, counting_frames, encode

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    encode(folder / "good.mp4", counting_frames(12))
    write_image(np.full((40, 40, 3), 90, np.uint8), folder / "good.png")
    (folder / "text.mp4").write_text("dear diary")
    (folder / "text.png").write_text("dear diary")
    (folder / "empty.mp4").touch()
    content = encode(
        folder / "whole.mp4", np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8)
    ).read_bytes()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    encode(folder / "still.mp4", counting_frames(1))
    encode(folder / "vast.mp4", np.zeros((2, 3600, 3600, 3), np.uint8), Recipe("mpeg4"))
    PIL.Image.new("RGB", (1, 1)).save(folder / "dot.png")
    PIL.Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def attempt(files: Path, model_folder: Path, outputs: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on good files, except for what is given."""

    def run(**changes: object) -> Outcome:
        given: dict[str, object] = {"reference": "good.mp4", "image": "good.png", "output": outputs / "out.mp4"}
        given |= {"model": model_folder, "device": "cpu"} | changes
        for name in ("reference", "image"):
            given[name] = files / str(given[name])
        changed = {name: given.pop(name) for name in ("fps", "height", "width") if name in given}
        flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
        flags += [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
        return run_here(capsys, "generate", "video-as-prompt", *flags)

    return run


def test_the_attempt_succeeds_with_good_files(attempt: Run, outputs: Path) -> None:
    assert attempt().code == 0
    assert sorted(os.listdir(outputs)) == ["out.json", "out.mp4"]


def test_a_json_file_beside_the_output_survives(attempt: Run, outputs: Path) -> None:
    (outputs / "out.json").write_text('{"mine": "precious notes"}')
    assert "out.json" in refused(attempt())
    assert (outputs / "out.json").read_text() == '{"mine": "precious notes"}'
    assert os.listdir(outputs) == ["out.json"]


def test_each_video_keeps_its_record(attempt: Run, outputs: Path) -> None:
    for _ in range(2):
        assert attempt().code == 0
    assert "out.json" in refused(attempt(output=outputs / "out.gif"))
    assert json.loads((outputs / "out.json").read_text())["output"]["path"].endswith("out.mp4")
    assert sorted(os.listdir(outputs)) == ["out.json", "out.mp4"]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("reference", "nothing.mp4", "there is no file"),
        ("reference", "text.mp4", "expected a video"),
        ("reference", "empty.mp4", "is empty"),
        ("reference", "truncated.mp4", "incomplete"),
        ("reference", "vast.mp4", "frames of at most 9.44 megapixels, but"),
        ("reference", "still.mp4", "at least 2 frames, but"),
        ("reference", ".", "is a folder"),
        ("reference", "good.png", "expected a video"),
        ("image", "nothing.png", "there is no file"),
        ("image", "text.png", "expected a picture"),
        ("image", "good.mp4", "expected a picture"),
        ("image", "dot.png", "at least 8 pixels a side, but"),
        ("image", "huge.png", "at most 52 megapixels, but"),
        ("num_frames", 6, "got 6; the nearest is 5"),
        ("num_frames", 0, "num_frames of at least 1, got 0"),
        ("num_frames", -3, "num_frames of at least 1, got -3"),
        ("height", 100, "got 100; the nearest is 104"),
        ("steps", 0, "at least 1, got 0"),
        ("seed", -1, "expected a seed of 0 to"),
        ("guidance_scale", "nan", "guidance_scale of at least 0"),
        ("fps", 0, "fps above 0, got 0"),
        ("model", "enormous", "'enormous' is neither"),
        ("model", "/nowhere/model", "'/nowhere/model' is neither"),
        ("device", "abacus", "device of this machine"),
        ("output", "nowhere/out.mp4", "does not exist; create it first"),
        ("output", "out.docx", "ends in .mp4"),
        ("sheet", "nowhere/sheet.png", "does not exist; create it first"),
    ],
)
def test_one_line_and_nothing_written(flag: str, value: object, message: str, attempt: Run, outputs: Path) -> None:
    assert message in refused(attempt(**{flag: value}))
    assert os.listdir(outputs) == []


def test_an_output_folder_that_cannot_be_written(attempt: Run, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever runs the tests as root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != outputs)
    assert "no permission" in refused(attempt())
    assert os.listdir(outputs) == []


def test_a_full_disk(attempt: Run, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(generate, "write_clips", fill)
    assert "the disk is full" in refused(attempt())
    assert os.listdir(outputs) == []


@pytest.mark.parametrize("part", ["transformer", "expert", "vae", "text_encoder"])
@pytest.mark.parametrize("fault", ["missing", "extra"])
def test_a_model_folder_with_a_tensor_too_few_or_too_many(
    part: str, fault: str, attempt: Run, outputs: Path, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model")
    (weights,) = (model / part).glob("*.safetensors")
    tensors = load_file(weights)
    name = min(tensors)
    tensors = {key: value for key, value in tensors.items() if key != name} if fault == "missing" else tensors
    if fault == "extra":
        tensors["surplus.weight"] = tensors[name].clone()
    save_file(tensors, weights, {"format": "pt"})
    assert (name if fault == "missing" else "surplus.weight") in refused(attempt(model=model))
    assert os.listdir(outputs) == []


def test_a_model_folder_that_is_not_whole(attempt: Run, outputs: Path, tmp_path: Path) -> None:
    assert "model_index.json" in refused(attempt(model=tmp_path))
    model = save_model(tmp_path / "model")
    (weights,) = (model / "vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is cut short" in refused(attempt(model=model))
    weights.unlink()
    assert "vae" in refused(attempt(model=model))
    assert os.listdir(outputs) == []
