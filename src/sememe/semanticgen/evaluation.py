"""The SemanticGen evaluation: its rows and their cases, how their clips are made, and what is counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sememe.backbones.autoencoder import reconstruct_clips
from sememe.checkpoints.zoo import WEIGHTS_FOLDER
from sememe.errors import ModelError
from sememe.evaluation.drift import MEASURES, Drift, measure_consistency, measure_drift
from sememe.evaluation.reader import ClipReader, Path2D, find_path, name_scene
from sememe.evaluation.rows import Share, estimate_share
from sememe.evaluation.runner import TABLE, Row, SystemRows
from sememe.evaluation.statistics import Estimate, bootstrap_interval, format_mean, format_share, wilson_interval
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.semanticgen.settings import Settings
from sememe.video import Clip, SheetRow
from sememe.video.resizing import pick_frames
from sememe.world import EVALUATION_SEED, RenderedScript, Script, conditions, random_script, render_script
from sememe.world.captions import script_caption
from sememe.world.catalogue import parts_of
from sememe.world.scripts import PASSING

Method = Literal["text", "source", "truth", "autoencoder"]
STRICTNESS, LONG = "strictness", "long"
"""Groups of rows: the curve over noise on plans, and videos that are many times as long as those of the training."""
LENGTHS = 8
"""How many times as long these are."""
READER = WEIGHTS_FOLDER / "semanticgen" / "reader"
"""Folder of the reader that comes with the package."""
MOVING = (
    *("billiard", "circle", "figure_eight", "hop_left", "hop_right"),
    *("jump", "pan_left", "pan_right", "rise", "sink", "walk_left", "walk_right", "zigzag"),
)
"""Conditions that move the subject through the picture, and end or may end a story: how paths are followed."""
LEVELS = (0.25, 0.5, 1.0, 2.0)
"""Standard deviations of the noise on plans whose curve is measured; `source` is the one without any."""


@dataclass(frozen=True, slots=True)
class ScriptCase:
    """One trial.

    Attributes:
        script: Seed of the script.
        look: Seed of the script whose scene the text names: the same, or another one.
        noise_seed: Seed of the noise.
    """

    script: int
    look: int
    noise_seed: int


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
    has_own_look: bool = True
    group: str = TABLE

    @property
    def is_long(self) -> bool:
        return self.group == LONG


def list_rows(num_frames: int, longer: int) -> tuple[RowSettings, ...]:
    """List all rows.

    Args:
        num_frames: Frames of a video as long as those of the training.
        longer: Frames of one that is many times as long.
    """
    row = partial(RowSettings, num_frames=num_frames)
    follow = partial(row, method="source", names=MOVING, has_own_look=False)
    still = tuple(name for name in conditions(family="motion") if name in PASSING)
    long = partial(RowSettings, num_frames=longer, names=still, group=LONG)
    return (
        row("prompt", "a text alone: planned, then rendered"),
        row("no_plan", "the same renderer without a plan", changes=(("plan_guidance_scale", 0.0),)),
        row("true_plan", "the plan of the true render: what a perfect planner would give", method="source"),
        row("floor", "no text: how often clips are right by chance", has_text=False),
        row("ceiling", "the true render through the autoencoder", method="autoencoder"),
        row("truth", "the true render: how often the reader is right", method="truth"),
        follow("source", "the plan of a clip of another scene, under a text of its own"),
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


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """What a case gave.

    Attributes:
        case: What was asked for.
        asked: Words for the scene that the text names, by label.
        read: Words that the reader finds.
        asked_conditions: What should happen, one after another; None for nothing.
        read_conditions: What the reader finds.
        path_correlation: Correlation of the subject's path with the one of the true render; None where that does not
            move.
        consistency: Likeness of moments to the first and the one before, by the reader's features.
        stays: Whether the reader finds the same subject and colour at the end as at the beginning.
        drift: Drift by the name of its measure.
    """

    case: ScriptCase
    asked: dict[str, str]
    read: dict[str, str]
    asked_conditions: tuple[str | None, ...]
    read_conditions: tuple[str | None, ...]
    path_correlation: float | None
    consistency: float
    stays: bool
    drift: dict[str, Drift]

    @property
    def is_right(self) -> bool:
        return self.asked == self.read and self.asked_conditions == self.read_conditions


@dataclass(frozen=True, slots=True)
class ScriptSummary:
    """The figures of a row.

    Attributes:
        num_generations: Number of cases.
        subject: Share of clips with the right subject.
        place: The same of the place.
        colour: The same of the subject's colour.
        condition: Share of the conditions that were asked for and found, in any place.
        order: Share of clips in which all conditions are found in their order, and no other.
        everything: Share of clips in which all of this is right.
        stays: Share of clips with the same subject and colour at the end.
        path_correlation: Mean correlation with the true path; None where none moves.
        consistency: Mean likeness of moments.
        drift: Mean start-end contrast, slope (without sign) and worst part by measure, in per cent.
        by_group: Share of found conditions by family.
    """

    num_generations: int
    subject: Share
    place: Share
    colour: Share
    condition: Share
    order: Share
    everything: Share
    stays: Share
    path_correlation: Estimate | None
    consistency: Estimate
    drift: dict[str, dict[str, Estimate]]
    by_group: dict[str, Estimate]

    def to_cells(self) -> dict[str, Any]:
        """The headline figures, by their column in a table."""
        names = ("subject", "place", "colour", "condition", "order", "everything", "stays")
        shares = {name: format_share(getattr(self, name).wilson) for name in names}
        path = self.path_correlation
        return {
            "generations": self.num_generations,
            **shares,
            "path": None if path is None else format_mean(path, digits=2),
            "consistency": format_mean(self.consistency, digits=3),
            **{f"drift of {name}": format_mean(values["start_end"], "%") for name, values in self.drift.items()},
        }


def read_result(values: Mapping[str, Any]) -> ScriptResult:
    """The result that `dataclasses.asdict` made these values of."""
    lists = {name: tuple(values[name]) for name in ("asked_conditions", "read_conditions")}
    drift = {name: Drift(**each) for name, each in values["drift"].items()}
    return ScriptResult(**(dict(values) | lists | {"case": ScriptCase(**values["case"]), "drift": drift}))


def summarise(results: Sequence[ScriptResult]) -> ScriptSummary:
    """The figures of finished cases."""
    scripts = [result.case.script for result in results]
    spans = [(result, name, name in result.read_conditions) for result in results for name in result.asked_conditions]
    families: dict[str, list[bool]] = {}
    for _, name, is_found in spans:
        families.setdefault("+".join(part.family for part in parts_of(name)) or "nothing", []).append(is_found)

    def share(hits: Sequence[bool]) -> Share:
        return estimate_share(hits, scripts)

    moved = [(result.case.script, result.path_correlation) for result in results if result.path_correlation is not None]
    return ScriptSummary(
        num_generations=len(results),
        **{
            name: share([result.asked[name] == result.read[name] for result in results])
            for name in ("subject", "place", "colour")
        },
        condition=estimate_share([hit for *_, hit in spans], [result.case.script for result, *_ in spans]),
        order=share([result.asked_conditions == result.read_conditions for result in results]),
        everything=share([result.is_right for result in results]),
        stays=share([result.stays for result in results]),
        path_correlation=bootstrap_interval([value for _, value in moved], [each for each, _ in moved])
        if moved
        else None,
        consistency=bootstrap_interval([result.consistency for result in results], scripts),
        drift={
            name: {
                part: bootstrap_interval([abs(getattr(result.drift[name], part)) for result in results], scripts)
                for part in ("start_end", "slope", "worst")
            }
            for name in MEASURES
        },
        by_group={family: wilson_interval(sum(hits), len(hits)) for family, hits in sorted(families.items())},
    )


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
        if row.is_long:
            return [clip for case in cases for clip in self._generate(row, [case])]
        return self._generate(row, cases)

    def judge(self, row: RowSettings, case: ScriptCase, clip: Clip) -> ScriptResult:
        """Read a clip, and compare with what was asked for."""
        asked = self.asked(row, case)
        names = tuple(name for name, _ in asked.spans)
        parts = self._cut(clip, asked) if row.is_long else [clip]
        # Of a long video it is known when each part begins, and each has one condition.
        readings = [self.reader.read(part, len(names) // len(parts)) for part in parts]
        half = clip.num_frames // 2
        ends = [self.reader.read(Clip(frames, clip.fps), 1) for frames in (clip.frames[:half], clip.frames[half:])]
        features = np.concatenate([reading.features for reading in readings])
        path = np.concatenate([reading.path for reading in readings])
        first = readings[0]
        return ScriptResult(
            case=case,
            asked=name_scene(asked.scene),
            read={"subject": first.subject, "colour": first.colour, "place": first.place},
            asked_conditions=names,
            read_conditions=tuple(name for reading in readings for name in reading.conditions),
            path_correlation=None if row.is_long else self._correlate(row, case, path),
            consistency=round(measure_consistency(features), 5),
            stays=(ends[0].subject, ends[0].colour) == (ends[1].subject, ends[1].colour),
            drift=measure_drift(clip),
        )

    def show(self, row: RowSettings, case: ScriptCase, clip: Clip, result: ScriptResult) -> list[SheetRow]:
        """Return rows of the sheet: what was made, and the true render."""
        read = ", ".join([*result.read.values(), *(name or "nothing" for name in result.read_conditions[:4])])
        asked = self.asked(row, case)
        text = (
            script_caption(asked.scene, [parts_of(name) for name, _ in asked.spans[:4]]) if row.has_text else "no text"
        )
        return [
            SheetRow(f"{row.name}: read as {read}", clip),
            SheetRow(f"true render of the script; text: {text}", self.film(row, case).clip),
        ]

    def _correlate(self, row: RowSettings, case: ScriptCase, path: Path2D) -> float | None:
        shot, rate = self.film(row, case), self.reader.network.config.fps
        picks = pick_frames(shot.clip.num_frames, sampling="fps", source_fps=shot.clip.fps, target_fps=rate)
        return correlate_paths(find_path(shot.mask[picks]), path)

    def _cut(self, clip: Clip, script: Script) -> list[Clip]:
        """Cut a video where spans end."""
        ends = np.floor(np.cumsum([seconds for _, seconds in script.spans]) * clip.fps + 0.5).astype(int)
        return [Clip(frames, clip.fps) for frames in np.split(clip.frames, ends[:-1])]

    def _generate(self, row: RowSettings, cases: Sequence[ScriptCase]) -> list[Clip]:
        asked = [self.asked(row, case) for case in cases]
        given: dict[str, Any] = {}
        if row.is_long:
            (script,) = asked
            given["segments"] = [
                (seconds, script_caption(script.scene, [parts_of(name)])) for name, seconds in script.spans
            ]
        texts = [script_caption(each.scene, [parts_of(name) for name, _ in each.spans]) for each in asked]
        if row.method == "source":
            given["source"] = [self.film(row, case).clip for case in cases]
        output = self.pipeline(
            "" if row.is_long else texts if row.has_text else [""] * len(cases),
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


@lru_cache(maxsize=1024)
def _draw_script(seed: int, seconds: float, names: tuple[str, ...] | None) -> Script:
    return random_script(seed, seconds=seconds, names=names)


def correlate_paths(true: Path2D, path: Path2D) -> float | None:
    """Return the correlation of two paths, of both coordinates about their means together.

    Where the subject should be seen and is not, it is taken to be at the mean of its path: a lost subject tells
    nothing. None if it should be seen at fewer than three moments, or does not move by a hundredth of the picture.

    Args:
        true: Path as it should be.
        path: Path as it is.
    """
    is_seen = ~np.isnan(true[:, 0])
    if is_seen.sum() < 3:
        return None
    wanted, found = true[is_seen], path[is_seen]
    wanted = wanted - wanted.mean(axis=0)
    if np.sqrt((wanted**2).sum(axis=1).mean()) < 0.01:
        return None
    is_found = ~np.isnan(found[:, 0])
    if not is_found.any():
        return 0.0
    found = np.where(is_found[:, None], found - found[is_found].mean(axis=0), 0.0)
    scale = float(np.sqrt((wanted**2).sum() * (found**2).sum()))
    return round(float((wanted * found).sum()) / scale, 5) if scale > 1e-9 else 0.0


def build_rows(
    pipeline: SemanticGenPipeline,
    settings: Settings,
    folder: Path,
    *,
    generations: int,
    per_scene: int,
    seed: int,
    reader: str | None = None,
) -> SystemRows[ScriptCase, ScriptResult]:
    """Build all rows of the evaluation.

    Args:
        pipeline: As in `Maker`, like the next one.
        settings: Settings of the generations.
        folder: Folder for files; none are written.
        generations: Number of cases in each row.
        per_scene: Has no effect, because each script has a scene of its own.
        seed: Seed of scripts and noise.
        reader: Run or folder of the reader; None for the one that comes with the package.

    Raises:
        ModelError: There is no reader.
    """
    if reader is None and not READER.is_dir():
        raise ModelError(
            "expected a reader, but the package comes with none; train one (sememe train tiny-reader) and give "
            "--set reader=runs/tiny-reader"
        )
    judge = ClipReader.load(reader or READER)
    maker, size = Maker(pipeline, settings, judge), settings.size
    rows = list_rows(size.num_frames, pipeline.grid.nearest_num_frames(LENGTHS * size.num_frames))
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
            cases=deal_row(row, generations, seed),
            make=partial(maker.make, row),
            judge=partial(maker.judge, row),
            summarise=summarise,
            read=read_result,
            show=partial(maker.show, row),
            group=row.group,
        )
        for row in rows
    )
    return SystemRows(built, {"reader": judge.fingerprint})
