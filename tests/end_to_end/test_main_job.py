"""The main job on files as other programs make them, through the command, with a tiny random model."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cli.runs import run_here
from sememe.video import read_clip, read_image
from video_files import Recipe, encode


def textured(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames in which a gradient and a bright square move."""
    rows, columns = np.mgrid[:height, :width]
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        frames[number, ..., 0] = (rows + 5 * number + 30 * seed) % 256
        frames[number, ..., 1] = columns % 256
        frames[number, 10:40, 3 * number : 3 * number + 30] = 255
    return frames


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    sound = Recipe("mpeg4", rate=Fraction(30000, 1001), audio=True)
    encode(folder / "phone.mp4", textured(41, 90, 160), sound)
    encode(
        folder / "camera.mp4",
        textured(25, 120, 96, seed=3),
        Recipe("libx265", rate=25, options={"preset": "ultrafast", "x265-params": "log-level=none"}, audio=True),
    )
    picture = PIL.Image.fromarray(textured(1, 100, 150)[0]).convert("RGBA")
    picture.putalpha(PIL.Image.linear_gradient("L").resize(picture.size))
    picture.save(folder / "alpha.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    PIL.Image.fromarray(textured(1, 80, 120, seed=2)[0]).save(folder / "turned.jpg", exif=exif)
    return folder


def arguments(files: Path, model: Path, output: Path, **changes: object) -> list[object]:
    given: dict[str, object] = {"reference": files / "phone.mp4", "image": files / "alpha.png"}
    given |= {"output": output, "model": model, "seed": 7, "device": "cpu"} | changes
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    return ["generate", "video-as-prompt", *flags]


@pytest.mark.parametrize("reference", ["phone.mp4", "camera.mp4"])
@pytest.mark.parametrize("image", ["alpha.png", "turned.jpg"])
def test_any_reference_and_any_picture(
    reference: str, image: str, files: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    inputs = {"reference": files / reference, "image": files / image}
    outcome = run_here(capsys, *arguments(files, model_folder, output, **inputs, sheet=sheet))
    assert (outcome.code, outcome.out) == (0, f"{output}\n"), outcome.err
    assert "generating: step 2 of 2" in outcome.err
    clip = read_clip(output)
    assert (clip.num_frames, clip.size, clip.fps) == (5, (32, 48), 8.0)
    assert clip.frames.std() > 1
    assert read_image(sheet).shape[0] > 2 * 32
    document = json.loads(output.with_suffix(".json").read_text())
    assert document["inputs"]["references"][0]["sha256"] == hashlib.sha256((files / reference).read_bytes()).hexdigest()
    upright = read_image(files / image).shape[:2]
    assert (document["inputs"]["image"]["height"], document["inputs"]["image"]["width"]) == upright
    assert sorted(os.listdir(tmp_path)) == ["out.json", "out.mp4", "sheet.png"]


def test_names_that_are_not_text(
    files: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on an old disk: Latin-1 bytes, which Python hands on as lone surrogates."""
    image, reference = (tmp_path / f"caf\udce9{suffix}" for suffix in (".png", ".mp4"))
    shutil.copy(files / "alpha.png", image)
    shutil.copy(files / "phone.mp4", reference)
    output = tmp_path / "out.mp4"
    inputs = {"reference": reference, "image": image, "sheet": tmp_path / "sheet.png"}
    outcome = run_here(capsys, *arguments(files, model_folder, output, **inputs))
    assert outcome.code == 0, outcome.err
    document = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert document["inputs"]["image"]["path"] == str(image)
    assert (tmp_path / "sheet.png").is_file()


def test_other_references_other_results(
    files: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = []
    for number, reference in enumerate(("phone.mp4", "camera.mp4", "phone.mp4")):
        output = tmp_path / f"{number}.mp4"
        assert run_here(capsys, *arguments(files, model_folder, output, reference=files / reference)).code == 0
        contents.append(output.read_bytes())
    assert contents[0] == contents[2]
    assert contents[0] != contents[1]


def test_another_size_and_length(
    files: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    given = arguments(files, model_folder, output, num_frames=9, steps=1)
    changes = [part for text in ("height=48", "width=32", "fps=12") for part in ("--set", text)]
    assert run_here(capsys, *given, *changes).code == 0
    clip = read_clip(output)
    assert (clip.num_frames, clip.size, clip.fps) == (9, (48, 32), 12.0)


def test_several_references_influence_and_json(
    files: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    more = ["--reference", files / "camera.mp4", "--influence", "--json"]
    outcome = run_here(capsys, *arguments(files, model_folder, output), *more)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document == json.loads(output.with_suffix(".json").read_text())
    assert len(document["inputs"]["references"]) == 2
    assert document["influence"]["rms"] > 0


# A shell that starts the tests in the background has its children ignore Ctrl-C; this one must not.
_TWO_JOBS = """
import json, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
whole, interrupted = json.loads(sys.argv[1])
sys.argv[1:] = whole
try:
    runpy.run_module("sememe", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert ended.code == 0, ended
sys.argv[1:] = interrupted
runpy.run_module("sememe", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Apart:
    """What two jobs in a process of their own left, the second one interrupted: `out.mp4` and `none.mp4`."""

    folder: Path
    code: int
    out: str
    err: list[str]


@pytest.fixture(scope="module")
def apart(files: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Apart:
    folder = tmp_path_factory.mktemp("apart")
    jobs = [
        list(map(str, arguments(files, model_folder, folder / name, steps=steps)))
        for name, steps in (("out.mp4", 2), ("none.mp4", 1000))
    ]
    command = [sys.executable, "-c", _TWO_JOBS, json.dumps(jobs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "of 1000" in line:
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    return Apart(folder, process.returncode, out, [*lines, *err.splitlines()])


def test_a_fresh_process_writes_the_same_video(
    apart: Apart, files: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(capsys, *arguments(files, model_folder, tmp_path / "out.mp4")).code == 0
    assert apart.out == f"{apart.folder / 'out.mp4'}\n", apart.err
    # On some CPUs products are rounded by where operands lie in memory, so a pixel may differ by a level or two.
    here, there = (read_clip(folder / "out.mp4").frames.astype(int) for folder in (tmp_path, apart.folder))
    assert np.abs(here - there).max() <= 3
    # Nothing but our own lines: libraries keep quiet.
    stages = ("reading the inputs", "loading", "generating", "writing", "interrupted")
    assert all(line.startswith(stages) for line in apart.err), apart.err


def test_ctrl_c_leaves_nothing(apart: Apart) -> None:
    assert apart.code == 130, apart.err
    assert apart.err[-1] == "interrupted"
    assert sorted(os.listdir(apart.folder)) == ["out.json", "out.mp4"]
