"""Muon: steps for matrices whose directions all have the same size (Jordan et al., 2024; arXiv 2502.16982).

Our own, because torch's (from 2.9 on) always multiplies in bfloat16. On a CPU that emulates it, this took four fifths
of a training step.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from sememe.compute.devices import is_fast_in_bfloat16
from sememe.training.sharding import gather, is_sharded, spread_like

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5 that bring singular values near 1 within `_NUM_ITERATIONS` (Jordan et al.)."""
_NUM_ITERATIONS = 5
_UPDATE_SIZE = 0.2
"""Root mean square of an update, that of AdamW's, so that one learning rate serves both (arXiv 2502.16982, 2.2)."""


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay.

    The momentum of a sharded matrix is sharded too. Every process gathers and orthogonalises the whole matrices, one
    after another, so each spends as much time on this as a single process would.

    Args:
        params: Matrices, or groups of them as any torch optimiser takes them.
        lr: Learning rate, as for AdamW.
        momentum: Decay of the average of gradients.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices that have gradients."""
        for group in self.param_groups:
            given = [weight for weight in group["params"] if weight.grad is not None]
            for weights in _group_by_shape(given):
                self._update(weights, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, weights: list[Tensor], learning_rate: float, momentum: float, weight_decay: float) -> None:
        """Update matrices of one shape."""
        momentary = []
        for weight in weights:
            assert weight.grad is not None
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight.grad)
            average = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
            momentary.append(gather(weight.grad.lerp(average, momentum)))
        dtype = torch.bfloat16 if is_fast_in_bfloat16(weights[0].device) else torch.float32
        is_alone = len(weights) == 1
        found = [orthogonalise(momentary[0], dtype)] if is_alone else orthogonalise(torch.stack(momentary), dtype)
        for weight, direction in zip(weights, found, strict=True):
            weight.mul_(1 - learning_rate * weight_decay)
            size = learning_rate * _UPDATE_SIZE * max(weight.shape) ** 0.5
            weight.add_(spread_like(direction, weight), alpha=-size)


def _group_by_shape(weights: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """Group matrices that are updated together: on a GPU those of one shape, to launch fewer kernels."""
    groups: dict[object, list[Tensor]] = {}
    for place, weight in enumerate(weights):
        is_alone = weight.device.type == "cpu" or is_sharded(weight)
        groups.setdefault(place if is_alone else (weight.shape, weight.device), []).append(weight)
    return groups.values()


def orthogonalise(
    matrix: Float[Tensor, "*batch row column"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch row column"]:
    """Return a matrix with the same singular vectors, and singular values of about 0.7 to 1.2, by Newton-Schulz steps.

    Args:
        matrix: Matrix (row, column), or a batch of them; its scale has no effect.
        dtype: Precision of the products and of the result.
    """
    linear, cubic, quintic = _QUINTIC
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    # The products are those of the smaller side.
    current = (matrix.mT if is_tall else matrix).to(dtype)
    current = current / current.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    for _ in range(_NUM_ITERATIONS):
        square = current @ current.mT
        current = add_product(
            current, add_product(square, square, square, beta=cubic, alpha=quintic), current, beta=linear
        )
    return current.mT if is_tall else current
