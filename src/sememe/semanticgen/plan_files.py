"""Edits and pictures of plans, from files to files. Imports no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sememe.errors import OutputError
from sememe.semanticgen.plan import Plan
from sememe.semanticgen.plan_picture import draw_plan
from sememe.video import read_clip, write_image

PLAN_SUFFIX = ".plan"


def edit_plans(paths: Sequence[Path], edit: Callable[..., Plan], output: Path) -> Plan:
    """Write what an edit makes of plan files, and return it.

    Args:
        paths: Files, in the order in which the edit takes their plans.
        edit: Function of `semanticgen.plan_edits`, with all but the plans given.
        output: File to write; it ends in .plan.

    Raises:
        PlanError: A file cannot be used, or not be edited so.
        OutputError: The file has another ending, or cannot be written.
    """
    if output.suffix != PLAN_SUFFIX:
        raise OutputError(f"expected a name for the plan that ends in {PLAN_SUFFIX}, got {output}")
    plan = edit(*map(Plan.load, paths))
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
