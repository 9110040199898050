"""Encoded references in files, and read by nothing but the model that encoded them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli.runs import refused, run_here
from model_folders import save_model
from sememe.compute.placement import apply_storage
from sememe.errors import InputError, ModelError
from sememe.video import Clip, write_clip, write_image
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.video_as_prompt.inputs import EncodedReference
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.reference_files import fingerprint_transformer
from sememe.video_as_prompt.settings import Settings
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline


def generate(pipe: VideoAsPromptPipeline, references: Any, **size: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipe(make_picture(), references, generator=generator, output_type="latent", **size).frames


def test_a_section_of_an_encoded_reference_is_refused(tmp_path: Path) -> None:
    inputs = VideoAsPromptInputs(
        image=tmp_path / "i.png", encoded_reference=tmp_path / "r.safetensors", reference_end=2.0
    )
    with pytest.raises(InputError, match="no effect on an encoded reference"):
        inputs.check(Settings())


@pytest.mark.parametrize("kind", ["cached", "joint", "cogvideox", "clip", "approximate", "coarse"])
def test_a_reference_from_a_file_is_the_reference(kind: str, tmp_path: Path) -> None:
    if kind == "cogvideox":
        pipe = make_cogvideox_pipeline()
    else:
        pipe = make_pipeline("cached" if kind == "cached" else "joint", clip=kind == "clip")
    size: dict[str, Any] = {"reference_downscale": 2, "height": 64, "width": 64} if kind == "coarse" else {}
    clips = [make_clip(), make_clip(1)]
    encoded = pipe.encode_reference(clips, "a cat", approximate=kind == "approximate", **size)
    encoded.save(tmp_path / "reference.safetensors")
    loaded = EncodedReference.load(tmp_path / "reference.safetensors")
    assert (loaded.settings, loaded.fingerprint) == (encoded.settings, encoded.fingerprint)
    assert loaded.payload is None
    assert torch.equal(generate(pipe, loaded, **size), generate(pipe, encoded, **size))


def test_a_file_holds_what_the_expert_reads(tmp_path: Path) -> None:
    """Not what it makes of it, which is larger by the widths of tokens over those of latents, and by its blocks."""
    encoded = make_pipeline("joint").encode_reference(make_clip())
    encoded.save(tmp_path / "reference.safetensors")
    held = load_file(tmp_path / "reference.safetensors")
    assert held.keys() == {"latents.0", "text.0"}
    assert torch.equal(held["latents.0"], encoded.inputs.latents[0])


def test_a_fingerprint_is_that_of_the_weights() -> None:
    pipe = make_pipeline()
    plain = fingerprint_transformer(pipe.transformer)
    assert fingerprint_transformer(make_pipeline().to(torch.bfloat16).transformer) == plain
    offloaded = make_pipeline().transformer
    cpu_offload(offloaded, torch.device("cpu"), offload_buffers=True)
    assert fingerprint_transformer(offloaded) == plain
    found = {plain}
    other = make_pipeline().transformer
    with torch.no_grad():
        other.blocks[1].ffn.net[2].bias.add_(0.1)
    found.add(fingerprint_transformer(other))
    adapted = make_pipeline()
    adapted.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "quick")
    found.add(fingerprint_transformer(adapted.transformer))
    adapted.set_adapters("quick", 0.5)
    found.add(fingerprint_transformer(adapted.transformer))
    adapted.disable_lora()
    found.add(fingerprint_transformer(adapted.transformer))
    small = make_pipeline()
    apply_storage(small, "fp8")
    found.add(fingerprint_transformer(small.transformer))
    assert len(found) == 6
    with pytest.raises(ModelError, match="encoded by this model"):
        generate(adapted, pipe.encode_reference(make_clip()))


def test_other_files_are_refused(tmp_path: Path) -> None:
    encoded = make_pipeline().encode_reference(make_clip())
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        encoded.save(tmp_path / "reference.pt")
    encoded.save(tmp_path / "whole.safetensors")
    path = tmp_path / "reference.safetensors"
    encoded.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    folder = save_model(tmp_path / "model")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        about = file.metadata()
    save_file({"latents.0": torch.zeros(4, 2), "text.0": torch.zeros(1, 2, 4)}, tmp_path / "flat.safetensors", about)
    others = [tmp_path / f"{name}.safetensors" for name in ("absent", "pipe", "flat")]
    for other in (path, next((folder / "vae").glob("*.safetensors")), *others):
        with pytest.raises(ModelError, match="expected an encoded reference in"):
            EncodedReference.load(other)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "model", num_inference_steps=1, reference_guidance_scale=1.0)
    video, encoded = tmp_path / "reference.mp4", tmp_path / "reference.safetensors"
    frames = np.concatenate([make_clip(seed).frames for seed in range(2)])
    write_clip(Clip(np.pad(frames, ((0, 0), (0, 0), (0, 8), (0, 0))), 8.0), video)
    write_image(make_picture(), tmp_path / "image.png")
    # The official pipelines stretch frames, which needs all of them.
    shared = ("--model", folder, "--device", "cpu", "--set", "official_quirks=stretched_frames")
    section = ("--start", 0.5, "--end", 1.25)
    outcome = run_here(capsys, "encode-reference", video, "-o", encoded, *section, *shared)
    assert (outcome.code, outcome.out) == (0, f"{encoded}\n")
    given = ("generate", "video-as-prompt", "--image", tmp_path / "image.png", "--seed", 1, *shared)
    results: list[bytes] = []
    for source in (
        ("--reference", video, "--reference-start", 0.5, "--reference-end", 1.25),
        ("--encoded-reference", encoded),
        ("--reference", video),
    ):
        output = tmp_path / f"{len(results)}.gif"
        assert run_here(capsys, *given, *source, "-o", output).code == 0
        results.append(output.read_bytes())
    assert results[0] == results[1] != results[2]
    both = ("--reference", video, "--encoded-reference", encoded, "-o", tmp_path / "c.gif")
    assert "as videos or encoded, got both" in refused(run_here(capsys, *given, *both))


def test_mistakes_are_found_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, still = tmp_path / "reference.mp4", tmp_path / "still.mp4"
    write_clip(make_clip(), video)
    write_clip(Clip(make_clip().frames[:1], 8.0), still)
    encode = ("encode-reference", "--model", tmp_path / "absent", "-o")
    encoded = tmp_path / "reference.safetensors"
    assert r"ends in .safetensors" in refused(run_here(capsys, *encode, tmp_path / "reference.pt", video))
    assert "there is no file" in refused(run_here(capsys, *encode, encoded, tmp_path / "absent.mp4"))
    assert "a still shows no motion" in refused(run_here(capsys, *encode, encoded, still))
    assert "got 2.0 and 1.0" in refused(run_here(capsys, *encode, encoded, video, "--start", 2, "--end", 1))
    encoded.write_bytes(video.read_bytes())
    write_image(make_picture(), tmp_path / "image.png")
    for found in (encoded, tmp_path / "absent.safetensors"):
        read = ("--image", tmp_path / "image.png", "--encoded-reference", found, "-o", tmp_path / "out.mp4")
        told = run_here(capsys, "generate", "video-as-prompt", *read)
        assert f"expected an encoded reference in {found}" in refused(told)
        assert "loading" not in told.err
