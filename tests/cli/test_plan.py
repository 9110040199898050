"""`sememe plan`: lines, JSON, and what is refused on one line."""

import json
from pathlib import Path

import pytest
import torch

from cli.runs import refused, run_here
from model_folders import save_model
from sememe.video import write_clip, write_image
from video_as_prompt.pipeline_factories import make_clip, make_picture

SIZE = ("--height", 32, "--width", 96, "--num-frames", 9)


def test_lines_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, "plan", "tiny", "--vram", 8, *SIZE)
    assert outcome.code == 0, outcome
    first, *lines = outcome.out.splitlines()
    assert first == "tiny, 96x32, 9 frames, 1 reference(s), on 8 GB: exact"
    values = {line.split()[0]: line.split()[1:] for line in lines if not line.startswith("  -")}
    assert (values["offload"], values["dtype"], values["host_memory"]) == (["none"], ["float32"], ["-"])
    assert {"inputs", "references", "denoise", "decode"} <= values.keys()
    assert "offload none" in lines[-2]
    assert "of the machine's own memory" in lines[-1]


def test_other_systems_have_plans(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, "plan", "gen1/tiny", "--vram", 8, "--height", 32, "--width", 32, "--num-frames", 4)
    assert outcome.out.startswith("tiny, 32x32, 4 frames, on 8 GB: exact")
    assert "guidance.reference_guidance_scale" in refused(
        run_here(capsys, "plan", "gen1/tiny", "--vram", 8, "--reference-guidance-scale", 2)
    )


def test_json_for_a_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    options = (*SIZE, "--num-references", 2, "--set", "text_keys=recomputed", "--set", "storage=fp8", "--json")
    document = json.loads(run_here(capsys, "plan", folder, "--vram", 8, *options).out)
    assert (document["height"], document["width"], document["num_frames"]) == (32, 96, 9)
    assert (document["num_references"], document["text_keys"], document["storage"]) == (2, "recomputed", "fp8")
    assert (document["offload"], document["label"]) == ("none", "approximate")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny", "--vram", 8, "--guidance-scale", -1), "guidance_scale"),
        (("tiny", "--vram", 8, "--set", "expert=nowhere"), "nowhere"),
        (("tiny", "--vram", -1), "above 0"),
        (("tiny", "--vram", 8, "--height", 33), "height"),
        (("tiny", "--vram", 8, "--set", "loading.dtype=float8"), "float8"),
        (("tiny", "--vram", 8, "--set", "compile=true", "--set", "storage=fp8"), "fp8"),
        (("nothing", "--vram", 24), "'nothing' is neither"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(run_here(capsys, "plan", *arguments))


def test_too_small_a_card_is_told_what_would_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All ways to compute are tried before, so the model is a small one."""
    arguments = (save_model(tmp_path / "model"), "--vram", 1e-6, "--set", "loading.dtype=float32")
    message = refused(run_here(capsys, "plan", *arguments))
    assert "does not fit in 1e-06 GB; the least that would do is" in message
    assert "(float32, offload sequential" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="refuses a missing CUDA device, and this machine has one")
def test_no_gpu_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_clip(make_clip(), tmp_path / "r.mp4")
    write_image(make_picture(), tmp_path / "i.png")
    files = ("--reference", tmp_path / "r.mp4", "--image", tmp_path / "i.png", "-o", tmp_path / "o.mp4")
    for flags in (("--device", "cuda"), ("--device", "cuda", "--vram", 24)):
        assert "cuda" in refused(run_here(capsys, "generate", "video-as-prompt", *files, *flags))
