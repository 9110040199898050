"""`sememe world ...`: the procedural world on the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.errors import InputError


def _of_clip(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="One clip")


def _of_dataset(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="A dataset")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.command("conditions")(list_conditions)
    group.command("render")(render)
    group.command("gallery")(gallery)
    app.add_typer(group, name="world", help="The procedural world that built-in models are trained and measured on.")


def list_conditions(
    family: Annotated[str | None, typer.Option(help="concept, style, motion or camera.")] = None,
    split: Annotated[str | None, typer.Option(help="seen, unseen or novel.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the conditions that the world can show."""
    from sememe.world.catalogue import conditions, parts_of

    rows = []
    for name in conditions(family=family, split=split):
        parts = parts_of(name)
        rows.append(
            {
                "name": name,
                "family": "+".join(part.family for part in parts),
                "split": parts[0].split if len(parts) == 1 else "novel",
                "phrase": " and ".join(part.phrase for part in parts),
            }
        )
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:28} {row['family']:16} {row['split']:7} {row['phrase']}")


def render(
    condition: Annotated[
        list[str] | None,
        typer.Argument(help="Conditions to apply at once (see `sememe world conditions`); none for a neutral clip."),
    ] = None,
    output: Annotated[Path | None, _of_clip("Video to write.", "--output", "-o")] = None,
    scene: Annotated[int, _of_clip("Seed of the scene, 0 or more.")] = 0,
    dataset: Annotated[Path | None, _of_dataset("Folder to write a whole dataset to, in VAP-Data's layout.")] = None,
    num_clips: Annotated[int | None, _of_dataset("Training clips; 400 if left out.")] = None,
    split: Annotated[str | None, _of_dataset("Conditions of the clips: seen, unseen or all; seen if left out.")] = None,
    num_benchmark: Annotated[int | None, _of_dataset("Pairs of unseen conditions; one for each if left out.")] = None,
    seed: Annotated[int | None, _of_dataset("Seed of the scenes; 0 if left out.")] = None,
    size: Annotated[str, typer.Option(help="Pixels: a side such as 64, or HEIGHTxWIDTH.")] = "64",
    num_frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 17,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Render one clip, or a whole dataset."""
    from sememe.workflows.world import DatasetSettings, Shape, parse_size, render_world_clip, write_world_dataset

    if (output is None) == (dataset is None):
        raise InputError("expected either --output for one clip or --dataset for a folder of clips; give one of them")
    height, width = parse_size(size)
    shape = Shape(height=height, width=width, num_frames=num_frames, fps=fps)
    if output is not None:
        given = {"--num-clips": num_clips, "--split": split, "--num-benchmark": num_benchmark, "--seed": seed}
        _refuse(given, "with --output; it is for --dataset")
        shot = render_world_clip(condition or [], scene, output, shape)
        record = {"output": str(output), "scene": scene, "caption": shot.caption, "full_caption": shot.full_caption}
        _tell(record, f"{output}: {shot.full_caption}", as_json=as_json)
        return
    assert dataset is not None
    _refuse({"a condition": condition or None, "--scene": scene or None}, "with --dataset; it is for --output")
    settings = DatasetSettings(
        folder=dataset,
        num_clips=400 if num_clips is None else num_clips,
        split=None if split == "all" else split or "seen",
        num_benchmark=num_benchmark,
        seed=seed or 0,
        shape=shape,
    )
    with show_progress() as on_progress:
        written = write_world_dataset(settings, on_progress)
    counts = {"folder": str(dataset), "num_clips": len(written.samples), "num_benchmark": len(written.benchmark)}
    summary = f"{dataset}: {len(written.samples)} clips, {len(written.benchmark)} pairs in the benchmark"
    _tell(counts, summary, as_json=as_json)


def gallery(
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")] = Path("world_gallery.png"),
) -> None:
    """Draw all conditions in one picture."""
    from sememe.workflows.world import write_gallery

    with show_progress() as on_progress:
        write_gallery(output, on_progress)
    typer.echo(str(output))


def _refuse(given: Mapping[str, object], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} has no effect {why}")


def _tell(document: dict[str, object], line: str, *, as_json: bool) -> None:
    if as_json:
        echo_json(document)
    else:
        typer.echo(line)
