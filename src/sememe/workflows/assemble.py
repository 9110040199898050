"""Assembling a model from the parts that were trained: one folder that `from_pretrained` reads."""

from collections.abc import Collection, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import sememe
from sememe.checkpoints.fingerprint import fingerprint_model
from sememe.checkpoints.headers import MODEL_INDEX
from sememe.checkpoints.zoo import WEIGHTS_FOLDER, resolve_model
from sememe.errors import ModelError, OutputError
from sememe.files import atomic_folder, write_text
from sememe.training.recipes import ModelRecipe
from sememe.training.run_record import describe_run, read_run, read_summary
from sememe.workflows.model_card import ModelCard, write_card
from sememe.workflows.systems import SYSTEMS, find_model_system


def assemble_recipe(recipe: ModelRecipe, output: Path | str, *, title: str | None = None) -> Path:
    """Write the model that a recipe assembles from runs, or from parts of other models.

    Args:
        recipe: Names the runs, and says what the model makes by default.
        output: Folder to write; see `write_model`.
        title: Title of the card; None for the folder's name.

    Raises:
        ModelError: A run is not complete, or its parts do not fit.
        RecipeError: The parts were trained on latents of another autoencoder.
        OutputError: The folder cannot be written.
    """
    from sememe.checkpoints.components import load_component
    from sememe.checkpoints.fingerprint import fingerprint_encoder
    from sememe.workflows.sources import check_agreement, find_parts

    _check_output(Path(output))
    system = find_model_system(recipe)
    spec = system.model
    assert spec is not None
    parts = find_parts(recipe, spec.needs)
    encoder = fingerprint_encoder(load_component("vae", parts["vae"]))
    check_agreement(recipe, spec.needs, {"autoencoder": encoder})
    sources = {field: getattr(recipe, field) for field in spec.needs}
    card = ModelCard(
        title=title or Path(output).absolute().name,
        description=f"A {system.title} model: {recipe.description}.",
        source=f"trained by the recipes of sememe {sememe.__version__}",
        pipeline=system.pipeline_name,
        task=spec.task,
        intended_use=f"trying out, testing and measuring {system.title} on small machines; {spec.use}",
        training=describe_runs(sources),
        origins=sorted({origin for source in sources.values() for origin in list_origins(source)}),
    )
    return write_model(resolve_name(spec.build)(recipe, parts), recipe, output, card)


def write_model(pipeline: Any, recipe: ModelRecipe, output: Path | str, card: ModelCard) -> Path:
    """Write a whole model; an older one at `output` is replaced at once, or stays.

    The result is loaded once before it takes its place, which shows that it can be.

    Args:
        pipeline: The model in memory; its weights are rounded to `recipe.precision`.
        recipe: Says how the files are written.
        output: Folder to write.
        card: What the README says.

    Raises:
        ModelError: The result cannot be loaded.
        OutputError: The folder cannot be written, or holds something else than a model.
    """
    output = Path(output)
    _check_output(output)
    _round_weights(pipeline, recipe.precision)
    with atomic_folder(output) as folder:
        pipeline.save_pretrained(folder, max_shard_size=recipe.max_shard_size)
        write_text(folder / "README.md", write_card(card, fingerprint_model(folder).files))
        type(pipeline).from_pretrained(folder)
    return output


def _check_output(output: Path) -> None:
    """Raise `OutputError` for a folder of other files, which would be lost."""
    if output.is_dir() and any(output.iterdir()) and not (output / MODEL_INDEX).is_file():
        raise OutputError(
            f"expected {output} to be absent, empty or an earlier model, but it holds other files, which would be "
            "lost; choose another folder"
        )


def describe_runs(sources: Mapping[str, str]) -> dict[str, str]:
    """Return how each part was trained, for a card; `sources` are runs by the part's name."""
    return {name: _describe_source(source) for name, source in sources.items()}


def list_origins(source: str, after: Collection[Path] = ()) -> set[str]:
    """Return the clips that the weights of a run or model were trained on, and the models of others among them.

    Runs are followed through the runs and models that they began with or read; built-in models add nothing.

    Args:
        source: Run or model.
        after: Folders that were followed already. A run may have been moved to where one of its own began.
    """
    try:
        folder = resolve_model(source)
    except ModelError:
        return {Path(source).name}
    if folder.is_relative_to(WEIGHTS_FOLDER):
        return set()
    folder = folder.resolve()
    if folder in after:
        return set()
    # Of a run, its model and its checkpoints may be given as well.
    record = next(filter(None, map(read_run, (folder, *folder.parents[:2]))), None)
    if record is None:
        return {folder.name}
    named = {field for system in SYSTEMS.values() for stage in system.stages.values() for field in stage.needs}
    read = [record.settings.get(field, "None") for field in (*named, "image_model")]
    began = [each for each in (*read, record.init_from) if each not in (None, "None")]
    return {record.inputs.get("clips", folder.name)}.union(*(list_origins(each, {*after, folder}) for each in began))


def _describe_source(source: str, after: Collection[Path] = ()) -> str:
    """Return the figures of a run, after those of the runs whose weights it began with.

    `after` are folders of runs that began with it, one of which may have been moved to where it was.
    """
    try:
        folder = resolve_model(source)
    except ModelError:
        folder = None
    if folder is None or folder.resolve() in after:
        return f"begun from {source}, whose training is not stated here"
    summary, record = read_summary(folder), read_run(folder)
    if summary is None:
        return "not stated"
    own = f"{summary.recipe}: {describe_run(summary)}"
    if record is None or record.init_from is None:
        return own
    return f"{_describe_source(record.init_from, {*after, folder.resolve()})}; then {own}"


def _round_weights(pipeline: Any, precision: str) -> None:
    import torch

    for name, component in pipeline.components.items():
        if not isinstance(component, torch.nn.Module) or name in getattr(pipeline, "exact_components", ()):
            continue
        # An autoencoder's code must stay the very one that the other parts were trained on.
        kept: Any = getattr(component, "_keep_in_fp32_modules", None) if name == "vae" else None
        for key, tensor in (*component.named_parameters(), *component.named_buffers()):
            if tensor.is_floating_point() and key.split(".")[0] not in (kept or ()):
                tensor.data = tensor.data.to(getattr(torch, precision))
