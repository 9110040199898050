"""Conditions are read back span by span."""

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.evaluation.span_oracle import read_spans
from sememe.video import Clip
from sememe.world import random_script, render_script

NAMES = ["jump", "zoom_in", "night", "turn_to_gold", "walk_left", "sway", "snow", "sketch", "melt", "pan_left"]


def test_true_renders_are_read_through_noise() -> None:
    for seed in range(10_000_000, 10_000_002):
        script = random_script(seed, seconds=6, names=NAMES)
        clip = render_script(script.scene, script.spans, size=32).clip
        noise = np.random.default_rng(seed).normal(0, 15, clip.frames.shape)
        noisy = Clip((clip.frames + noise).clip(0, 255).astype(np.uint8), clip.fps)
        seconds = [duration for _, duration in script.spans]
        for each in (clip, noisy):
            assert read_spans(each, script.scene, seconds, NAMES) == tuple(name for name, _ in script.spans)


def test_spans_must_fill_the_clip() -> None:
    script = random_script(3, seconds=3.5)
    clip = render_script(script.scene, script.spans, size=16).clip
    for seconds in ([2.0], [2.0, 2.0], [1.5, 1.5]):
        with pytest.raises(InputError, match=r"spans that together last as long as the clip, 3.5 seconds, got"):
            read_spans(clip, script.scene, seconds, ["jump"])
