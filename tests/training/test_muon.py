"""Muon: orthogonal updates, the same as torch's own where it multiplies in the same precision."""

import pytest
import torch
from torch import Tensor, nn

from sememe.training import muon
from sememe.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5)])
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonalise(7 * matrix) @ right.T
    assert torch.allclose(values, torch.diag(values.diagonal()), atol=1e-5)
    assert (values.diagonal() > 0.3).all()
    assert (values.diagonal() < 1.3).all()


def test_a_matrix_of_zeros_stays() -> None:
    assert not orthogonalise(torch.zeros(3, 4)).any()


def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "is_fast_in_bfloat16", lambda _: True)  # the only precision that torch's knows
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    ours, theirs = _make_weight(), _make_weight()
    optimizers = (
        Muon([ours], **settings),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings),  # type: ignore[arg-type]
    )
    for seed in range(3):
        gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_matrices_of_one_shape_may_be_updated_together(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    for groups in (muon._group_by_shape, lambda weights: [list(weights)]):
        monkeypatch.setattr(muon, "_group_by_shape", groups)
        weights: list[Tensor] = [_make_weight(), nn.Parameter(2 * _make_weight().detach().flip(0))]
        for seed, weight in enumerate(weights):
            weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.1).step()
        steps.append(torch.stack([*weights]))
    assert torch.allclose(steps[0], steps[1], atol=1e-6)
    assert not torch.equal(steps[0][0], _make_weight())


def test_the_precision_is_the_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: dict[bool, Tensor] = {}
    for fast in (True, False):
        monkeypatch.setattr(muon, "is_fast_in_bfloat16", lambda _, fast=fast: fast)
        weight = _make_weight()
        weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
        Muon([weight], lr=1.0, momentum=0.9, weight_decay=0.0).step()
        steps[fast] = weight.detach() - _make_weight().detach()
    assert not torch.equal(steps[True], steps[False])
    assert torch.allclose(steps[True], steps[False], atol=0.02)


def _make_weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(9)))
