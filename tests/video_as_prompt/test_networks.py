"""Transformers with experts: equal to the stock ones without a reference, to a masked joint pass with a cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks._helpers import TransformerBlockRegistry

from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_cogvideox import CogVideoXJointAttnProcessor, CogVideoXVideoAsPromptBlock
from sememe.video_as_prompt.blocks_wan import JointAttnProcessor, WanVideoAsPromptBlock
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, join_references
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.cogvideox_factories import GROUPED, LEARNED, SINES

KINDS = [
    pytest.param(wan_factories, {}, id="wan"),
    pytest.param(cogvideox_factories, {}, id="rotary"),
    pytest.param(cogvideox_factories, LEARNED, id="learned"),
    pytest.param(cogvideox_factories, SINES, id="sines"),
    pytest.param(cogvideox_factories, GROUPED, id="grouped"),
]
both_families = pytest.mark.parametrize("family", [wan_factories, cogvideox_factories], ids=["wan", "cogvideox"])
both_modes = pytest.mark.parametrize("mode", ["cached", "joint"])


def hide_target(num_target: int, reference: Any) -> torch.Tensor:
    """A mask that hides the target from the reference."""
    num_source = reference.key.shape[1]
    num_queries = num_target + (num_source if reference.query is not None else 0)
    visible = torch.ones(1, 1, num_queries, num_target + num_source, dtype=torch.bool)
    visible[:, :, num_target:, :num_target] = False
    return visible


class OneWayWan(JointAttnProcessor):
    """Joint attention with a mask: the long way to the cached result."""

    def __call__(self, attn: Any, hidden_states: Any, *rest: Any, reference: Any = None) -> torch.Tensor:
        text, _, rotary = rest
        visible = hide_target(hidden_states.shape[1], reference)
        return super().__call__(attn, hidden_states, text, visible, rotary, reference=reference)


class OneWayCogVideoX(CogVideoXJointAttnProcessor):
    """Joint attention with a mask: the long way to the cached result."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        reference: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        visible = hide_target(hidden_states.shape[1] + encoder_hidden_states.shape[1], reference)
        return super().__call__(attn, hidden_states, encoder_hidden_states, visible, image_rotary_emb, reference)


@pytest.mark.parametrize(("family", "kind"), KINDS)
@pytest.mark.parametrize("expert_blocks", [None, [0, 2], [1]])
@torch.no_grad()
def test_no_reference_is_bitwise_the_stock_backbone(
    family: Any, kind: dict[str, Any], expert_blocks: list[int] | None
) -> None:
    model = family.make_transformer(expert_blocks=expert_blocks, **kind)
    target = family.make_target(model, num_frames=4 if kind is GROUPED else 3)
    stock = family.make_backbone(**kind)(**target).sample
    assert torch.equal(model(**target).sample, stock)
    assert torch.equal(model(**target, return_dict=False)[0], stock)


@torch.no_grad()
def test_blocks_without_reference_are_bitwise_the_stock_blocks() -> None:
    torch.manual_seed(3)
    rotary = (torch.randn(1, 12, 1, 24), torch.randn(1, 12, 1, 24))
    arguments = (torch.randn(2, 12, 48), torch.randn(2, 5, 48), torch.randn(2, 6, 48), rotary)
    wan = wan_factories.make_transformer().blocks[1]
    assert isinstance(wan, WanVideoAsPromptBlock)
    assert torch.equal(wan(*arguments), wan_factories.make_backbone().blocks[1](*arguments))

    rotary = (torch.randn(12, 16), torch.randn(12, 16))
    arguments = (torch.randn(2, 12, 32), torch.randn(2, 5, 32), torch.randn(2, 24), rotary)
    cogvideox = cogvideox_factories.make_transformer().transformer_blocks[1]
    assert isinstance(cogvideox, CogVideoXVideoAsPromptBlock)
    stock = cogvideox_factories.make_backbone().transformer_blocks[1]
    for got, expected in zip(cogvideox(*arguments), stock(*arguments), strict=True):
        assert torch.equal(got, expected)


@both_families
@pytest.mark.parametrize("expert_blocks", [None, [0, 2], [1]])
@pytest.mark.parametrize("lengths", [(3,), (2, 3)])
@torch.no_grad()
def test_cached_equals_a_masked_joint_pass(
    family: Any, expert_blocks: list[int] | None, lengths: tuple[int, ...]
) -> None:
    cached_model = family.make_transformer(attention_mode="cached", expert_blocks=expert_blocks)
    joint_model = family.make_transformer(attention_mode="joint", expert_blocks=expert_blocks)
    target, reference = family.make_target(cached_model), family.make_reference(num_frames=lengths)

    cached = cached_model(**target, reference=cached_model.encode_reference(reference)).sample
    two_way = joint_model(**target, reference=reference).sample
    one_way = OneWayWan() if family is wan_factories else OneWayCogVideoX()
    for index in joint_model.config.expert_blocks:
        getattr(joint_model, joint_model.key_map.blocks)[index].attn1.set_processor(one_way)
    masked = joint_model(**target, reference=reference).sample

    assert (cached - masked).abs().max() <= 1e-5 * masked.abs().max()
    if len(joint_model.config.expert_blocks) > 1:
        # The mask matters: without it the reference reads the target.
        assert (two_way - masked).abs().max() > 1e-3
    assert (cached - cached_model(**target).sample).abs().max() > 1e-3


@both_families
@both_modes
@torch.no_grad()
def test_forward_takes_references_in_every_form(family: Any, mode: str) -> None:
    model, reference = family.make_transformer(attention_mode=mode), family.make_reference()
    target = family.make_target(model)
    expected = model(**target, reference=reference).sample
    assert torch.equal(model(**target, reference=model.embed_reference(reference)).sample, expected)
    assert torch.equal(model(**target, reference=reference, return_dict=False)[0], expected)
    if mode == "cached":
        assert torch.equal(model(**target, reference=model.encode_reference(reference)).sample, expected)


@both_families
@both_modes
@torch.no_grad()
def test_one_reference_serves_many_targets(family: Any, mode: str) -> None:
    model = family.make_transformer(attention_mode=mode)
    target = family.make_target(model, batch_size=4)
    prepare = model.encode_reference if mode == "cached" else model.embed_reference
    single = prepare(family.make_reference(batch_size=1))
    broadcast = model(**target, reference=single).sample
    torch.testing.assert_close(model(**target, reference=single.repeat(4)).sample, broadcast)


@both_families
@torch.no_grad()
def test_a_cache_is_selected_from_and_joined(family: Any) -> None:
    model = family.make_transformer(attention_mode="cached")
    target = family.make_target(model, batch_size=4)
    pair = model.encode_reference(family.make_reference(batch_size=2))
    repeated = model(**target, reference=pair.map(lambda each: each.repeat_interleave(2, dim=0))).sample
    for index in range(4):
        alone = {name: part if name == "image_rotary_emb" else part[index : index + 1] for name, part in target.items()}
        result = model(**alone, reference=pair.map(lambda each, of=index // 2: each[of : of + 1])).sample
        torch.testing.assert_close(result[0], repeated[index], atol=1e-5, rtol=1e-5)
    rejoined = join_references([pair.map(lambda each: each[:1]), pair.map(lambda each: each[1:])])
    assert isinstance(rejoined, ReferenceCache)
    assert all(torch.equal(a, b) for a, b in zip(rejoined.keys, pair.keys, strict=True))
    assert pair.to(dtype=torch.bfloat16).values[0].dtype == torch.bfloat16


@pytest.mark.parametrize(("family", "kind"), KINDS[:1] + KINDS[2:4])
def test_the_expert_starts_as_a_copy_and_shares_nothing(family: Any, kind: dict[str, Any]) -> None:
    backbone = family.make_backbone(**kind)
    expected = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    stock = type(family.make_transformer())
    model = stock.from_backbone(backbone, [0, 2])
    tensors, names = model.state_dict(), model.key_map
    assert not any(tensor.is_meta for tensor in (*tensors.values(), *model.buffers()))
    assert {key for key in tensors if not names.is_expert_key(key)} == expected.keys()
    for key in filter(names.is_expert_key, tensors):
        twin = names.to_backbone_key(key)
        assert torch.equal(tensors[key], expected[twin])
        assert tensors[key].data_ptr() != tensors[twin].data_ptr()
    assert model.config.expert_blocks == [0, 2]
    assert model.config.reference_timestep == stock.own_settings["reference_timestep"]
    assert ("expert_embedder.patch_embed.pos_embedding" in tensors) == (kind is LEARNED)


@both_families
def test_an_expert_goes_part_of_the_way_back(family: Any) -> None:
    model = family.make_transformer()
    names = model.key_map
    trained = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.blend_expert_with_backbone(0.75)
    for key, tensor in model.state_dict().items():
        if names.is_expert_key(key):
            start = trained[names.to_backbone_key(key)]
            torch.testing.assert_close(tensor, start + 0.75 * (trained[key] - start))
        else:
            assert torch.equal(tensor, trained[key])


def loss_of(family: Any, model: Any) -> torch.Tensor:
    reference = family.make_reference()
    given = model.encode_reference(reference) if model.config.attention_mode == "cached" else reference
    loss: torch.Tensor = model(**family.make_target(model), reference=given).sample.square().mean()
    return loss


@pytest.mark.parametrize(("family", "kind"), KINDS[:1] + KINDS[2:3])
@pytest.mark.parametrize("expert_blocks", [None, [0, 1]])
@both_modes
def test_only_the_expert_is_trained_and_all_of_it(
    family: Any, kind: dict[str, Any], expert_blocks: list[int] | None, mode: str
) -> None:
    model = family.make_transformer(attention_mode=mode, expert_blocks=expert_blocks, **kind).train()
    model.freeze_backbone()
    loss_of(family, model).backward()
    trained = {id(parameter) for parameter in model.trainable_parameters()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        assert model.key_map.is_expert_key(name) or id(parameter) not in trained
        if parameter.grad is not None and family is cogvideox_factories:
            assert parameter.grad.abs().max() > 0, name


@both_families
@both_modes
def test_gradient_checkpointing_changes_no_gradient(family: Any, mode: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = family.make_transformer(attention_mode=mode, expert_blocks=[0, 1]).train()
        model.freeze_backbone()
        if checkpointing:
            model.enable_gradient_checkpointing()
        loss_of(family, model).backward()
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@both_families
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_autocast_trains_and_keeps_keys_in_low_precision(family: Any) -> None:
    model = family.make_transformer(attention_mode="cached").train()
    model.freeze_backbone()
    with torch.autocast("cpu", torch.bfloat16):
        cache = model.encode_reference(family.make_reference())
        loss_of(family, model).backward()
    assert {tensor.dtype for tensor in (*cache.keys, *cache.values)} == {torch.bfloat16}
    assert all(parameter.grad is not None for parameter in model.trainable_parameters())


@pytest.mark.parametrize(("family", "kind"), KINDS[:1] + KINDS[2:3])
@torch.no_grad()
def test_bfloat16_weights_follow_float32(family: Any, kind: dict[str, Any]) -> None:
    exact = family.make_transformer(**kind)
    target, reference = family.make_target(exact), family.make_reference()
    expected = exact(**target, reference=reference).sample
    low = family.make_transformer(**kind).to(torch.bfloat16)
    for name in ("hidden_states", "encoder_hidden_states"):
        target[name] = target[name].bfloat16()
    given = ReferenceInputs(
        tuple(tensor.bfloat16() for tensor in reference.latents),
        tuple(tensor.bfloat16() for tensor in reference.text_embeds),
    )
    result = low(**target, reference=given).sample
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).abs().max() < 0.1 * expected.abs().max()


@both_families
def test_a_two_way_model_refuses_the_cache_unless_told(family: Any) -> None:
    model, reference = family.make_transformer(attention_mode="joint"), family.make_reference()
    with pytest.raises(ModelError, match="approximate=True"):
        model.encode_reference(reference)
    cache = model.encode_reference(reference, approximate=True)
    assert model(**family.make_target(model), reference=cache).sample.isfinite().all()


@both_families
def test_what_does_not_fit_is_named(family: Any) -> None:
    model = family.make_transformer(attention_mode="cached")
    target = family.make_target(model)
    with pytest.raises(ModelError, match="batch of 3, but 2 targets"):
        model(**target, reference=model.embed_reference(family.make_reference(batch_size=3)))
    other = family.make_transformer(attention_mode="cached", expert_blocks=[0, 2])
    with pytest.raises(ModelError, match="encoded by another model"):
        model(**target, reference=other.encode_reference(family.make_reference()))
    settings: dict[str, Any]
    for settings, message in (
        ({"expert_blocks": [0, 3]}, "within 0..2"),
        ({"expert_blocks": []}, "expert_blocks"),
        ({"attention_mode": "both"}, "'joint' or 'cached'"),
        ({"reference_timestep": -1.0}, "0..1000"),
        ({"attention_mode": "cached", "reference_timestep": None}, "must be a number"),
    ):
        with pytest.raises(ModelError, match=message):
            family.make_transformer(**settings)


@both_families
def test_diffusers_knows_the_blocks(family: Any) -> None:
    model = family.make_transformer()
    block = type(getattr(model, model.key_map.blocks)[0])
    metadata = TransformerBlockRegistry.get(block)
    text_place = None if family is wan_factories else 1
    assert (metadata.return_hidden_states_index, metadata.return_encoder_hidden_states_index) == (0, text_place)
    assert block.__name__ in model._repeated_blocks
    assert block.__name__ in model._no_split_modules
    model.set_attention_backend("_native_math")
    processors = model.attn_processors
    # Wan's experts have a cross-attention too.
    assert sum("expert" in name for name in processors) == (2 * 3 if family is wan_factories else 3)
    assert all(processor._attention_backend == "_native_math" for processor in processors.values())


@both_families
@both_modes
@torch.no_grad()
def test_first_block_cache_runs_in_both_modes(family: Any, mode: str) -> None:
    from diffusers import FirstBlockCacheConfig

    model, reference = family.make_transformer(attention_mode=mode), family.make_reference()
    target = family.make_target(model)
    expected = model(**target, reference=reference).sample
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    given = model.encode_reference(reference) if mode == "cached" else reference
    assert model.is_cache_enabled
    with model.cache_context("target"):
        torch.testing.assert_close(model(**target, reference=given).sample, expected)


@pytest.mark.parametrize(("family", "kind"), KINDS[:1] + KINDS[2:3])
@both_modes
@torch.no_grad()
def test_sequential_offload_finds_every_weight(family: Any, kind: dict[str, Any], mode: str) -> None:
    from accelerate import cpu_offload

    plain, reference = family.make_transformer(attention_mode=mode, **kind), family.make_reference()
    target = family.make_target(plain)
    expected = plain(**target, reference=reference).sample
    model = cpu_offload(family.make_transformer(attention_mode=mode, **kind), "cpu", offload_buffers=True)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(**target, reference=reference).sample, expected)


@pytest.mark.parametrize(("family", "kind"), KINDS[:1] + KINDS[2:3])
def test_stock_pretrained_round_trip_of_the_merged_model(family: Any, kind: dict[str, Any], tmp_path: Path) -> None:
    timestep = 1.0 if family is wan_factories else None
    model = family.make_transformer(attention_mode="joint", expert_blocks=[0, 1], reference_timestep=timestep, **kind)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.expert_blocks == [0, 1]
    assert loaded.config.reference_timestep == timestep
    tensors = loaded.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())
