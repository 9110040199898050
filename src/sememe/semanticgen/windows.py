"""Temporal windows that hold latents and the semantic tokens of the same time (arXiv 2512.20619, section 3.4).

Tokens are put in order of time, half a window after the other, so that every window is a contiguous range of tokens
in even layers, whose windows begin at multiples of the window's length, and in odd ones, which are shifted by half a
window. Attention in windows is then a reshape of tokens into the batch; no mask is built and no token is padded.

The paper does not say how windows end. Here nothing wraps around: in odd layers the first half window stands alone,
and the last window of any layer holds what is left, in a last half that may be up to twice as long as others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sememe.errors import InputError
from sememe.semanticgen.clocks import LatentClock, Times
from sememe.semanticgen.shapes import Positions, Tokens

_ROUNDING = 1e-6  # in half windows and in seconds


@dataclass(frozen=True)
class WindowRun:
    """Consecutive windows of equal size.

    Attributes:
        start: First token.
        num_windows: Number of windows.
        size: Tokens per window.
    """

    start: int
    num_windows: int
    size: int

    def split(self, tokens: Shaped[Tensor, "batch token *rest"]) -> Shaped[Tensor, "batch_window size *rest"]:
        """Move windows into the batch."""
        part = tokens[:, self.start : self.start + self.num_windows * self.size]
        return part.unflatten(1, (self.num_windows, self.size)).flatten(0, 1)

    def join(self, windows: Shaped[Tensor, "batch_window size *rest"]) -> Shaped[Tensor, "batch run_token *rest"]:
        """Invert `split`; without the tokens that are in no window of the run."""
        return windows.unflatten(0, (-1, self.num_windows)).flatten(1, 2)


@dataclass(frozen=True)
class Piece:
    """Latent frames and slices that no boundary of windows or segments divides; its latents stand first.

    Attributes:
        half_window: Half window that it lies in, counted from 0.
        segment: Segment that it lies in, counted from 0.
        latents: First latent frame, and the one after the last.
        slices: First slice, and the one after the last.
    """

    half_window: int
    segment: int
    latents: tuple[int, int]
    slices: tuple[int, int]

    def window(self, layer: int) -> int:
        """Return the window that it lies in at a layer, counted from 0."""
        return (self.half_window + layer % 2) // 2


@dataclass(frozen=True)
class WindowLayout:
    """Order of the tokens of a video, and the windows in which they attend; see `make_layout`.

    Attributes:
        pieces: Parts of the video in order of time.
        latent_grid: Rows and columns of tokens per latent frame.
        slice_grid: Rows and columns of tokens per slice; zeros without semantic tokens.
        latent_positions: Position of each latent frame.
        slice_positions: Position of each slice among the latent frames.
        num_segments: Number of texts.
    """

    pieces: tuple[Piece, ...]
    latent_grid: tuple[int, int]
    slice_grid: tuple[int, int]
    latent_positions: tuple[float, ...]
    slice_positions: tuple[float, ...]
    num_segments: int

    def join(self, first: int, last: int) -> Piece:
        """Return consecutive half windows as one piece: all their latent frames and slices."""
        kept = [piece for piece in self.pieces if first <= piece.half_window <= last]
        assert kept, (first, last)
        start, end = kept[0], kept[-1]
        return Piece(
            start.half_window,
            start.segment,
            latents=(start.latents[0], end.latents[1]),
            slices=(start.slices[0], end.slices[1]),
        )

    def cut(self, first: int, last: int) -> "WindowLayout":
        """Return the layout of some consecutive half windows alone; windows and positions stay as they are."""
        whole = self.join(first, last)
        pieces = tuple(
            replace(
                piece,
                latents=(piece.latents[0] - whole.latents[0], piece.latents[1] - whole.latents[0]),
                slices=(piece.slices[0] - whole.slices[0], piece.slices[1] - whole.slices[0]),
            )
            for piece in self.pieces
            if first <= piece.half_window <= last
        )
        return replace(
            self,
            pieces=pieces,
            latent_positions=self.latent_positions[slice(*whole.latents)],
            slice_positions=self.slice_positions[slice(*whole.slices)],
        )

    def count_tokens(self, piece: Piece) -> tuple[int, int]:
        """Return the numbers of latent and of semantic tokens of a piece."""
        grids = ((piece.latents, self.latent_grid), (piece.slices, self.slice_grid))
        latents, slices = ((stop - start) * rows * columns for (start, stop), (rows, columns) in grids)
        return latents, slices

    def windows(self, layer: int) -> list[tuple[Piece, ...]]:
        """Return the pieces of each window of a layer."""
        return [tuple(pieces) for _, pieces in groupby(self.pieces, lambda piece: piece.window(layer))]

    def runs(self, layer: int) -> tuple[WindowRun, ...]:
        """Return the windows of a layer, those of equal size that follow one another together."""
        sizes = [sum(sum(self.count_tokens(piece)) for piece in window) for window in self.windows(layer)]
        runs, start = [], 0
        for size, equals in groupby(sizes):
            count = len(list(equals))
            runs.append(WindowRun(start, count, size))
            start += count * size
        return tuple(runs)

    def text_lengths(self, pieces: Iterable[Piece]) -> tuple[int, ...]:
        """Return how many tokens of consecutive pieces read each text."""
        lengths = [0] * self.num_segments
        for piece in pieces:
            lengths[piece.segment] += sum(self.count_tokens(piece))
        return tuple(lengths)

    def kinds(self, pieces: Iterable[Piece]) -> Int[Tensor, " token"]:
        """Return the kind of each token of consecutive pieces: 0 for latents, 1 for semantic tokens."""
        counts = torch.tensor([self.count_tokens(piece) for piece in pieces]).flatten()
        return torch.tensor([0, 1]).repeat(len(counts) // 2).repeat_interleave(counts)

    def positions(self, pieces: Iterable[Piece]) -> Positions:
        """Return time, row and column of each token of consecutive pieces, in latent frames and latent tokens.

        Semantic tokens stand at the centre of the area and of the time that they cover.
        """
        parts = []
        for piece in pieces:
            parts.append(_spread(self.latent_positions[slice(*piece.latents)], self.latent_grid, self.latent_grid))
            parts.append(_spread(self.slice_positions[slice(*piece.slices)], self.slice_grid, self.latent_grid))
        return torch.cat(parts)

    def order(
        self, latents: Tokens, semantic: Float[Tensor, "batch semantic_token dim"] | None
    ) -> Float[Tensor, "batch joined_token dim"]:
        """Put tokens in the layout's order.

        Args:
            latents: Frame after frame.
            semantic: Slice after slice; None without semantic tokens.
        """
        parts = []
        for piece in self.pieces:
            parts.append(_take(latents, piece.latents, self.latent_grid))
            if semantic is not None:
                parts.append(_take(semantic, piece.slices, self.slice_grid))
        return torch.cat(parts, dim=1)

    def pick_latents(self, tokens: Float[Tensor, "batch joined_token dim"]) -> Tokens:
        """Return the latents' tokens of a video in order, frame after frame."""
        parts, start = [], 0
        for piece in self.pieces:
            num_latents, num_semantic = self.count_tokens(piece)
            parts.append(tokens[:, start : start + num_latents])
            start += num_latents + num_semantic
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class SliceShape:
    """Semantic features that go with latents.

    Attributes:
        times: Centres of the slices in seconds.
        rows: Rows of tokens.
        columns: Columns of tokens.
    """

    times: Times
    rows: int
    columns: int


def make_layout(
    clock: LatentClock,
    latent_shape: tuple[int, int, int],
    slices: SliceShape | None = None,
    *,
    window_seconds: float | None = None,
    segment_ends: Sequence[float] = (),
) -> WindowLayout:
    """Lay out the tokens of a video.

    A latent frame or slice belongs to the window and segment that its centre lies in. What is left at the end and does
    not fill half a window joins the half before it: no training meets a window with a single latent frame.

    Args:
        clock: Times of the latent frames.
        latent_shape: Latent frames, rows and columns of tokens.
        slices: Semantic tokens; None without any.
        window_seconds: Length of a window; None for full attention. The paper does not give it.
        segment_ends: Seconds at which one text ends and the next begins, rising; empty for one text. The first
            segment begins and the last one ends with the video. A segment that holds no centre of a latent frame or
            slice has no effect.

    Raises:
        InputError: `window_seconds` is not above 0, or `segment_ends` do not rise.
    """
    if window_seconds is not None and not 0 < window_seconds < np.inf:
        raise InputError(f"expected window_seconds above 0, got {window_seconds}")
    ends = np.asarray(segment_ends, dtype=np.float64)
    if ends.size and not (ends[0] > 0 and np.isfinite(ends).all() and (np.diff(ends) > 0).all()):
        raise InputError(f"expected ends of segments as rising seconds above 0, got {list(segment_ends)}")
    num_frames, *grid = latent_shape
    slice_times = np.zeros(0) if slices is None else slices.times
    latent_times = clock.times(num_frames)
    end = clock.end(num_frames)
    marks = [_mark(times, end, window_seconds, segment_ends) for times in (latent_times, slice_times)]
    latent_stops, slice_stops = ({key: stop for stop, key in enumerate(keys, 1)} for keys in marks)
    pieces, latent, piece_slice = [], 0, 0
    for key in sorted(latent_stops.keys() | slice_stops.keys()):
        next_latent, next_slice = latent_stops.get(key, latent), slice_stops.get(key, piece_slice)
        pieces.append(Piece(*key, (latent, next_latent), (piece_slice, next_slice)))
        latent, piece_slice = next_latent, next_slice
    return WindowLayout(
        pieces=tuple(pieces),
        latent_grid=(grid[0], grid[1]),
        slice_grid=(0, 0) if slices is None else (slices.rows, slices.columns),
        latent_positions=tuple(clock.positions(latent_times).tolist()),
        slice_positions=tuple(clock.positions(slice_times).tolist()),
        num_segments=len(ends) + 1,
    )


def find_segments(segment_ends: Sequence[float], times: Times) -> Int[np.ndarray, " moment"]:
    """Return which segment each moment lies in, counted from 0.

    Args:
        segment_ends: Seconds at which one segment ends and the next begins, as in `make_layout`.
        times: Moments in seconds.
    """
    return np.searchsorted(segment_ends, times + _ROUNDING, side="right")


def _mark(times: Times, end: float, window_seconds: float | None, ends: Sequence[float]) -> list[tuple[int, int]]:
    """Return half window and segment of each moment of a video that ends at `end`; both rise with time."""
    if window_seconds is None:
        half = np.zeros(len(times))
    else:
        num_full = max(1, int(2 * end / window_seconds + _ROUNDING))
        half = np.minimum(np.floor(2 * times / window_seconds + _ROUNDING), num_full - 1)
    segments = find_segments(ends, times)
    return list(zip(half.astype(int).tolist(), segments.tolist(), strict=True))


def _take(tokens: Tensor, frames: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    size = grid[0] * grid[1]
    return tokens[:, frames[0] * size : frames[1] * size]


def _spread(times: Sequence[float], grid: tuple[int, int], over: tuple[int, int]) -> Positions:
    """Return the positions of the tokens of frames, whose grid covers the same area as the grid `over`."""
    areas = [
        (np.arange(count) + 0.5) * (extent / max(count, 1)) - 0.5 for count, extent in zip(grid, over, strict=True)
    ]
    axes = [torch.as_tensor(axis, dtype=torch.float64) for axis in (times, *areas)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
