"""What only CogVideoX with experts has: kinds of positions, a reference at the target's timestep, its own checks."""

from typing import Any

import pytest
import torch

from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_cogvideox import CogVideoXVideoAsPromptBlock
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens, join_references
from video_as_prompt.cogvideox_factories import (
    GROUPED,
    LEARNED,
    SINES,
    make_backbone,
    make_reference,
    make_target,
    make_transformer,
)

KINDS: dict[str, dict[str, Any]] = {"rotary": {}, "learned": LEARNED, "sines": SINES, "grouped": GROUPED}


def encode(model: CogVideoXVideoAsPromptTransformer, reference: ReferenceInputs, **settings: Any) -> ReferenceCache:
    return model.encode_reference(reference, **settings)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_both_modes_run_on_every_kind_of_backbone(kind: str) -> None:
    lengths = (4, 2) if kind == "grouped" else (3, 2)
    results = []
    for mode in ("cached", "joint"):
        model = make_transformer(attention_mode=mode, **KINDS[kind])
        target, reference = make_target(model, num_frames=4), make_reference(num_frames=lengths)
        results.append(model(**target, reference=reference).sample)
        assert results[-1].shape == model(**target).sample.shape
    assert (results[0] - results[1]).abs().max() > 1e-4


@torch.no_grad()
def test_another_size_than_the_native_one() -> None:
    model = make_transformer()
    target, reference = make_target(model, size=(4, 10)), make_reference(size=(4, 10))
    assert torch.equal(model(**target).sample, make_backbone()(**target).sample)
    assert (model(**target, reference=reference).sample - model(**target).sample).abs().max() > 1e-3


@torch.no_grad()
def test_embedded_references_join_on_the_batch_axis() -> None:
    model = make_transformer(reference_timestep=None)
    target, both = make_target(model), make_reference(num_frames=(2, 3))
    singles = [
        model.embed_reference(
            ReferenceInputs(
                tuple(latents[index : index + 1] for latents in both.latents),
                tuple(text[index : index + 1] for text in both.text_embeds),
            )
        )
        for index in range(2)
    ]
    joined = join_references(singles)
    assert isinstance(joined, ReferenceTokens)
    torch.testing.assert_close(model(**target, reference=joined).sample, model(**target, reference=both).sample)


@torch.no_grad()
def test_the_order_of_references_and_the_captions_matter() -> None:
    model = make_transformer()
    target, reference = make_target(model), make_reference(num_frames=(3, 3))
    swapped = ReferenceInputs(reference.latents[::-1], reference.text_embeds)
    recaptioned = ReferenceInputs(reference.latents, (reference.text_embeds[0],) * 2)
    # Captions have no place, and every token reads every other: whose caption is whose is not told.
    reordered = ReferenceInputs(reference.latents, reference.text_embeds[::-1])
    results = [model(**target, reference=given).sample for given in (reference, swapped, recaptioned, reordered)]
    assert (results[0] - results[1]).abs().max() > 1e-4
    assert (results[0] - results[2]).abs().max() > 1e-4
    torch.testing.assert_close(results[0], results[3])


@torch.no_grad()
def test_the_reference_timestep_is_a_setting_and_may_be_the_targets() -> None:
    models = [make_transformer(reference_timestep=timestep) for timestep in (0.0, 500.0, None)]
    target, reference = make_target(models[0], batch_size=1), make_reference(batch_size=1)
    target["timestep"] = torch.tensor([500])
    results = [model(**target, reference=reference).sample for model in models]
    assert (results[0] - results[1]).abs().max() > 1e-4
    torch.testing.assert_close(results[2], results[1])
    # Tokens that were embedded once follow the target from step to step.
    tokens = models[2].embed_reference(reference)
    target["timestep"] = torch.tensor([0])
    torch.testing.assert_close(
        models[2](**target, reference=tokens).sample, models[0](**target, reference=reference).sample
    )


@torch.no_grad()
def test_a_following_reference_is_encoded_at_the_step_that_is_said() -> None:
    model, fixed = make_transformer(reference_timestep=None), make_transformer(reference_timestep=300.0)
    reference = make_reference()
    expected = encode(fixed, reference, approximate=True)
    for timestep in (300.0, 300, torch.tensor(300), torch.tensor([300, 300])):
        cache = encode(model, reference, approximate=True, timestep=timestep)
        for got, wanted in zip(cache.keys + cache.values, expected.keys + expected.values, strict=True):
            torch.testing.assert_close(got, wanted)
    with pytest.raises(ModelError, match="say which with timestep="):
        encode(model, reference, approximate=True)
    with pytest.raises(ModelError, match="leave timestep= out"):
        encode(fixed, reference, approximate=True, timestep=300.0)
    with pytest.raises(ModelError, match="approximate=True"):
        encode(model, reference, timestep=300.0)
    target = make_target(model)
    assert model(**target, reference=cache).sample.isfinite().all()


@torch.no_grad()
def test_the_newer_backbone_is_told_its_motion_in_both_streams() -> None:
    model = make_transformer(reference_timestep=None, **GROUPED)
    target, reference = make_target(model, num_frames=4), make_reference(num_frames=(4,))
    ofs = torch.tensor([2.0])
    cache = encode(model, reference, approximate=True, timestep=5.0, ofs=ofs)
    other = encode(model, reference, approximate=True, timestep=5.0, ofs=ofs + 20)
    assert (cache.keys[0] - other.keys[0]).abs().max() > 1e-4
    with pytest.raises(ModelError, match="multiple of 2"):
        model(**target, reference=make_reference(num_frames=(3,)))


def test_what_does_not_fit_is_named() -> None:
    model = make_transformer()
    target, reference = make_target(model), make_reference()
    with pytest.raises(ModelError, match="same height and width"):
        model(**target, reference=make_reference(size=(8, 10)))
    with pytest.raises(ModelError, match="patches of 2x2, got 7x6"):
        model(**target, reference=make_reference(size=(7, 6)))
    with pytest.raises(ModelError, match="must be what rotary_tables gives"):
        model(**(target | {"image_rotary_emb": None}), reference=reference)
    with pytest.raises(ModelError, match="does not take image embeddings"):
        model.embed_reference(ReferenceInputs(reference.latents, reference.text_embeds, (torch.randn(2, 3, 4),)))
    with pytest.raises(ModelError, match="need 8 channels"):
        model.embed_reference(ReferenceInputs((torch.randn(2, 3, 4, 8, 6),), reference.text_embeds))
    latents = (*reference.latents, torch.randn(2, 3, 8, 4, 6))
    with pytest.raises(ModelError, match="one size"):
        model.embed_reference(ReferenceInputs(latents, reference.text_embeds * 2))
    with pytest.raises(ModelError, match="fused"):
        model.fuse_qkv_projections()
    learned = make_transformer(**LEARNED)
    with pytest.raises(ModelError, match="learned positions for 8x6 latents"):
        learned.embed_reference(make_reference(size=(8, 10)))
    with pytest.raises(ModelError, match="need 5 tokens"):
        learned.embed_reference(ReferenceInputs(reference.latents, (torch.randn(2, 4, 16),)))


@torch.no_grad()
def test_captions_of_another_length_are_read_where_no_table_forbids_it() -> None:
    model = make_transformer()
    reference = make_reference()
    short = ReferenceInputs(reference.latents, (torch.randn(2, 3, 16),))
    assert model(**make_target(model), reference=short).sample.isfinite().all()


def test_the_released_size_has_the_released_number_of_weights() -> None:
    with torch.device("meta"):
        model = CogVideoXVideoAsPromptTransformer(
            num_attention_heads=48,
            in_channels=32,
            num_layers=42,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
            expert_blocks=range(41),
        )
    assert model.transformer_blocks[0].needs_reference_output
    assert not model.transformer_blocks[40].needs_reference_output
    assert not isinstance(model.transformer_blocks[41], CogVideoXVideoAsPromptBlock)
    expert = sum(parameter.numel() for _, parameter in model.expert_named_parameters())
    # Section 4 of the paper speaks of 5 billion; the backbone has as many in one block more.
    assert 5.3e9 < expert < 5.6e9
    table = model.expert_embedder.patch_embed.pos_embedding
    assert table.shape == (1, 226 + 13 * 30 * 45, 3072)


@torch.no_grad()
def test_a_feature_cache_needs_an_expert_in_every_block() -> None:
    from diffusers import FirstBlockCacheConfig

    uneven = make_transformer(expert_blocks=[0, 1])
    uneven.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    with pytest.raises(ModelError, match="disable the cache"):
        uneven(**make_target(uneven), reference=make_reference())
