"""`sememe plan`: how a model would compute on a card, and why."""

from typing import Annotated, Any

import typer

from sememe.cli.console import echo_json
from sememe.cli.setting_options import Overrides, make_help_all, make_setting, read_overrides
from sememe.video_as_prompt.settings import Settings

_setting = make_setting(Settings)


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="wan-14b, cogvideox-5b, their names on the hub, a built-in name (tiny, gen1/tiny ...), or a folder.",
            show_default=False,
        ),
    ],
    vram: Annotated[float, typer.Option(help="GB of the card.", metavar="GB", show_default=False)],
    num_references: Annotated[
        int | None, typer.Option(help="Videos that Video-As-Prompt reads; 1 if not given.", min=0, show_default=False)
    ] = None,
    num_negative_references: Annotated[
        int | None, typer.Option(help="Videos that it steers away from.", min=0, show_default=False)
    ] = None,
    num_frames: Annotated[int | None, _setting("size.num_frames")] = None,
    height: Annotated[int | None, _setting("size.height")] = None,
    width: Annotated[int | None, _setting("size.width")] = None,
    guidance_scale: Annotated[float | None, _setting("guidance.guidance_scale")] = None,
    reference_guidance_scale: Annotated[float | None, _setting("guidance.reference_guidance_scale")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
    _help_all: Annotated[bool, make_help_all(Settings)] = False,
) -> None:
    """Plan how a model fits a card, without loading it."""
    from sememe.workflows.plan import plan_memory
    from sememe.workflows.systems import find_model

    system = find_model(model)
    flags = {
        "size.num_frames": num_frames,
        "size.height": height,
        "size.width": width,
        "guidance.guidance_scale": guidance_scale,
        "guidance.reference_guidance_scale": reference_guidance_scale,
        "loading.vram": vram,
    }
    settings, loading = read_overrides(system.settings, flags, overrides)
    numbers = {"num_references": num_references, "num_negative_references": num_negative_references}
    given = {name: number for name, number in numbers.items() if number is not None}
    document = plan_memory(system, model, loading, settings | given).to_document()
    if as_json:
        echo_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    references = f", {document['num_references']} reference(s)" if "num_references" in document else ""
    typer.echo(
        f"{document['model']}, {document['width']}x{document['height']}, {document['num_frames']} frames{references}, "
        f"on {document['vram_gb']:g} GB: {document['label']}"
    )
    for name in ("dtype", "storage", "offload", "text_keys", "vae_tiling", "host_memory"):
        value = document[name]
        typer.echo(f"    {name:<14}{'-' if value is None else str(value).lower()}")
    typer.echo(f"    {'peak':<14}{document['peak_gb']:g} GB")
    for name, phase in document["phases_gb"].items():
        typer.echo(f"      {name:<12}weights {phase['weights']:g} GB, tensors {phase['tensors']:g} GB")
    for line in document["why"]:
        typer.echo(f"  - {line}")
