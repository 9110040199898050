"""The way to a Gen-1 model by the seconds-long recipes, done once for all tests that need some of it."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from sememe.training.recipes import ArraysRecipe, ModelRecipe
from sememe.workflows.assemble import assemble_recipe
from sememe.workflows.precompute import precompute_latents
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.train import resolve_training_recipe, train_recipe
from workflows.smoke_runs import share

_ENCODED = ("frames", "latents", "content")
_NEEDS: dict[str, dict[str, str]] = {
    "frames": {},
    "autoencoder": {"dataset": "frames"},
    "depth": {"frames": "frames"},
    "clip": {"frames": "frames"},
    "latents": {
        "dataset": "frames",
        "autoencoder": "autoencoder",
        "depth_estimator": "depth",
        "image_encoder": "clip",
    },
    "content": {"image_encoder": "clip"},
    "prior": {"latents": "content", "clip": "clip"},
    "unet": {"latents": "latents", "autoencoder": "autoencoder"},
}


def gen1_runs(root: Path) -> Path:
    """A folder with all runs by their part, and `model`."""
    folder = share(root) / "gen1-smoke"
    with FileLock(share(root) / "gen1-smoke.lock"):
        if (folder / "model").is_dir():
            return folder
        for part in _NEEDS:
            if part in _ENCODED:
                recipe: Any = resolve_recipe(f"smoke-gen1-{part}", settings(root, part), ArraysRecipe, "precompute")
                precompute_latents(recipe, folder / part)
            else:
                given = [*settings(root, part), "training.validate_every=2"]
                train_recipe(resolve_training_recipe(f"smoke-gen1-{part}", given), folder / part)
        given = [f"{part}={folder / part}" for part in ("autoencoder", "depth", "clip", "prior", "unet")]
        assemble_recipe(resolve_recipe("smoke-gen1", given, ModelRecipe, "assemble"), folder / "model")
    return folder


def settings(root: Path, part: str) -> list[str]:
    """What a recipe must be told to find its inputs."""
    given = [f"{field}={share(root) / 'gen1-smoke' / source}" for field, source in _NEEDS[part].items()]
    return [*given, "device=cpu" if part in _ENCODED else "training.device=cpu"]
