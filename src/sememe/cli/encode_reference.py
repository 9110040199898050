"""`sememe encode-reference`: references of Video-As-Prompt, encoded once for any number of generations."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import show_progress
from sememe.cli.setting_options import Device, ModelName, Overrides, make_help_all, read_overrides
from sememe.video_as_prompt.settings import Settings


def encode_reference(
    videos: Annotated[list[Path], typer.Argument(help="Reference videos.", metavar="VIDEO...", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (safetensors).", show_default=False)],
    caption: Annotated[
        list[str] | None, typer.Option(help="Caption of the references: one for all, or repeated for each.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Start of the used section, in seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="End of the used section, in seconds.")] = None,
    model: ModelName = "tiny",
    device: Device = None,
    overrides: Overrides = None,
    _help_all: Annotated[bool, make_help_all(Settings)] = False,
) -> None:
    """Encode references for `sememe generate video-as-prompt --encoded-reference`, with the same model and size."""
    from sememe.events import Progress
    from sememe.video_as_prompt.generation import VideoAsPromptInputs, list_reading
    from sememe.video_as_prompt.reference_files import check_name
    from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
    from sememe.workflows.input_files import VideoFile
    from sememe.workflows.loading import load_model

    settings, loading = read_overrides(Settings, {"loading.device": device}, overrides)
    check_name(output)
    with show_progress() as on_progress:
        on_progress(Progress("reading the inputs"))
        section, least = {"start": start, "end": end}, VideoAsPromptInputs.least_frames
        files = [VideoFile.survey_path(path, section, least) for path in videos]
        on_progress(Progress(f"loading {model}"))
        pipeline = load_model(VIDEO_AS_PROMPT, model, loading).pipeline
        resolved = pipeline.defaults.override(**settings)
        clips = [file.read(list_reading(resolved, place, len(files))) for place, file in enumerate(files)]
        on_progress(Progress("encoding"))
        captions = caption[0] if caption is not None and len(caption) == 1 else caption
        pipeline.encode_reference(clips, captions, resolved).save(output)
    typer.echo(str(output))
