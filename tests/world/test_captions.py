"""Neutral captions say nothing of what happens."""

import re

from sememe.world import conditions, random_scene, render
from sememe.world.captions import full_caption, neutral_caption
from sememe.world.catalogue import CATALOGUE, parts_of

SCENES = [random_scene(seed) for seed in range(1000)]
# Words that a scene and a phrase share, since a scene may hold a thing that a condition brings too.
HARMLESS = {
    *("a", "an", "before", "in", "of"),  # grammar
    *("dots", "drop", "heart", "snow"),  # subjects and backdrops
    *("blue", "green", "orange", "pink", "red", "white", "yellow"),  # colours
}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_the_neutral_caption_is_the_same_whatever_happens() -> None:
    scene = SCENES[7]
    expected = render(scene, None, size=16, num_frames=1).caption
    for name in conditions() + conditions(split="novel"):
        assert render(scene, name, size=16, num_frames=1).caption == expected


def test_neutral_captions_hold_no_word_of_a_phrase() -> None:
    told = set().union(*(words(entry.phrase) | words(entry.name.replace("_", " ")) for entry in CATALOGUE))
    for scene in SCENES:
        assert words(neutral_caption(scene)) & told <= HARMLESS


def test_neutral_captions_hold_no_phrase() -> None:
    for scene in SCENES:
        caption = neutral_caption(scene)
        assert not [entry.name for entry in CATALOGUE if entry.phrase in caption]


def test_full_captions_tell_what_happens() -> None:
    scene = SCENES[0]
    neutral = neutral_caption(scene)
    assert full_caption(scene, ()) == f"{neutral}; nothing moves"
    told = full_caption(scene, parts_of("melt+zoom_in"))
    assert told == f"{neutral}; it melts into a puddle and the camera zooms in"
    assert render(scene, "melt", size=16, num_frames=2).full_caption == f"{neutral}; it melts into a puddle"


def test_captions_are_english() -> None:
    for scene in SCENES:
        caption = neutral_caption(scene)
        article, first = caption.split()[:2]
        assert article == ("an" if first[0] in "aeio" else "a")
        assert "  " not in caption
