"""Words for a scene: neutral (who and where) and full (also what happens)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sememe.world.condition import Condition
from sememe.world.scene import BODIES, OBJECTS, Crop, Scene, name_color

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

LOOK_WORDS = {
    "hills": "on a {ground} plain before {far} hills below a {sky} sky",
    "mountains": "before snowy {far} mountains on a {ground} field below a {sky} sky",
    "city": "before a {far} city on a {ground} field below a {sky} sky",
    "forest": "before a {far} forest on a {ground} field below a {sky} sky",
    "beach": "on a {ground} beach below a {sky} sky",
    "desert": "in a {ground} desert before {far} hills below a {sky} sky",
    "meadow": "on a {ground} meadow before {far} hills below a {sky} sky",
    "room": "in a {sky} room with a {ground} floor",
    "street": "on a street of {far} houses on a {ground} field below a {sky} sky",
    "snowfield": "on a {ground} field of snow before {far} hills below a {sky} sky",
    "stripes": "before {far} stripes on {sky}",
    "tiles": "before {far} tiles on {sky}",
    "dots": "before {far} dots on {sky}",
    "rings": "before {far} rings on {sky}",
    "waves": "before {far} waves on {sky}",
    "gradient": "before a wall of {sky} over {far} with {accent} dots",
}
"""Words for a place in another look, which name the colours that are seen of it."""

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
    """Name subject and place but not the condition; for a repainted scene also colours and light."""
    subject, backdrop = scene.subject, scene.backdrop
    is_repainted = scene.light is not None
    if isinstance(backdrop, Crop):
        where = f"before a photo of {PHOTOGRAPH_WORDS[backdrop.name]}"
        where += f" in {name_color(backdrop.tones[1])}" if is_repainted and backdrop.tones else ""
    elif is_repainted:
        colors = {part: name_color(getattr(backdrop, part)) for part in ("sky", "far", "ground", "accent")}
        where = LOOK_WORDS[backdrop.kind].format(**colors)
    else:
        where = BACKDROP_WORDS[backdrop.kind]
    where += LIGHT_WORDS[scene.light or "day"]
    if subject is None:
        return where.removeprefix("before ")
    creature = " creature" if subject.kind in BODIES and subject.has_face else ""
    material = "" if scene.finish is None else MATERIAL_WORDS[scene.finish.subject]
    texture, more = TEXTURE_WORDS[subject.texture], ""
    if is_repainted and (texture or subject.kind in OBJECTS):
        texture, more = "", f" with {subject.accent_name} {subject.texture if texture else 'parts'}"
    caption = f"a {material}{texture}{subject.color_name} {subject.kind}{creature}{more} {where}"
    return re.sub(r"\ba (?=[aeio])", "an ", caption)


def full_caption(scene: Scene, happenings: Sequence[Condition]) -> str:
    """Name subject, place and conditions; without conditions, say that nothing moves."""
    return script_caption(scene, [happenings])


def script_caption(scene: Scene, spans: Sequence[Sequence[Condition]]) -> str:
    """Name subject, place, and the conditions of one span after another."""
    return f"{neutral_caption(scene)}; {', then '.join(name_happenings(span) for span in spans)}"


def name_happenings(happenings: Sequence[Condition]) -> str:
    """Name conditions alone; without any, say that nothing moves."""
    return " and ".join(happening.phrase for happening in happenings) or "nothing moves"
