"""Train by a recipe from Python, and read what was logged.

The smoke recipe takes seconds and its model makes noise; `tiny-autoencoder` and the others run in the same way, and the
same call resumes an interrupted run.
"""

import json
from pathlib import Path

from sememe import resolve_training_recipe, train_recipe


def main(folder: Path) -> None:
    recipe = resolve_training_recipe("smoke-autoencoder", ["training.learning_rate=1e-3", "training.num_steps=4"])
    run = folder / recipe.name
    summary = train_recipe(recipe, run)
    print(f"{summary.ending} after {summary.num_samples} samples; the model is in {summary.model}")
    for line in (run / "log.jsonl").read_text().splitlines():
        values = json.loads(line)
        print(f"step {values['step']}: loss {values['loss']:.3f}")


if __name__ == "__main__":
    main(Path("outputs"))
