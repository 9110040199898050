"""Conditions one after another: no cut where a span begins, and what lasts or passes."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from sememe.errors import InputError
from sememe.world import (
    RenderedScript,
    can_follow,
    conditions,
    iter_script,
    random_scene,
    render,
    render_script,
    scripts,
)
from sememe.world.blending import Act, perform
from sememe.world.catalogue import condition
from sememe.world.renderer import film
from sememe.world.scripts import PASSING
from sememe.world.stage import build_stage
from sememe.world.stories import ANCHORED, BENT, BROKEN, CLOSING

DRAWN = random_scene(41)
PHOTOGRAPH = next(scene for scene in map(random_scene, range(99)) if scene.subject is None)
# Their pieces and copies touch along soft edges: hairlines may show from the very start.
WITH_SEAMS = {"explode", "lose_head", "multiply", "shatter", "slice_bands", "split_halves"}
# Older versions of OpenCV warp by 32nds of a pixel.
WARPS_EXACTLY = int(cv2.__version__.split(".")[0]) >= 5


def act(name: str, progress: float) -> Act:
    return Act(condition(name), np.array([progress], np.float32), np.ones(1, np.float32))


def same(first: RenderedScript, second: RenderedScript) -> bool:
    pairs = ((first.clip.frames, second.clip.frames), (first.depth, second.depth), (first.mask, second.mask))
    return all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", [None, "jump", "explode", "snow", "glitch", "orbit_left", "melt+zoom_in"])
def test_a_script_of_one_span_is_a_render(name: str | None) -> None:
    for num_frames, size in ((17, 64), (6, (32, 48))):
        script = render_script(DRAWN, [(name, num_frames / 8)], size=size)
        shot = render(DRAWN, name, num_frames=num_frames, size=size)
        assert np.array_equal(script.clip.frames, shot.clip.frames)
        assert np.array_equal(script.depth, shot.depth)
        assert np.array_equal(script.mask, shot.mask)
        assert (script.caption, script.full_caption) == (shot.caption, shot.full_caption)


def test_every_condition_begins_from_the_state_of_the_one_before() -> None:
    """The film itself starts there, so that repeating the last frame hides nothing."""
    stage = build_stage(DRAWN, 32, 32)
    names = conditions()
    for before, name in zip(names, names[40:] + names[:40], strict=True):
        if can_follow([before], name):
            last = film(perform(stage, 1, [act(before, 1)])).frames.astype(int)
            first = film(perform(stage, 1, [act(before, 1), act(name, 0)])).frames.astype(int)
            limit = 8 if name in WITH_SEAMS else 0.01 if WARPS_EXACTLY else 0.02
            assert np.abs(first - last).mean() < limit, (before, name)


@pytest.mark.parametrize(
    "before", ["walk_left", "melt", "circle", "pan_left", "turn_round", "shatter", "fade_to_black"]
)
def test_what_ends_is_eased_away(before: str) -> None:
    """No frame differs from the one before by more than frames do while the condition itself is at work."""
    shot = render_script(DRAWN, [(before, 1.0), (None, 1.0)], size=32)
    frames = shot.clip.frames.astype(int)
    assert np.array_equal(frames[8], frames[7])
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert steps[8:].max() < 2.5 * steps[:7].max()
    assert np.array_equal(frames[-1], frames[0]), "nothing is left of it in the end"


def test_what_lasts_and_what_passes() -> None:
    def last(*names: str | None) -> np.ndarray:
        return render_script(DRAWN, [(name, 1.0) for name in names]).clip.frames[-1]

    def end(name: str) -> np.ndarray:
        return render(DRAWN, name, num_frames=8).clip.frames[-1]

    assert np.array_equal(last("jump", "night"), end("night")), "a jump passes"
    assert np.array_equal(last("zoom_in", "night"), end("zoom_in+night")), "a zoom lasts"
    assert np.array_equal(last("zoom_in", "night", "pan_left"), end("night+pan_left")), "until the next of its family"
    assert np.array_equal(last("zoom_in", "night", None), render(DRAWN, None).clip.frames[0]), (
        "or until nothing happens"
    )


def test_weather_goes_on_and_motion_stops() -> None:
    snow = render_script(DRAWN, [("snow", 1.0), ("zoom_in", 2.0)]).clip.frames
    assert not np.array_equal(snow[-1], snow[-2])
    topple = render_script(DRAWN, [("topple_left", 1.0), ("night", 2.0)]).clip.frames
    assert np.array_equal(topple[-1], topple[-2])


def test_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [("glitch", 1.5), ("jump+snow", 2.0), ("walk_left", 2.0)]
    whole = render_script(DRAWN, spans, size=32)
    monkeypatch.setattr(scripts, "_PIXELS_AT_ONCE", 5 * 32 * 32)
    parts = list(iter_script(DRAWN, spans, size=32))
    assert [part.clip.num_frames for part in parts] == [4, 5, 3, 4, 5, 5, 2, 4, 5, 5, 2]
    assert np.array_equal(np.concatenate([part.clip.frames for part in parts]), whole.clip.frames)
    assert same(render_script(DRAWN, spans, size=32), whole)


def test_an_hour_comes_in_parts() -> None:
    parts = iter_script(DRAWN, [("jump", 1.0), ("sway", 3599.0)], size=32)
    assert [next(parts).clip.num_frames for _ in range(5)] == [4, 4, 4, 256, 256]


def test_captions_and_spans() -> None:
    shot = render_script(DRAWN, [("jump", 1.0), (None, 0.3), ("walk_left", 1.2)], size=16, fps=10)
    assert shot.full_caption == f"{shot.caption}; it hops twice, then nothing moves, then it walks off to the left"
    assert [(span.start, span.end, span.condition) for span in shot.spans] == [
        (0, 1, "jump"),
        (1, 1.3, None),
        (1.3, 2.5, "walk_left"),
    ]
    assert [span.caption.removeprefix(f"{shot.caption}; ") for span in shot.spans] == [
        "it hops twice",
        "nothing moves",
        "it walks off to the left",
    ]
    assert all(one.end == other.start for one, other in pairwise(shot.spans))
    assert shot.clip.num_frames == 25


def test_the_lists_name_conditions() -> None:
    assert set(conditions()) >= PASSING | CLOSING | ANCHORED | BROKEN | BENT


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([], "at least one span"),
        ([("jump", 1.0), ("jmup", 1.0)], "unknown condition 'jmup'; did you mean jump"),
        ([("jump", 0.0)], r"seconds above 0 for span 1 \(jump\), got 0.0"),
        ([("jump", 1.0), (None, -1.0)], r"seconds above 0 for span 2 \(None\), got -1.0"),
        ([("jump", float("nan"))], "seconds above 0"),
        ([("jump", 0.1)], r"two frames for span 1 \(jump\), got 0.1 seconds at 8 frames per second; give it 0.25"),
    ],
)
def test_wrong_spans(spans: list[tuple[str | None, float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        iter_script(DRAWN, spans)


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="whole photograph, got 'melt'"):
        render_script(PHOTOGRAPH, [("melt", 1.0)])
    with pytest.raises(InputError, match="frames per second above 0, got 0"):
        render_script(DRAWN, [("jump", 1.0)], fps=0)
    with pytest.raises(InputError, match="sides of 16"):
        render_script(DRAWN, [("jump", 1.0)], size=8)


def test_spans_may_be_skipped() -> None:
    spans = [("zoom_in", 1.0), ("circle", 1.0), ("night", 1.5)]
    whole = render_script(DRAWN, spans, size=32).clip.frames
    rest = np.concatenate([part.clip.frames for part in iter_script(DRAWN, spans, size=32, skip=2)])
    assert np.array_equal(rest, whole[16:])
