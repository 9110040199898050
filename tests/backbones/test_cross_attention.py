"""Texts that are projected once and read at every step."""

from typing import Any

import pytest
import torch

from sememe.backbones.cross_attention import KeptText
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from video_as_prompt.wan_factories import make_reference, make_target, make_transformer

CLIP: dict[str, Any] = {"image_dim": 20, "added_kv_proj_dim": 48}


def make_inputs(*, has_images: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """A target and, for a backbone that reads them, its image embeddings."""
    target = make_target()
    if not has_images:
        return target, None
    random = torch.Generator().manual_seed(5)
    # The stock attention takes the last 512 tokens for the text.
    target["encoder_hidden_states"] = torch.randn(2, 512, 16, generator=random)
    return target, torch.randn(2, 3, 20, generator=random)


@torch.no_grad()
@pytest.mark.parametrize("has_images", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_kept_text_changes_nothing(has_images: bool, is_fused: bool) -> None:
    model = make_transformer(**(CLIP if has_images else {}))
    if is_fused:
        for block in model.blocks:
            block.attn2.fuse_projections()
    target, images = make_inputs(has_images=has_images)
    text = target.pop("encoder_hidden_states")
    expected = model(**target, encoder_hidden_states=text, encoder_hidden_states_image=images).sample
    kept = model.cache_text(text, images)
    assert torch.equal(model(**target, encoder_hidden_states=kept).sample, expected)


def count_rows(model: WanVideoAsPromptTransformer, name: str) -> list[int]:
    """The tokens that pass through the modules of that name, call by call."""
    rows: list[int] = []
    for path, module in model.named_modules():
        if path.endswith(name):
            module.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
    return rows


@torch.no_grad()
@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_with_a_reference_texts_are_projected_once(mode: str) -> None:
    model = make_transformer(attention_mode=mode)
    target = make_target()
    text = target.pop("encoder_hidden_states")
    reference = model.embed_reference(make_reference(num_frames=(3, 2)))
    expected = model(**target, encoder_hidden_states=text, reference=reference).sample

    rows = count_rows(model, "attn2.to_k")
    kept = model.cache_text(text)
    assert rows == [7] * 3
    captions = model.cache_captions(reference) if mode == "joint" else reference
    # Two captions at each expert but the last, which nobody reads behind.
    assert rows[3:] == ([5] * 4 if mode == "joint" else [])
    rows.clear()
    for _ in range(2):
        assert torch.equal(model(**target, encoder_hidden_states=kept, reference=captions).sample, expected)
    # One-way, a reference that is given as tokens is encoded anew at every step, with its captions.
    assert rows == ([] if mode == "joint" else [5] * 8)


@torch.no_grad()
def test_kept_captions_are_shared_and_repeated_as_their_reference_is() -> None:
    model = make_transformer(attention_mode="joint")
    target = make_target()
    one = model.cache_captions(model.embed_reference(make_reference(batch_size=1)))
    expanded = model(**target, reference=one).sample
    two = model.cache_captions(model.embed_reference(make_reference(batch_size=1)).repeat(2))
    assert torch.equal(model(**target, reference=two).sample, expanded)
    assert torch.equal(model(**target, reference=one.repeat(2)).sample, expanded)


@torch.no_grad()
def test_zero_strength_with_a_kept_text_is_the_backbone() -> None:
    model = make_transformer()
    target = make_target()
    expected = model(**target).sample
    kept = model.cache_text(target.pop("encoder_hidden_states"))
    assert isinstance(kept, KeptText)
    got = model(**target, encoder_hidden_states=kept, reference=make_reference(), reference_strength=0.0).sample
    assert torch.equal(got, expected)
