"""Scripts that are drawn: deterministic, on their side of the split, and each span to be seen."""

import hashlib

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.world import EVALUATION_SEED, can_follow, random_scene, random_script, render_script
from sememe.world.scene import Backdrop


@pytest.mark.parametrize(("seed", "digest"), [(0, "43b9493ce955cca0"), (10_000_000, "5ce8e54e8920a2ad")])
def test_scripts_are_those_of_the_seed(seed: int, digest: str) -> None:
    assert hashlib.sha256(repr(random_script(seed)).encode()).hexdigest()[:16] == digest


def test_scripts_keep_the_rules() -> None:
    for first in (0, EVALUATION_SEED, 2 * EVALUATION_SEED):
        for seed in range(first, first + 8):
            script = random_script(seed, seconds=12.0)
            assert script.scene.seed // EVALUATION_SEED == seed // EVALUATION_SEED
            assert script.scene == random_scene(script.scene.seed)
            assert script.scene.subject is not None
            assert isinstance(script.scene.backdrop, Backdrop)
            assert sum(duration for _, duration in script.spans) == pytest.approx(12)
            assert all(1.25 <= duration <= 4.25 for _, duration in script.spans)
            names = [name for name, _ in script.spans]
            assert all(name is None or can_follow(names[:place], name) for place, name in enumerate(names))


def test_every_span_is_seen() -> None:
    """The picture changes by at least one of 255 levels on average while a condition unfolds."""
    for seed in range(EVALUATION_SEED, EVALUATION_SEED + 12):
        script = random_script(seed)
        shot = render_script(script.scene, script.spans, size=32)
        for span in shot.spans:
            frames = shot.clip.frames[round(span.start * 8) : round(span.end * 8)].astype(int)
            if span.condition is not None:
                assert np.abs(frames[1:] - frames[0]).mean() > 1, (seed, span)


@pytest.mark.parametrize(
    ("earlier", "name", "can"),
    [
        ([], "walk_left", True),
        (["walk_left"], "night", False),
        (["walk_left", None], "night", True),
        (["jump"], "jump", False),
        (["night"], "jump", True),
        (["night"], "turn_to_gold", False),
        (["glow"], "jump", False),
        (["zoom_in"], "glow", False),
        (["bob"], "glow", True),
        (["ripple"], "shatter", False),
        (["turn_to_gold"], "shatter", True),
        (["zoom_in", "jump"], "zoom_in", False),
        (["melt+zoom_in"], "night", False),
    ],
)
def test_can_follow(earlier: list[str | None], name: str, *, can: bool) -> None:
    assert can_follow(earlier, name) == can


def test_names_restrict_what_is_drawn() -> None:
    names = {
        name for seed in range(12) for name, _ in random_script(seed, seconds=12, names=["jump", "walk_left"]).spans
    }
    assert names == {None, "jump", "walk_left"}


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="seed of 0 or more, got -1"):
        random_script(-1)
    with pytest.raises(InputError, match=r"1.25 seconds or more for a script, got 1"):
        random_script(0, seconds=1)
    with pytest.raises(InputError, match="at least one condition"):
        random_script(0, names=[])
    with pytest.raises(InputError, match="unknown condition 'jmup'"):
        random_script(0, names=["jmup"])
