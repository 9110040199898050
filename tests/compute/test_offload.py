"""Modules that leave the device give the same result, and do leave."""

from functools import cache
from typing import Any

import pytest
import torch

from compute.hidden_weights import hide_offloaded
from sememe.compute.offload import expert_modules
from sememe.compute.placement import apply_offload
from sememe.errors import InputError
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

GUIDANCE: dict[str, Any] = {"guidance_scale": 2.0, "reference_guidance_scale": 2.0, "negative_prompt": "blurry"}
KINDS = [("model", "block"), ("sequential", "block"), ("group", "block"), ("group", "leaf")]


def make(name: str) -> VideoAsPromptPipeline:
    if name == "cogvideox":
        pipe = make_cogvideox_pipeline(**GUIDANCE)
    else:
        pipe = make_pipeline(name, clip=name == "joint", **GUIDANCE)
    return pipe


def generate(pipe: VideoAsPromptPipeline, **changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "output_type": "pt"}
    return pipe(**(arguments | {"generator": torch.Generator().manual_seed(1)} | changes)).frames


@cache
def expect(name: str) -> torch.Tensor:
    """What a pipeline makes that is not offloaded."""
    return generate(make(name))


@pytest.mark.parametrize(
    ("name", "kind", "level"),
    [
        *(("joint", *kind) for kind in KINDS),
        ("cached", "sequential", "block"),
        ("cached", "group", "leaf"),
        ("cogvideox", "model", "block"),
        ("cogvideox", "group", "leaf"),
    ],
)
def test_offload_gives_the_same_result_twice(name: str, kind: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = expect(name)
    pipe = make(name)
    safe = hide_offloaded(monkeypatch)
    apply_offload(pipe, kind, "cpu", group_level=level)
    for _ in range(2):
        torch.testing.assert_close(generate(pipe), expected, rtol=0, atol=0)
    if kind == "sequential":
        assert {parameter.device.type for parameter in pipe.transformer.parameters()} == {"meta"}
    else:
        assert safe.num_fetches > 0
        assert safe.hides(pipe.transformer.expert_embedder)


@pytest.mark.parametrize(
    ("name", "kind", "level"),
    [("joint", "group", "leaf"), ("cogvideox", "sequential", "block")],
)
def test_refreshed_references_under_offload(name: str, kind: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"approximate": True, "reference_refresh": 2, "output_type": "latent"}
    expected = generate(make(name), **settings)
    pipe = make(name)
    safe = hide_offloaded(monkeypatch)
    if name == "joint":
        # The output's table is sent to the tokens' device where it is read.
        safe.spare([pipe.transformer.scale_shift_table])
    apply_offload(pipe, kind, "cpu", group_level=level)
    torch.testing.assert_close(generate(pipe, **settings), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "level"), [("sequential", "block"), ("group", "block")])
def test_a_reference_encoded_under_offload_serves_many_pictures(
    kind: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expect("cached")
    pipe = make("cached")
    hide_offloaded(monkeypatch)
    apply_offload(pipe, kind, "cpu", group_level=level)
    record = pipe.encode_reference([make_clip()])
    for _ in range(2):
        assert torch.equal(generate(pipe, references=record), expected)


def test_nothing_stays_on_the_device_behind_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make("cached")
    safe = hide_offloaded(monkeypatch)
    apply_offload(pipe, "model", "cpu")

    def fail(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, callback_on_step_end=fail)
    assert safe.hides(pipe.transformer.expert_embedder)
    pipe.encode_reference([make_clip()])
    assert safe.hides(pipe.transformer.expert_embedder)
    pipe.encode_prompt("a cat")
    assert safe.hides(pipe.text_encoder)
    generate(pipe)


@pytest.mark.parametrize("kind", ["none", "model"])
def test_an_offloaded_expert_is_gone_while_steps_are_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = expect("cached")
    pipe = make("cached")
    safe = hide_offloaded(monkeypatch)
    apply_offload(pipe, kind, "cpu", parts=["expert"])
    parts = expert_modules(pipe.transformer)
    seen: list[bool] = []
    pipe.transformer.blocks[1].attn1.register_forward_hook(
        lambda *_: seen.append(all(safe.hides(part) for part in parts))
    )
    # The last expert runs at its encoding only; there it must be whole.
    parts[-1].register_forward_pre_hook(lambda *_: seen.append(safe.shows(parts[-1])))
    for _ in range(2):
        assert torch.equal(generate(pipe), expected)
        assert len(seen) > 4
        assert all(seen)
        seen.clear()
    record = pipe.encode_reference([make_clip()])
    assert torch.equal(generate(pipe, references=record), expected)


def test_offloaded_encoders_are_gone_while_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(make_pipeline("cached", clip=True, **GUIDANCE))
    pipe = make_pipeline("cached", clip=True, **GUIDANCE)
    safe = hide_offloaded(monkeypatch)
    apply_offload(pipe, "none", "cpu", parts=["encoders", "expert"])
    encoders: list[Any] = [pipe.text_encoder, pipe.image_encoder]
    seen: list[bool] = []
    pipe.transformer.blocks[0].attn1.register_forward_hook(
        lambda *_: seen.append(all(safe.hides(encoder) for encoder in encoders))
    )
    for _ in range(2):
        assert torch.equal(generate(pipe), expected)
    assert len(seen) >= 8
    assert all(seen)


def test_offload_can_be_changed() -> None:
    expected = expect("cached")
    pipe = make("cached")
    for kind, parts in (
        ("none", ["expert"]),
        ("model", []),
        ("sequential", []),
        ("none", ["encoders"]),
        ("none", []),
    ):
        apply_offload(pipe, kind, "cpu", parts=parts)
        assert torch.equal(generate(pipe), expected), kind
    assert not pipe.transformer.patch_embedding._forward_pre_hooks
    assert {parameter.device.type for parameter in pipe.transformer.parameters()} == {"cpu"}


def test_a_refusal_leaves_nothing_behind() -> None:
    pipe = make("joint")
    with pytest.raises(InputError, match="two-way expert"):
        apply_offload(pipe, "none", "cpu", parts=["encoders", "expert"])
    assert not hasattr(pipe.text_encoder, "_hf_hook")
    assert not pipe.transformer.patch_embedding._forward_pre_hooks


def test_what_cannot_be_is_refused() -> None:
    pipe = make("joint")
    for arguments, message in (
        ({"kind": "disk"}, "expected offload to be one of none, model, sequential, group, got 'disk'"),
        ({"kind": "group", "group_level": "row"}, "group_level"),
        ({"kind": "none", "parts": ["vae"]}, "parts"),
        ({"kind": "none", "parts": ["expert"]}, "two-way expert is needed at every step"),
        ({"kind": "sequential", "parts": ["expert"]}, "no effect with offload 'sequential'"),
        ({"kind": "model", "parts": ["encoders"]}, "no effect with offload 'model'"),
        ({"kind": "none", "device": "quantum"}, "device"),
    ):
        settings: dict[str, Any] = {"device": "cpu"} | arguments
        with pytest.raises(InputError, match=message):
            apply_offload(pipe, **settings)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch finds no accelerator here"):
            apply_offload(pipe, "model", "cuda")
    apply_offload(pipe, "group", "cpu")
    with pytest.raises(InputError, match="group offload"):
        apply_offload(pipe, "none", "cpu")
