"""CogVideoX with experts: equal to the stock one without a reference, and to a masked joint pass with a cache."""

from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_cogvideox import CogVideoXJointAttnProcessor, CogVideoXVideoAsPromptBlock
from sememe.video_as_prompt.expert_files import COGVIDEOX_KEYS
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.reference_attention import ReferenceAttention
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


class OneWayProcessor(CogVideoXJointAttnProcessor):
    """Joint attention with a mask that hides the target from the reference: the long way to the cached result."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        reference: ReferenceAttention | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert reference is not None
        target, source = hidden_states.shape[1] + encoder_hidden_states.shape[1], reference.key.shape[1]
        num_queries = target + (source if reference.query is not None else 0)
        visible = torch.ones(1, 1, num_queries, target + source, dtype=torch.bool)
        visible[:, :, target:, :target] = False
        return super().__call__(attn, hidden_states, encoder_hidden_states, visible, image_rotary_emb, reference)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expert_blocks", [None, [0, 1], [1]])
@torch.no_grad()
def test_no_reference_is_bitwise_the_stock_backbone(expert_blocks: list[int] | None, kind: str) -> None:
    model = make_transformer(expert_blocks=expert_blocks, **KINDS[kind])
    target = make_target(model, num_frames=4 if kind == "grouped" else 3)
    stock = make_backbone(**KINDS[kind])(**target).sample
    assert torch.equal(model(**target).sample, stock)
    assert torch.equal(model(**target, return_dict=False)[0], stock)


@torch.no_grad()
def test_block_without_reference_is_bitwise_the_stock_block() -> None:
    stock = make_backbone().transformer_blocks[1]
    block = make_transformer().transformer_blocks[1]
    torch.manual_seed(3)
    arguments = (torch.randn(2, 12, 32), torch.randn(2, 5, 32), torch.randn(2, 24))
    rotary = (torch.randn(12, 16), torch.randn(12, 16))
    assert isinstance(block, CogVideoXVideoAsPromptBlock)
    for got, expected in zip(block(*arguments, rotary), stock(*arguments, rotary), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("expert_blocks", [None, [0, 1], [1]])
@pytest.mark.parametrize("lengths", [(3,), (2, 3), (1, 2, 3)])
@torch.no_grad()
def test_cached_equals_a_masked_joint_pass(expert_blocks: list[int] | None, lengths: tuple[int, ...]) -> None:
    cached_model = make_transformer(attention_mode="cached", expert_blocks=expert_blocks)
    joint_model = make_transformer(attention_mode="joint", expert_blocks=expert_blocks)
    target, reference = make_target(cached_model), make_reference(num_frames=lengths)

    cached = cached_model(**target, reference=encode(cached_model, reference)).sample
    two_way = joint_model(**target, reference=reference).sample
    for index in joint_model.config.expert_blocks:
        joint_model.transformer_blocks[index].attn1.set_processor(OneWayProcessor())
    masked = joint_model(**target, reference=reference).sample

    assert (cached - masked).abs().max() <= 1e-5 * masked.abs().max()
    if len(joint_model.config.expert_blocks) > 1:
        # The mask matters: without it the reference reads the target.
        assert (two_way - masked).abs().max() > 1e-3
    assert (cached - cached_model(**target).sample).abs().max() > 1e-3


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
def test_forward_takes_references_in_every_form() -> None:
    reference = make_reference()
    for mode in ("cached", "joint"):
        model = make_transformer(attention_mode=mode)
        target = make_target(model)
        expected = model(**target, reference=reference).sample
        assert torch.equal(model(**target, reference=model.embed_reference(reference)).sample, expected)
        assert torch.equal(model(**target, reference=reference, return_dict=False)[0], expected)
        if mode == "cached":
            assert torch.equal(model(**target, reference=encode(model, reference)).sample, expected)


@torch.no_grad()
def test_one_reference_serves_many_targets() -> None:
    for mode in ("cached", "joint"):
        model = make_transformer(attention_mode=mode)
        target = make_target(model, batch_size=4)

        def prepare(batch_size: int, given: Any = model) -> Any:
            reference = make_reference(batch_size=batch_size)
            is_cached = given.config.attention_mode == "cached"
            return encode(given, reference) if is_cached else given.embed_reference(reference)

        broadcast = model(**target, reference=prepare(1)).sample
        torch.testing.assert_close(model(**target, reference=prepare(1).repeat(4)).sample, broadcast)

    model = make_transformer(attention_mode="cached")
    pair = encode(model, make_reference(batch_size=2))
    repeated = model(**target, reference=pair.repeat_interleave(2)).sample
    for index in range(4):
        alone = {name: part if name == "image_rotary_emb" else part[index : index + 1] for name, part in target.items()}
        result = model(**alone, reference=pair.select(index // 2)).sample
        torch.testing.assert_close(result[0], repeated[index], atol=1e-5, rtol=1e-5)
    rejoined = join_references([pair.select(0), pair.select(1)])
    assert isinstance(rejoined, ReferenceCache)
    assert all(torch.equal(a, b) for a, b in zip(rejoined.keys, pair.keys, strict=True))


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


def test_the_expert_starts_as_a_copy_and_shares_nothing() -> None:
    for kind in (LEARNED, SINES):
        backbone = make_backbone(**kind)
        expected = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
        model = CogVideoXVideoAsPromptTransformer.from_backbone(backbone, [0, 2])
        tensors = model.state_dict()
        assert not any(tensor.is_meta for tensor in (*tensors.values(), *model.buffers()))
        assert {key for key in tensors if not COGVIDEOX_KEYS.is_expert_key(key)} == expected.keys()
        for key in filter(COGVIDEOX_KEYS.is_expert_key, tensors):
            assert torch.equal(tensors[key], expected[COGVIDEOX_KEYS.to_backbone_key(key)])
            assert tensors[key].data_ptr() != tensors[COGVIDEOX_KEYS.to_backbone_key(key)].data_ptr()
        assert model.config.expert_blocks == [0, 2]
        assert model.config.reference_timestep is None
        assert ("expert_embedder.patch_embed.pos_embedding" in tensors) == (kind is LEARNED)


def loss_of(model: CogVideoXVideoAsPromptTransformer, reference: ReferenceInputs) -> torch.Tensor:
    target = make_target(model)
    if model.config.attention_mode == "cached":
        return model(**target, reference=encode(model, reference)).sample.square().mean()
    return model(**target, reference=reference).sample.square().mean()


@pytest.mark.parametrize("expert_blocks", [None, [0, 1]])
@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_only_the_expert_is_trained_and_all_of_it(mode: str, expert_blocks: list[int] | None) -> None:
    model = make_transformer(attention_mode=mode, expert_blocks=expert_blocks, **LEARNED).train()
    model.freeze_backbone()
    loss_of(model, make_reference()).backward()
    trained = {id(parameter) for parameter in model.trainable_parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            assert COGVIDEOX_KEYS.is_expert_key(name)
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_gradient_checkpointing_changes_no_gradient(mode: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_transformer(attention_mode=mode, expert_blocks=[0, 1]).train()
        model.freeze_backbone()
        if checkpointing:
            model.enable_gradient_checkpointing()
        loss_of(model, make_reference()).backward()
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_autocast_trains_and_keeps_keys_in_low_precision() -> None:
    model = make_transformer(attention_mode="cached").train()
    model.freeze_backbone()
    with torch.autocast("cpu", torch.bfloat16):
        cache = encode(model, make_reference())
        loss_of(model, make_reference()).backward()
    assert {tensor.dtype for tensor in (*cache.keys, *cache.values)} == {torch.bfloat16}
    assert all(parameter.grad is not None for parameter in model.trainable_parameters())


@torch.no_grad()
def test_bfloat16_weights_follow_float32() -> None:
    exact = make_transformer(**LEARNED)
    target, reference = make_target(exact), make_reference()
    expected = exact(**target, reference=reference).sample
    low = make_transformer(**LEARNED).to(torch.bfloat16)
    for name in ("hidden_states", "encoder_hidden_states"):
        target[name] = target[name].bfloat16()
    given = ReferenceInputs(
        tuple(tensor.bfloat16() for tensor in reference.latents),
        tuple(tensor.bfloat16() for tensor in reference.text_embeds),
    )
    result = low(**target, reference=given).sample
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_two_way_model_refuses_the_cache_unless_told() -> None:
    model, reference = make_transformer(), make_reference()
    with pytest.raises(ModelError, match="approximate=True"):
        encode(model, reference)
    cache = encode(model, reference, approximate=True)
    assert model(**make_target(model), reference=cache).sample.isfinite().all()


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
    with pytest.raises(ModelError, match="batch of 3, but 2 targets"):
        model(**target, reference=model.embed_reference(make_reference(batch_size=3)))
    with pytest.raises(ModelError, match="fused"):
        model.fuse_qkv_projections()
    learned = make_transformer(**LEARNED)
    with pytest.raises(ModelError, match="learned positions for 8x6 latents"):
        learned.embed_reference(make_reference(size=(8, 10)))
    with pytest.raises(ModelError, match="need 5 tokens"):
        learned.embed_reference(ReferenceInputs(reference.latents, (torch.randn(2, 4, 16),)))
    settings: dict[str, Any]
    for settings, message in (
        ({"expert_blocks": [0, 3]}, "within 0..2"),
        ({"expert_blocks": []}, "expert_blocks"),
        ({"attention_mode": "both"}, "'joint' or 'cached'"),
        ({"reference_timestep": -1.0}, "0..1000"),
        ({"attention_mode": "cached", "reference_timestep": None}, "must be a number"),
    ):
        with pytest.raises(ModelError, match=message):
            make_transformer(**settings)


@torch.no_grad()
def test_captions_of_another_length_are_read_where_no_table_forbids_it() -> None:
    model = make_transformer()
    reference = make_reference()
    short = ReferenceInputs(reference.latents, (torch.randn(2, 3, 16),))
    assert model(**make_target(model), reference=short).sample.isfinite().all()


def test_diffusers_knows_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = TransformerBlockRegistry.get(CogVideoXVideoAsPromptBlock)
    assert (metadata.return_hidden_states_index, metadata.return_encoder_hidden_states_index) == (0, 1)
    assert CogVideoXVideoAsPromptBlock.__name__ in CogVideoXVideoAsPromptTransformer._repeated_blocks
    assert CogVideoXVideoAsPromptBlock.__name__ in CogVideoXVideoAsPromptTransformer._no_split_modules
    model = make_transformer()
    # diffusers makes the last choice that of all models without one; here it ends with the test.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    model.set_attention_backend("_native_math")
    processors = model.attn_processors
    assert sum("expert" in name for name in processors) == 3
    assert all(processor._attention_backend == "_native_math" for processor in processors.values())


@torch.no_grad()
def test_first_block_cache_runs_in_both_modes() -> None:
    from diffusers import FirstBlockCacheConfig

    reference = make_reference()
    for mode in ("cached", "joint"):
        model = make_transformer(attention_mode=mode)
        target = make_target(model)
        expected = model(**target, reference=reference).sample
        model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        given = encode(model, reference) if mode == "cached" else reference
        assert model.is_cache_enabled
        with model.cache_context("target"):
            torch.testing.assert_close(model(**target, reference=given).sample, expected)
    uneven = make_transformer(expert_blocks=[0, 1])
    uneven.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    with pytest.raises(ModelError, match="disable the cache"):
        uneven(**target, reference=reference)


@torch.no_grad()
def test_sequential_offload_finds_every_weight() -> None:
    from accelerate import cpu_offload

    reference = make_reference()
    for mode in ("cached", "joint"):
        plain = make_transformer(attention_mode=mode, **LEARNED)
        target = make_target(plain)
        expected = plain(**target, reference=reference).sample
        model = cpu_offload(make_transformer(attention_mode=mode, **LEARNED), "cpu", offload_buffers=True)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.equal(model(**target, reference=reference).sample, expected)


def test_stock_pretrained_round_trip_of_the_merged_model(tmp_path: Any) -> None:
    model = make_transformer(expert_blocks=[0, 1], reference_timestep=None, **LEARNED)
    model.save_pretrained(tmp_path)
    loaded = CogVideoXVideoAsPromptTransformer.from_pretrained(tmp_path)
    assert loaded.config.expert_blocks == [0, 1]
    assert loaded.config.reference_timestep is None
    tensors = loaded.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())
    assert isinstance(make_backbone(), CogVideoXTransformer3DModel)


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
