"""The base of preparations for stages that are trained on cached arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from sememe.compute.devices import choose_device
from sememe.data.array_cache import ArrayCache
from sememe.training.stage import Announce, Preparation


class CachedPreparation(Preparation):
    """Opens the arrays that a recipe names; see `training.stage.Preparation`.

    Args:
        recipe: Recipe of a training.
        parts: Folders of the parts that the recipe needs.
        announce: Called with a description of the current work.

    Attributes:
        source: Field of the recipe that names the arrays' folder.
        arrays: Names of the arrays that the run is made from.
        device: Where the arrays go; None for the device of the training.

    Raises:
        InputError: The arrays are not there, or not finished.
    """

    source: ClassVar[str] = "latents"
    arrays: ClassVar[tuple[str, ...]]
    device: ClassVar[str | None] = None
    _recipe: Any

    def __init__(self, recipe: Any, parts: Mapping[str, Path], announce: Announce) -> None:
        self._recipe, self._parts, self._announce = recipe, parts, announce
        announce(f"reading {self.source}")
        device = choose_device(self.device or recipe.training.device)
        self._cache = ArrayCache.open(getattr(recipe, self.source), device)

    def make(self) -> Mapping[str, Any]:
        """Return each untrained part that the run trains, by the name of its folder."""
        raise NotImplementedError

    def begin(self, folder: Path) -> None:
        torch.manual_seed(self._recipe.training.seed)
        for name, part in self.make().items():
            part.save_pretrained(folder / name)

    @property
    def inputs(self) -> Mapping[str, str]:
        return {key: value for name in self.arrays for key, value in self._cache.describe(name).items()}
