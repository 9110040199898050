"""What the renderer promises: honest first frames, depth that fits the parallax, masks, determinism, speed."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from sememe.errors import InputError
from sememe.world import Scene, conditions, random_scene, render
from sememe.world.catalogue import CATALOGUE, parts_of
from sememe.world.condition import Condition
from sememe.world.renderer import film as film_take
from sememe.world.scene import Backdrop, Crop
from sememe.world.stage import FAR_DISTANCE, GROUND_NEAR, SKY_DISTANCE, build_stage
from sememe.world.take import Picture, Take

DRAWN, TEXTURED, BEFORE_PHOTOGRAPH, PHOTOGRAPH = (
    next(
        scene
        for scene in map(random_scene, range(41, 200))
        if (scene.subject is None, scene.finish is not None, isinstance(scene.backdrop, Crop)) == kind
    )
    for kind in ((False, False, False), (False, True, False), (False, True, True), (True, False, True))
)
KINDS = {"drawn": DRAWN, "textured": TEXTURED, "before a photograph": BEFORE_PHOTOGRAPH, "photograph": PHOTOGRAPH}
EVERYTHING = conditions() + conditions(split="novel")
# Their pieces and copies touch along soft edges: hairlines may show from the very start of the film.
WITH_SEAMS = {"explode", "lose_head", "multiply", "shatter", "slice_bands", "split_halves", "shatter+sepia"}
# Older versions of OpenCV warp by 32nds of a pixel.
WARPS_EXACTLY = int(cv2.__version__.split(".")[0]) >= 5


def everything(scene: Scene) -> list[str]:
    return conditions(scene=scene) + conditions(split="novel", scene=scene)


def film(scene: Scene, condition: str, num_frames: int = 17, size: int = 64) -> np.ndarray:
    """The film as it is before its first frame is replaced."""
    take = Take.neutral(build_stage(scene, size, size), num_frames)
    for part in parts_of(condition):
        part.apply(take)
    return film_take(take).frames


@pytest.mark.parametrize(
    ("kind", "size", "num_frames"),
    [
        ("drawn", (96, 16), 3),
        ("textured", (48, 80), 3),
        ("before a photograph", (33, 50), 2),
        ("photograph", 64, 3),
        ("photograph", 16, 1),
    ],
    ids=str,
)
def test_every_take_begins_with_the_neutral_frame(kind: str, size: int | tuple[int, int], num_frames: int) -> None:
    scene = KINDS[kind]
    height, width = (size, size) if isinstance(size, int) else size
    neutral = render(scene, None, size=size, num_frames=num_frames)
    assert (neutral.clip.frames == neutral.clip.frames[:1]).all(), "nothing moves in the neutral take"
    for name in everything(scene):
        shot = render(scene, name, size=size, num_frames=num_frames)
        assert shot.clip.frames.shape == (num_frames, height, width, 3)
        assert shot.depth.shape == shot.mask.shape == (num_frames, height, width)
        assert shot.depth.dtype == shot.mask.dtype == np.float32
        for part, start in (
            (shot.clip.frames, neutral.clip.frames),
            (shot.depth, neutral.depth),
            (shot.mask, neutral.mask),
        ):
            assert part[0].tobytes() == start[0].tobytes(), name


def test_no_condition_jumps_at_once() -> None:
    """Honesty: the film itself starts where the neutral take does, so that replacing its first frame hides nothing."""
    for scene in KINDS.values():
        neutral = render(scene, None, num_frames=2).clip.frames[0].astype(int)
        for name in everything(scene):
            difference = np.abs(film(scene, name, num_frames=2)[0].astype(int) - neutral)
            if name in WITH_SEAMS:
                assert difference.mean() < 2, name
            else:
                assert difference.max() <= (2 if WARPS_EXACTLY else 5), name


@pytest.mark.parametrize("kind", ["drawn", "before a photograph", "photograph"])
def test_every_condition_is_visible_and_like_no_other(kind: str) -> None:
    """The picture changes by at least 1.5 of 255 levels on average, and no two conditions give the same clip."""
    scene = KINDS[kind]
    neutral = render(scene, None, size=32, num_frames=11).clip.frames[1:].astype(np.int16)
    digests = set()
    for name in everything(scene):
        frames = render(scene, name, size=32, num_frames=11).clip.frames
        assert np.abs(frames[1:] - neutral).mean() > 1.5, name
        digests.add(hashlib.sha256(frames.tobytes()).hexdigest())
    assert len(digests) == len(everything(scene))


def test_depth_and_mask() -> None:
    for scene in [*map(random_scene, range(8)), TEXTURED, BEFORE_PHOTOGRAPH]:
        shot = render(scene, None, num_frames=1)
        sky = shot.depth.max()
        assert sky == pytest.approx(SKY_DISTANCE)
        inside = shot.mask[0] > 0.99
        assert inside.mean() > 0.05
        assert shot.depth[0][inside] == pytest.approx(1.0)
        assert 0 <= shot.mask.min() <= shot.mask.max() <= 1
        assert shot.depth.min() > 0.5


def test_whole_photographs_are_flat() -> None:
    shot = render(PHOTOGRAPH, "zoom_in", num_frames=3)
    assert not shot.mask.any()
    assert (shot.depth == SKY_DISTANCE).all()


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_only_conditions_that_need_layers_use_them(entry: Condition) -> None:
    """With the subject and all distances changed, what the others do stays the same."""
    stage = build_stage(PHOTOGRAPH, 32, 32)
    places = (stage, replace(stage, subject_x=0.3, subject_y=-0.2, subject_size=0.3))
    takes = [Take.neutral(place, 6) for place in places]
    still = Take.neutral(stage, 6)
    frames = np.random.default_rng(0).random((6, 32, 32, 3), np.float32)
    results = []
    for take, level in zip(takes, (0.2, 0.9), strict=True):
        entry.apply(take)
        flat = np.full(frames.shape[:3], level, np.float32)
        overlays = [overlay(take) for overlay in (*take.before, *take.behind)]
        results.append([*overlays, *(effect(take, Picture(frames, flat, flat)) for effect in take.picture_effects)])
    take = takes[0]
    moves = any(
        not np.array_equal(getattr(take.pose, name), getattr(still.pose, name))
        for name in ("x", "y", "scale_x", "scale_y", "rotation", "shear")
    ) or any(getattr(take.camera, name).any() for name in "xyz")
    changes = bool(take.subject_warps or take.subject_effects or take.shards or take.behind)
    differs = any(not np.array_equal(first, second) for first, second in zip(*results, strict=True))
    assert (moves or changes or differs) == entry.needs_layers


def test_whole_photographs_refuse_what_needs_layers() -> None:
    for name in sorted(set(EVERYTHING) - set(everything(PHOTOGRAPH))):
        with pytest.raises(InputError, match=f"got '({'|'.join(name.split('+'))})'"):
            render(PHOTOGRAPH, name, num_frames=2, size=16)


def test_the_ground_comes_nearer_downwards() -> None:
    scene = next(
        scene
        for scene in map(random_scene, range(99))
        if isinstance(scene.backdrop, Backdrop) and scene.backdrop.kind == "meadow"
    )
    depth = render(scene, None, num_frames=1, size=128).depth[0, :, 0]
    ground = depth[(depth < FAR_DISTANCE - 0.01) & (depth > GROUND_NEAR - 0.2) & (depth != 1)]
    assert len(ground) > 10
    assert (np.diff(ground) <= 0).all()


def test_the_mask_covers_the_subject() -> None:
    """Where the subject's absence changes the picture there is mask, and where there is none, nothing changes."""
    for scene in [
        scene for scene in map(random_scene, range(12)) if scene.finish is None and scene.subject is not None
    ]:
        stage = build_stage(scene, 64, 64)
        present, absent = Take.neutral(stage, 1), Take.neutral(stage, 1)
        absent.subject_effects.append(lambda _, subject: np.zeros_like(subject))
        with_it, without = film_take(present), film_take(absent)
        changed = np.abs(with_it.frames.astype(int) - without.frames).max(axis=-1) > 2
        assert (with_it.mask[changed] > 0).all()
        assert changed[with_it.mask > 0.9].mean() > 0.8
        assert not without.mask.any()


def test_parallax_fits_the_depth() -> None:
    """A camera that moves to the right by a known way shifts a layer by that way over its distance."""
    way = 0.3
    scene = next(
        s
        for s in map(random_scene, range(300))
        if isinstance(s.backdrop, Backdrop) and (s.backdrop.kind, s.backdrop.foreground) == ("dots", "none")
    )
    stage = build_stage(scene, 128, 128)
    take = Take.neutral(stage, 2)
    take.camera.x[1] = way
    moved = film_take(take)
    columns = np.arange(128)
    centres = [(mask.sum(axis=0) * columns).sum() / mask.sum() for mask in moved.mask]
    assert centres[0] - centres[1] == pytest.approx(way * stage.density, abs=0.5), "the subject stands at distance 1"
    free = moved.mask.max(axis=0).max(axis=1) < 0.01  # rows without subject: the sky alone
    errors = {
        shift: np.abs(
            moved.frames[0][free, 20:108].astype(int) - moved.frames[1][free, 20 - shift : 108 - shift]
        ).mean()
        for shift in range(20)
    }
    expected = way / SKY_DISTANCE * stage.density  # 3.2 pixels
    assert min(errors, key=lambda shift: errors[shift]) == round(expected)


def test_orbit_keeps_the_subject_and_moves_the_rest() -> None:
    shot = render(random_scene(12), "orbit_left", size=96)
    columns = np.arange(96)
    centres = [(mask.sum(axis=0) * columns).sum() / mask.sum() for mask in shot.mask]
    assert np.ptp(centres) < 3


def test_results_are_never_shared() -> None:
    scene = random_scene(12)
    first = render(scene, None)
    before = first.clip.frames.copy()
    for part in (first.clip.frames, first.depth, first.mask):
        part[:] = 0
    again = render(scene, None)
    assert np.array_equal(again.clip.frames, before)
    melted = render(scene, "melt")
    assert np.array_equal(melted.clip.frames[0], before[0])
    melted.depth[:] = 7
    assert render(scene, "melt").depth[0].max() < 7


def test_it_is_the_same_in_a_fresh_process() -> None:
    shots = [
        *((DRAWN.seed, name) for name in ("melt", "confetti", "orbit_left", "shatter+sepia")),
        *((TEXTURED.seed, name) for name in ("melt", "zoom_in")),
        *((BEFORE_PHOTOGRAPH.seed, name) for name in ("jump", "mosaic")),
        *((PHOTOGRAPH.seed, name) for name in ("flood", "roll_clockwise")),
    ]
    code = (
        "import hashlib; from sememe.world import random_scene, render; total = hashlib.sha256()\n"
        f"for seed, name in {shots}:\n"
        "    shot = render(random_scene(seed), name, size=(48, 64), num_frames=9)\n"
        "    total.update(shot.clip.frames.tobytes() + shot.depth.tobytes() + shot.mask.tobytes())\n"
        "raise SystemExit(total.hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr.strip()
    total = hashlib.sha256()
    for name in EVERYTHING[::-4]:  # caches are warm with other scenes and takes by now
        render(random_scene(76), name, size=(48, 64), num_frames=2)
    for seed, name in shots:
        shot = render(random_scene(seed), name, size=(48, 64), num_frames=9)
        total.update(shot.clip.frames.tobytes() + shot.depth.tobytes() + shot.mask.tobytes())
    assert total.hexdigest() == fresh


def test_wrong_input() -> None:
    scene = random_scene(0)
    with pytest.raises(InputError, match="sides of 16 to 1024 pixels, got 8x64"):
        render(scene, None, size=(8, 64))
    with pytest.raises(InputError, match="num_frames of 1 or more, got 0"):
        render(scene, None, num_frames=0)
    with pytest.raises(InputError, match="unknown condition 'mellt'; did you mean melt"):
        render(scene, "mellt")
