"""`sememe models` and `download`: built-in models, and those of the hub."""

import os
from typing import Annotated

import typer

from sememe.cli.console import echo_json


def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that come with the package, and released ones that can be fetched."""
    from sememe.workflows.model_list import list_built_in_models, list_released_models

    models = list_built_in_models()
    if as_json:
        echo_json(models)
        return
    for model in models:
        length = "any length" if model["num_frames"] is None else f"{model['num_frames']} frames"
        size = f"{model['width']}x{model['height']}, {length}"
        typer.echo(f"{model['name']}  ({model['system']}; {size}; {model['num_parameters'] / 1e6:.1f} M parameters)")
        typer.echo(f"    {model['description']}")
        typer.echo(f"    license {model['license']}; source: {model['source']}")
    for model in list_released_models():
        typer.echo(
            f"{model['name']}  ({model['system']}; `sememe download {model['name']}`, or --model {model['name']})"
        )
        typer.echo(f"    {model['repository']} on the hub, with a licence of its own")
    if not models:
        typer.echo("no model comes with this installation; give --model a folder", err=True)


def download(
    model: Annotated[
        str,
        typer.Argument(help="Released model (see `sememe models`), or owner/name on the hub.", show_default=False),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; none is the newest.")] = None,
) -> None:
    """Fetch a model of the hub into the Hugging Face cache, and print its folder.

    After an interruption, complete files are not fetched again.
    """
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"  # before the hub's client is imported, which reads it
    from sememe.workflows.model_list import download_model

    typer.echo(str(download_model(model, revision)))
