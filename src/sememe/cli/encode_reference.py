"""`sememe encode-reference`: references of Video-As-Prompt, encoded once for any number of generations."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import show_progress
from sememe.cli.setting_options import Device, ModelName, Overrides, make_help_all, read_overrides
from sememe.video_as_prompt.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("encode-reference")(encode_reference)


def encode_reference(
    videos: Annotated[list[Path], typer.Argument(help="Reference videos.", metavar="VIDEO...", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (safetensors).", show_default=False)],
    caption: Annotated[
        list[str] | None, typer.Option(help="Caption of the references: one for all, or repeated for each.")
    ] = None,
    model: ModelName = "tiny",
    device: Device = None,
    overrides: Overrides = None,
    _help_all: Annotated[bool, make_help_all(Settings)] = False,
) -> None:
    """Encode references for `sememe generate video-as-prompt --encoded-reference`, with the same model and size."""
    from sememe.events import Progress
    from sememe.video_as_prompt.reference_files import encode_files
    from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
    from sememe.workflows.loading import load_model

    settings, loading = read_overrides(Settings, {"loading.device": device}, overrides)
    with show_progress() as on_progress:
        on_progress(Progress(f"loading {model}"))
        pipeline = load_model(VIDEO_AS_PROMPT, model, loading).pipeline
        on_progress(Progress("encoding"))
        encode_files(pipeline, videos, caption or (), output, settings)
    typer.echo(str(output))
