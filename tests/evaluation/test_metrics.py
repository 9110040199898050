"""Metrics against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sememe.errors import InputError
from sememe.evaluation.metrics import PSNR_LIMIT, psnr, ssim
from sememe.video import Clip


def flat(*levels: int, size: int = 8) -> Clip:
    return Clip(np.stack([np.full((size, size, 3), level, np.uint8) for level in levels]), 8)


def noise(seed: int, size: int = 12) -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 256, (3, size, size, 3), dtype=np.uint8), 8)


def test_psnr_of_a_known_error() -> None:
    assert psnr(flat(0, 51, 51), flat(0, 0, 0)) == pytest.approx(-10 * math.log10(0.04), abs=1e-4)
    assert psnr(flat(0, 255), flat(0, 0)) == pytest.approx(0, abs=1e-6)
    assert psnr(flat(3, 4), flat(3, 4)) == PSNR_LIMIT


def test_psnr_leaves_the_first_frame_out() -> None:
    assert psnr(flat(255, 7), flat(0, 7)) == PSNR_LIMIT
    assert psnr(flat(255, 7), flat(0, 7), skip_first=False) == pytest.approx(-10 * math.log10(0.5))
    assert psnr(flat(255), flat(0)) == pytest.approx(0), "the only frame counts"


@given(st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_ssim_of_flat_clips(first: int, second: int) -> None:
    """Without variance only the luminance term is left."""
    a, b, c = first / 255, second / 255, 0.01**2
    assert ssim(flat(0, first), flat(0, second)) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-6)


def test_ssim_of_equal_and_of_opposite_clips() -> None:
    clip = noise(1)
    assert ssim(clip, clip) == pytest.approx(1)
    opposite = Clip(255 - clip.frames, 8)
    assert ssim(clip, opposite) < -0.5
    assert ssim(clip, opposite) == pytest.approx(ssim(opposite, clip))


def test_ssim_of_one_window() -> None:
    """A picture of 7x7 has a single window: the formula by hand."""
    first, second = noise(2, size=7), noise(3, size=7)
    expected = []
    for frame in (1, 2):
        for channel in range(3):
            x, y = first.frames[frame, ..., channel] / 255, second.frames[frame, ..., channel] / 255
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            luminance = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
            expected.append(luminance * (2 * covariance + 9e-4) / (x.var() + y.var() + 9e-4))
    assert ssim(first, second) == pytest.approx(np.mean(expected), abs=1e-6)


def test_wrong_input() -> None:
    for metric in (psnr, ssim):
        with pytest.raises(InputError, match="one shape"):
            metric(flat(0, 0), flat(0, 0, 0))
    with pytest.raises(InputError, match="at least 7 pixels"):
        ssim(flat(0, 0, size=6), flat(0, 0, size=6))
