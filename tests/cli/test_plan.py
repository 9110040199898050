"""`sememe models --plan`: lines, JSON, and what is refused on one line."""

import json
from typing import Any

import pytest
import torch

from cli.runs import refused, run_here


def test_lines_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, "models", "--plan", "wan-14b", "--vram", 24)
    assert outcome.code == 0, outcome
    first, *lines = outcome.out.splitlines()
    assert first == "wan-14b, 832x480, 49 frames, 1 reference(s), on 24 GB: exact"
    told = {line.split()[0]: line.split()[1:] for line in lines if not line.startswith("  -")}
    assert told["offload"] == ["group"]
    assert told["dtype"] == ["bfloat16"]
    assert float(told["peak"][0]) <= 24
    assert {"weights", "activations", "reference_record", "text_encoder_phase", "vae_decode_phase"} <= told.keys()
    assert any("offload none would take" in line for line in lines)
    assert (told["text_keys"], told["resting"], told["host_memory"]) == (["recomputed"], ["none"], ["lean"])
    assert any("with 111.5 GB free there, weights would be pinned ahead" in line for line in lines)


def test_json_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--height", 32, "--width", 96, "--num-frames", 9)
    outcome = run_here(capsys, "models", "--plan", "tiny", "--vram", 8, *size, "--json")
    document = json.loads(outcome.out)
    assert (document["height"], document["width"], document["num_frames"]) == (32, 96, 9)
    assert (document["offload"], document["label"]) == ("none", "exact")


def test_what_a_generation_will_be_told_counts(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--plan", "tiny", "--vram", 8, "--height", 256, "--width", 256, "--num-frames", 17, "--json")

    def plan(*flags: object) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(run_here(capsys, "models", *size, *flags).out)
        return document

    plain = plan("--reference-guidance-scale", 2, "--guidance-scale", 1)["parts_gb"]["reference_record"]
    for flags in (("--num-reference-frames", 33), ("--num-negative-references", 1), ("--num-references", 2)):
        changed = plan("--reference-guidance-scale", 2, "--guidance-scale", 1, *flags)
        assert changed["parts_gb"]["reference_record"] > 1.2 * plain, flags
    changed = plan("--reference-guidance-scale", 2, "--guidance-scale", 1, "--reference-downscale", 2)
    assert changed["parts_gb"]["reference_record"] < 0.5 * plain
    assert plan("--text-keys", "recomputed")["text_keys"] == "recomputed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plan", "tiny", "--vram", 8, "--guidance-scale", -1), "guidance_scale must be a number of at least 0"),
        (("--plan", "tiny", "--vram", 8, "--expert", "nowhere"), "'nowhere' is neither"),
        (("--plan", "wan-14b", "--vram", 24, "--expert", "tiny"), "wan-14b has one; leave it out"),
        (("--plan", "cogvideox-5b", "--vram", 3), "does not fit in 3 GB; the least that would do is"),
        (("--plan", "cogvideox-5b"), "expected --plan MODEL and --vram GB together"),
        (("--vram", 24), "expected --plan MODEL and --vram GB together"),
        (("--height", 64), "expected --plan MODEL and --vram GB with --height, got neither"),
        (("--num-references", 1, "--compile"), "with --num-references, --compile, got neither"),
        (("--guidance-scale", 2, "--expert", "e", "--json"), "with --guidance-scale, --expert, got neither"),
        (("--plan", "wan-14b", "--vram", -1), "above 0"),
        (("--plan", "wan-14b", "--vram", 24, "--height", 481), "height must be a multiple of 16"),
        (("--plan", "nothing", "--vram", 24), "'nothing' is neither"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(run_here(capsys, "models", *arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is to be missing")
def test_no_gpu_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    from pathlib import Path

    from sememe.video import write_clip, write_image
    from video_as_prompt.pipeline_factories import make_clip, make_picture

    folder = Path(str(tmp_path))
    write_clip(make_clip(), folder / "r.mp4")
    write_image(make_picture(), folder / "i.png")
    files = ("--reference", folder / "r.mp4", "--image", folder / "i.png", "-o", folder / "o.mp4")
    for flags in (("--device", "cuda"), ("--device", "cuda", "--vram", 24)):
        outcome = run_here(capsys, "generate", "video-as-prompt", *files, *flags)
        assert "expected a device of this machine, got 'cuda'; torch finds no accelerator here" in refused(outcome)
