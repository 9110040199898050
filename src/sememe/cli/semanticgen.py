"""`sememe plans ...`, which only SemanticGen has: plans made of videos, shown and edited."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sememe.cli.console import show_progress
from sememe.cli.setting_options import Device, ModelName, read_overrides
from sememe.errors import InputError
from sememe.semanticgen.settings import Settings

PlanFile = Annotated[Path, typer.Argument(help="Plan file.", show_default=False)]
OtherFile = Annotated[Path, typer.Argument(help="Another plan file, of the same encoder and grid.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Plan file to write.", show_default=False)]
Start = Annotated[float, typer.Option(help="Seconds; the nearest slice begins there.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    for command in (encode, show, cut, splice, repeat, reverse, hold, blend, replace_span):
        group.command(command.__name__.replace("_", "-"))(command)
    app.add_typer(group, name="plans", help="Make plans of videos; show and edit plans.")


def encode(
    video: Annotated[Path, typer.Argument(help="Video file.", show_default=False)],
    output: Output,
    model: ModelName = "tiny",
    device: Device = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Size of the results, such as size.height=64, or how the model is loaded, such as loading.dtype; "
            "may be repeated.",
        ),
    ] = None,
) -> None:
    """Write the plan that a generation from a video would follow, without rendering."""
    from sememe.events import Progress
    from sememe.semanticgen.plan_files import check_plan_name, encode_plan
    from sememe.semanticgen.system import SEMANTICGEN
    from sememe.workflows.loading import load_model

    settings, loading = read_overrides(Settings, {"loading.device": device}, overrides)
    idle = sorted(settings.keys() - {"size.height", "size.width"})
    if idle:
        raise InputError(f"{', '.join(idle)} has no effect on the plan of a video; leave it out")
    check_plan_name(output)
    with show_progress() as on_progress:
        on_progress(Progress(f"loading {model}"))
        pipeline = load_model(SEMANTICGEN, model, loading).pipeline
        made = encode_plan(pipeline, video, output, pipeline.defaults.override(**settings))
    typer.echo(f"{output}: {made.num_slices} slices of {made.slice_seconds:g} s")


def show(
    plan: PlanFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.", show_default=False)],
    clip: Annotated[Path | None, typer.Option(help="Video of the plan, shown below it.")] = None,
) -> None:
    """Draw a plan: a picture for each slice, whose colours are the first three principal components."""
    from sememe.semanticgen.plan_files import show_plan

    shown = show_plan(plan, output, clip)
    for caption in dict.fromkeys(shown.captions):
        typer.echo(caption)
    typer.echo(f"{output}: {shown.num_slices} slices of {shown.slice_seconds:g} s")


def cut(
    plan: PlanFile,
    output: Output,
    start: Start,
    stop: Annotated[float, typer.Option(help="Seconds.", show_default=False)],
) -> None:
    """Keep a part of a plan."""
    _edit(lambda edits, given: edits.cut(given, start, stop), output, plan)


def splice(plan: PlanFile, other: OtherFile, output: Output) -> None:
    """Join two plans, one after the other."""
    _edit(lambda edits, first, second: edits.splice(first, second), output, plan, other)


def repeat(plan: PlanFile, output: Output, count: Annotated[int, typer.Option(help="Number of times.")] = 2) -> None:
    """Repeat a plan several times."""
    _edit(lambda edits, given: edits.repeat(given, count), output, plan)


def reverse(plan: PlanFile, output: Output) -> None:
    """Reverse the order of the slices."""
    _edit(lambda edits, given: edits.reverse(given), output, plan)


def hold(
    plan: PlanFile,
    output: Output,
    at: Annotated[float, typer.Option(help="Moment, in seconds.", show_default=False)],
    seconds: Annotated[float, typer.Option(help="Seconds to add.", show_default=False)],
) -> None:
    """Hold a moment for longer."""
    _edit(lambda edits, given: edits.hold(given, at, seconds), output, plan)


def blend(
    plan: PlanFile,
    other: OtherFile,
    output: Output,
    weight: Annotated[float, typer.Option(help="Weight of the other plan, 0 to 1.")] = 0.5,
) -> None:
    """Mix two plans of one length."""
    _edit(lambda edits, first, second: edits.blend(first, second, weight), output, plan, other)


def replace_span(plan: PlanFile, other: OtherFile, output: Output, start: Start) -> None:
    """Replace a part of a plan, from a moment on, by another plan."""
    _edit(lambda edits, first, second: edits.replace_span(first, start, second), output, plan, other)


def _edit(edit: Callable[..., Any], output: Path, *paths: Path) -> None:
    """Write what an edit returns, which is called with the module of edits and the plans of the files."""
    from sememe.semanticgen import plan_edits
    from sememe.semanticgen.plan_files import edit_plans

    made = edit_plans(paths, partial(edit, plan_edits), output)
    typer.echo(f"{output}: {made.num_slices} slices of {made.slice_seconds:g} s")
