"""`sememe train`, `precompute`, `assemble` and `recipes`: from nothing to a model, by recipe."""

import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.events import ignore_progress, tell_duration
from sememe.records import to_plain

if TYPE_CHECKING:
    from sememe.training.checkpoint import Resume
    from sememe.training.progress import TrainingSummary
    from sememe.training.recipes import TrainingRecipe
    from sememe.workflows.dry_run import RehearsedPhase
    from sememe.workflows.precompute import PrecomputeSummary

_RUN, _RECIPE, _RESULT = "Run", "Recipe", "Result"

RecipeName = Annotated[str | None, typer.Argument(help="Name of the recipe (see `sememe recipes`).", metavar="RECIPE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _make_settings(example: str) -> Any:
    text = f"Replace a setting, such as {example}; may be repeated."
    return typer.Option("--set", help=text, metavar="KEY=VALUE", rich_help_panel=_RECIPE)


def _of_run(text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=_RUN)


_INIT_FROM = _of_run(
    "Begin with the weights of a built-in model, a model's folder, a run or a checkpoint.", metavar="MODEL"
)
_ALLOW_CHANGES = _of_run(
    "Settings or inputs that may differ from the run's, such as training.learning_rate,clips.", metavar="KEY,..."
)
_MAX_MINUTES = _of_run("Minutes for the whole run, interrupted parts included.")
_RESUMES = _of_run("Resume the run in the folder, or refuse a folder that has one.")
_DRY_RUN = _of_run(
    "Read and build everything, report data, sizes, memory and time; train and write nothing.", "--dry-run"
)
_MODEL_PART = _of_run(
    "Source of the autoencoder: a run, a built-in model, a model's folder, or a folder with the autoencoder alone; the "
    "recipe's own if left out.",
    metavar="MODEL",
)
_DATA = _of_run("Folder of a dataset with manifest.jsonl or VAP-Data's vap_data.csv, instead of the world.")
_VERIFY = _of_run("Read the whole cache first, and encode damaged entries again.", "--verify")
_PRUNE = _of_run("Remove the entries of clips that were changed or are no longer in the data.", "--prune")
_PART = _of_run(
    "Encode one part of the clips, such as 2/8, beside processes that encode the others; a last call without it "
    "finishes the cache.",
    metavar="K/N",
)
_RAY = _of_run(
    "Encode on the machines of a Ray cluster (extra `ray`), which share data and output folder: its address, auto for "
    "the one that this machine is of, or local.",
    "--ray",
    metavar="ADDRESS",
)
_LIST_ALL = typer.Option("--list", help="List the recipes, or the settings of RECIPE, and stop.")


def train(
    recipe: RecipeName = None,
    settings: Annotated[list[str] | None, _make_settings("training.learning_rate=3e-4")] = None,
    output_dir: Annotated[
        Path | None,
        _of_run("Folder of the run; runs/RECIPE if left out.", "--output-dir", "-o"),
    ] = None,
    init_from: Annotated[str | None, _INIT_FROM] = None,
    resume: Annotated[bool, _RESUMES] = True,
    allow_changes: Annotated[list[str] | None, _ALLOW_CHANGES] = None,
    max_minutes: Annotated[float | None, _MAX_MINUTES] = None,
    dry_run: Annotated[bool, _DRY_RUN] = False,
    list_all: Annotated[bool, _LIST_ALL] = False,
    as_json: AsJson = False,
) -> None:
    """Train a part of a model; the same command resumes an interrupted run."""
    if list_all or recipe is None:
        _list(recipe, as_json=as_json, is_asked=list_all)
        return
    from sememe.training.process import keep_freed_memory
    from sememe.workflows.train import resolve_training_recipe, train_recipe

    resolved = resolve_training_recipe(recipe, settings or (), max_minutes)
    allowed = [key.strip() for keys in allow_changes or () for key in keys.split(",")]
    how: Resume = "auto" if resume else "never"
    if dry_run:
        _rehearse(resolved, output_dir, init_from, allowed, resume=how, as_json=as_json)
        return
    keep_freed_memory()
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun starts this command several times; one of them speaks
    with show_progress() if is_main else nullcontext(ignore_progress) as on_progress:
        summary = train_recipe(
            resolved,
            output_dir,
            init_from=init_from,
            resume=how,
            allow_changes=allowed,
            on_progress=on_progress,
        )
    if as_json and is_main:
        echo_json(to_plain({name: value for name, value in asdict(summary).items() if name != "signal_name"}))
    elif is_main:
        _tell(summary)
    if summary.ending == "signal":
        raise typer.Exit(130 if summary.signal_name == "SIGINT" else 143)


def precompute(
    recipe: RecipeName = None,
    model_part: Annotated[str | None, _MODEL_PART] = None,
    data: Annotated[Path | None, _DATA] = None,
    output_dir: Annotated[
        Path | None,
        _of_run("Folder to write, or a URL of object storage; runs/RECIPE if left out.", "--output-dir", "-o"),
    ] = None,
    settings: Annotated[list[str] | None, _make_settings("data.num_clips=1000")] = None,
    verify: Annotated[bool, _VERIFY] = False,
    prune: Annotated[bool, _PRUNE] = False,
    part: Annotated[str | None, _PART] = None,
    ray: Annotated[str | None, _RAY] = None,
    as_json: AsJson = False,
) -> None:
    """Encode clips once, for trainings that read latents; the same command continues after an interruption.

    Only clips that were added or changed since are encoded.
    """
    if recipe is None:
        _list(None, as_json=as_json, is_asked=False)
        return
    from sememe.training.process import keep_freed_memory
    from sememe.training.recipes import ArraysRecipe
    from sememe.workflows.recipe_list import resolve_recipe
    from sememe.workflows.train import RUNS_FOLDER

    given = list(settings or ())
    given += [f"autoencoder={model_part}"] if model_part is not None else []
    given += [f"dataset={data}"] if data is not None else []
    resolved = resolve_recipe(recipe, given, ArraysRecipe, "precompute")
    folder = RUNS_FOLDER / resolved.name if output_dir is None else output_dir
    keep_freed_memory()  # before anything makes a tensor
    from sememe.workflows.precompute import Part, precompute_latents

    if part is not None and ray is not None:
        raise typer.BadParameter("expected --part or --ray, got both; a cluster divides the work among its machines")
    chosen = Part.parse(part or "1/1")
    with show_progress() as on_progress:
        summary = precompute_latents(resolved, folder, on_progress, verify=verify, prune=prune, part=chosen, ray=ray)
    if as_json:
        echo_json(
            {
                "folder": summary.folder,
                "num_clips": summary.num_clips,
                "num_new": dict(summary.num_new),
                "num_unused": summary.num_unused,
                "quarantine": [clip.reason for clip in summary.quarantine],
                "damaged": list(summary.damaged),
                "seconds": summary.seconds,
                "dataset": summary.version,
                "made_by": {name: dict(made_by) for name, made_by in summary.made_by.items()},
            }
        )
    else:
        _tell_precomputed(summary, is_pruned=prune)


def assemble(
    recipe: RecipeName = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; required.", rich_help_panel=_RESULT)
    ] = None,
    settings: Annotated[list[str] | None, _make_settings("expert=FOLDER")] = None,
    title: Annotated[
        str | None,
        typer.Option(help="Title of the model card; the folder's name if left out.", rich_help_panel=_RESULT),
    ] = None,
) -> None:
    """Assemble a model from the runs of its parts: a folder for `--model` and `from_pretrained`.

    The recipe names the runs; --set expert=FOLDER takes a part from elsewhere.
    """
    if recipe is None:
        _list(None, as_json=False, is_asked=False)
        return
    if output is None:
        raise typer.BadParameter("expected the folder to write, got none; add --output FOLDER")
    from sememe.training.recipes import ModelRecipe
    from sememe.workflows.assemble import assemble_recipe
    from sememe.workflows.recipe_list import resolve_recipe

    folder = assemble_recipe(resolve_recipe(recipe, settings or (), ModelRecipe, "assemble"), output, title=title)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder}: {size / 1e6:.1f} MB; use it with --model {folder}")


def recipes(
    recipe: Annotated[str | None, typer.Argument(help="List the settings of this one.", metavar="RECIPE")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or all settings of one."""
    _list(recipe, as_json=as_json, is_asked=True)


def _list(recipe: str | None, *, as_json: bool, is_asked: bool) -> None:
    from sememe.workflows.recipe_list import list_recipe_settings, list_recipes

    if recipe is not None:
        found = list_recipe_settings(recipe)
        lines = [f"{key} = {value}" for key, value in found.items()]
    else:
        found = {entry.name: entry.description for entry in list_recipes()}
        width = max(map(len, found))
        lines = [f"{entry.name:{width}}  {entry.verb:10}  {entry.description}" for entry in list_recipes()]
    if not is_asked:
        raise typer.BadParameter(f"expected the name of a recipe, got none; there are {', '.join(found)}")
    if as_json:
        echo_json(found)
    else:
        typer.echo("\n".join(lines))


def _tell(summary: "TrainingSummary") -> None:
    done = f"{summary.step} steps in {summary.seconds / 60:.1f} min"
    if summary.is_complete:
        typer.echo(f"complete after {done}: {summary.model}")
        if summary.validation is not None:
            best = summary.validation
            typer.echo(f"lowest validation loss {best.best_loss:.4f}, after {best.best_step} steps")
    else:
        why = f"stopped by {summary.signal_name}" if summary.ending == "signal" else "paused"
        typer.echo(f"{why} after {done}; the same command goes on from {summary.checkpoint}")


def _rehearse(
    recipe: "TrainingRecipe",
    folder: Path | None,
    init_from: str | None,
    allowed: list[str],
    *,
    resume: "Resume",
    as_json: bool,
) -> None:
    from sememe.workflows.dry_run import rehearse

    with show_progress() as on_progress:
        found = rehearse(
            recipe, folder, init_from=init_from, resume=resume, allow_changes=allowed, on_progress=on_progress
        )
    if as_json:
        echo_json({**asdict(found), "folder": str(found.folder)})
        return
    state = f"goes on at step {found.step}" if found.step else "begins"
    typer.echo(f"{found.recipe} {state} in {found.folder}, on {found.device}")
    for name, value in found.inputs.items():
        typer.echo(f"  {name}: {value[:80]}")
    for name, count in found.modules.items():
        typer.echo(f"  {name}: {count:,} parameters")
    where = f" on each of {found.shard} processes" if found.shard > 1 else ""
    for phase in found.phases:
        typer.echo(
            f"  phase {phase.name}: {phase.num_steps:,} steps, {phase.num_trained:,} parameters trained, "
            f"{phase.memory / 1e9:.2f} GB{where} beside activations"
        )
        if phase.cost is not None:
            gigabytes, operations = phase.cost.activations / 1e9, phase.cost.operations / 1e12
            where = f" on each of {found.context} processes" if found.context > 1 else ""
            typer.echo(f"    a share of a step: {gigabytes:.2f} GB of activations, {operations:.3g} TFLOP{where}")
        if phase.seconds is not None:
            typer.echo(f"    {_tell_time(phase, recipe.training.max_minutes)}")
    typer.echo(f"  a step: {found.num_shares} x")
    for name, shape in found.batch.items():
        typer.echo(f"    {name}: {shape}")


def _tell_time(phase: "RehearsedPhase", max_minutes: float | None) -> str:
    """How long a step and the phase take, or how many of its steps the run's time is enough for."""
    assert phase.seconds is not None
    how = "as measured here, blocks not compiled" if phase.is_measured else "at least, its shares one after another"
    whole = phase.num_steps * phase.seconds
    if max_minutes is not None and 60 * max_minutes < whole:
        bound = "about" if phase.is_measured else "at most"
        rest = f"{bound} {60 * max_minutes / phase.seconds:,.0f} steps in {max_minutes:g} minutes"
    else:
        rest = f"{phase.num_steps:,} steps in {tell_duration(whole)}"
    return f"{phase.seconds:.3g} s a step, {how}: {rest}"


def _tell_precomputed(summary: "PrecomputeSummary", *, is_pruned: bool) -> None:
    new = ", ".join(f"{name} {count}" for name, count in summary.num_new.items())
    typer.echo(f"{summary.folder}: arrays of {summary.num_clips} clips; new entries: {new}")
    if summary.damaged:
        typer.echo(f"damaged, and encoded again: {', '.join(summary.damaged)}")
    if summary.quarantine:
        typer.echo(f"left out: {len(summary.quarantine)} clips, such as: {summary.quarantine[0].reason}")
    if summary.num_unused:
        done = "removed" if is_pruned else "--prune removes them"
        typer.echo(f"entries of clips that are not in the data any more: {summary.num_unused}; {done}")
