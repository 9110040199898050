"""The runs and models that a recipe names: their parts, and whether these belong together."""

from collections.abc import Mapping
from pathlib import Path

from sememe.checkpoints.components import load_component
from sememe.checkpoints.fingerprint import fingerprint_encoder
from sememe.checkpoints.zoo import find_part, resolve_model
from sememe.errors import ModelError, RecipeError
from sememe.training.recipes import Recipe
from sememe.training.run_record import read_run, read_summary

# Parts of one model may be trained on different clips, but agree in every other input that they share.
_FREE_INPUTS = frozenset({"clips"})


def find_parts(recipe: Recipe, needs: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
    """Return the folders of the parts that a recipe needs, by part.

    Args:
        recipe: Names runs and models in the fields that `needs` lists.
        needs: Parts by field; those of a field that is None are left out.

    Raises:
        ModelError: A part is not there, or of a run that has gone on since.
    """
    named = {field: source for field in needs if (source := getattr(recipe, field)) is not None}
    for source in named.values():
        folder = resolve_model(source)
        if has_older_model(folder):
            raise ModelError(
                f"expected a complete run in {folder}, but it was continued after its model was written; resume it "
                f"first, or give {folder / 'model'}"
            )
    return {part: find_part(source, part) for field, source in named.items() for part in needs[field]}


def check_agreement(recipe: Recipe, fields: Mapping[str, object], inputs: Mapping[str, str]) -> None:
    """Check that the runs and models that a recipe names were made from the inputs that it is to be used with.

    Args:
        recipe: Names runs and models in `fields`.
        fields: Names of these fields.
        inputs: What is used now: hashes and versions by name.

    Raises:
        RecipeError: A run or model was made from others.
    """
    for field in fields:
        source = getattr(recipe, field)
        for name, known in ({} if source is None else read_inputs(source)).items():
            if name not in _FREE_INPUTS and inputs.get(name, known) != known:
                raise RecipeError(
                    f"the {field} {source} was made with {name} {known[:16]}, but it is {inputs[name][:16]} here; give "
                    f"parts and latents of the same {name}"
                )


def has_older_model(folder: Path) -> bool:
    """Whether a folder holds a run that has gone on since its model was written, and is not complete again."""
    summary = read_summary(folder)
    return (folder / "model").is_dir() and summary is not None and not summary.is_complete


def read_inputs(source: str) -> Mapping[str, str]:
    """Return what a run or model was made from: of a run all its inputs, of a model its encoder."""
    folder = resolve_model(source)
    record = read_run(folder)
    if record is not None:
        return record.inputs
    try:
        autoencoder = load_component("vae", find_part(folder, "vae"))
    except ModelError:
        return {}
    return {"autoencoder": fingerprint_encoder(autoencoder)}
