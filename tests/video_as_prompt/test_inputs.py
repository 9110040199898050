"""Texts that are encoded once, and a text encoder that is gone after that."""

import gc
import weakref
from typing import Any

import pytest
import torch

from sememe.compute.placement import apply_offload
from sememe.errors import InputError
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.references import ReferenceCache
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

TEXTS: dict[str, Any] = {"prompt": "a red ball", "negative_prompt": "blurry", "reference_prompts": "melts"}
SCALES: dict[str, Any] = {"guidance_scale": 3.0, "reference_guidance_scale": 2.0}


def generate(pipe: VideoAsPromptPipeline, **changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    return pipe(**(arguments | {"generator": torch.Generator().manual_seed(1)} | changes)).frames


@pytest.mark.parametrize("make", [make_pipeline, make_cogvideox_pipeline])
def test_an_encoded_prompt_stands_for_its_texts(make: Any) -> None:
    pipe = make(**SCALES)
    expected = generate(pipe, **TEXTS)
    record = pipe.encode_prompt(**TEXTS)
    assert sorted(record.embeds) == ["", "a red ball", "blurry", "melts"]
    pipe.unload_text_encoders()
    assert pipe.text_encoder is None
    with pytest.raises(InputError, match="text encoder was unloaded"):
        pipe.save_pretrained("nowhere")
    assert torch.equal(generate(pipe, prompt=record), expected)


@pytest.mark.parametrize("offload", ["none", "model", "group", "sequential"])
def test_an_unloaded_encoder_takes_no_memory(offload: str) -> None:
    pipe = make_pipeline(clip=True)
    apply_offload(pipe, offload, "cpu")
    encoder, record = weakref.ref(pipe.text_encoder), pipe.encode_prompt("a cat")
    pipe.unload_text_encoders()
    gc.collect()
    assert encoder() is None
    assert generate(pipe, prompt=record).isfinite().all()


def test_an_encoded_prompt_serves_batches_and_encoded_references() -> None:
    pipe = make_pipeline(vae="wan", **SCALES)
    pictures = [make_picture(), make_picture(51)]
    both: dict[str, Any] = {"image": pictures, "prompt": ["a cat", "a red ball"], "generator": None}
    noise = torch.randn(2, 4, 2, 4, 6, generator=torch.Generator().manual_seed(2))
    expected = generate(pipe, **both, latents=noise, reference_prompts="melts")
    reference = pipe.encode_reference([make_clip()], "melts")
    record = pipe.encode_prompt(both["prompt"], reference_prompts="melts")
    pipe.unload_text_encoders()
    found = generate(pipe, **(both | {"prompt": record}), latents=noise)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    again = pipe.encode_reference([make_clip()], record)
    assert isinstance(again.payload, ReferenceCache)
    assert isinstance(reference.payload, ReferenceCache)
    assert all(map(torch.equal, again.payload.keys, reference.payload.keys))
    # The captions of the record are those of the encoded references already.
    found = generate(pipe, **(both | {"prompt": record, "references": again}), latents=noise)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="reference_prompts have no effect on encoded references"):
        generate(pipe, references=again, prompt=record, reference_prompts="melts")


def test_what_is_said_beside_an_encoded_prompt_goes_before_it() -> None:
    pipe = make_pipeline(**SCALES)
    record = pipe.encode_prompt(**TEXTS)
    changed = TEXTS | {"negative_prompt": "cat"}
    expected = generate(pipe, **changed)
    torch.testing.assert_close(generate(pipe, prompt=record, negative_prompt="cat"), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(
        generate(pipe, prompt=record, reference_prompts=""), generate(pipe, **(TEXTS | {"reference_prompts": ""}))
    )


def test_without_its_encoder_an_unknown_text_is_refused() -> None:
    pipe = make_pipeline(**SCALES)
    record = pipe.encode_prompt("a cat")
    pipe.unload_text_encoders()
    for arguments in ({"prompt": "a red ball"}, {"prompt": record, "negative_prompt": "a red ball"}):
        with pytest.raises(InputError, match="'a red ball'"):
            generate(pipe, **arguments)
    with pytest.raises(InputError, match="unloaded"):
        pipe.encode_prompt("a dog")
    with pytest.raises(InputError, match="max_sequence_length None, but the generation has 6"):
        generate(pipe, prompt=record, max_sequence_length=6)


def test_only_texts_can_be_encoded() -> None:
    pipe = make_pipeline()
    refused: tuple[dict[str, Any], ...] = (
        {"prompt": 3},
        {"prompt": []},
        {"negative_prompt": [None]},
        {"reference_prompts": 1.0},
    )
    for arguments in refused:
        with pytest.raises(InputError, match="as a text or a list of texts"):
            pipe.encode_prompt(**arguments)
