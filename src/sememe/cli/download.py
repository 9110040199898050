"""`sememe download`: a model of the hub, fetched once, with progress."""

import os
from typing import Annotated

import typer


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
