"""Guidance as a table: predictions under several variants of the conditions, each with a weight.

Every guidance is a weighted sum of predictions whose weights add up to 1. Rows of weight 0 are dropped, so that
guidance that is off costs nothing.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float

from sememe.records import Batching


@runtime_checkable
class GuidanceVariant(Hashable, Protocol):
    """One variant of the conditioning of a system: a frozen dataclass whose fields say what the network is given."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def batch_key(self) -> int:
        """Return a number that variants which can share a forward have in common; lower numbers are predicted first."""


Prediction = Float[torch.Tensor, "batch ..."]
VariantT = TypeVar("VariantT", bound=GuidanceVariant)


@dataclass(frozen=True)
class GuidanceRow(Generic[VariantT]):
    """A variant and the weight of its prediction."""

    variant: VariantT
    weight: float


@dataclass(frozen=True)
class Guidance(Generic[VariantT]):
    """The table. Its variants differ, no weight is 0, and the weights add up to 1."""

    rows: tuple[GuidanceRow[VariantT], ...]

    def __post_init__(self) -> None:
        assert len({row.variant for row in self.rows}) == len(self.rows), "each variant must be one row"
        assert all(row.weight != 0 for row in self.rows), "rows of weight 0 must be dropped"
        assert math.isclose(sum(row.weight for row in self.rows), 1.0, abs_tol=1e-6), "weights must add up to 1"

    def groups(self, batching: Batching) -> list[tuple[GuidanceRow[VariantT], ...]]:
        """Return the rows that are predicted together: one at a time, or those with the same `batch_key`."""
        if batching == "sequential":
            return [(row,) for row in self.rows]
        keys = sorted({row.variant.batch_key for row in self.rows})
        return [tuple(row for row in self.rows if row.variant.batch_key == key) for key in keys]

    def to_table(self) -> list[dict[str, Any]]:
        """Return the rows as plain records, each with the fields of its variant and its weight."""
        return [asdict(row.variant) | {"weight": row.weight} for row in self.rows]


GuidanceSchedule = Callable[[float], Guidance[VariantT]]
"""The guidance at a timestep in 0..1000."""


def make_guidance(weights: Sequence[tuple[VariantT, float]]) -> Guidance[VariantT]:
    """Make the table of the given weights: equal variants are merged, what weighs nothing is dropped."""
    merged: dict[VariantT, float] = {}
    for variant, weight in weights:
        merged[variant] = merged.get(variant, 0.0) + weight
    return Guidance(tuple(GuidanceRow(variant, weight) for variant, weight in merged.items() if abs(weight) > 1e-9))


def is_guided_at(timestep: float, interval: Sequence[float]) -> bool:
    """Return whether guidance acts at a timestep in 0..1000, given its interval in thousandths of that.

    Outside, the prediction under the full conditions is taken as it is (arXiv 2404.07724). At low noise it has been
    decided what happens; guidance then costs a forward, and distorts.
    """
    low, high = interval
    return low <= timestep / 1000.0 <= high


def combine(rows: Sequence[GuidanceRow[VariantT]], predictions: Sequence[Prediction]) -> Prediction:
    """Return the weighted sum of the rows' predictions, in float32."""
    terms = [row.weight * prediction.float() for row, prediction in zip(rows, predictions, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
