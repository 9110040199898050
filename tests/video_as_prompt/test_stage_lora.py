"""Adapters of an expert: what is trained, and what preferences teach."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sememe.compute.lora import add_expert_adapter
from sememe.errors import RecipeError
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.video_as_prompt.stage_lora import PreferenceStage, make_lora
from sememe.video_as_prompt.stage_settings import ExpertSettings, PreferenceSettings
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.stage_data import PAIRS, Latents, Texts, generator, gradients

CPU = torch.device("cpu")


def make_adapted(mode: str = "cached") -> Any:
    """A transformer whose expert has an adapter that changes nothing yet."""
    model = wan_factories.make_transformer(attention_mode=mode)
    add_expert_adapter(model, make_lora(rank=2))
    return model


def make_preference(mode: str) -> PreferenceStage:
    settings = PreferenceSettings(strength=10.0, **PAIRS)
    return PreferenceStage(make_adapted(mode), Texts(), Latents(), settings)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_nothing_but_the_adapter_is_trained(family: str) -> None:
    model: Any = make_adapted()
    if family == "cogvideox":
        model = cogvideox_factories.make_transformer(reference_timestep=None)
        add_expert_adapter(model, make_lora(rank=2))
    ExpertStage(model, Texts(), Latents(), ExpertSettings(**PAIRS))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    # The expert of the last block computes neither queries nor a result.
    last = f"{model.key_map.blocks}.{model.config.expert_blocks[-1]}.expert."
    adapters = {name for name, _ in model.named_parameters() if ".lora_" in name}
    unread = {name for name in adapters if name.startswith((last + "output.", last + "projection.to_q."))}
    assert unread
    assert trained == adapters - unread


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_two_outcomes_differ_in_nothing_else(mode: str) -> None:
    stage = make_preference(mode)
    batch = stage.batch(0, generator(), CPU)
    targets = batch.targets
    assert targets.first_frames is not None
    for same in (targets.text, targets.first_frames, batch.owners):
        first, second = same.chunk(2)
        assert torch.equal(first, second)
    noised = stage.add_noise(batch, stage.embed(batch), generator())
    sigma = noised.levels.view(-1, 1, 1, 1, 1)
    first, second = ((noised.noisy - (1 - sigma) * targets.clean) / sigma).chunk(2)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    clean = Latents().select("clean", torch.arange(6))
    shown = [int((clean - each).flatten(1).abs().sum(dim=1).argmin()) for each in targets.clean]
    for chosen, rejected in zip(shown[:4], shown[4:], strict=True):
        assert Latents.scenes[chosen] == Latents.scenes[rejected]
        assert Latents.conditions[chosen] != Latents.conditions[rejected]


@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_preferences_begin_at_even_chances_and_follow_the_errors(mode: str) -> None:
    """At an adapter that is nothing, the gradient is half the strength times that of the errors' difference."""
    stage = make_preference(mode)
    batch = stage.batch(0, generator(), CPU)
    found = stage.loss(batch, generator())
    assert float(found.total.detach()) / found.num_samples == pytest.approx(math.log(2), rel=1e-6)
    assert found.num_samples == 4
    given = stage.embed(batch)
    noised = stage.add_noise(batch, given, generator())
    chosen, rejected = stage.measure(given, noised, given.encode(stage._family), batch.owners).chunk(2)
    expected = gradients(10.0 / 2 * (chosen - rejected).sum(), stage.transformer)
    got = gradients(found.total, stage.transformer)
    assert any(bool(each.abs().max() > 1e-3) for each in got)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_frozen_network_is_the_expert_without_its_adapter() -> None:
    stage = make_preference("cached")
    batch = stage.batch(0, generator(), CPU)
    given = stage.embed(batch)
    noised = stage.add_noise(batch, given, generator())

    def measure() -> Tensor:
        return stage.measure(given, noised, given.encode(stage._family), batch.owners).detach()

    before = measure()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in stage.transformer.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter))
    gain, other = (before - measure()).chunk(2)
    losses = torch.log1p(torch.exp(-10.0 * (gain - other)))
    found = stage.loss(batch, generator())
    assert float(found.total.detach()) == pytest.approx(float(losses.sum()), rel=1e-4)
    assert float(found.metrics["preferred"]) == pytest.approx(float((gain > other).float().mean()))


def test_preferences_need_two_conditions_in_a_scene() -> None:
    latents = Latents()
    latents.scenes = tuple(str(index) for index in range(6))
    with pytest.raises(RecipeError, match="a scene under two conditions"):
        PreferenceStage(make_adapted(), Texts(), latents, PreferenceSettings(**PAIRS))
