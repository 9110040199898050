"""`sememe demo`: a demonstration of each system."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress


def demo(
    system: Annotated[
        str, typer.Argument(metavar="[SYSTEM]", help="video-as-prompt, semanticgen or gen1.")
    ] = "video-as-prompt",
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder for the files; made if it does not exist.")
    ] = Path("demo"),
    image: Annotated[
        Path | None, typer.Option(help="Your picture, in place of a rendered one; for SemanticGen, the first frame.")
    ] = None,
    model: Annotated[str, typer.Option(help="Built-in name (see `sememe models`) or folder.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of scenes, conditions and noise.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths of all files as JSON.")] = False,
) -> None:
    """Render inputs, generate from them, and put all on a contact sheet.

    Video-As-Prompt: two references, and two pictures that do the same. SemanticGen: a text, planned and rendered, and a
    clip that is rendered again under another text. Gen-1: a clip in the look of a picture, and of a text.
    """
    from sememe.workflows.demo import DemoRequest, run_demo

    with show_progress() as on_progress:
        request = DemoRequest(output_dir=output_dir, system=system, image=image, model=model, seed=seed, device=device)
        result = run_demo(request, on_progress)
    pairs = [
        {
            name: ", ".join(value) if isinstance(value, tuple) else str(value)
            for name, value in asdict(pair).items()
            if value not in (None, ())
        }
        for pair in result.pairs
    ]
    if as_json:
        echo_json({"pairs": pairs, "sheet": str(result.sheet)})
        return
    for name, value in (*(item for pair in pairs for item in pair.items()), ("sheet", result.sheet)):
        typer.echo(f"{name:<10} {value}")
