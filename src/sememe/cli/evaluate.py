"""`sememe evaluate ...`: measures a model with the world's oracle."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.records import list_fields, parse_overrides
from sememe.video_as_prompt.settings import Settings

_MODEL, _CASES, _COMPUTING, _RESULT = "Model", "Cases", "Computing", "Result"


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.command("video-as-prompt")(evaluate_video_as_prompt)
    # With a callback typer keeps the name of a group's only command.
    group.callback()(_group)
    app.add_typer(group, name="evaluate", help="Measure a model.")


def _group() -> None:
    """Measure a model."""


def evaluate_video_as_prompt(
    model: Annotated[
        str,
        typer.Option(help="Built-in name (see `sememe models`), folder, or owner/name.", rich_help_panel=_MODEL),
    ] = "tiny",
    generations: Annotated[int, typer.Option(help="Cases of each row.", rich_help_panel=_CASES)] = 200,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            help="seen, unseen, novel, sensitivity, misled, floor, paste, ceiling, shorter, longer or wide; all of "
            "these if left out; or validation, the rows to choose settings and checkpoints by.",
            metavar="ROW,...",
            rich_help_panel=_CASES,
        ),
    ] = None,
    per_scene: Annotated[int, typer.Option(help="Cases that share a scene.", rich_help_panel=_CASES)] = 8,
    seed: Annotated[int, typer.Option(help="Of scenes, conditions and noise.", rich_help_panel=_CASES)] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps, if not the model's own.", rich_help_panel=_MODEL)
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of the text; 1 is off.", rich_help_panel=_MODEL)
    ] = None,
    reference_guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of the reference; 1 is off.", rich_help_panel=_MODEL)
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="Other setting of a generation, such as reference_strength=0.5 (`sememe generate video-as-prompt "
            "--help-all` lists them); may be repeated.",
            metavar="NAME=VALUE",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    negative_reference: Annotated[
        str | None,
        typer.Option(
            help="neutral: lead away from a clip of the reference's scene in which nothing happens.",
            metavar="KIND",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Cases generated at once.", rich_help_panel=_COMPUTING)] = 8,
    threads: Annotated[int | None, typer.Option(help="Of torch.", rich_help_panel=_COMPUTING)] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Precision of the weights: float32 or bfloat16.", rich_help_panel=_COMPUTING),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.", rich_help_panel=_COMPUTING)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON report; saved as it grows, and continued if it is there.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="PNG: right and wrong examples of each row, drawn at random.", rich_help_panel=_RESULT),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Measure how well results follow their references, by comparing them with the true targets."""
    from sememe.training.process import keep_freed_memory
    from sememe.workflows.evaluate import EvaluationSettings, evaluate

    keep_freed_memory()
    flags = {
        "sampling.num_inference_steps": steps,
        "guidance.guidance_scale": guidance_scale,
        "guidance.reference_guidance_scale": reference_guidance_scale,
    }
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    changes = parse_overrides([*given, *(control or ())], list_fields(Settings))
    settings = EvaluationSettings(
        model=model,
        generations=generations,
        rows=tuple(name.strip() for entry in rows for name in entry.split(",")) if rows else None,
        per_scene=per_scene,
        settings=changes,
        options={} if negative_reference is None else {"negative_reference": negative_reference},
        seed=seed,
        batch_size=batch_size,
        threads=threads,
        dtype=dtype,
        device=device,
        output=output,
        sheet=sheet,
    )
    with show_progress() as on_progress:
        report = evaluate(settings, on_progress)
    if as_json:
        echo_json(report.to_document())
    else:
        typer.echo(report.to_markdown())
