"""State that the shares of a step change besides gradients, such as running statistics."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from sememe.training.process import Distribution


class ShareStates:
    """Averages the changes that shares make to tensors; each share begins with the state before the step.

    The tensors are then the same on all processes and do not depend on their number. With one share nothing is done.

    Args:
        tensors: Tensors that are not trained: buffers of modules, `Stage.state`.
        num_shares: Shares of a step, on all processes together.
    """

    def __init__(self, tensors: Iterable[Tensor], num_shares: int) -> None:
        self._tensors = [tensor for tensor in tensors if num_shares > 1]
        self._num_shares = num_shares

    @torch.no_grad()
    def begin(self) -> None:
        """Begin a step."""
        self._before = [tensor.clone() for tensor in self._tensors]
        self._sums = [torch.zeros_like(_widen(tensor)) for tensor in self._tensors]

    @torch.no_grad()
    def add(self) -> None:
        """Add the changes of a share, and undo them for the next."""
        for tensor, before, total in zip(self._tensors, self._before, self._sums, strict=True):
            total.add_(_widen(tensor) - _widen(before))
            tensor.copy_(before)

    @torch.no_grad()
    def finish(self, distribution: Distribution) -> None:
        """Apply the mean of all shares' changes."""
        for tensor, before, total in zip(self._tensors, self._before, self._sums, strict=True):
            if distribution.num_ranks > 1:
                dist.all_reduce(total)
            changed = _widen(before) + total / (self._num_shares * distribution.context)
            tensor.copy_(changed if tensor.is_floating_point() else changed.round())


def _widen(tensor: Tensor) -> Tensor:
    """Convert to a type in which means can be taken."""
    is_narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.float() if is_narrow else tensor.double()
