"""Words for a scene: neutral (who and where) and full (also what happens)."""

from __future__ import annotations

from collections.abc import Sequence

from sememe.world.catalogue import Condition
from sememe.world.scene import BODIES, Scene

TEXTURE_WORDS = {
    "plain": "",
    "stripes": "striped ",
    "dots": "dotted ",
    "checks": "checked ",
    "shaded": "",
    "bands": "banded ",
    "patches": "patchy ",
}
BACKDROP_WORDS = {
    "hills": "on a plain before hills",
    "mountains": "before snowy mountains",
    "city": "before a city",
    "forest": "before a forest",
    "beach": "on a beach",
    "desert": "in a desert",
    "meadow": "on a meadow",
    "room": "in a room",
    "street": "on a street",
    "snowfield": "on a field of snow",
    "stripes": "before stripes",
    "tiles": "before tiles",
    "dots": "before dots",
    "rings": "before rings",
    "waves": "before waves",
    "gradient": "before a plain wall",
}


def neutral_caption(scene: Scene) -> str:
    """Who and where, and nothing of what happens."""
    subject = scene.subject
    creature = " creature" if subject.kind in BODIES and subject.has_face else ""
    who = f"{TEXTURE_WORDS[subject.texture]}{subject.color_name} {subject.kind}{creature}"
    article = "an" if who[0] in "aeio" else "a"
    return f"{article} {who} {BACKDROP_WORDS[scene.backdrop.kind]}"


def full_caption(scene: Scene, happenings: Sequence[Condition]) -> str:
    """The neutral caption and what happens; without happenings it says that nothing moves."""
    told = " and ".join(happening.phrase for happening in happenings) or "nothing moves"
    return f"{neutral_caption(scene)}; {told}"
