"""The way to a SemanticGen model by the seconds-long recipes, done once for all tests that need some of it."""

from pathlib import Path

from filelock import FileLock

from sememe.training.recipes import ArraysRecipe
from sememe.workflows.precompute import precompute_latents
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.train import resolve_training_recipe, train_recipe
from workflows.smoke_runs import CPU, share, smoke_runs

STAGES = ("semantic-encoder", "renderer", "planner", "reader")


def semantic_runs(root: Path) -> Path:
    """A folder with `encoder-frames`, `semantic-frames`, `semantic-encoder` and so on, up to `planner`."""
    folder = share(root) / "semantic-smoke"
    with FileLock(share(root) / "semantic-smoke.lock"):
        if (folder / "planner" / "model").is_dir():
            return folder
        start = smoke_runs(root)
        for name in ("encoder-frames", "semantic-frames"):
            frames = resolve_recipe(f"smoke-{name}", ["device=cpu"], ArraysRecipe, "precompute")
            precompute_latents(frames, folder / name)
        given = [*settings(root, "semantic-encoder"), "training.validate_every=2"]
        train_recipe(resolve_training_recipe("smoke-semantic-encoder", given), folder / "semantic-encoder")
        given = [
            f"dataset={folder / 'semantic-frames'}",
            f"autoencoder={start / 'autoencoder'}",
            f"semantic_encoder={folder / 'semantic-encoder'}",
            "device=cpu",
        ]
        latents = resolve_recipe("smoke-semantic-latents", given, ArraysRecipe, "precompute")
        precompute_latents(latents, folder / "semantic-latents")
        for name, more in (("renderer", [f"autoencoder={start / 'autoencoder'}"]), ("planner", [])):
            given = [*settings(root, name), *more, "training.validate_every=2"]
            train_recipe(resolve_training_recipe(f"smoke-{name}", given), folder / name)
    return folder


def settings(root: Path, part: str) -> list[str]:
    """What a recipe must be told to find its inputs."""
    folder = share(root) / "semantic-smoke"
    given = [CPU]
    given += [f"frames={folder / 'encoder-frames'}"] if part == "semantic-encoder" else []
    given += [f"frames={folder / 'semantic-frames'}"] if part == "reader" else []
    given += [f"latents={folder / 'semantic-latents'}"] if part in ("renderer", "planner") else []
    if part == "renderer":
        given += [f"backbone={smoke_runs(root) / 'backbone'}", f"encoder={folder / 'semantic-encoder'}"]
    given += [f"renderer={folder / 'renderer'}"] if part == "planner" else []
    return given
