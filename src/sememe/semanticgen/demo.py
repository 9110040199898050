"""The demonstration: texts that are planned and rendered, a clip rendered under another text, and a sheet of both."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sememe.records import SizeSettings
from sememe.semanticgen.generation import SemanticGenInputs
from sememe.semanticgen.plan import Plan, colour_plan
from sememe.semanticgen.segments import Segment
from sememe.video import Clip, SheetRow, contact_sheet, read_clip, write_clip, write_image
from sememe.world import EVALUATION_SEED, Script, random_script, render_script
from sememe.world.captions import name_happenings, neutral_caption, script_caption
from sememe.world.catalogue import parts_of


@dataclass(frozen=True)
class DemoFilm:
    """What a video is made from, and its files.

    Attributes:
        prompt: Text for all of it.
        segments: Texts for its parts, as on the command line.
        source: Clip whose plan is rendered; None where the texts are planned.
        plan: The plan.
        result: The video.
    """

    prompt: str
    segments: tuple[str, ...]
    source: Path | None
    plan: Path
    result: Path


def make_demo(
    sheet: Path,
    image: Path | None,
    seed: int,
    size: SizeSettings,
    generate: Callable[[SemanticGenInputs, Path], None],
) -> tuple[DemoFilm, ...]:
    """Make a video of texts, with or without a picture, and another from a rendered clip's plan; see `System.demo`."""
    folder, (written, filmed, other) = sheet.parent, _draw_scripts(seed, size.num_frames / size.fps)
    source = folder / "source.mp4"
    # What happens in the source is said of another scene.
    asked = Script(other.scene, filmed.spans)
    films = (
        DemoFilm(
            f"{neutral_caption(written.scene)};", _divide(written), None, folder / "result.plan", folder / "result.mp4"
        ),
        DemoFilm(_describe(asked), (), source, folder / "result_2.plan", folder / "result_2.mp4"),
    )
    shot = render_script(filmed.scene, filmed.spans, size=(size.height, size.width), fps=size.fps)
    write_clip(shot.clip, source)
    for film, picture in zip(films, (image, None), strict=True):
        inputs = SemanticGenInputs(
            prompt=film.prompt, segments=film.segments, source=film.source, image=picture, save_plan=film.plan
        )
        generate(inputs, film.result)
    _write_sheet(films, shot.full_caption, sheet)
    return films


def _draw_scripts(seed: int, seconds: float) -> list[Script]:
    """Draw scripts that no training has shown."""
    rng = np.random.Generator(np.random.PCG64(seed))
    seeds = EVALUATION_SEED + rng.choice(EVALUATION_SEED, size=3, replace=False)
    return [random_script(int(each), seconds=seconds) for each in seeds]


def _describe(script: Script) -> str:
    return script_caption(script.scene, [parts_of(name) for name, _ in script.spans])


def _divide(script: Script) -> tuple[str, ...]:
    """Say what happens in each span, and when."""
    segments, start = [], 0.0
    for name, seconds in script.spans:
        segments.append(str(Segment(start, start + seconds, name_happenings(parts_of(name)))))
        start += seconds
    return tuple(segments)


def _write_sheet(films: tuple[DemoFilm, ...], source_caption: str, sheet: Path) -> None:
    """Show each result below the plan that it follows, and that below the source."""
    rows = []
    for film in films:
        plan = Plan.load(film.plan)
        rows += [] if film.source is None else [SheetRow(f"source: {source_caption}", read_clip(film.source))]
        origin = "its plan" if film.source else "plan of texts"
        rows += [
            SheetRow(f"{origin}: {plan.num_slices} slices", Clip(colour_plan(plan), 1.0 / plan.slice_seconds)),
            SheetRow(" ".join((film.prompt, *film.segments)), read_clip(film.result)),
        ]
    write_image(contact_sheet(rows), sheet)
