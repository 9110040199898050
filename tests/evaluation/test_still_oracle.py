"""Pictures are read by the nearest stills."""

import numpy as np
import pytest

from sememe.evaluation.still_oracle import StillOracle, name_look
from sememe.world import Scene, random_script, render


@pytest.fixture(scope="module")
def oracle() -> StillOracle:
    return StillOracle(num_layouts=20, num_looks=7)


def test_most_subjects_and_colours_of_flat_scenes_are_read(oracle: StillOracle) -> None:
    scenes = [random_script(seed).scene for seed in range(10_000_000, 10_000_024)]
    flat = [scene for scene in scenes if scene.finish is None]
    right = {"subject": 0, "colour": 0, "place": 0}
    for scene in flat:
        found = oracle.read(render(scene, None, num_frames=1).clip.frames[0])
        assert isinstance(found, Scene)
        for label in right:
            right[label] += name_look(found)[label] == name_look(scene)[label]
    # A guess is right about once in 14 to 28.
    assert min(right["subject"], right["colour"]) >= len(flat) * 0.6, right
    assert right["place"] >= len(flat) * 0.3, right


def test_what_is_found_looks_like_the_picture(oracle: StillOracle) -> None:
    scenes = [scene for scene in (random_script(seed).scene for seed in range(8)) if scene.finish is None]
    frames = [render(scene, None, num_frames=1).clip.frames[0].astype(float) for scene in scenes]
    found = [render(oracle.read(frame.astype(np.uint8)), None, num_frames=1).clip.frames[0] for frame in frames]
    near = np.mean([np.abs(one - own).mean() for one, own in zip(frames, found, strict=True)])
    far = np.mean([np.abs(one - other).mean() for one, other in zip(frames, found[1:] + found[:1], strict=True)])
    assert near < far / 2, (near, far)


def test_pictures_of_any_shape_are_read(oracle: StillOracle) -> None:
    scene = random_script(5).scene
    wide = render(scene, None, num_frames=1, size=(32, 48)).clip.frames[0]
    assert oracle.read(wide).subject == oracle.read(wide[:, 8:40]).subject
