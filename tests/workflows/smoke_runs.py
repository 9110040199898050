"""The whole way to a model by the seconds-long recipes, done once for all tests that need some of it."""

import os
from pathlib import Path

from filelock import FileLock

from sememe.training.recipes import LatentsRecipe, ModelRecipe
from sememe.workflows.assemble import assemble_recipe
from sememe.workflows.precompute import precompute_latents
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.train import resolve_training_recipe, train_recipe

CPU = "training.device=cpu"


def smoke_runs(root: Path) -> Path:
    """A folder with `autoencoder`, `latents`, `backbone`, `expert` and the assembled `model`."""
    root = share(root)
    folder = root / "smoke"
    with FileLock(root / "smoke.lock"):
        if (folder / "model").is_dir():
            return folder
        train_recipe(resolve_training_recipe("smoke-autoencoder", [CPU]), folder / "autoencoder")
        precompute_latents(latents_recipe(folder), folder / "latents")
        for name in ("backbone", "expert"):
            train_recipe(resolve_training_recipe(f"smoke-{name}", settings(folder, name)), folder / name)
        given = [f"{name}={folder / name}" for name in ("autoencoder", "backbone", "expert")]
        assemble_recipe(resolve_recipe("smoke-model", given, ModelRecipe, "assemble"), folder / "model")
    return folder


def share(root: Path) -> Path:
    """The folder of all processes of one run of the tests."""
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def latents_recipe(folder: Path, *more: str) -> LatentsRecipe:
    """The recipe of `latents`."""
    given = [f"autoencoder={folder / 'autoencoder'}", "device=cpu", *more]
    return resolve_recipe("smoke-latents", given, LatentsRecipe, "precompute")


def settings(folder: Path, part: str) -> list[str]:
    """What a recipe must be told to find its inputs in `folder`."""
    given = [CPU]
    given += [f"latents={folder / 'latents'}"] if part != "autoencoder" else []
    given += [f"backbone={folder / 'backbone'}"] if part.startswith("expert") else []
    return given
