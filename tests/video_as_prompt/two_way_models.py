"""Tiny random models of both families, trained as the released ones are: target and reference read each other."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from video_as_prompt import cogvideox_factories, wan_factories


def make_wan(**settings: Any) -> Any:
    return wan_factories.make_transformer(attention_mode="joint", reference_timestep=1.0, **settings)


def make_cogvideox(**settings: Any) -> Any:
    given = cogvideox_factories.LEARNED | settings
    return cogvideox_factories.make_transformer(attention_mode="joint", reference_timestep=None, **given)


# A test for models of both families.
each_family = pytest.mark.parametrize("make", [make_wan, make_cogvideox])
Make = Callable[..., Any]


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit, in the same precision."""
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )
