"""How fast a machine multiplies matrices, and how much of a computation that is.

Machines differ most in how fast they multiply, above all in bfloat16: one with matrix units does it five times as fast
as in float32, one without them twice. How long one computation takes in another's terms depends on that. A cost that
was found on one machine is therefore compared on another as if both multiplied equally fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Timing

PRODUCT_SIZE = 2048
"""Rows and columns of the matrices whose product tells a machine's speed."""

_PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")
_ATTENTION = "scaled_dot_product"


@dataclass(frozen=True)
class Shares:
    """Of a call's time: in products of matrices outside of attention, in attention, in everything else; 1 together."""

    products: float
    attention: float
    rest: float

    def to_record(self) -> dict[str, float]:
        return asdict(self)


def make_product(dtype: torch.dtype) -> Callable[[], Any]:
    """One product of two square matrices."""
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).to(dtype) for _ in range(2))
    return partial(torch.mm, left, right)


def find_rate(product: Timing) -> float:
    """Floating-point operations per second of what `make_product` made: the best round, for others only disturb."""
    return 2 * PRODUCT_SIZE**3 / min(product.seconds)


def measure_shares(call: Callable[[], Any]) -> Shares:
    """Profile one call on the CPU and return how its time divides."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return divide({event.key: event.self_cpu_time_total for event in profiler.key_averages()})


def divide(seconds: Mapping[str, float]) -> Shares:
    """Sort the time of each operator, by its name in torch's profiler, into products, attention and the rest."""
    spent = {"products": 0.0, "attention": 0.0, "rest": 0.0}
    for name, time in seconds.items():
        spent["products" if name in _PRODUCTS else "attention" if _ATTENTION in name else "rest"] += time
    total = sum(spent.values())
    return Shares(**{kind: time / total for kind, time in spent.items()})


def bring_to_rate(timing: Timing, shares: Shares, rate: float, wanted_rate: float) -> Timing:
    """What a call would take on a machine that differs in its products' rate alone."""
    factor = 1.0 + shares.products * (rate / wanted_rate - 1.0)
    return Timing(tuple(seconds * factor for seconds in timing.seconds))
