"""`sememe demo`: see it work."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("demo")(demo)


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for the files; made if it is not there.")] = Path("demo"),
    image: Annotated[Path | None, typer.Option(help="Your picture, instead of the second one.")] = None,
    model: Annotated[str, typer.Option(help="Built-in name (see `sememe models`) or folder.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Of what happens, where, and the noise.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print where everything is as JSON.")] = False,
) -> None:
    """Render two references, have two pictures do the same, and lay all out on a contact sheet."""
    from sememe.workflows.demo import DemoRequest, run_demo

    with show_progress() as on_progress:
        request = DemoRequest(output_dir=output_dir, image=image, model=model, seed=seed, device=device)
        result = run_demo(request, on_progress)
    if as_json:
        pairs = [{name: str(value) for name, value in asdict(pair).items()} for pair in result.pairs]
        echo_json({"pairs": pairs, "sheet": str(result.sheet)})
        return
    for pair in result.pairs:
        typer.echo(f"reference  {pair.reference}  ({pair.condition})")
        typer.echo(f"picture    {pair.image}")
        typer.echo(f"result     {pair.result}")
    typer.echo(f"sheet      {result.sheet}")
