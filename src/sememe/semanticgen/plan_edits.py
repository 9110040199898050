"""Edits of plans: each a pure function that returns a new plan.

Seconds are rounded to whole slices; a caption goes with its slice. Plans that are joined must be of one encoder and
compressor and have the same grid.
"""

import math

import numpy as np

from sememe.errors import PlanError
from sememe.semanticgen.plan import Plan

_ROUNDING = 1e-6  # in slices
_MOST_SLICES = 100_000  # half a day of the built-in model's


def cut(plan: Plan, start: float, stop: float) -> Plan:
    """Return the part of a plan from `start` to `stop`, in seconds.

    Raises:
        PlanError: It has no slice, or does not lie within the plan.
    """
    first, last = _find(plan, start, "start"), _find(plan, stop, "stop")
    if first >= last:
        raise PlanError(
            f"expected start before stop by a slice of {plan.slice_seconds:g} s at least, got {start:g} and {stop:g}"
        )
    return plan.with_slices(plan.features[first:last], plan.captions[first:last])


def splice(first: Plan, second: Plan) -> Plan:
    """Return a plan that shows one after the other.

    Raises:
        PlanError: They are not of one kind.
    """
    _check_kind(first, second)
    return _join(first, second)


def repeat(plan: Plan, count: int) -> Plan:
    """Return a plan that shows another `count` times.

    Raises:
        PlanError: `count` is less than 1, or the plan too long.
    """
    if count < 1:
        raise PlanError(f"expected count of at least 1, got {count}")
    _check_length(plan.num_slices * count)
    return _join(*[plan] * count)


def reverse(plan: Plan) -> Plan:
    """Return the plan with its slices in reverse order; what happens within a slice stays as it is."""
    return plan.with_slices(plan.features[::-1], plan.captions[::-1])


def hold(plan: Plan, at: float, seconds: float) -> Plan:
    """Return a plan in which the slice at a moment stays for `seconds` longer.

    Args:
        plan: Plan to edit.
        at: Moment in seconds, within the plan.
        seconds: Time to add; at least one slice is added.

    Raises:
        PlanError: The moment is not within the plan, `seconds` is not above 0, or the plan too long.
    """
    if not 0 <= at < plan.seconds:
        raise PlanError(f"expected a moment within the plan's {plan.seconds:g} s, got {at:g}")
    if not 0 < seconds < math.inf:
        raise PlanError(f"expected seconds above 0, got {seconds:g}")
    place = min(int(at / plan.slice_seconds + _ROUNDING), plan.num_slices - 1)
    added = max(1, round(seconds / plan.slice_seconds))
    _check_length(plan.num_slices + added)
    counts = np.ones(plan.num_slices, dtype=np.int64)
    counts[place] += added
    captions = [caption for caption, count in zip(plan.captions, counts, strict=False) for _ in range(count)]
    return plan.with_slices(plan.features.repeat(counts, axis=0), captions)


def blend(first: Plan, second: Plan, weight: float) -> Plan:
    """Return the weighted mean of two plans of one length, with the captions of the one of more weight.

    Args:
        first: Plan that weight 0 returns.
        second: Plan that weight 1 returns.
        weight: Weight of the second, 0 to 1.

    Raises:
        PlanError: They are not of one kind or length, or the weight is out of range.
    """
    _check_kind(first, second)
    if first.num_slices != second.num_slices:
        raise PlanError(
            f"expected plans of one length, got {first.num_slices} and {second.num_slices} slices; cut the longer one"
        )
    if not 0 <= weight <= 1:
        raise PlanError(f"expected weight in 0..1, got {weight}")
    mixed = (1 - weight) * first.features.astype(np.float64) + weight * second.features.astype(np.float64)
    return first.with_slices(mixed.astype(first.features.dtype), (second if weight > 0.5 else first).captions)


def replace_span(plan: Plan, start: float, new: Plan) -> Plan:
    """Return a plan in which another one stands in the place of as many slices, from `start` on, in seconds.

    Raises:
        PlanError: They are not of one kind, or the new part does not lie within the plan.
    """
    _check_kind(plan, new)
    first = _find(plan, start, "start")
    last = first + new.num_slices
    if last > plan.num_slices:
        raise PlanError(
            f"expected a part that ends within the plan's {plan.seconds:g} s, got one of {new.seconds:g} s from "
            f"{start:g} s on; cut it, or splice"
        )
    captions = tuple(plan.captions) or ("",) * plan.num_slices
    inner = new.captions or ("",) * new.num_slices
    captions = captions[:first] + inner + captions[last:]
    features = np.concatenate([plan.features[:first], new.features.astype(plan.features.dtype), plan.features[last:]])
    return plan.with_slices(features, captions if any(captions) else ())


def _find(plan: Plan, seconds: float, name: str) -> int:
    """Return the slice that begins nearest to a moment; the number of slices for the end."""
    if not 0 <= seconds <= plan.seconds + plan.slice_seconds / 2:
        raise PlanError(f"expected {name} within the plan's {plan.seconds:g} s, got {seconds:g}")
    return min(round(seconds / plan.slice_seconds), plan.num_slices)


def _check_length(num_slices: int) -> None:
    if num_slices > _MOST_SLICES:
        raise PlanError(f"expected a plan of at most {_MOST_SLICES} slices, got {num_slices}; make it shorter")


def _join(*plans: Plan) -> Plan:
    captions = [caption for plan in plans for caption in plan.captions or ("",) * plan.num_slices]
    features = np.concatenate([plan.features for plan in plans], dtype=plans[0].features.dtype)
    return plans[0].with_slices(features, captions if any(captions) else ())


def _check_kind(first: Plan, second: Plan) -> None:
    second.check(first.encoder, first.compressor)
    kinds = [(*plan.features.shape[1:], plan.slice_seconds) for plan in (first, second)]
    if kinds[0] != kinds[1]:
        raise PlanError(
            f"expected plans of the same rows, columns, numbers and seconds per slice, got {kinds[0]} and {kinds[1]}; "
            "make both from clips of one shape"
        )
