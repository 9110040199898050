"""`sememe evaluate SYSTEM`: measures a model with the world's oracle."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.cli.setting_options import AsJson, Device, ModelName, read_overrides
from sememe.errors import InputError
from sememe.workflows.systems import SYSTEMS

_CASES, _RESULT = "Cases", "Result"


Rows = Annotated[
    list[str] | None,
    typer.Option(
        help="Names of rows (a wrong one lists them); the whole table if left out; or validation, the rows to "
        "choose settings and checkpoints by.",
        metavar="ROW,...",
        rich_help_panel=_CASES,
    ),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        "--set",
        help="Setting of a generation or of loading, such as num_inference_steps=4 or loading.dtype=bfloat16 "
        "(`sememe generate SYSTEM --help-all` lists them); may be repeated.",
        metavar="NAME=VALUE",
    ),
]


def evaluate(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help=f"System to measure: {', '.join(SYSTEMS)}.")],
    model: ModelName = "tiny",
    generations: Annotated[int, typer.Option(help="Cases of each row.", rich_help_panel=_CASES)] = 200,
    rows: Rows = None,
    seed: Annotated[int, typer.Option(help="Seed of scenes, conditions and noise.", rich_help_panel=_CASES)] = 0,
    control: Control = None,
    batch_size: Annotated[int, typer.Option(help="Cases generated at once.")] = 8,
    device: Device = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON report; saved after each batch, and continued if it exists.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="PNG: right and wrong examples of each row, drawn at random.", rich_help_panel=_RESULT),
    ] = None,
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
