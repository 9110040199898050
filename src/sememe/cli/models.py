"""`sememe models`: what there is to load, and how it fits a card."""

from typing import Annotated, Any

import typer

from sememe.cli.console import echo_json

_PLAN = "Memory plan"


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("models")(list_models)


def list_models(
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan for this model: wan-14b, cogvideox-5b, their names on the hub, a built-in name, or a folder.",
            metavar="MODEL",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    vram: Annotated[float | None, typer.Option(help="GB of the card.", metavar="GB", rich_help_panel=_PLAN)] = None,
    height: Annotated[
        int | None, typer.Option(help="Pixels; the model's own if not given.", rich_help_panel=_PLAN)
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, the same.", rich_help_panel=_PLAN)] = None,
    num_frames: Annotated[int | None, typer.Option(help="Of the result, the same.", rich_help_panel=_PLAN)] = None,
    num_references: Annotated[
        int | None, typer.Option(help="Videos that are read; 1 if not given.", rich_help_panel=_PLAN)
    ] = None,
    num_reference_frames: Annotated[
        int | None, typer.Option(help="Of each, if not as many as the result has.", rich_help_panel=_PLAN)
    ] = None,
    num_negative_references: Annotated[
        int | None, typer.Option(help="Videos to lead away from.", rich_help_panel=_PLAN)
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Of the text, the model's own if not given.", rich_help_panel=_PLAN)
    ] = None,
    reference_guidance_scale: Annotated[
        float | None, typer.Option(help="Of the reference, the same.", rich_help_panel=_PLAN)
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option(
            help="Folder of an expert, for a stock model that has none.", metavar="FOLDER", rich_help_panel=_PLAN
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Only this precision: float32, bfloat16 or float16.", rich_help_panel=_PLAN),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="With weights stored as fp8, int8wo, nf4 ... (approximate).", metavar="KIND", rich_help_panel=_PLAN
        ),
    ] = None,
    compiles: Annotated[
        bool, typer.Option("--compile", help="With compiled blocks, which not all ways allow.", rich_help_panel=_PLAN)
    ] = False,
    reference_downscale: Annotated[
        int | None, typer.Option(help="References are smaller than the result by this.", rich_help_panel=_PLAN)
    ] = None,
    text_keys: Annotated[
        str | None,
        typer.Option(help="Only kept, or only recomputed, over the steps.", metavar="WAY", rich_help_panel=_PLAN),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that come with the package, or plan how one fits a card."""
    from sememe.errors import InputError

    if (plan is None) != (vram is None):
        raise InputError("expected --plan MODEL and --vram GB together, got one of them")
    wanted: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "num_references": num_references,
        "num_reference_frames": num_reference_frames,
        "num_negative_references": num_negative_references,
        "reference_downscale": reference_downscale,
        "text_keys": text_keys,
        "dtype": dtype,
        "storage": storage,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    if plan is None or vram is None:
        scales = {"guidance_scale": guidance_scale, "reference_guidance_scale": reference_guidance_scale}
        others = scales | {"expert": expert, "compile": compiles or None}
        _check_idle([*given, *(name for name, value in others.items() if value is not None)])
        _list(as_json)
        return
    from sememe.workflows.model_memory import Guided
    from sememe.workflows.plan import PlanRequest, plan_document, plan_memory

    request = PlanRequest(
        vram=vram, compiles=compiles, guided=Guided(guidance_scale, reference_guidance_scale), **given
    )
    document = plan_document(plan_memory(plan, request, expert))
    if as_json:
        echo_json(document)
    else:
        _tell_plan(document)


def _check_idle(names: list[str]) -> None:
    """Refuses options that have an effect on a plan only."""
    from sememe.errors import InputError

    if names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise InputError(f"expected --plan MODEL and --vram GB with {flags}, got neither; say both")


def _tell_plan(document: dict[str, Any]) -> None:
    typer.echo(
        f"{document['model']}, {document['width']}x{document['height']}, {document['num_frames']} frames, "
        f"{document['num_references']} reference(s), on {document['vram_gb']:g} GB: {document['label']}"
    )
    for name in ("dtype", "storage", "offload", "texts", "text_keys", "resting", "vae_tiling", "host_memory"):
        typer.echo(f"    {name:<22}{_tell(document[name])}")
    typer.echo(f"    {'peak':<22}{document['peak_gb']:g} GB")
    for name, size in document["parts_gb"].items():
        typer.echo(f"      {name:<20}{size:g} GB")
    typer.echo(f"    {'host memory':<22}{document['host_gb']:g} GB")
    for line in document["why"]:
        typer.echo(f"  - {line}")


def _tell(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)


def _list(as_json: bool) -> None:
    from sememe.workflows.model_list import list_built_in_models

    models = list_built_in_models()
    if as_json:
        echo_json(models)
        return
    for model in models:
        size = f"{model['width']}x{model['height']}, {model['num_frames']} frames"
        typer.echo(f"{model['name']}  ({model['system']}; {size}; {model['num_parameters'] / 1e6:.1f} M parameters)")
        typer.echo(f"    {model['description']}")
        typer.echo(f"    license {model['license']}; source: {model['source']}")
    if not models:
        typer.echo("no model comes with this installation; give --model a folder", err=True)
