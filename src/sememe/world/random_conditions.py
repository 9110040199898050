"""Conditions drawn by number, as many as training can use.

An expert that learns from a hundred conditions learns those hundred. A random condition has one to three parts:
motions, camera moves, styles and concepts with random courses, amounts and colours, and sometimes a seen condition of
the catalogue as one of them. None is in the catalogue, so that they change nothing about what is evaluated.

Unseen conditions stay unseen: no random part uses the function of one, nothing here draws what is characteristic of
one (a swirl, two halves, copies beside it, hatching, a flashing light, mirrored corners, a bulging lens, a closing
ring), and a random condition whose motion and camera come near an unseen one's is drawn again (`is_near_unseen`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from sememe.errors import InputError
from sememe.world.condition import Condition
from sememe.world.geometry import layer_matrices, pose_matrices
from sememe.world.random_looks import draw_concept, draw_style
from sememe.world.random_moves import Part, draw_camera, draw_motion
from sememe.world.scene import random_scene
from sememe.world.stage import Stage, build_stage
from sememe.world.take import Floats, Take

PREFIX = "random_"
LEAST_DISTANCE = 0.4
"""How far a random path must keep from an unseen one, in scene units (root mean square over frames and points)."""
_DRAWS: dict[str, Callable[[np.random.Generator], Part]] = {
    "concept": draw_concept,
    "style": draw_style,
    "motion": draw_motion,
    "camera": draw_camera,
}
_NUM_PARTS = (0.45, 0.4, 0.15)  # shares of conditions of one, two and three parts
_SEEN_SHARE = 0.3  # of those with several parts have a seen condition as one of them
_NUM_FRAMES = 17


def random_condition(number: int, catalogue: tuple[Condition, ...]) -> Condition:
    """Draw condition number `number`, named "random_" and the number.

    Args:
        number: 0 or more; the same number gives the same condition on every machine.
        catalogue: Conditions of which seen ones may be a part, and from whose unseen ones it keeps away.

    Raises:
        InputError: If `number` is negative.
    """
    if number < 0:
        raise InputError(f"expected the number of a random condition to be 0 or more, got {number}")
    rng = np.random.Generator(np.random.PCG64([number, 41]))
    while True:
        drawn = _draw(rng, f"{PREFIX}{number}", catalogue)
        if not is_near_unseen(drawn, catalogue):
            return drawn


def random_names(count: int) -> list[str]:
    """Return the names of the first `count` random conditions."""
    return [f"{PREFIX}{number}" for number in range(count)]


def _draw(rng: np.random.Generator, name: str, catalogue: tuple[Condition, ...]) -> Condition:
    count = 1 + int(rng.choice(len(_NUM_PARTS), p=_NUM_PARTS))
    families = [str(each) for each in rng.choice([*_DRAWS], size=count, replace=False)]
    parts = [_DRAWS[family](rng) for family in families]
    if count > 1 and rng.random() < _SEEN_SHARE:
        seen = [entry for entry in catalogue if entry.split == "seen" and entry.family == families[0]]
        entry = seen[int(rng.integers(len(seen)))]
        parts[0] = Part(entry.apply, entry.phrase, entry.needs_layers)

    def bend(take: Take) -> None:
        for part in parts:
            part.bend(take)

    phrase = " and ".join(part.phrase for part in parts)
    return Condition(name, families[0], "seen", bend, phrase, any(part.needs_layers for part in parts), bend)


def is_near_unseen(drawn: Condition, catalogue: tuple[Condition, ...]) -> bool:
    """Return whether subject and layers take nearly the path that they take under an unseen condition.

    Where they are nearer to rest than to that path, they are not near it.
    """
    path = _trace(drawn)
    still, unseen = _trace_unseen(catalogue)
    limit = min(LEAST_DISTANCE, _distance(path, still))
    return any(_distance(path, each) < limit for each in unseen)


@lru_cache(maxsize=1)
def _trace_unseen(catalogue: tuple[Condition, ...]) -> tuple[Floats, tuple[Floats, ...]]:
    """The path of things at rest, and those of the unseen conditions that move something."""
    still = _follow(Take.neutral(_stage(), _NUM_FRAMES))
    paths = [_trace(entry) for entry in catalogue if entry.split == "unseen"]
    return still, tuple(path for path in paths if _distance(path, still) > 0)


@lru_cache(maxsize=1)
def _stage() -> Stage:
    return build_stage(next(scene for scene in map(random_scene, range(99)) if scene.subject is not None), 64, 64)


def _trace(entry: Condition) -> Floats:
    take = Take.neutral(_stage(), _NUM_FRAMES)
    entry.apply(take)
    return _follow(take)


def _follow(take: Take) -> Floats:
    """Where the corners of the subject and of the farthest layer are, (num_frames, 8, 2) in scene units.

    What is out of the picture is on its edge.
    """
    corners = np.array([(-1, -1, 1), (1, -1, 1), (-1, 1, 1), (1, 1, 1)], np.float32)
    stage = take.stage
    rows, columns = stage.backdrop[0].pixels.shape[:2]
    middle = np.array([columns, rows, 2], np.float32) / 2
    quarter = np.array([columns, rows, 0], np.float32) / 6
    subject = corners @ np.swapaxes(pose_matrices(take), 1, 2)
    far = (middle + quarter * corners) @ np.swapaxes(layer_matrices(take, stage.backdrop[0]), 1, 2)
    far = (far + 0.5) / stage.density - np.array([stage.aspect, 1], np.float32)
    return np.clip(np.concatenate([subject, far], axis=1), -1.5, 1.5)


def _distance(first: Floats, second: Floats) -> float:
    return float(np.sqrt(((first - second) ** 2).sum(axis=-1).mean()))
