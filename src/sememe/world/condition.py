"""The record of a condition, and the lists that the files of the families fill."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from sememe.world.scene import Scene
from sememe.world.take import Take

Split = Literal["seen", "unseen"]
Function = TypeVar("Function", bound=Callable[..., Any])
EffectList = Literal["subject_warps", "subject_effects", "shards", "behind", "before", "lenses", "picture_effects"]
"""What of a take an effect is added to."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One semantic condition.

    Attributes:
        name: Name in files and on the command line.
        family: One of `catalogue.FAMILIES`.
        split: Whether the expert is trained on it: "seen" or "unseen".
        apply: Bends a take.
        phrase: Words that it adds to a full caption.
        needs_layers: Whether it acts on the subject or on distances, which a whole photograph does not have.
        function: The function behind it, which conditions that differ in a number, a colour or a direction share.
    """

    name: str
    family: str
    split: Split
    apply: Callable[[Take], None]
    phrase: str
    needs_layers: bool
    function: Callable[..., Any]

    def applies_to(self, scene: Scene) -> bool:
        """Return whether the condition can be applied to the scene."""
        return scene.subject is not None or not self.needs_layers


class Family:
    """The conditions of one family; called, it makes a decorator that lists a function as a condition.

    Attributes:
        name: Name of the family.
        needs_layers: Whether all its conditions act on the subject or on distances.
        conditions: Conditions registered so far.
    """

    def __init__(self, name: str, *, needs_layers: bool = False) -> None:
        self.name, self.needs_layers = name, needs_layers
        self.conditions: list[Condition] = []

    def __call__(
        self,
        phrase: str,
        *,
        name: str | None = None,
        split: Split = "seen",
        needs_layers: bool = False,
        to: EffectList | None = None,
        **arguments: Any,
    ) -> Callable[[Function], Function]:
        """List a function that bends a take, or, with `to`, one that is an effect in that part of a take.

        The name is that of the function, unless another is given, the phrase is for a full caption, and the arguments
        are further ones of the function.
        """

        def decorate(function: Function) -> Function:
            bound = partial(function, **arguments) if arguments else function
            apply = bound if to is None else partial(_add_effect, effect=bound, to=to)
            source = inspect.unwrap(function)
            is_layered = needs_layers or self.needs_layers
            listed = Condition(name or function.__name__, self.name, split, apply, phrase, is_layered, source)
            self.conditions.append(listed)
            return function

        return decorate


def _add_effect(take: Take, effect: Callable[..., Any], to: EffectList) -> None:
    if to == "shards":
        take.shards = effect
    else:
        getattr(take, to).append(effect)
