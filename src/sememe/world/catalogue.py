"""The list of conditions: name, family, split, what it does, and the words for it.

A condition of the split "unseen" never differs from a seen one by a number, a colour or a direction alone: what one
function does with other arguments stands in the same split. "novel" conditions are pairs of seen ones from two
families, joined by "+".
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sememe.errors import InputError
from sememe.world import cameras, concepts, elements, motions, prints, styles
from sememe.world.scene import Scene
from sememe.world.take import Take

SEPIA = ((0.15, 0.07, 0.02), (0.72, 0.5, 0.28), (1.0, 0.93, 0.75))
CONSOLE = ((0.05, 0.18, 0.08), (0.2, 0.4, 0.2), (0.55, 0.68, 0.1), (0.78, 0.86, 0.3))
CANDY = ((0.55, 0.05, 0.4), (1.0, 0.45, 0.7), (0.6, 1.0, 0.85))
THERMAL = ((0.0, 0.0, 0.35), (0.5, 0.0, 0.6), (0.95, 0.2, 0.1), (1.0, 0.75, 0.0), (1.0, 1.0, 0.8))
NOVEL_PAIRS = (
    ("melt", "zoom_in"),
    ("inflate_and_float", "night"),
    ("turn_to_gold", "roll_clockwise"),
    ("shatter", "sepia"),
    ("jump", "snow"),
    ("spin_clockwise", "invert"),
    ("walk_left", "sketch"),
    ("sway", "zoom_out"),
    ("approach", "grayscale"),
    ("dance", "confetti"),
    ("flood", "pan_right"),
    ("fire", "rock"),
    ("rainbow", "tilt_up"),
    ("turn_to_stone", "zoom_pulse"),
    ("hop_right", "neon"),
    ("topple_left", "blueprint"),
    ("vanish", "sunset"),
    ("spotlight", "squash_flat"),
    ("cage", "tremble"),
    ("heart", "pan_left"),
)
FAMILIES = ("concept", "style", "motion", "camera")
SPLITS = ("seen", "unseen", "novel")


@dataclass(frozen=True, slots=True)
class Condition:
    """One semantic condition.

    Attributes:
        name: how it is called in files and on the command line.
        family: one of `FAMILIES`.
        split: "seen" or "unseen" by the expert's training.
        apply: bends a take.
        phrase: the words that a full caption adds.
        needs_layers: whether it acts on the subject or on distances; a whole photograph has neither.
    """

    name: str
    family: str
    split: str
    apply: Callable[[Take], None]
    phrase: str
    needs_layers: bool

    def applies_to(self, scene: Scene) -> bool:
        """Return whether the scene has what the condition acts on."""
        return scene.subject is not None or not self.needs_layers


def _family(
    family: str, split: str, *rows: tuple[str, Callable[[Take], None], str], needs_layers: bool = False
) -> tuple[Condition, ...]:
    return tuple(Condition(name, family, split, apply, phrase, needs_layers) for name, apply, phrase in rows)


CATALOGUE: tuple[Condition, ...] = (
    *_family(
        "concept",
        "seen",
        ("inflate_and_float", concepts.inflate_and_float, "it inflates like a balloon and floats away"),
        ("melt", concepts.melt, "it melts into a puddle"),
        ("shrink_away", concepts.shrink_away, "it whirls and shrinks to nothing"),
        ("ripple", concepts.ripple, "it wobbles like jelly"),
        ("slice_bands", concepts.slice_bands, "it is cut into level slices that slide apart"),
        ("shatter", concepts.shatter, "it shatters and the pieces drop"),
        ("explode", concepts.explode, "it explodes in all directions"),
        ("turn_to_gold", concepts.turn_to_gold, "it turns to gold"),
        (
            "turn_to_stone",
            partial(concepts.turn_to, dark=(0.18, 0.18, 0.2), light=(0.72, 0.72, 0.7)),
            "it turns to grey stone",
        ),
        ("turn_to_ice", partial(concepts.turn_to, dark=(0.25, 0.55, 0.85), light=(0.9, 1.0, 1.0)), "it freezes to ice"),
        (
            "turn_to_ruby",
            partial(concepts.turn_to, dark=(0.35, 0.0, 0.08), light=(1.0, 0.35, 0.45)),
            "it turns to ruby",
        ),
        (
            "turn_to_shadow",
            partial(concepts.turn_to, dark=(0.0, 0.0, 0.0), light=(0.06, 0.05, 0.08)),
            "it turns to a black shadow",
        ),
        ("vanish", concepts.vanish, "it fades until it is invisible"),
        ("dissolve_to_smoke", partial(concepts.dissolve, way=-1.0), "it dissolves into smoke from its feet up"),
        ("crumble_to_sand", partial(concepts.dissolve, way=1.0), "it crumbles to sand from its head down"),
        ("rainbow", concepts.rainbow, "bands of all colours run over it"),
        ("blocks", concepts.blocks, "it turns into coarse blocks"),
        ("spikes", concepts.spikes, "it grows spikes"),
        ("lose_head", concepts.lose_head, "its upper half slides off"),
        ("spotlight", elements.spotlight, "a spotlight singles it out in the dark"),
        ("glow", elements.glow, "a warm halo pulses around it"),
        ("rays", elements.rays, "a sunburst turns behind it"),
        ("heart", elements.heart, "a red heart grows over it"),
        needs_layers=True,
    ),
    *_family(
        "concept",
        "seen",
        ("rain", elements.rain, "it begins to rain"),
        ("snow", elements.snow, "thick snow falls"),
        ("confetti", elements.confetti, "confetti falls"),
        ("bubbles_rise", elements.bubbles_rise, "pink balls float up everywhere"),
        ("flood", elements.flood, "water rises over it"),
        ("lava", elements.lava, "lava rises"),
        ("fire", elements.fire, "flames rise from below"),
        ("fog", elements.fog, "fog drifts in from the left"),
        ("lightning", elements.lightning, "lightning strikes in the dark"),
        ("cage", elements.cage, "bars drop in front of it"),
    ),
    *_family(
        "concept",
        "unseen",
        ("burn", concepts.burn, "it burns away from below"),
        ("split_halves", concepts.split_halves, "it parts down the middle"),
        ("swirl", concepts.swirl, "it is wrung like a whirlpool"),
        ("hologram", concepts.hologram, "it turns into a hologram"),
        ("ghost", concepts.ghost, "it becomes a hovering ghost"),
        ("multiply", concepts.multiply, "copies of it step out to both sides"),
        ("portal", elements.portal, "a portal opens behind and swallows it"),
        ("bubble", elements.bubble, "a soap bubble carries it up"),
        needs_layers=True,
    ),
    *_family(
        "concept",
        "unseen",
        ("curtains", elements.curtains, "red curtains close"),
    ),
    *_family(
        "style",
        "seen",
        ("selective_color", styles.selective_color, "all but it turns grey"),
        ("depth_map", styles.depth_map, "the picture shows only distance"),
        ("silhouette", styles.silhouette, "it turns black before a yellow ground"),
        needs_layers=True,
    ),
    *_family(
        "style",
        "seen",
        ("grayscale", styles.grayscale, "all colour drains from the picture"),
        ("sepia", partial(styles.tone, stops=SEPIA), "the picture turns sepia"),
        ("game_console", partial(styles.tone, stops=CONSOLE), "the picture turns to the greens of an old game console"),
        ("candy", partial(styles.tone, stops=CANDY), "the picture turns pink and mint"),
        ("thermal", partial(styles.tone, stops=THERMAL), "the picture turns into a heat camera's"),
        ("invert", styles.invert, "the picture turns into its negative"),
        ("night", styles.night, "night falls"),
        ("sunset", styles.sunset, "a sunset bathes everything in orange"),
        ("posterize", styles.posterize, "the picture becomes a loud poster"),
        ("threshold", styles.threshold, "only black and white remain"),
        ("solarize", styles.solarize, "the picture solarizes"),
        ("swap_channels", styles.swap_channels, "the colours change places"),
        ("hue_spin", styles.hue_spin, "all hues run around the colour circle"),
        ("fade_to_white", partial(styles.fade, color=(1.0, 1.0, 1.0)), "the picture fades to white"),
        ("fade_to_black", partial(styles.fade, color=(0.0, 0.0, 0.0)), "the picture fades to black"),
        ("vignette", styles.vignette, "darkness creeps in from the corners"),
        ("vivid", styles.vivid, "the colours glow"),
        ("sketch", prints.sketch, "the picture becomes a pencil sketch"),
        ("neon", prints.neon, "the picture becomes neon outlines"),
        ("blueprint", prints.blueprint, "the picture becomes a blueprint"),
        ("emboss", prints.emboss, "the picture looks pressed into metal"),
        ("pixelate", prints.pixelate, "the picture grows coarse pixels"),
        ("halftone", prints.halftone, "the picture becomes halftone dots"),
        ("mosaic", prints.mosaic, "the picture becomes stained glass"),
        ("glitch", prints.glitch, "the picture glitches"),
        ("split_colors", prints.split_colors, "red and blue drift apart"),
        ("scanlines", prints.scanlines, "the picture turns into a green monitor"),
        ("tile", partial(prints.tile, count=2), "the picture repeats four times"),
        ("smear", prints.smear, "wind smears everything"),
        ("checker_invert", prints.checker_invert, "a chessboard of negatives appears"),
        ("wipe", prints.wipe, "a line sweeps across and leaves a blue negative"),
    ),
    *_family(
        "style",
        "unseen",
        ("old_film", styles.old_film, "the picture becomes an old film"),
        ("strobe", styles.strobe, "the light flashes"),
        ("comic", prints.comic, "the picture becomes a comic"),
        ("hatch", prints.hatch, "the picture is engraved in strokes"),
        ("underwater", prints.underwater, "the picture sways under water"),
        ("kaleidoscope", prints.kaleidoscope, "the picture becomes a kaleidoscope"),
    ),
    *_family(
        "motion",
        "seen",
        ("jump", motions.jump, "it hops twice"),
        ("spin_clockwise", partial(motions.spin, turns=1.0), "it spins clockwise"),
        ("spin_counterclockwise", partial(motions.spin, turns=-1.0), "it spins counterclockwise"),
        ("sway", motions.sway, "it sways from side to side"),
        ("walk_left", partial(motions.walk, side=-1.0), "it walks off to the left"),
        ("walk_right", partial(motions.walk, side=1.0), "it walks off to the right"),
        ("dash_left", partial(motions.dash, side=-1.0), "it winds up and shoots off to the left"),
        ("dash_right", partial(motions.dash, side=1.0), "it winds up and shoots off to the right"),
        ("rise", motions.rise, "it shoots straight up"),
        ("sink", motions.sink, "it sinks out of the picture"),
        ("topple_left", partial(motions.topple, side=-1.0), "it falls over to the left"),
        ("topple_right", partial(motions.topple, side=1.0), "it falls over to the right"),
        ("tremble", motions.tremble, "it shakes"),
        ("circle", motions.circle, "it moves in a circle"),
        ("zigzag", motions.zigzag, "it climbs in a zigzag"),
        ("turn_round", motions.turn_round, "it turns about like a paper figure"),
        ("duck", motions.duck, "it crouches twice"),
        ("heartbeat", motions.heartbeat, "it beats like a heart"),
        ("approach", motions.approach, "it comes towards us"),
        ("retreat", motions.retreat, "it goes far away"),
        ("dance", motions.dance, "it dances"),
        ("stretch_tall", partial(motions.stretch, tall=1.9, wide=0.6), "it is stretched tall"),
        ("squash_flat", partial(motions.stretch, tall=0.35, wide=1.7), "it is squashed flat"),
        ("billiard", motions.billiard, "it bounces off the picture's sides"),
        ("hop_left", partial(motions.hop, side=-1.0), "it bounds off to the left"),
        ("hop_right", partial(motions.hop, side=1.0), "it bounds off to the right"),
        ("teleport", motions.teleport, "it is suddenly elsewhere, again and again"),
        ("spring", motions.spring, "it quivers like a spring"),
        ("flip_over", motions.flip_over, "it tips over onto its head"),
        ("drift_away", motions.drift_away, "it drifts off into the corner, growing small"),
        needs_layers=True,
    ),
    *_family(
        "motion",
        "unseen",
        ("tumble_left", partial(motions.tumble, side=-1.0), "it rolls off to the left"),
        ("tumble_right", partial(motions.tumble, side=1.0), "it rolls off to the right"),
        ("figure_eight", motions.figure_eight, "it moves in a lying eight"),
        ("backflip", motions.backflip, "it does a backflip"),
        ("pendulum", motions.pendulum, "it swings as if hung from above"),
        ("peekaboo", motions.peekaboo, "it drops out of sight and comes back"),
        ("corkscrew", motions.corkscrew, "it whirls upwards and away"),
        needs_layers=True,
    ),
    *_family(
        "camera",
        "seen",
        ("dolly_zoom_in", partial(cameras.dolly_zoom, way=1.0), "the camera dollies in while it zooms out"),
        ("dolly_zoom_out", partial(cameras.dolly_zoom, way=-1.0), "the camera dollies out while it zooms in"),
        ("dolly_in", cameras.dolly_in, "the camera moves towards it"),
        ("focus_pull", cameras.focus_pull, "the background blurs"),
        needs_layers=True,
    ),
    *_family(
        "camera",
        "seen",
        ("zoom_in", partial(cameras.zoom, factor=2.0), "the camera zooms in"),
        ("zoom_out", partial(cameras.zoom, factor=0.5), "the camera zooms out"),
        ("crash_zoom", partial(cameras.zoom, factor=2.8, start=0.4, end=0.6), "the camera crash-zooms in"),
        ("zoom_steps", cameras.zoom_steps, "the camera jumps closer in three cuts"),
        ("zoom_pulse", cameras.zoom_pulse, "the camera zooms in and out"),
        ("pan_left", partial(cameras.turn, pan=-1.1, tilt=0.0), "the camera pans left"),
        ("pan_right", partial(cameras.turn, pan=1.1, tilt=0.0), "the camera pans right"),
        ("tilt_up", partial(cameras.turn, pan=0.0, tilt=-0.95), "the camera tilts up"),
        ("tilt_down", partial(cameras.turn, pan=0.0, tilt=0.95), "the camera tilts down"),
        ("roll_clockwise", partial(cameras.roll, quarter_turns=1.0), "the camera rolls clockwise"),
        ("roll_counterclockwise", partial(cameras.roll, quarter_turns=-1.0), "the camera rolls counterclockwise"),
        ("dutch_angle", cameras.dutch, "the horizon snaps askew"),
        ("handheld", cameras.handheld, "the camera wanders in somebody's hand"),
        ("earthquake", cameras.earthquake, "the camera shakes hard"),
        ("rock", cameras.rock, "the horizon rocks"),
        ("bob", cameras.bob, "the view bobs up and down"),
        ("glance", cameras.glance, "the view swings to both sides"),
        ("circle_view", cameras.circle_view, "the view circles"),
        ("whip_pan", cameras.whip, "the view is torn to the side and back"),
        ("turn_page", partial(cameras.turn_page, axis="x"), "the picture turns over like a page"),
        ("turn_card", partial(cameras.turn_page, axis="y"), "the picture flips over upside down"),
        ("blink", cameras.blink, "lids close and open"),
        ("letterbox", cameras.letterbox, "black bars close to a slit"),
        ("defocus", cameras.defocus, "everything goes out of focus"),
    ),
    *_family(
        "camera",
        "unseen",
        ("orbit_left", partial(cameras.orbit, side=-1.0), "the camera circles it to the left"),
        ("orbit_right", partial(cameras.orbit, side=1.0), "the camera circles it to the right"),
        ("crane_up", cameras.crane_up, "the camera rises and looks down"),
        needs_layers=True,
    ),
    *_family(
        "camera",
        "unseen",
        ("spiral_in", partial(cameras.spiral, factor=2.0), "the camera spirals in"),
        ("spiral_out", partial(cameras.spiral, factor=0.5), "the camera spirals out"),
        ("fisheye", partial(cameras.fisheye, amount=1.1), "the picture bulges"),
        ("iris_out", cameras.iris_out, "a black ring closes"),
    ),
)

_BY_NAME = {condition.name: condition for condition in CATALOGUE}


def conditions(family: str | None = None, split: str | None = None, *, scene: Scene | None = None) -> list[str]:
    """Names of conditions, sorted.

    Args:
        family: one of "concept", "style", "motion", "camera", or None for all.
        split: "seen", "unseen", "novel" (two seen conditions of different families at once, named "melt+zoom_in"), or
            None for seen and unseen.
        scene: that they must apply to; None for every condition there is.

    Raises:
        InputError: for a family or split that does not exist.
    """
    if family is not None and family not in FAMILIES:
        raise InputError(f"expected a family of {', '.join(FAMILIES)}, got {family!r}")
    if split is not None and split not in SPLITS:
        raise InputError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    if split == "novel":
        names = [f"{first}+{second}" for first, second in NOVEL_PAIRS if family in (None, _BY_NAME[first].family)]
    else:
        names = [
            condition.name
            for condition in CATALOGUE
            if family in (None, condition.family) and split in (None, condition.split)
        ]
    return sorted(name for name in names if scene is None or can_show(scene, name))


def can_show(scene: Scene, name: str) -> bool:
    """Return whether a condition, or several joined by "+", can be applied to the scene."""
    return all(part.applies_to(scene) for part in parts_of(name))


def condition(name: str) -> Condition:
    """The record of one condition.

    Raises:
        InputError: if there is none of that name; the message offers near ones.
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see sememe.world.conditions()"
        raise InputError(f"unknown condition {name!r}; {hint}")
    return _BY_NAME[name]


def parts_of(name: str | None) -> tuple[Condition, ...]:
    """The conditions that a name such as "melt+zoom_in" joins; empty for None.

    Raises:
        InputError: if one is unknown, or comes twice.
    """
    names = [] if name is None else name.split("+")
    if len(set(names)) < len(names):
        raise InputError(f"expected different conditions in {name!r}; name each once")
    return tuple(condition(part) for part in names)
