"""The transformer with experts: equal to the stock one without a reference, and to a masked joint pass with a cache."""

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_wan import JointAttnProcessor, WanVideoAsPromptBlock
from sememe.video_as_prompt.expert_files import WAN_KEYS
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, join_references
from video_as_prompt.wan_factories import GRID, make_backbone, make_reference, make_target, make_transformer


def encode(model: WanVideoAsPromptTransformer, reference: ReferenceInputs, **settings: Any) -> ReferenceCache:
    return model.encode_reference(reference, **settings)


class OneWayProcessor(JointAttnProcessor):
    """Joint attention with a mask that hides the target from the reference: the long way to the cached result."""

    def __call__(self, attn: Any, hidden_states: Any, *rest: Any, reference: Any = None) -> torch.Tensor:
        target, source = hidden_states.shape[1], reference.key.shape[1]
        num_queries = target + (source if reference.query is not None else 0)
        visible = torch.ones(1, 1, num_queries, target + source, dtype=torch.bool)
        visible[:, :, target:, :target] = False
        text, _, rotary = rest
        return super().__call__(attn, hidden_states, text, visible, rotary, reference=reference)


@pytest.mark.parametrize("expert_blocks", [None, [0, 2], [1]])
@torch.no_grad()
def test_no_reference_is_bitwise_the_stock_backbone(expert_blocks: list[int] | None) -> None:
    target = make_target()
    stock = make_backbone()(**target).sample
    model = make_transformer(expert_blocks=expert_blocks)
    assert torch.equal(model(**target).sample, stock)
    assert torch.equal(model(**target, return_dict=False)[0], stock)


@torch.no_grad()
def test_block_without_reference_is_bitwise_the_stock_block() -> None:
    stock = make_backbone().blocks[1]
    block = make_transformer().blocks[1]
    torch.manual_seed(3)
    arguments = (torch.randn(2, 12, 48), torch.randn(2, 5, 48), torch.randn(2, 6, 48))
    rotary = (torch.randn(1, 12, 1, 24), torch.randn(1, 12, 1, 24))
    assert isinstance(block, WanVideoAsPromptBlock)
    assert torch.equal(block(*arguments, rotary), stock(*arguments, rotary))


@pytest.mark.parametrize("expert_blocks", [None, [0, 2], [1]])
@pytest.mark.parametrize("lengths", [(3,), (2, 3)])
@torch.no_grad()
def test_cached_equals_a_masked_joint_pass(expert_blocks: list[int] | None, lengths: tuple[int, ...]) -> None:
    target, reference = make_target(), make_reference(num_frames=lengths)
    cached_model = make_transformer(attention_mode="cached", expert_blocks=expert_blocks)
    joint_model = make_transformer(attention_mode="joint", expert_blocks=expert_blocks)

    cached = cached_model(**target, reference=encode(cached_model, reference)).sample
    two_way = joint_model(**target, reference=reference).sample
    for index in joint_model.config.expert_blocks:
        joint_model.blocks[index].attn1.set_processor(OneWayProcessor())
    masked = joint_model(**target, reference=reference).sample

    assert (cached - masked).abs().max() <= 1e-5 * masked.abs().max()
    if len(joint_model.config.expert_blocks) > 1:
        # The mask matters: without it the reference reads the target.
        assert (two_way - masked).abs().max() > 1e-3
    assert (cached - cached_model(**target).sample).abs().max() > 1e-3


@torch.no_grad()
def test_forward_takes_references_in_every_form() -> None:
    target, reference = make_target(), make_reference()
    for mode in ("cached", "joint"):
        model = make_transformer(attention_mode=mode)
        expected = model(**target, reference=reference).sample
        assert torch.equal(model(**target, reference=model.embed_reference(reference)).sample, expected)
        if mode == "cached":
            assert torch.equal(model(**target, reference=encode(model, reference)).sample, expected)


@torch.no_grad()
def test_one_reference_serves_many_targets() -> None:
    model, target = make_transformer(), make_target(batch_size=4)
    single = encode(model, make_reference(batch_size=1))
    broadcast = model(**target, reference=single).sample
    assert torch.equal(model(**target, reference=single.repeat_interleave(4)).sample, broadcast)

    pair = encode(model, make_reference(batch_size=2))
    repeated = model(**target, reference=pair.repeat_interleave(2)).sample
    for index in range(4):
        alone = {name: tensor[index : index + 1] for name, tensor in target.items()}
        result = model(**alone, reference=pair.select(index // 2)).sample
        torch.testing.assert_close(result[0], repeated[index], atol=1e-5, rtol=1e-5)
    rejoined = join_references([pair.select(0), pair.select(1)])
    assert isinstance(rejoined, ReferenceCache)
    assert all(torch.equal(a, b) for a, b in zip(rejoined.keys, pair.keys, strict=True))
    assert single.to(dtype=torch.bfloat16).values[0].dtype == torch.bfloat16


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


def test_the_expert_starts_as_a_copy_and_shares_nothing() -> None:
    backbone = make_backbone()
    expected = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    model = WanVideoAsPromptTransformer.from_backbone(backbone, [0, 2])
    tensors = model.state_dict()
    assert not any(tensor.is_meta for tensor in tensors.values())
    assert {key for key in tensors if not WAN_KEYS.is_expert_key(key)} == expected.keys()
    for key in filter(WAN_KEYS.is_expert_key, tensors):
        assert torch.equal(tensors[key], expected[WAN_KEYS.to_backbone_key(key)])
        assert tensors[key].data_ptr() != tensors[WAN_KEYS.to_backbone_key(key)].data_ptr()
    assert model.config.expert_blocks == [0, 2]


def loss_of(model: WanVideoAsPromptTransformer, reference: ReferenceInputs) -> torch.Tensor:
    if model.config.attention_mode == "cached":
        return model(**make_target(), reference=encode(model, reference)).sample.square().mean()
    return model(**make_target(), reference=reference).sample.square().mean()


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_only_the_expert_is_trained_and_all_of_it(mode: str) -> None:
    model = make_transformer(attention_mode=mode).train()
    model.freeze_backbone()
    loss_of(model, make_reference()).backward()
    trained = {id(parameter) for parameter in model.trainable_parameters()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        assert WAN_KEYS.is_expert_key(name) or id(parameter) not in trained


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_gradient_checkpointing_changes_no_gradient(mode: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_transformer(attention_mode=mode).train()
        model.freeze_backbone()
        if checkpointing:
            model.enable_gradient_checkpointing()
        loss_of(model, make_reference()).backward()
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_autocast_trains_and_keeps_keys_in_low_precision() -> None:
    model = make_transformer().train()
    model.freeze_backbone()
    with torch.autocast("cpu", torch.bfloat16):
        cache = encode(model, make_reference())
        loss_of(model, make_reference()).backward()
    assert {tensor.dtype for tensor in (*cache.keys, *cache.values)} == {torch.bfloat16}
    assert all(parameter.grad is not None for parameter in model.trainable_parameters())


@torch.no_grad()
def test_bfloat16_weights_follow_float32() -> None:
    target, reference = make_target(), make_reference()
    exact = make_transformer()
    expected = exact(**target, reference=reference).sample
    low = make_transformer().to(torch.bfloat16)
    halve = {name: tensor.to(torch.bfloat16) for name, tensor in target.items()}
    given = ReferenceInputs(
        tuple(tensor.bfloat16() for tensor in reference.latents),
        tuple(tensor.bfloat16() for tensor in reference.text_embeds),
    )
    result = low(**halve, reference=given).sample
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).abs().max() < 0.1 * expected.abs().max()


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


def test_a_two_way_model_refuses_the_cache_unless_told() -> None:
    model, reference = make_transformer(attention_mode="joint"), make_reference()
    with pytest.raises(ModelError, match="approximate=True"):
        encode(model, reference)
    cache = encode(model, reference, approximate=True)
    assert model(**make_target(), reference=cache).sample.isfinite().all()


def test_what_does_not_fit_is_named() -> None:
    model, target = make_transformer(), make_target()
    wide = ReferenceInputs((torch.randn(2, 12, 3, 8, 10),), (torch.randn(2, 5, 16),))
    with pytest.raises(ModelError, match="same height and width"):
        model(**target, reference=wide)
    with pytest.raises(ModelError, match="need 12 channels"):
        model.embed_reference(ReferenceInputs((torch.randn(2, 4, 3, 8, 6),), (torch.randn(2, 5, 16),)))
    with pytest.raises(ModelError, match="position table ends at 63"):
        model.embed_reference(make_reference(num_frames=(32, 32)))
    with pytest.raises(ModelError, match="batch of 3, but 2 targets"):
        model(**target, reference=model.embed_reference(make_reference(batch_size=3)))
    other = encode(make_transformer(expert_blocks=[0, 2]), make_reference())
    with pytest.raises(ModelError, match="encoded by another model"):
        model(**target, reference=other)
    with pytest.raises(ModelError, match="counts are"):
        ReferenceInputs((torch.randn(2, 12, 3, 8, 6),), ())
    for settings, message in (
        ({"expert_blocks": [0, 3]}, "within 0..2"),
        ({"expert_blocks": []}, "expert_blocks"),
        ({"attention_mode": "both"}, "'joint' or 'cached'"),
        ({"reference_timestep": -1.0}, "0..1000"),
    ):
        with pytest.raises(ModelError, match=message):
            make_transformer(**settings)


@torch.no_grad()
def test_blocks_compile_without_graph_breaks() -> None:
    target, reference = make_target(), make_reference()
    for mode in ("cached", "joint"):
        torch.compiler.reset()  # graphs of earlier tests count towards torch's limit
        expected = make_transformer(attention_mode=mode)(**target, reference=reference).sample
        model = make_transformer(attention_mode=mode)
        for block in model.blocks:
            block.compile(fullgraph=True, backend="eager")
        torch.testing.assert_close(model(**target, reference=reference).sample, expected)
    torch.compiler.reset()


def test_diffusers_knows_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TransformerBlockRegistry.get(WanVideoAsPromptBlock).return_hidden_states_index == 0
    assert WanVideoAsPromptBlock.__name__ in WanVideoAsPromptTransformer._repeated_blocks
    assert WanVideoAsPromptBlock.__name__ in WanVideoAsPromptTransformer._no_split_modules
    model = make_transformer()
    # diffusers makes the last choice that of all models without one; here it ends with the test.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    model.set_attention_backend("_native_math")
    processors = model.attn_processors
    assert sum("expert" in name for name in processors) == 2 * 3
    assert all(processor._attention_backend == "_native_math" for processor in processors.values())


@torch.no_grad()
def test_first_block_cache_runs_in_both_modes() -> None:
    from diffusers import FirstBlockCacheConfig

    target, reference = make_target(), make_reference()
    for mode in ("cached", "joint"):
        model = make_transformer(attention_mode=mode)
        expected = model(**target, reference=reference).sample
        model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        given = encode(model, reference) if mode == "cached" else reference
        assert model.is_cache_enabled
        with model.cache_context("target"):
            torch.testing.assert_close(model(**target, reference=given).sample, expected)


@torch.no_grad()
def test_sequential_offload_finds_every_weight() -> None:
    from accelerate import cpu_offload

    target, reference = make_target(), make_reference()
    for mode in ("cached", "joint"):
        torch.compiler.reset()  # graphs of earlier tests count towards torch's limit
        expected = make_transformer(attention_mode=mode)(**target, reference=reference).sample
        model = cpu_offload(make_transformer(attention_mode=mode), "cpu", offload_buffers=True)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.equal(model(**target, reference=reference).sample, expected)


def test_stock_pretrained_round_trip_of_the_merged_model(tmp_path: Any) -> None:
    model = make_transformer(attention_mode="joint", expert_blocks=[0, 2], reference_timestep=1.0)
    model.save_pretrained(tmp_path)
    loaded = WanVideoAsPromptTransformer.from_pretrained(tmp_path)
    assert loaded.config.expert_blocks == [0, 2]
    tensors = loaded.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())
    assert isinstance(make_backbone(), WanTransformer3DModel)
