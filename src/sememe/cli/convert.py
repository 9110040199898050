"""`sememe convert`: from the layout of the released models to ours and back."""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json, show_progress


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
