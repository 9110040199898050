"""Pictures of plans: the first three principal components of their features as colours."""

import numpy as np
from jaxtyping import UInt8

from sememe.semanticgen.plan import Plan
from sememe.video import Clip, SheetRow, contact_sheet

_MOST_COLUMNS = 16
_SPREAD = 2.5  # standard deviations from the middle to the end of a colour's range


def colour_plan(plan: Plan) -> UInt8[np.ndarray, "slice row column 3"]:
    """Return a colour for each token: red, green and blue are the first three principal components.

    Tokens of equal features have equal colours; colours of different plans cannot be compared.
    """
    rows = plan.features.reshape(-1, plan.features.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions[:3]
    # Singular vectors have no sign of their own: the largest entry of each is made positive.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    values = rows @ (directions * np.sign(largest)).T
    values = values / np.maximum(values.std(axis=0), 1e-9 * max(float(np.abs(rows).max()), 1e-30))
    colours = np.full((len(rows), 3), 127.5)
    colours[:, : values.shape[1]] += values * (127.5 / _SPREAD)
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8).reshape(*plan.features.shape[:3], 3)


def draw_plan(plan: Plan, clip: Clip | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the slices of a plan in a row, at most 16 of them, above the frames at their centres.

    Args:
        plan: Plan to draw.
        clip: Video of the plan, or one made from it; None for the plan alone.
    """
    columns = min(plan.num_slices, _MOST_COLUMNS)
    size = f"{plan.num_slices} slices of {plan.slice_seconds:g} s"
    rows = [SheetRow(f"plan: {size}", Clip(colour_plan(plan), 1.0 / plan.slice_seconds))]
    if clip is not None:
        frames = np.minimum((plan.times * clip.fps).astype(int), clip.num_frames - 1)
        rows.append(SheetRow("frames", Clip(clip.frames[frames], 1.0 / plan.slice_seconds)))
    return contact_sheet(rows, columns=columns)
