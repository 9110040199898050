"""Which items of a dataset a training holds out for validation."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sememe.errors import RecipeError

_ONE_IN = 20


def choose_held_out(scenes: Sequence[str]) -> NDArray[np.bool_]:
    """Choose the items that are held out, (item,): all of one scene in twenty, and of one scene at least.

    The scenes whose names have the smallest hashes are taken, whatever the order of the items.

    Args:
        scenes: Scene of each item.

    Raises:
        RecipeError: There are fewer than two scenes.
    """
    order = sorted(set(scenes), key=lambda scene: hashlib.sha256(scene.encode()).digest())
    if len(order) < 2:
        raise RecipeError(
            f"training.validate_every needs at least two scenes, to hold one out, got {len(order)}; give 0 to train "
            "without validation"
        )
    chosen = set(order[: max(1, round(len(order) / _ONE_IN))])
    return np.array([scene in chosen for scene in scenes])


def choose_held_out_targets(
    scenes: Sequence[str], conditions: Sequence[str], max_references: int = 1
) -> NDArray[np.bool_]:
    """Choose items as `choose_held_out` does, but none of conditions that would be left with too few scenes.

    Args:
        scenes: Scene of each item.
        conditions: Condition of each item.
        max_references: Largest number of references of a target, which need a scene each beside its own.

    Raises:
        RecipeError: No item is left to hold out.
    """
    held = choose_held_out(scenes)
    left: dict[str, set[str]] = {}
    for scene, condition, is_held in zip(scenes, conditions, held, strict=True):
        left.setdefault(condition, set()).update(() if is_held else (scene,))
    held &= np.array([len(left[condition]) > max_references for condition in conditions])
    if not held.any():
        raise RecipeError(
            f"training.validate_every needs conditions with at least {max_references + 2} scenes, to hold one out; "
            "give 0 to train without validation"
        )
    return held


class ItemPicker:
    """Draws items by number, with equal chances.

    Args:
        scenes: Scene of each item; a scene is held out as a whole.
        buckets: Bucket of each item, where there are several; all items of a draw are of one.
    """

    def __init__(self, scenes: Sequence[str], buckets: Sequence[str] = ()) -> None:
        self._scenes, self._buckets = scenes, buckets
        numbers = {bucket: number for number, bucket in enumerate(dict.fromkeys(buckets))}
        self._numbers = np.array([numbers[bucket] for bucket in buckets]) if len(numbers) > 1 else None
        self.places = np.arange(len(scenes))
        """Numbers of the items that are drawn."""

    def draw(self, rng: np.random.Generator, count: int, below: int | None = None) -> NDArray[np.int64]:
        """Draw indices of items with replacement, (count,).

        Args:
            rng: Source of randomness.
            count: How many.
            below: Draw only indices below this one; if there are none, nothing is drawn.
        """
        num_places = len(self.places) if below is None else int(np.searchsorted(self.places, below))
        places = self.places[:num_places]
        if num_places and self._numbers is not None:
            first = places[rng.integers(num_places)]
            places = places[self._numbers[places] == self._numbers[first]]
        return places[rng.integers(len(places), size=count)] if num_places else places

    def hold_out(self) -> "ItemPicker":
        """Stop drawing some items, and return a picker for these.

        Raises:
            RecipeError: There are fewer than two scenes.
        """
        held = choose_held_out(self._scenes)
        other = ItemPicker(self._scenes, self._buckets)
        self.places, other.places = np.flatnonzero(~held), np.flatnonzero(held)
        return other
