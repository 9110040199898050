"""`sememe data ...`: datasets of videos on the command line."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sememe.cli.console import echo_json, show_progress

if TYPE_CHECKING:
    from sememe.workflows.data_check import DataReport


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    # With a callback typer keeps the name of a group's only command.
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", callback=lambda: None)
    group.command("check")(check)
    app.add_typer(group, name="data", help="Datasets of videos to train on.")


def check(
    folder: Annotated[Path, typer.Argument(help="Folder with manifest.jsonl or VAP-Data's vap_data.csv.")],
    sheet: Annotated[
        Path | None, typer.Option(help="Picture to write: the first video of each condition, with its caption.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check a dataset before a training. The exit code is 1 if something has to be repaired."""
    from sememe.workflows.data_check import check_data

    with show_progress() as on_progress:
        report = check_data(folder, sheet, on_progress)
    if as_json:
        echo_json(asdict(report))
    else:
        _tell(report)
    if not report.is_good:
        raise typer.Exit(1)


def _tell(report: "DataReport") -> None:
    splits = ", ".join(f"{name} {count}" for name, count in sorted(report.splits.items()))
    fewest = min(report.conditions.values())
    typer.echo(f"{report.num_videos} videos of {len(report.conditions)} conditions, {fewest} or more each; {splits}")
    if report.seconds:
        shortest, median, longest = report.seconds
        typer.echo(f"durations: {shortest:.1f} to {longest:.1f} s, median {median:.1f} s")
    for finding in report.findings:
        typer.echo(f"{'error' if finding.is_error else 'note'}: {finding.message}")
        for example in finding.examples:
            typer.echo(f"    {example}")
    if not report.findings:
        typer.echo("nothing wrong was found")
