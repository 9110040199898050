"""`sememe generate ...`: from files to a video file."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.cli.setting_options import Overrides, make_help_all, make_setting, read_overrides
from sememe.video_as_prompt.settings import Settings

_INPUTS, _RESULT = "Inputs", "Result"
_setting = make_setting(Settings)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.command("video-as-prompt")(generate_video_as_prompt)
    # With a callback typer keeps the name of a group's only command.
    group.callback()(_group)
    app.add_typer(group, name="generate", help="Generate a video.")


def _group() -> None:
    """Generate a video."""


def generate_video_as_prompt(
    image: Annotated[
        Path, typer.Option(help="Picture that the result starts from (png, jpeg, webp ...).", rich_help_panel=_INPUTS)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Video to write (mp4, mov, mkv, webm or gif); a JSON of the same name records how it was made.",
            rich_help_panel=_RESULT,
        ),
    ],
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Video whose effect the picture gets; may be repeated.", rich_help_panel=_INPUTS),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the result shows.", rich_help_panel=_INPUTS)] = "",
    reference_prompt: Annotated[
        list[str] | None,
        typer.Option(help="Caption of the references: one for all, or one each.", rich_help_panel=_INPUTS),
    ] = None,
    last_image: Annotated[
        Path | None,
        typer.Option(help="Picture that the result ends with, for models that take one.", rich_help_panel=_INPUTS),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Built-in name (see `sememe models`), folder, or owner/name on the hub.")
    ] = "tiny",
    seed: Annotated[int | None, typer.Option(help="0 or more; the same seed gives the same file again.")] = None,
    steps: Annotated[int | None, _setting("sampling.num_inference_steps", "--steps")] = None,
    guidance_scale: Annotated[float | None, _setting("guidance.guidance_scale")] = None,
    reference_guidance_scale: Annotated[float | None, _setting("guidance.reference_guidance_scale")] = None,
    device: Annotated[str | None, _setting("loading.device")] = None,
    vram: Annotated[float | None, _setting("loading.vram", metavar="GB")] = None,
    num_frames: Annotated[int | None, _setting("size.num_frames", rich_help_panel=_RESULT)] = None,
    height: Annotated[int | None, _setting("size.height", rich_help_panel=_RESULT)] = None,
    width: Annotated[int | None, _setting("size.width", rich_help_panel=_RESULT)] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Contact sheet to write: references above, result below.", rich_help_panel=_RESULT),
    ] = None,
    influence: Annotated[
        bool,
        typer.Option(
            "--influence",
            help="Measure how far the result is from the one without reference (generates twice).",
            rich_help_panel=_RESULT,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole record as JSON.", rich_help_panel=_RESULT)
    ] = False,
    overrides: Overrides = None,
    _help_all: Annotated[bool, make_help_all(Settings)] = False,
) -> None:
    """Do to a picture what happens in a reference video."""
    from sememe.video_as_prompt.generation import VideoAsPromptInputs
    from sememe.workflows.generate import GenerationRequest, generate

    flags = {
        "sampling.num_inference_steps": steps,
        "guidance.guidance_scale": guidance_scale,
        "guidance.reference_guidance_scale": reference_guidance_scale,
        "size.num_frames": num_frames,
        "size.height": height,
        "size.width": width,
        "loading.device": device,
        "loading.vram": vram,
    }
    settings, loading = read_overrides(Settings, flags, overrides)
    inputs = VideoAsPromptInputs(
        image=image,
        references=tuple(reference or ()),
        prompt=prompt,
        reference_prompts=tuple(reference_prompt or ()),
        last_image=last_image,
    )
    request = GenerationRequest(
        inputs=inputs,
        output=output,
        model=model,
        seed=seed,
        settings=settings,
        loading=loading,
        sheet=sheet,
        influence=influence,
    )
    with show_progress() as on_progress:
        result = generate(request, on_progress)
    if as_json:
        echo_json(result.document)
    else:
        typer.echo(str(result.output))
