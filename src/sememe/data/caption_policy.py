"""Which captions and references a network is given in training.

Captions that never name the condition, and dropping of captions independent of the dropping of the reference, make a
model look at the reference instead of the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from sememe.errors import InputError, RecipeError


class CaptionKind(IntEnum):
    """What the text encoder is given for a clip."""

    EMPTY = 0
    NEUTRAL = 1
    """Who and where."""
    FULL = 2
    """Also what happens."""


@dataclass(frozen=True, kw_only=True)
class CaptionPolicy:
    """Probabilities, all independent: of telling nothing of a target or of a reference, and of showing no reference.

    `full_share` is the probability that a caption which is kept is the full one.
    """

    drop_target_caption: float = 0.5
    drop_reference_caption: float = 0.5
    drop_reference: float = 0.0
    full_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_target_caption", "drop_reference_caption", "drop_reference", "full_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class CaptionChoice:
    """Captions and references that a batch is given.

    `targets` (num_targets,) and `references` (num_references,) hold values of `CaptionKind` as int8;
    `dropped_references` (num_targets,) is True for targets that are to be made without their reference.
    """

    targets: np.ndarray
    references: np.ndarray
    dropped_references: np.ndarray


def draw_captions(
    policy: CaptionPolicy,
    generator: np.random.Generator,
    *,
    num_targets: int,
    num_references: int = 0,
    unnamed_targets: np.ndarray | None = None,
    unnamed_references: np.ndarray | None = None,
) -> CaptionChoice:
    """Draw the caption of each target and reference.

    Where `unnamed_...` (boolean, one for each target or reference) is True the condition is never named: a caption that
    would be full is neutral. The draws of the others do not depend on it.
    """
    return CaptionChoice(
        targets=_draw_kinds(policy.drop_target_caption, policy.full_share, generator, num_targets, unnamed_targets),
        references=_draw_kinds(
            policy.drop_reference_caption, policy.full_share, generator, num_references, unnamed_references
        ),
        dropped_references=generator.random(num_targets) < policy.drop_reference,
    )


def pick_captions(kinds: np.ndarray, neutral: Sequence[str], full: Sequence[str]) -> tuple[str, ...]:
    """The captions of the given kinds (num,), from the neutral and the full ones of the same clips."""
    if not len(kinds) == len(neutral) == len(full):
        raise InputError(f"expected {len(kinds)} neutral and full captions, got {len(neutral)} and {len(full)}")
    return tuple(("", neutral[index], full[index])[CaptionKind(int(kind))] for index, kind in enumerate(kinds))


def _draw_kinds(
    drop: float, full_share: float, generator: np.random.Generator, count: int, unnamed: np.ndarray | None
) -> np.ndarray:
    is_dropped = generator.random(count) < drop
    is_full = generator.random(count) < full_share
    if unnamed is not None:
        if unnamed.shape != (count,):
            raise InputError(f"unnamed must hold one value for each of {count} clips, got shape {unnamed.shape}")
        is_full &= ~unnamed.astype(bool)
    kinds = np.where(is_full, CaptionKind.FULL, CaptionKind.NEUTRAL)
    return np.where(is_dropped, CaptionKind.EMPTY, kinds).astype(np.int8)
