"""`sememe check-parity`: does a model compute what the official implementation computes?"""

from pathlib import Path
from typing import Annotated

import typer

from sememe.cli.console import echo_json


def check_parity(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of parity vectors.")],
) -> None:
    """Compare a model with results of the official implementation; exits with 1 if they differ."""
    from sememe.video_as_prompt.parity import check_parity as check

    result = check(folder)
    echo_json(result.to_document(), indent=None)
    if not result.ok:
        raise typer.Exit(1)
