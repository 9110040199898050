"""Another look, the same geometry."""

from dataclasses import replace

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.world import conditions, random_scene, render, repaint
from sememe.world.captions import neutral_caption
from sememe.world.scene import BACKDROPS, COLORS, LIGHTS, Backdrop, Crop, Scene, jitter, name_color


def find(*, has_subject: bool, is_textured: bool, is_photograph: bool) -> Scene:
    for scene in map(random_scene, range(41, 400)):
        kind = (scene.subject is not None, scene.finish is not None, isinstance(scene.backdrop, Crop))
        if kind == (has_subject, is_textured, is_photograph):
            return scene
    raise AssertionError("no such scene")


DRAWN = find(has_subject=True, is_textured=False, is_photograph=False)
TEXTURED = find(has_subject=True, is_textured=True, is_photograph=False)
BEFORE_PHOTOGRAPH = find(has_subject=True, is_textured=True, is_photograph=True)
PHOTOGRAPH = find(has_subject=False, is_textured=False, is_photograph=True)
KINDS = pytest.mark.parametrize("scene", [DRAWN, TEXTURED, BEFORE_PHOTOGRAPH, PHOTOGRAPH], ids=lambda scene: scene.seed)


def test_depth_and_mask_stay_byte_for_byte() -> None:
    """In every kind of place, drawn and textured, under cameras that uncover it and conditions of all families."""
    assert isinstance(DRAWN.backdrop, Backdrop)
    places = [replace(DRAWN.backdrop, kind=kind, foreground="grass") for kind in BACKDROPS]
    scenes = [replace(DRAWN, backdrop=place) for place in places] + [replace(TEXTURED, backdrop=places[1])]
    names = conditions()
    for number, scene in enumerate([*scenes, BEFORE_PHOTOGRAPH, PHOTOGRAPH]):
        other = repaint(scene, number)
        for name in {"crane_up", *names[number :: len(scenes)]} & set(conditions(scene=scene)):
            before, after = (render(each, name, num_frames=2, size=32) for each in (scene, other))
            assert not np.array_equal(before.clip.frames, after.clip.frames)
            assert before.depth.tobytes() == after.depth.tobytes(), (scene.backdrop, name)
            assert before.mask.tobytes() == after.mask.tobytes(), (scene.backdrop, name)


@KINDS
def test_32_looks_differ(scene: Scene) -> None:
    """By at least 8 of 255 levels (root mean square) from each other and from the scene itself."""
    looks = [scene, *(repaint(scene, seed) for seed in range(100, 132))]
    shots = [render(look, None, num_frames=1, size=32) for look in looks]
    pictures = np.stack([shot.clip.frames.astype(float).ravel() for shot in shots])
    distances = np.sqrt(np.square(pictures[:, None] - pictures[None]).mean(axis=-1))
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 8
    assert len({shot.caption for shot in shots}) == len(shots)


@KINDS
def test_the_same_seed_gives_the_same_look(scene: Scene) -> None:
    assert repaint(scene, 3) == repaint(scene, 3)
    assert repaint(scene, 3) != repaint(scene, 3 + len(COLORS) * len(LIGHTS))
    assert (repaint(scene, 3).subject is None) == (scene.subject is None)
    assert random_scene(scene.seed) == scene, "and the scene is as it was"


def test_captions_name_the_look() -> None:
    captions = [render(repaint(DRAWN, seed), None, num_frames=1, size=16).caption for seed in range(56)]
    for color in COLORS:
        assert sum(f" {color} " in caption for caption in captions) > 3
    assert [sum(caption.endswith(light) for caption in captions) for light in ("dusk", "night", "mist")] == [14] * 3
    for caption in captions:
        words = caption.split()
        assert not [words[i : i + 2] for i in range(len(words) - 1) if words[i] == "a" and words[i + 1][0] in "aeio"]


def test_captions_name_every_colour_of_a_look() -> None:
    assert DRAWN.subject is not None
    assert isinstance(DRAWN.backdrop, Backdrop)
    subject = replace(DRAWN.subject, kind="cat", color_name="red", accent_name="blue", texture="stripes")
    place = replace(DRAWN.backdrop, kind="city", sky=COLORS["pink"], far=COLORS["orange"], ground=COLORS["green"])
    scene = replace(DRAWN, subject=subject, backdrop=place, light="dusk")
    who, where = "a red cat with blue stripes", "before an orange city on a green field below a pink sky at dusk"
    assert neutral_caption(scene) == f"{who} {where}"
    assert neutral_caption(replace(scene, light=None)) == "a striped red cat before a city"
    plain = replace(subject, texture="plain")
    assert neutral_caption(replace(scene, subject=plain)) == f"a red cat {where}"
    assert neutral_caption(replace(scene, subject=replace(plain, kind="cup"))) == f"a red cup with blue parts {where}"


def test_repainted_colours_are_named_as_they_were_drawn() -> None:
    for name, color in COLORS.items():
        rng = np.random.Generator(np.random.PCG64(1))
        assert {name_color(jitter(rng, color)) for _ in range(200)} == {name}


def test_wrong_seed() -> None:
    with pytest.raises(InputError, match="seed of 0 or more, got -1"):
        repaint(DRAWN, -1)
