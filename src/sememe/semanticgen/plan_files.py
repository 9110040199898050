"""Plans of videos, and edits and pictures of plans, from files to files. Imports no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sememe.errors import OutputError
from sememe.files import check_writable
from sememe.semanticgen.plan import Plan, draw_plan
from sememe.semanticgen.settings import Settings
from sememe.video import read_clip, write_image

PLAN_SUFFIX = ".plan"


def edit_plans(paths: Sequence[Path], edit: Callable[..., Plan], output: Path) -> Plan:
    """Edit plans from files, write the result, and return it.

    Args:
        paths: Files, in the order in which the edit takes their plans.
        edit: Function of `semanticgen.plan_edits`, with all but the plans given.
        output: File to write; it ends in .plan.

    Raises:
        PlanError: A file cannot be used, or not be edited so.
        OutputError: The file has another ending, or cannot be written.
    """
    check_plan_name(output)
    plan = edit(*map(Plan.load, paths))
    plan.save(output)
    return plan


def check_plan_name(output: Path) -> None:
    """Raise `OutputError` for a name that does not end in .plan, or where no file can be written."""
    if output.suffix != PLAN_SUFFIX:
        raise OutputError(f"expected a name for the plan that ends in {PLAN_SUFFIX}, got {output}")
    check_writable(output)


def encode_plan(pipeline: Any, video: Path, output: Path, settings: Settings) -> Plan:
    """Write the plan of a video file, and return it: the plan that a generation makes of this file as its source.

    Args:
        pipeline: The `SemanticGenPipeline` whose encoder and compressor plan.
        video: Video file of any size and rate, which is cropped to the shape of the results.
        output: File to write; it ends in .plan.
        settings: Settings with the size of the results.

    Raises:
        VideoError: The video cannot be read.
        OutputError: The file has another ending, or cannot be written.
    """
    check_plan_name(output)
    clip = read_clip(video, size=(settings.size.height, settings.size.width))
    (plan,) = pipeline.encode_plan(clip, settings)
    plan.save(output)
    return plan


def show_plan(path: Path, output: Path, clip: Path | None = None) -> Plan:
    """Draw a plan as a picture file, above the frames of a clip where one is given, and return it.

    Raises:
        PlanError: The file cannot be used.
        VideoError: The clip cannot be read.
        OutputError: The picture cannot be written.
    """
    plan = Plan.load(path)
    write_image(draw_plan(plan, None if clip is None else read_clip(clip)), output)
    return plan
