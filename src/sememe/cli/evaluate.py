"""`sememe evaluate SYSTEM`: measures a model with the world's oracle."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.cli.setting_options import AsJson, Device, ModelName, read_overrides
from sememe.errors import InputError
from sememe.workflows.systems import SYSTEMS


def _of_cases(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Cases")


def _of_result(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Result")


_ROWS = _of_cases(
    "Names of rows (a wrong one lists them); the whole table if left out; or validation, the rows to choose settings "
    "and checkpoints by.",
    metavar="ROW,...",
)
_CONTROL = typer.Option(
    "--control",
    "--set",
    help="Setting of a generation or of loading, such as num_inference_steps=4 or loading.dtype=bfloat16 "
    "(`sememe generate SYSTEM --help-all` lists them); may be repeated.",
    metavar="NAME=VALUE",
)


def evaluate(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help=f"System to measure: {', '.join(SYSTEMS)}.")],
    model: ModelName = "tiny",
    generations: Annotated[int, _of_cases("Cases of each row.")] = 200,
    rows: Annotated[list[str] | None, _ROWS] = None,
    seed: Annotated[int, _of_cases("Seed of scenes, conditions and noise.")] = 0,
    control: Annotated[list[str] | None, _CONTROL] = None,
    batch_size: Annotated[int, typer.Option(help="Cases generated at once.")] = 8,
    device: Device = None,
    output: Annotated[
        Path | None, _of_result("JSON report; saved after each batch, and continued if it exists.", "--output", "-o")
    ] = None,
    sheet: Annotated[Path | None, _of_result("PNG: right and wrong examples of each row, drawn at random.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model follows its inputs, by comparing results with the true targets."""
    from sememe.training.process import keep_freed_memory
    from sememe.workflows import evaluate as verb

    if system not in SYSTEMS:
        raise InputError(f"expected a system ({', '.join(SYSTEMS)}), got {system!r}")
    keep_freed_memory()
    known, given = SYSTEMS[system], [text.partition("=") for text in control or ()]
    options = {key.strip(): value for key, _, value in given if key.strip() in known.evaluation_options}
    changes = ["".join(parts) for parts in given if parts[0].strip() not in options]
    settings, loading = read_overrides(known.settings, {"loading.device": device}, changes)
    request = verb.EvaluationSettings(
        system=system,
        model=model,
        generations=generations,
        rows=tuple(name.strip() for entry in rows for name in entry.split(",")) if rows else None,
        settings=settings,
        options=options,
        seed=seed,
        batch_size=batch_size,
        loading=loading,
        output=output,
        sheet=sheet,
    )
    with show_progress() as on_progress:
        report = verb.evaluate(request, on_progress)
    if as_json:
        echo_json(report.to_document())
    else:
        typer.echo(report.to_markdown())
