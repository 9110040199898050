"""The renderer: the stock network without a plan, and plan, windows and segments as masks would have them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from semanticgen.renderer_factories import (
    SEMANTIC_DIM,
    lay_out,
    make_backbone,
    make_features,
    make_renderer,
    make_target,
)
from sememe.checkpoints.components import load_strictly
from sememe.checkpoints.zoo import WEIGHTS_FOLDER
from sememe.errors import ModelError
from sememe.semanticgen.blocks_renderer import SemanticGenBlock
from sememe.semanticgen.network_renderer import SemanticGenTransformer, make_tables


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_without_a_plan_it_is_bitwise_the_stock_network() -> None:
    target = make_target()
    stock = make_backbone()(**target).sample
    assert torch.equal(make_renderer()(**target).sample, stock)
    assert torch.equal(make_renderer(semantic_dim=None)(**target, return_dict=False)[0], stock)


@torch.no_grad()
def test_a_layout_of_latents_alone_changes_nothing_but_rounding() -> None:
    target = make_target()
    close(make_renderer()(**target, layout=lay_out(5)).sample, make_backbone()(**target).sample)


@torch.no_grad()
def test_tables_at_whole_positions_are_the_stock_ones() -> None:
    rope = WanRotaryPosEmbed(24, (1, 2, 2), 64)
    layout = lay_out(5)
    cos, sin = make_tables(rope, layout.positions(layout.pieces).round(), torch.empty(0))
    expected = rope(make_target()["hidden_states"])
    assert torch.equal(cos, expected[0])
    assert torch.equal(sin, expected[1])


@torch.no_grad()
def test_semantic_tokens_are_like_stock_tokens_of_timestep_zero() -> None:
    """In one window, the blocks are the stock ones with a timestep for each token, as Wan 2.2 has them."""
    model, target, features = make_renderer(), make_target(), make_features(4)
    layout = lay_out(5, 4)
    tokens = layout.order(model._embed_latents(target["hidden_states"]), model._embed_semantic(features))
    kinds = layout.kinds(layout.pieces)
    times = torch.where(kinds == 0, target["timestep"][:, None], torch.zeros(1))
    temb, modulation, text, _ = model.condition_embedder(
        times.flatten(), target["encoder_hidden_states"], None, timestep_seq_len=len(kinds)
    )
    rotary = make_tables(model.rope, layout.positions(layout.pieces), tokens)
    for block in make_backbone().blocks:
        tokens = block(tokens, text, modulation.unflatten(2, (6, -1)), rotary)
    shift, scale = (model.scale_shift_table[None] + temb[:, :, None]).chunk(2, dim=2)
    tokens = model.norm_out(tokens) * (1 + scale.squeeze(2)) + shift.squeeze(2)
    expected = layout.pick_latents(model.proj_out(tokens))
    found = model(**target, semantic=features, layout=layout).sample
    # (batch, channel, frame, row, height, column, width) -> (batch, frame, row, column, height, width, channel)
    patches = found.unflatten(4, (3, 2)).unflatten(3, (4, 2)).permute(0, 2, 3, 5, 4, 6, 1)
    close(patches.flatten(1, 3).flatten(2), expected)


@torch.no_grad()
def test_the_plan_matters_and_so_does_its_time() -> None:
    model, target, features = make_renderer(), make_target(), make_features(8)
    layout = lay_out(5, 8)
    given = model(**target, semantic=features, layout=layout).sample
    for other in (model(**target).sample, model(**target, semantic=features.flip(1), layout=layout).sample):
        assert (given - other).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("num_slices", [None, 10])
@pytest.mark.parametrize("ends", [(), (1.5, 4.0)])
def test_windows_one_by_one_give_the_same(num_slices: int | None, ends: tuple[float, ...]) -> None:
    model, target = make_renderer(), make_target(12)
    random = torch.Generator().manual_seed(2)
    target["encoder_hidden_states"] = tuple(torch.randn(2, 7, 16, generator=random) for _ in range(len(ends) + 1))
    given: dict[str, Any] = {"layout": lay_out(12, num_slices, window_seconds=3.0, segment_ends=ends)}
    if num_slices is not None:
        given["semantic"] = make_features(num_slices)
    close(model(**target, **given, one_by_one=True).sample, model(**target, **given).sample)


@torch.no_grad()
def test_one_by_one_no_block_waits_for_the_end() -> None:
    """A block runs on a window as soon as that is complete, so that what waits between blocks is less than two."""
    model, calls = make_renderer(), list[tuple[int, int]]()
    for layer, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _, given, layer=layer: calls.append((layer, given[0].shape[1])))
    layout = lay_out(41, 80, window_seconds=4.0)
    model(**make_target(41), semantic=make_features(80), layout=layout, one_by_one=True)
    waiting = [0, 0, 0]
    for layer, size in calls:
        waiting[layer] += size
        if layer:
            waiting[layer - 1] -= size
        assert max(waiting[:2]) <= 2 * max(run.size for run in layout.runs(0))
    assert waiting == [0, 0, 41 * 12 + 80 * 4]


@torch.no_grad()
def test_what_is_out_of_reach_has_no_influence() -> None:
    """A change of the plan from second 8 on reaches back to 8, 6 and 4 seconds in three blocks, no further."""
    model, target, features = make_renderer(), make_target(21), make_features(40)
    layout = lay_out(21, 40, window_seconds=4.0)
    before = model(**target, semantic=features, layout=layout).sample
    changed = features.clone()
    changed[:, 16:] += 1.0  # from second 8 on
    after = model(**target, semantic=changed, layout=layout).sample
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.equal(before[:, :, 5:9], after[:, :, 5:9])


@torch.no_grad()
def test_each_segment_listens_to_its_own_text() -> None:
    """Windows of one latent frame keep segments apart, so that each is as if its text were that of all."""
    model, target = make_renderer(num_layers=1), make_target(5)
    first = target["encoder_hidden_states"]
    second = torch.randn(first.shape, generator=torch.Generator().manual_seed(9))
    alone = lay_out(5, window_seconds=1e-3)
    mixed = target | {"encoder_hidden_states": (first, second)}
    found = model(**mixed, layout=lay_out(5, window_seconds=1e-3, segment_ends=(1.0,))).sample
    close(found[:, :, :2], model(**target, layout=alone).sample[:, :, :2])
    other = target | {"encoder_hidden_states": second}
    close(found[:, :, 2:], model(**other, layout=alone).sample[:, :, 2:])


def test_texts_of_slices_are_those_of_the_segments_that_they_lie_in() -> None:
    model, target = make_renderer(), make_target(5)
    first = target["encoder_hidden_states"]
    second = torch.randn(first.shape, generator=torch.Generator().manual_seed(9))
    outputs = [
        model(**target | {"encoder_hidden_states": texts}, layout=lay_out(5, segment_ends=ends)).sample
        for texts, ends in (((first, second), (1.0,)), ((first, first, second, second), (0.5, 1.0, 1.5)))
    ]
    close(*outputs)
    assert not torch.allclose(outputs[0], model(**target, layout=lay_out(5)).sample)


def test_all_weights_are_trained_and_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = make_renderer().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(
            **make_target(), semantic=make_features(8), layout=lay_out(5, 8, window_seconds=3.0)
        ).sample.sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name
    assert gradients[0]["semantic_embedding.weight"].abs().sum() > 0


def test_it_starts_from_the_built_in_backbone() -> None:
    folder = WEIGHTS_FOLDER / "video-as-prompt" / "tiny" / "transformer"
    backbone = load_strictly(WanTransformer3DModel, folder)
    expected = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = SemanticGenTransformer.from_backbone(backbone)
    tensors = model.state_dict()
    assert tensors.keys() - expected.keys() == {"semantic_embedding.weight", "semantic_embedding.bias"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert not any(tensor.is_meta for tensor in [*tensors.values(), *model.buffers()])


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, target = make_renderer(), make_target()
    model.save_pretrained(tmp_path)
    loaded = load_strictly(SemanticGenTransformer, tmp_path)
    given = {"semantic": make_features(8), "layout": lay_out(5, 8)}
    assert torch.equal(loaded(**target, **given).sample, model(**target, **given).sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": None}, "expected a layout with semantic features"),
        ({"layout": lay_out(4, 8)}, r"layout is for \(4, 4, 3\) latent tokens .*got \(5, 4, 3\)"),
        ({"layout": lay_out(5, 6)}, r"layout is for \(6, 2, 2\) semantic tokens"),
        ({"semantic": None}, r"got \(0, 0, 0\)"),
        ({"semantic": make_features(8)[..., :3]}, "expected semantic features of 8 numbers"),
        ({"layout": lay_out(5, 8, segment_ends=(1.0,))}, "expected 2 texts, one for each segment, got 1"),
        ({"timestep": torch.zeros(2, 60)}, "one timestep per sample"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    given = make_target() | {"semantic": make_features(8), "layout": lay_out(5, 8)} | changes
    with pytest.raises(ModelError, match=message):
        make_renderer()(**given)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ModelError, match="patches of one latent frame"):
        make_renderer(patch_size=(2, 2, 2))
    with pytest.raises(ModelError, match=r"semantic_timestep in 0\.\.1000"):
        SemanticGenTransformer.from_backbone(make_backbone(), SEMANTIC_DIM, -1.0)


def test_blocks_are_known_to_caching() -> None:
    assert TransformerBlockRegistry.get(SemanticGenBlock).return_hidden_states_index == 0
