"""Words for a scene: neutral (who and where) and full (also what happens)."""

from __future__ import annotations

from collections.abc import Sequence

from sememe.world.condition import Condition
from sememe.world.scene import BODIES, Crop, Scene

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


MATERIAL_WORDS = {
    "brick": "brick ",
    "clouds": "",
    "fur": "furry ",
    "grass": "grassy ",
    "gravel": "gravelly ",
    "marble": "marble ",
    "pebbles": "pebbly ",
    "rock": "rough ",
    "wood": "wooden ",
}
LIGHT_WORDS = {"day": "", "dusk": " at dusk", "night": " at night", "mist": " in mist"}
PHOTOGRAPH_WORDS = {
    "astronaut": "an astronaut",
    "cameraman": "a man with a tripod",
    "cat": "a cat",
    "coffee": "a cup of coffee",
    "officer": "an officer",
    "raccoon": "a raccoon",
    "rocket": "a rocket",
    "stairs": "a man on stairs",
}


def neutral_caption(scene: Scene) -> str:
    """Say who and where, and nothing of what happens."""
    subject, backdrop = scene.subject, scene.backdrop
    where = (
        f"before a photo of {PHOTOGRAPH_WORDS[backdrop.name]}"
        if isinstance(backdrop, Crop)
        else _say_place(scene, BACKDROP_WORDS[backdrop.kind])
    )
    if scene.look is not None:
        tones = f" in {scene.look.place_color}" if isinstance(backdrop, Crop) else ""
        where += tones + LIGHT_WORDS[scene.look.light]
    if subject is None:
        return where.removeprefix("before ")
    creature = " creature" if subject.kind in BODIES and subject.has_face else ""
    material = "" if scene.finish is None else MATERIAL_WORDS[scene.finish.subject]
    who = f"{material}{TEXTURE_WORDS[subject.texture]}{subject.color_name} {subject.kind}{creature}"
    article = "an" if who[0] in "aeio" else "a"
    return f"{article} {who} {where}"


def _say_place(scene: Scene, words: str) -> str:
    """Name the colour of a repainted place: "before a city" becomes "before an orange city"."""
    if scene.look is None:
        return words
    *start, thing = words.split()
    if start[-1] == "a" and scene.look.place_color[0] in "aeio":
        start[-1] = "an"
    return " ".join([*start, scene.look.place_color, thing])


def full_caption(scene: Scene, happenings: Sequence[Condition]) -> str:
    """Say who, where and what happens; without happenings, that nothing moves."""
    return script_caption(scene, [happenings])


def script_caption(scene: Scene, spans: Sequence[Sequence[Condition]]) -> str:
    """Say who, where and what happens in one span after another."""
    happens = [" and ".join(happening.phrase for happening in span) or "nothing moves" for span in spans]
    return f"{neutral_caption(scene)}; {', then '.join(happens)}"
