"""The laws of semantic noise have the moments that they should."""

import math

import pytest
import torch

from sememe.semanticgen.noise import add_semantic_noise, draw_noise_levels
from sememe.semanticgen.stage_settings import NoiseLaw


@pytest.mark.parametrize(
    ("law", "mean", "square"),
    [("half_normal", 0.8 * math.sqrt(2 / math.pi), 0.64), ("uniform", 0.4, 0.64 / 3), ("none", 0.0, 0.0)],
)
def test_moments_of_the_levels(law: NoiseLaw, mean: float, square: float) -> None:
    levels = draw_noise_levels(law, 0.8, 40_000, torch.Generator().manual_seed(0))
    assert levels.min() >= 0
    assert float(levels.mean()) == pytest.approx(mean, abs=0.01)
    assert float(levels.square().mean()) == pytest.approx(square, abs=0.01)


def test_noise_has_the_level_of_its_plan() -> None:
    features = torch.zeros(3, 20, 10, 10, 8)
    noisy = add_semantic_noise(features, torch.tensor([0.0, 0.5, 2.0]), torch.Generator().manual_seed(0))
    assert torch.equal(noisy[0], features[0])
    assert [float(plan.std()) for plan in noisy[1:]] == pytest.approx([0.5, 2.0], rel=0.02)
