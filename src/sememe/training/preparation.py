"""What is read and made before a run: its data, fixed networks, and untrained ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from sememe.compute.devices import choose_device
from sememe.data.array_cache import ArrayCache
from sememe.training.stage import Announce, Stage


class Preparation(ABC):
    """The data and fixed networks of a run, independent of its initial weights.

    It is made from the recipe, the folders of the parts that this needs, and a function that announces what is done.
    """

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, str]:
        """Identity of the data: hashes and versions by name."""

    @abstractmethod
    def begin(self, folder: Path) -> None:
        """Write each untrained part that the run trains to its own folder."""

    @abstractmethod
    def build(self, start: Path) -> Stage:
        """Return the stage, with the weights of the parts in `start`.

        Raises `ModelError` if a part is not whole, and `RecipeError` if settings or data do not fit the networks.
        """


class CachedPreparation(Preparation):
    """Opens the arrays that a recipe names. Raises `InputError` if they are not there, or not finished.

    Attributes:
        source: Field of the recipe that names the arrays' folder.
        arrays: Names of the arrays that the run is made from.
        device: Where the arrays go; None for the device of the training.
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
