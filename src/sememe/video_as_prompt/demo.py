"""The demonstration: two references, a drawn picture and a photograph that do the same, and a sheet of them all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sememe.records import SizeSettings
from sememe.video import SheetRow, contact_sheet, read_clip, write_clip, write_image
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.world import EVALUATION_SEED, Scene, can_show, conditions, random_scene, render
from sememe.world.catalogue import FAMILIES, condition
from sememe.world.scene import Crop

_NUM_SCENES = 1_000_000  # to draw from, none of which any training has seen


@dataclass(frozen=True)
class DemoPair:
    """A condition in a reference, a picture, and the picture doing the same."""

    condition: str
    reference: Path
    image: Path
    result: Path


def make_demo(
    sheet: Path,
    image: Path | None,
    seed: int,
    size: SizeSettings,
    generate: Callable[[VideoAsPromptInputs, Path], None],
) -> tuple[DemoPair, ...]:
    """Render two references and two pictures, of which the second may be given, and generate; see `System.demo`."""
    folder, (first, second) = sheet.parent, choose_conditions(seed)
    pairs = (
        DemoPair(first, folder / "reference.mp4", folder / "image.png", folder / "result.mp4"),
        DemoPair(second, folder / "reference_2.mp4", image or folder / "image_2.png", folder / "result_2.mp4"),
    )
    _render_inputs(pairs, image, seed, size)
    for pair in pairs:
        generate(VideoAsPromptInputs(references=(pair.reference,), image=pair.image), pair.result)
    _write_sheet(pairs, sheet)
    return pairs


def choose_conditions(seed: int) -> tuple[str, str]:
    """Draw two conditions of different families, which take turns; seen and unseen ones."""
    rng = np.random.Generator(np.random.PCG64(seed))
    first, second = (str(rng.choice(conditions(family=FAMILIES[(seed + shift) % len(FAMILIES)]))) for shift in (0, 2))
    return first, second


def _render_inputs(pairs: tuple[DemoPair, ...], image: Path | None, seed: int, defaults: SizeSettings) -> None:
    """Write the references, and the pictures that are not given, at the model's own size."""
    size = (defaults.height, defaults.width)
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    for place, pair in enumerate(pairs):
        reference = _draw_scene(rng, pair.condition)
        take = render(reference, pair.condition, num_frames=defaults.num_frames, size=size, fps=defaults.fps)
        write_clip(take.clip, pair.reference)
        if pair.image != image:
            picture = _draw_scene(rng, pair.condition, has_photograph=place > 0)
            write_image(render(picture, None, num_frames=1, size=size).clip.frames[0], pair.image)


def _draw_scene(rng: np.random.Generator, name: str, *, has_photograph: bool | None = None) -> Scene:
    """Draw a scene that can show the condition, with or without a photograph; None for either."""
    while True:
        scene = random_scene(EVALUATION_SEED + int(rng.integers(_NUM_SCENES)))
        if can_show(scene, name) and has_photograph in (None, isinstance(scene.backdrop, Crop)):
            return scene


def _write_sheet(pairs: tuple[DemoPair, ...], sheet: Path) -> None:
    rows = []
    for pair in pairs:
        shown = condition(pair.condition)
        label = f"{shown.name} ({shown.family}, {shown.split} in training): reference above, result below"
        rows += [SheetRow(label, read_clip(pair.reference)), SheetRow("", read_clip(pair.result))]
    write_image(contact_sheet(rows), sheet)
