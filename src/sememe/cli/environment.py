"""`sememe env`: facts about a machine, for a bug report."""

from typing import Annotated

import typer

from sememe.cli.console import echo_json


def show_environment(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, memory and accelerators, for a bug report."""
    from sememe.workflows.environment import describe_environment

    document = describe_environment()
    if as_json:
        echo_json(document)
        return
    for name, version in document.pop("versions").items():
        typer.echo(f"{name:<24}{version}")
    for name, value in document.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
        typer.echo(f"{name.replace('_', ' '):<24}{'none' if shown is None else shown}")
