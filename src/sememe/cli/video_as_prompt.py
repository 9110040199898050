"""Commands of Video-As-Prompt alone: `sememe convert`, `encode-reference` and `check-parity`."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.cli.setting_options import Device, ModelName, Overrides, make_help_all, read_overrides
from sememe.video_as_prompt.settings import Settings


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, built-in name, or repository on the hub (owner/name).")
    ],
    output_dir: Annotated[Path, typer.Argument(metavar="OUTPUT_DIR", help="Folder to write; must not exist.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the layout of the released models: the expert merged in.")
    ] = False,
    expert: Annotated[
        str | None, typer.Option(help="Folder of an expert, for a source that has none.", metavar="DIR")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository on the hub.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Size of each file of tensors.", metavar="SIZE")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Split a released model into backbone and expert, or merge them; tensors are copied bit for bit."""
    from sememe.video_as_prompt.convert import ConversionRequest, convert_model

    request = ConversionRequest(
        source=source,
        output=output_dir,
        layout="published" if merged else "own",
        expert=expert,
        revision=revision,
        max_shard_size=max_shard_size,
    )
    with show_progress() as on_progress:
        result = convert_model(request, on_progress)
    if as_json:
        echo_json(result.to_document())
        return
    typer.echo(str(result.output))
    sizes = f"{_count(result.num_parameters)} parameters, {_count(result.num_expert_parameters)} of them the expert's"
    blocks = f"experts in {len(result.expert_blocks)} blocks"
    typer.echo(f"    {result.family}; {sizes}; {blocks}; {result.num_bytes / 1e6:.1f} MB")


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


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


def check_parity(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of parity vectors.")],
) -> None:
    """Compare a model with results of the official implementation; exits with 1 if they differ."""
    from sememe.video_as_prompt.parity import check_parity as check

    result = check(folder)
    echo_json(result.to_document(), indent=None)
    if not result.ok:
        raise typer.Exit(1)
