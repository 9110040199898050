"""`sememe generate ...`: from files to a video file."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress

_INPUTS, _RESULT, _GUIDANCE, _COMPUTING = "Inputs", "Result", "Guidance", "Computing"


def register(app: typer.Typer) -> None:
    """Adds the verb."""
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
            help="Video to write (mp4, mov, mkv, webm or gif); a JSON of the same name tells how it was made.",
            rich_help_panel=_RESULT,
        ),
    ],
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="Video in which happens what shall happen to the picture; may be repeated.", rich_help_panel=_INPUTS
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the result shows.", rich_help_panel=_INPUTS)] = "",
    negative_prompt: Annotated[
        str | None, typer.Option(help="What text guidance leads away from.", rich_help_panel=_INPUTS)
    ] = None,
    reference_prompt: Annotated[
        list[str] | None,
        typer.Option(help="Caption of the references: one for all, or one each.", rich_help_panel=_INPUTS),
    ] = None,
    reference_sampling: Annotated[
        str,
        typer.Option(help="Frames of a reference: even, fps or first.", metavar="WAY", rich_help_panel=_INPUTS),
    ] = "even",
    model: Annotated[
        str, typer.Option(help="Built-in name (see `sememe models`), folder, or owner/name on the hub.")
    ] = "tiny",
    expert: Annotated[
        str | None, typer.Option(help="Folder of an expert, for a stock model that has none.", metavar="FOLDER")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a model on the hub.")] = None,
    seed: Annotated[int | None, typer.Option(help="0 or more; the same seed gives the same file again.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of the result.", rich_help_panel=_RESULT)] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=_RESULT)] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=_RESULT)] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the result.", rich_help_panel=_RESULT)] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Contact sheet to write: references above, result below.", rich_help_panel=_RESULT),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of the text; 1 is off.", rich_help_panel=_GUIDANCE)
    ] = None,
    reference_guidance_scale: Annotated[
        float | None,
        typer.Option(help="Strength of the reference; 1 is off, 0 leaves it out.", rich_help_panel=_GUIDANCE),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Timesteps, as parts of 1000, between which guidance acts; 0 1 is always.",
            metavar="LOW HIGH",
            rich_help_panel=_GUIDANCE,
        ),
    ] = None,
    last_image: Annotated[
        Path | None,
        typer.Option(help="Picture that the result ends with, for models that take it.", rich_help_panel=_INPUTS),
    ] = None,
    num_reference_frames: Annotated[
        int | None,
        typer.Option(help="Frames taken of each reference, if not as many as the result has.", rich_help_panel=_INPUTS),
    ] = None,
    reference_downscale: Annotated[
        int,
        typer.Option(
            help="References are smaller than the result by this, 1, 2, ...: faster, approximate; not on CogVideoX.",
            rich_help_panel=_COMPUTING,
        ),
    ] = 1,
    reference_positions: Annotated[
        str,
        typer.Option(
            help="dense, or spread: references of fewer frames are spread over the result's length.",
            metavar="WAY",
            rich_help_panel=_INPUTS,
        ),
    ] = "dense",
    negative_reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="Video to lead away from, instead of from the backbone; may be repeated.", rich_help_panel=_GUIDANCE
        ),
    ] = None,
    reference_strength: Annotated[
        float,
        typer.Option(help="Weight of the reference in attention, 0 to 1; 1 is exact.", rich_help_panel=_GUIDANCE),
    ] = 1.0,
    use_dynamic_cfg: Annotated[
        bool,
        typer.Option(
            "--use-dynamic-cfg", help="Text guidance as in CogVideoX's demonstration.", rich_help_panel=_GUIDANCE
        ),
    ] = False,
    official_quirk: Annotated[
        list[str] | None,
        typer.Option(
            help="Habit of the official pipelines to have back (all, or a name; may be repeated).",
            metavar="NAME",
            rich_help_panel=_GUIDANCE,
        ),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="For a model trained two-way: do not carry the reference through every step.",
            rich_help_panel=_COMPUTING,
        ),
    ] = False,
    reference_refresh: Annotated[
        int | None,
        typer.Option(
            help="With --approximate: carry it along every so many steps.", metavar="STEPS", rich_help_panel=_COMPUTING
        ),
    ] = None,
    influence: Annotated[
        bool,
        typer.Option(
            "--influence",
            help="Measure how far the result is from the one without reference (generates twice).",
            rich_help_panel=_GUIDANCE,
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.", rich_help_panel=_COMPUTING)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Precision of the weights: float32, bfloat16 or float16.", rich_help_panel=_COMPUTING),
    ] = None,
    batching: Annotated[
        str | None,
        typer.Option(help="Variants of guidance: sequential or batched.", metavar="WAY", rich_help_panel=_COMPUTING),
    ] = None,
    autocast: Annotated[
        str | None,
        typer.Option(help="off, or bfloat16: faster on some machines, approximate.", rich_help_panel=_COMPUTING),
    ] = None,
    text_keys: Annotated[
        str | None,
        typer.Option(
            help="Keys and values of texts over the steps: kept, or recomputed to save memory.",
            metavar="WAY",
            rich_help_panel=_COMPUTING,
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="Attention backend, as diffusers names it (native, flash, sage ...).",
            metavar="NAME",
            rich_help_panel=_COMPUTING,
        ),
    ] = None,
    compiles: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the blocks: slower to start, faster steps.", rich_help_panel=_COMPUTING
        ),
    ] = False,
    vram: Annotated[
        float | None,
        typer.Option(
            help="GB of your card: compute in the fastest way that fits (see `sememe models --plan`).",
            metavar="GB",
            rich_help_panel=_COMPUTING,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="With --vram: weights in fewer bits (fp8, int8wo, nf4 ...), approximate.",
            metavar="KIND",
            rich_help_panel=_COMPUTING,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")] = False,
) -> None:
    """Do to a picture what happens in a reference video."""
    from sememe.workflows.generate import VideoAsPromptRequest
    from sememe.workflows.generate import generate_video_as_prompt as generate

    request = VideoAsPromptRequest(
        references=tuple(reference or ()),
        image=image,
        output=output,
        prompt=prompt,
        negative_prompt=negative_prompt,
        reference_prompts=tuple(reference_prompt or ()),
        model=model,
        seed=seed,
        num_inference_steps=steps,
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        guidance_scale=guidance_scale,
        reference_guidance_scale=reference_guidance_scale,
        guidance_interval=guidance_interval,
        reference_sampling=reference_sampling,
        batching=batching,
        autocast=autocast,
        device=device,
        dtype=dtype,
        attention=attention,
        compiles=compiles,
        vram=vram,
        storage=storage,
        sheet=sheet,
        influence=influence,
        last_image=last_image,
        num_reference_frames=num_reference_frames,
        reference_downscale=reference_downscale,
        reference_positions=reference_positions,
        text_keys=text_keys,
        negative_references=tuple(negative_reference or ()),
        reference_strength=reference_strength,
        approximate=approximate,
        reference_refresh=reference_refresh,
        use_dynamic_cfg=use_dynamic_cfg,
        official_quirks=tuple(official_quirk or ()),
        expert=expert,
        revision=revision,
    )
    with show_progress() as on_progress:
        result = generate(request, on_progress)
    if as_json:
        echo_json(result.document)
    else:
        typer.echo(str(result.output))
