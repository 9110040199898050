"""`sememe models`: what there is to load."""

from typing import Annotated

import typer

from sememe.cli.console import echo_json


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("models")(list_models)


def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the models that come with the package."""
    from sememe.workflows.models import list_built_in_models, model_document

    records = list_built_in_models()
    if as_json:
        echo_json([model_document(record) for record in records])
        return
    for record in records:
        typer.echo(f"{record.name}  ({record.system}; {record.size}; {record.num_parameters / 1e6:.1f} M parameters)")
        typer.echo(f"    {record.description}")
        typer.echo(f"    license {record.license}; source: {record.source}")
    if not records:
        typer.echo("no model comes with this installation; give --model a folder", err=True)
