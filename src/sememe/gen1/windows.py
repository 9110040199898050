"""Long clips by overlapping windows, whose predictions are blended at every step.

The paper predicts 8 frames at once and does not say how longer clips are made. Here all windows share the latents of
the clip: each step predicts window after window and blends where they overlap, so nothing is encoded twice and there
is no seam. Memory is that of one window. Where one window covers a frame, its prediction is taken as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sememe.errors import InputError


@dataclass(frozen=True)
class Window:
    """A run of frames, and the weight of its prediction at each.

    Attributes:
        start: First frame.
        weights: Weight at each frame; those of all windows add up to 1 at every frame.
    """

    start: int
    weights: tuple[float, ...]

    @property
    def frames(self) -> slice:
        """Where the window is in the clip."""
        return slice(self.start, self.start + len(self.weights))


def make_windows(num_frames: int, window_frames: int, overlap: int) -> tuple[Window, ...]:
    """Cover a clip with windows of one length.

    The last window ends with the clip, so it may overlap more with the one before. Weights fall off linearly from the
    middle of a window to its ends.

    Args:
        num_frames: Frames of the clip.
        window_frames: Frames of a window.
        overlap: Frames that neighbours share, fewer than a window has.

    Raises:
        InputError: The overlap is negative, or not below the length of a window.
    """
    if not 0 <= overlap < window_frames:
        raise InputError(f"expected window_overlap below the {window_frames} frames of a window, got {overlap}")
    if num_frames <= window_frames:
        return (Window(0, (1.0,) * num_frames),)
    last = num_frames - window_frames
    starts = [*range(0, last, window_frames - overlap), last]
    tent = [min(place, window_frames - 1 - place) + 1.0 for place in range(window_frames)]
    totals = [0.0] * num_frames
    for start in starts:
        for place, weight in enumerate(tent):
            totals[start + place] += weight
    shares = [tuple(weight / totals[start + place] for place, weight in enumerate(tent)) for start in starts]
    return tuple(Window(start, weights) for start, weights in zip(starts, shares, strict=True))


def predict_windows(windows: tuple[Window, ...], predict: Callable[[slice], Tensor], num_frames: int) -> Tensor:
    """Blend the predictions of windows, (batch, channel, frame, height, width), to that of a clip of so many frames."""
    if len(windows) == 1:
        return predict(windows[0].frames)
    total: Tensor | None = None
    for window in windows:
        predicted = predict(window.frames)
        if total is None:
            batch, channels, _, *grid = predicted.shape
            total = predicted.new_zeros(batch, channels, num_frames, *grid)
        total[:, :, window.frames] += predicted * predicted.new_tensor(window.weights).view(-1, 1, 1)
    assert total is not None, "there is at least one window"
    return total
