"""What only Wan with experts has: pictures as embeddings, a timestep per token, its own checks."""

from typing import Any

import pytest
import torch

from sememe.errors import ModelError
from sememe.video_as_prompt.references import ReferenceInputs
from video_as_prompt.wan_factories import GRID, make_reference, make_target, make_transformer


@torch.no_grad()
def test_the_order_of_references_and_the_captions_matter() -> None:
    model, target = make_transformer(), make_target()
    reference = make_reference(num_frames=(3, 3))
    swapped = ReferenceInputs(reference.latents[::-1], reference.text_embeds[::-1])
    recaptioned = ReferenceInputs(reference.latents, reference.text_embeds[::-1])
    results = [model(**target, reference=given).sample for given in (reference, swapped, recaptioned)]
    assert (results[0] - results[1]).abs().max() > 1e-4
    assert (results[0] - results[2]).abs().max() > 1e-4


@torch.no_grad()
def test_the_reference_timestep_is_a_setting() -> None:
    target, reference = make_target(), make_reference()
    results = [make_transformer(reference_timestep=t)(**target, reference=reference).sample for t in (0.0, 500.0)]
    assert (results[0] - results[1]).abs().max() > 1e-4


@torch.no_grad()
def test_image_embeddings_have_their_own_attention() -> None:
    settings: dict[str, Any] = {"image_dim": 20, "added_kv_proj_dim": 48, "text_dim": 16}
    torch.manual_seed(0)
    target = make_target() | {"encoder_hidden_states": torch.randn(2, 512, 16)}
    image = torch.randn(2, 9, 20)
    base = make_reference(num_frames=(2, 3))
    captions = tuple(torch.randn(2, 512, 16) for _ in range(2))
    images = tuple(torch.randn(2, 9, 20) for _ in range(2))
    for mode in ("cached", "joint"):
        model = make_transformer(attention_mode=mode, **settings)
        results = [
            model(
                **target,
                encoder_hidden_states_image=image,
                reference=ReferenceInputs(base.latents, captions, given),
            ).sample
            for given in (images, images[::-1])
        ]
        assert (results[0] - results[1]).abs().max() > 1e-5
    with pytest.raises(ModelError, match="needs image embeddings"):
        model(**target, encoder_hidden_states_image=image, reference=ReferenceInputs(base.latents, captions))


@torch.no_grad()
def test_a_timestep_per_token_is_supported() -> None:
    model, target, reference = make_transformer(), make_target(), make_reference()
    num_tokens = GRID["frame"] * GRID["height"] * GRID["width"] // 4
    per_token = target | {"timestep": target["timestep"][:, None].expand(-1, num_tokens)}
    torch.testing.assert_close(
        model(**per_token, reference=reference).sample, model(**target, reference=reference).sample
    )


def test_what_does_not_fit_is_named() -> None:
    model, target = make_transformer(), make_target()
    wide = ReferenceInputs((torch.randn(2, 12, 3, 8, 10),), (torch.randn(2, 5, 16),))
    with pytest.raises(ModelError, match="same height and width"):
        model(**target, reference=wide)
    with pytest.raises(ModelError, match="need 12 channels"):
        model.embed_reference(ReferenceInputs((torch.randn(2, 4, 3, 8, 6),), (torch.randn(2, 5, 16),)))
    with pytest.raises(ModelError, match="position table ends at 63"):
        model.embed_reference(make_reference(num_frames=(32, 32)))
    with pytest.raises(ModelError, match="counts are"):
        ReferenceInputs((torch.randn(2, 12, 3, 8, 6),), ())
