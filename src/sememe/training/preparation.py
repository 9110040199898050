"""What a training run reads and builds before the loop begins."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from sememe.checkpoints.components import load_component
from sememe.checkpoints.fingerprint import fingerprint_encoder
from sememe.data.array_cache import ArrayCache
from sememe.errors import RecipeError
from sememe.training.clips import ClipCollection, open_clips
from sememe.training.networks import start_autoencoder
from sememe.training.recipes import AutoencoderRecipe
from sememe.training.stage import Stage
from sememe.training.stage_autoencoder import AutoencoderStage

Announce = Callable[[str], None]
"""Called with what is being done, in a few words for people."""


@runtime_checkable
class Preparation(Protocol):
    """The data and fixed networks of a run, whatever weights it begins with."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """What identifies the data: hashes and versions by name."""
        ...

    def begin(self, folder: Path) -> None:
        """Write the parts that the run trains, untrained, to a folder each."""
        ...

    def build(self, start: Path) -> Stage:
        """Return the stage, with the weights of the parts in `start`.

        Raises:
            ModelError: A part is not whole.
            RecipeError: The settings or the data do not fit the networks.
        """
        ...


class AutoencoderPreparation:
    """Clips for the training of a video autoencoder; see `Preparation`.

    Raises:
        InputError: The clips, or the generations of them, cannot be read.
    """

    def __init__(self, recipe: AutoencoderRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        assert not parts, parts
        self._recipe, self._announce = recipe, announce
        self._clips = open_clips(recipe.clips, recipe.data, recipe.dataset)
        self._generations = None if recipe.generations is None else ArrayCache.open(recipe.generations)

    @property
    def inputs(self) -> Mapping[str, str]:
        return {"clips": self._clips.version}

    def begin(self, folder: Path) -> None:
        self._announce("fitting principal components")
        recipe = self._recipe
        start_autoencoder(recipe.network, self._clips, recipe.training.seed).save_pretrained(folder / "vae")

    def build(self, start: Path) -> Stage:
        autoencoder = load_component("vae", start / "vae")
        if self._generations is not None:
            _check_generations(self._generations, self._clips, fingerprint_encoder(autoencoder))
        return AutoencoderStage(autoencoder, self._clips, self._recipe.settings, self._generations)


def _check_generations(generations: ArrayCache, clips: ClipCollection, encoder: str) -> None:
    made_by = generations.describe("generated")
    is_same = (made_by["clips"], made_by["autoencoder"]) == (clips.version, encoder)
    if not is_same or len(generations) > len(clips):
        raise RecipeError(
            f"expected generations of the clips of {clips.version} and autoencoder {encoder[:16]}, got those of "
            f"{made_by['clips']} and {made_by['autoencoder'][:16]}; start from the autoencoder of the "
            "model that made them (--init-from)"
        )
