"""What a strength means: a factor on the weights of the reference's tokens, for the target's queries alone."""

from types import SimpleNamespace

import pytest
import torch

from sememe.video_as_prompt.reference_attention import ReferenceAttention, attend_with_reference

PROCESSOR = SimpleNamespace(_attention_backend=None, _parallel_config=None)


def draw(num_tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(1, num_tokens, 2, 4, generator=torch.Generator().manual_seed(seed))


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Attention as its formula, with a factor on the weight of each key before weights are normalised."""
    weights = torch.einsum("bqhd,bkhd->bhqk", query, key).div(query.shape[-1] ** 0.5).exp() * factors
    return torch.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdim=True), value).flatten(2)


@pytest.mark.parametrize("strength", [1.0, 0.37, 0.01])
@pytest.mark.parametrize("is_joint", [False, True])
def test_strength_is_a_factor_on_what_the_target_reads_of_the_reference(strength: float, is_joint: bool) -> None:
    query, key, value = (draw(2, seed) for seed in (0, 1, 2))
    own, reference_key, reference_value = (draw(3, seed) for seed in (3, 4, 5))
    reference = ReferenceAttention(own if is_joint else None, reference_key, reference_value, strength)
    result = attend_with_reference(PROCESSOR, query, key, value, reference)
    keys, values = torch.cat([key, reference_key], 1), torch.cat([value, reference_value], 1)
    expected = attend(query, keys, values, torch.tensor([1.0] * 2 + [strength] * 3))
    if is_joint:
        expected = torch.cat([expected, attend(own, keys, values, torch.ones(5))], 1)
    torch.testing.assert_close(result, expected)
