"""The base of preparations for stages that are trained on cached arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sememe.compute.devices import choose_device
from sememe.data.array_cache import ArrayCache
from sememe.training.stage import Announce


class CachedPreparation:
    """Opens the arrays that a recipe names; see `training.stage.Preparation`.

    Args:
        recipe: Recipe of a training.
        parts: Folders of the parts that the recipe needs.
        announce: Called with a description of the current work.

    Attributes:
        source: Field of the recipe that names the arrays' folder.
        arrays: Names of the arrays that the run is made from.

    Raises:
        InputError: The arrays are not there, or not finished.
    """

    source: ClassVar[str] = "latents"
    arrays: ClassVar[tuple[str, ...]]
    _recipe: Any

    def __init__(self, recipe: Any, parts: Mapping[str, Path], announce: Announce) -> None:
        self._recipe, self._parts, self._announce = recipe, parts, announce
        announce(f"reading {self.source}")
        self._cache = ArrayCache.open(getattr(recipe, self.source), choose_device(recipe.training.device))

    @property
    def inputs(self) -> Mapping[str, str]:
        """What identifies the arrays: hashes and versions by name."""
        return {key: value for name in self.arrays for key, value in self._cache.describe(name).items()}
