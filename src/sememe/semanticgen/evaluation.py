"""The SemanticGen evaluation: its rows and their cases, and how their clips are made and judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sememe.backbones.autoencoder import reconstruct_clips
from sememe.checkpoints.zoo import WEIGHTS_FOLDER
from sememe.evaluation.drift import measure_drift
from sememe.evaluation.paths import Path2D, correlate_paths, find_moving_path, find_path
from sememe.evaluation.reader import ClipReader
from sememe.evaluation.runner import TABLE, Row, SystemRows
from sememe.evaluation.still_oracle import StillOracle
from sememe.semanticgen.judgements import (
    Likeness,
    ScriptCase,
    ScriptResult,
    compare_renders,
    read_script,
    summarise,
)
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.semanticgen.settings import Settings
from sememe.video import Clip, SheetRow
from sememe.video.resizing import pick_frames
from sememe.world import EVALUATION_SEED, RenderedScript, Script, conditions, random_script, render_script
from sememe.world.captions import script_caption
from sememe.world.catalogue import parts_of
from sememe.world.scripts import PASSING

Method = Literal["text", "source", "truth", "autoencoder"]
STRICTNESS, DRIFT = "strictness", "drift"
"""Groups of rows: the curve over noise on plans, and videos that are many times as long as those of the training."""
LENGTHS = 8
"""How many times as long these are."""
READER = WEIGHTS_FOLDER / "semanticgen" / "reader"
"""Folder of the reader that comes with the package."""
MOVING = (
    *("billiard", "circle", "figure_eight", "hop_left", "hop_right"),
    *("jump", "rise", "sink", "walk_left", "walk_right", "zigzag"),
)
"""Conditions that move the subject before a camera at rest, and end or may end a story: how paths are followed."""
LEVELS = (0.25, 0.5, 1.0, 2.0)
"""Standard deviations of the noise on plans whose curve is measured; `source` is the one without any."""


@dataclass(frozen=True)
class RowSettings:
    """One row of the evaluation.

    Attributes:
        name: Name in reports and on the command line.
        about: What the row measures.
        num_frames: Frames of the videos.
        method: What videos are made from.
        names: Conditions of the scripts; None for all.
        changes: Settings of the generation that differ.
        has_text: Whether there is a text.
        has_image: Whether the first picture of the true render is given.
        has_segments: Whether each span has a text of its own, and not all of them one.
        has_own_look: Whether the text names the script's own scene, and not another one.
        group: Group of the row.
    """

    name: str
    about: str
    num_frames: int
    method: Method = "text"
    names: tuple[str, ...] | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    has_text: bool = True
    has_image: bool = False
    has_segments: bool = False
    has_own_look: bool = True
    group: str = TABLE

    @property
    def is_long(self) -> bool:
        return self.group == DRIFT

    @property
    def has_path(self) -> bool:
        return self.names == MOVING


def list_rows(num_frames: int, longer: int, *, takes_image: bool) -> tuple[RowSettings, ...]:
    """List all rows.

    Args:
        num_frames: Frames of a video as long as those of the training.
        longer: Frames of one that is many times as long.
        takes_image: Whether the renderer takes a first picture.
    """
    row = partial(RowSettings, num_frames=num_frames)
    follow = partial(row, method="source", names=MOVING, has_own_look=False)
    still = tuple(name for name in conditions(family="motion") if name in PASSING)
    long = partial(RowSettings, num_frames=longer, names=still, has_segments=True, group=DRIFT)
    pictured = row(
        "picture", "a text and the true render's first picture, with which plan and video begin", has_image=True
    )
    return (
        row("prompt", "a text alone: planned, then rendered"),
        row("segments", "the same with a text for each span, which says when things happen", has_segments=True),
        *([pictured] if takes_image else []),
        row("no_plan", "the same renderer without a plan", changes=(("plan_guidance_scale", 0.0),)),
        row("true_plan", "the plan of the true render: what a perfect planner would give", method="source"),
        row("plan_alone", "the same plan without a text", method="source", has_text=False),
        row("floor", "no text: how often clips are right by chance", has_text=False),
        row("ceiling", "the true render through the autoencoder", method="autoencoder"),
        row("truth", "the true render: how often the judges are right", method="truth"),
        follow("source", "the plan of a clip of another scene, under a text of its own"),
        row("source_ceiling", "these clips through the autoencoder", method="autoencoder", names=MOVING),
        *(
            follow(
                f"noise_{level:g}",
                f"the same with noise of {level:g} on the plan",
                changes=(("plan_noise", level),),
                group=STRICTNESS,
            )
            for level in LEVELS
        ),
        long("long", f"{LENGTHS} times as long as in training, one text after another"),
        long("long_no_plan", "the same without a plan", changes=(("plan_guidance_scale", 0.0),)),
        long("long_truth", "the true render of the same scripts", method="truth"),
    )


def deal_row(row: RowSettings, count: int, seed: int) -> tuple[ScriptCase, ...]:
    """Deal the cases of a row: scripts of scenes that no training shows; rows with the same seed share them."""
    rng = np.random.Generator(np.random.PCG64(seed))
    scripts = EVALUATION_SEED + rng.choice(EVALUATION_SEED, size=2 * count, replace=False)
    noises = rng.integers(1 << 31, size=count)
    looks = scripts[:count] if row.has_own_look else scripts[count:]
    return tuple(ScriptCase(*(int(each) for each in case)) for case in zip(scripts[:count], looks, noises, strict=True))


class Maker:
    """Make and judge the clips of cases.

    Args:
        pipeline: Pipeline that makes the clips.
        settings: Settings of the generations.
        reader: Reader that judges them.
    """

    def __init__(self, pipeline: SemanticGenPipeline, settings: Settings, reader: ClipReader) -> None:
        self.pipeline, self.settings, self.reader = pipeline, settings, reader
        self._film = lru_cache(maxsize=64)(self._render)
        self._renders = lru_cache(maxsize=1)(self._render_all)

    def script(self, row: RowSettings, case: ScriptCase) -> Script:
        """Draw the script."""
        return _draw_script(case.script, row.num_frames / self.settings.size.fps, row.names)

    def asked(self, row: RowSettings, case: ScriptCase) -> Script:
        """Return what the text tells: the script, in the scene that it names."""
        script = self.script(row, case)
        if case.look == case.script:
            return script
        return Script(_draw_script(case.look, row.num_frames / self.settings.size.fps, row.names).scene, script.spans)

    def film(self, row: RowSettings, case: ScriptCase) -> RenderedScript:
        """Render the script."""
        return self._film(case.script, row.num_frames, row.names)

    def make(self, row: RowSettings, cases: Sequence[ScriptCase]) -> list[Clip]:
        """Make one clip for each case."""
        if row.method in ("truth", "autoencoder"):
            true = [self.film(row, case).clip for case in cases]
            return true if row.method == "truth" else reconstruct_clips(self.pipeline.vae, true)
        if row.has_segments:
            return [clip for case in cases for clip in self._generate(row, [case])]
        return self._generate(row, cases)

    def judge(self, row: RowSettings, cases: tuple[ScriptCase, ...], case: ScriptCase, clip: Clip) -> ScriptResult:
        """Compare a clip with what was asked for, and with what the other cases of the row ask for."""
        likeness: Likeness | None = None
        if row.has_own_look:
            renders = self._renders(tuple(each.script for each in cases), row.num_frames, row.names)
            likeness = compare_renders(clip, renders, cases.index(case))
        moving_path = self._correlate(row, case, find_moving_path(clip), clip.fps) if row.has_path else None
        stills = None if row.is_long else _draw_stills()
        reading, path = read_script(self.reader, stills, clip, self.asked(row, case))
        read_path = None if row.is_long else self._correlate(row, case, path, self.reader.network.config.fps)
        return ScriptResult(case, likeness, moving_path, measure_drift(clip), reading, read_path)

    def show(self, row: RowSettings, case: ScriptCase, clip: Clip, result: ScriptResult) -> list[SheetRow]:
        """Return rows of the sheet: what was made, and the true render."""
        names = (name or "nothing" for name in result.reading.read_conditions[:4])
        found = [f"read as {', '.join([*result.reading.read.values(), *names])}"]
        if result.likeness is not None:
            found.append(f"its render is number {result.likeness.rank} of the nearest")
        asked = self.asked(row, case)
        text = (
            script_caption(asked.scene, [parts_of(name) for name, _ in asked.spans[:4]]) if row.has_text else "no text"
        )
        return [
            SheetRow(f"{row.name}: {'; '.join(found)}", clip),
            SheetRow(f"true render of the script; text: {text}", self.film(row, case).clip),
        ]

    def _correlate(self, row: RowSettings, case: ScriptCase, path: Path2D, fps: float) -> float | None:
        """Compare with the true path at so many frames per second."""
        shot = self.film(row, case)
        picks = pick_frames(shot.clip.num_frames, sampling="fps", source_fps=shot.clip.fps, target_fps=fps)
        return correlate_paths(find_path(shot.mask[picks]), path)

    def _generate(self, row: RowSettings, cases: Sequence[ScriptCase]) -> list[Clip]:
        asked = [self.asked(row, case) for case in cases]
        given: dict[str, Any] = {}
        if row.has_segments:
            (script,) = asked
            given["segments"] = [
                (seconds, script_caption(script.scene, [parts_of(name)])) for name, seconds in script.spans
            ]
        texts = [script_caption(each.scene, [parts_of(name) for name, _ in each.spans]) for each in asked]
        if row.method == "source":
            given["source"] = [self.film(row, case).clip for case in cases]
        if row.has_image:
            given["image"] = [self.film(row, case).clip.frames[0] for case in cases]
        output = self.pipeline(
            "" if row.has_segments else texts if row.has_text else [""] * len(cases),
            num_frames=row.num_frames,
            settings=self.settings.override(**dict(row.changes)),
            generator=[torch.Generator().manual_seed(case.noise_seed) for case in cases],
            **given,
        )
        clips: list[Clip] = output.clips
        return clips

    def _render(self, seed: int, num_frames: int, names: tuple[str, ...] | None) -> RenderedScript:
        size = self.settings.size
        script = _draw_script(seed, num_frames / size.fps, names)
        return render_script(script.scene, script.spans, size=(size.height, size.width), fps=size.fps)

    def _render_all(self, seeds: tuple[int, ...], num_frames: int, names: tuple[str, ...] | None) -> tuple[Clip, ...]:
        """Render scripts, and keep the pictures alone."""
        return tuple(self._render(seed, num_frames, names).clip for seed in seeds)


_draw_stills = lru_cache(maxsize=1)(StillOracle)


@lru_cache(maxsize=1024)
def _draw_script(seed: int, seconds: float, names: tuple[str, ...] | None) -> Script:
    return random_script(seed, seconds=seconds, names=names)


def build_rows(
    pipeline: SemanticGenPipeline,
    settings: Settings,
    folder: Path,
    *,
    generations: int,
    per_scene: int,
    seed: int,
    reader: str | Path = READER,
) -> SystemRows[ScriptCase, ScriptResult]:
    """Build all rows of the evaluation.

    Args:
        pipeline: As in `Maker`, like the next one.
        settings: Settings of the generations.
        folder: Folder for files; none are written.
        generations: Number of cases in each row.
        per_scene: Has no effect, because each script has a scene of its own.
        seed: Seed of scripts and noise.
        reader: Run or folder of the reader.

    Raises:
        ModelError: There is no such reader.
    """
    judge = ClipReader.load(reader)
    maker, size = Maker(pipeline, settings, judge), settings.size
    config: Any = pipeline.transformer.config
    rows = list_rows(
        size.num_frames,
        pipeline.grid.nearest_num_frames(LENGTHS * size.num_frames),
        takes_image=config.in_channels > config.out_channels,
    )
    cases = {row.name: deal_row(row, generations, seed) for row in rows}
    built = tuple(
        Row(
            name=row.name,
            about={
                "about": row.about,
                "method": row.method,
                "num_frames": row.num_frames,
                "height": size.height,
                "width": size.width,
                "changes": dict(row.changes),
            },
            cases=cases[row.name],
            make=partial(maker.make, row),
            judge=partial(maker.judge, row, cases[row.name]),
            summarise=summarise,
            read=ScriptResult.from_values,
            show=partial(maker.show, row),
            group=row.group,
        )
        for row in rows
    )
    return SystemRows(built, {"reader": judge.fingerprint})
