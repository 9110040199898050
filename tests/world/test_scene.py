"""One seed, one scene, on every machine."""

import hashlib
from pathlib import Path

import pytest

import sememe.world
from sememe.world import EVALUATION_SEED, Scene, random_scene
from sememe.world.scene import (
    BACKDROPS,
    BODIES,
    CREATURES,
    HELD_OUT_PHOTOGRAPHS,
    MATERIALS,
    OBJECTS,
    PHOTOGRAPH_SHARE,
    PHOTOGRAPHS,
    TEXTURED_SHARE,
    TEXTURES,
    Backdrop,
    Crop,
)

PICTURES = Path(sememe.world.__file__).parent / "pictures"


@pytest.mark.parametrize(
    ("seed", "digest"),
    [(0, "40eb9c397e5a4e16"), (7, "c40b5aa7e8369142"), (10_000_000, "8b97fbd270cbfe38")],
)
def test_parameters_are_those_of_the_seed(seed: int, digest: str) -> None:
    """If this fails the world has changed: raise its version, and make datasets and models again."""
    assert hashlib.sha256(repr(random_scene(seed)).encode()).hexdigest()[:16] == digest


def test_seeds_differ() -> None:
    assert len({random_scene(seed) for seed in range(500)}) == 500
    assert random_scene(3) == random_scene(3)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    """A thousand scenes of training, and as many of evaluation."""
    firsts = {"training": EVALUATION_SEED - 1000, "evaluation": EVALUATION_SEED}
    return {name: [random_scene(seed) for seed in range(first, first + 1000)] for name, first in firsts.items()}


def test_scenes_are_varied(scenes: dict[str, list[Scene]]) -> None:
    subjects = [scene.subject for scene in scenes["training"] if scene.subject is not None]
    backdrops = [scene.backdrop for scene in scenes["training"] if isinstance(scene.backdrop, Backdrop)]
    finishes = [scene.finish for scene in scenes["training"] if scene.finish is not None]
    assert {subject.kind for subject in subjects} == {*BODIES, *CREATURES, *OBJECTS}
    assert {subject.texture for subject in subjects} == set(TEXTURES)
    assert {backdrop.kind for backdrop in backdrops} == set(BACKDROPS)
    assert {finish.subject for finish in finishes} == {finish.ground for finish in finishes} == set(MATERIALS)


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_the_kinds_of_scenes_have_their_shares(scenes: dict[str, list[Scene]], split: str) -> None:
    photographs = sum(scene.subject is None for scene in scenes[split]) / len(scenes[split])
    textured = sum(scene.finish is not None for scene in scenes[split]) / len(scenes[split])
    assert photographs == pytest.approx(PHOTOGRAPH_SHARE, abs=0.03)
    assert textured == pytest.approx(TEXTURED_SHARE, abs=0.03)


def test_photographs_for_evaluation_are_never_trained_on(scenes: dict[str, list[Scene]]) -> None:
    def shown(drawn: list[Scene]) -> set[str]:
        return {scene.backdrop.name for scene in drawn if isinstance(scene.backdrop, Crop)}

    assert shown(scenes["training"]) == set(PHOTOGRAPHS)
    assert shown(scenes["evaluation"]) == set(HELD_OUT_PHOTOGRAPHS)
    for first, known in ((0, PHOTOGRAPHS), (2 * EVALUATION_SEED, HELD_OUT_PHOTOGRAPHS)):
        assert shown([random_scene(seed) for seed in range(first, first + 100)]) <= set(known)
    assert not set(PHOTOGRAPHS) & set(HELD_OUT_PHOTOGRAPHS)


def test_every_picture_has_its_licence() -> None:
    listed = (PICTURES / "README.md").read_text()
    files = {path.stem for path in PICTURES.glob("*.jpg")}
    assert {*PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS} <= files
    assert all(f"`{name}.jpg`" in listed for name in files)


def test_the_subject_stands_in_the_picture() -> None:
    subjects = [subject for seed in range(300) if (subject := random_scene(seed).subject) is not None]
    for subject in subjects:
        assert abs(subject.x) + subject.size * 0.8 < 1
        assert abs(subject.y) + subject.size * 0.8 < 1
