"""Judgements of the clips of the evaluation, by a reader and by nearest renders, and the figures of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from sememe.evaluation.drift import MEASURES, Drift, measure_consistency
from sememe.evaluation.metrics import psnr
from sememe.evaluation.paths import Path2D
from sememe.evaluation.reader import ClipReader
from sememe.evaluation.rows import Share, estimate_share
from sememe.evaluation.span_oracle import read_spans
from sememe.evaluation.statistics import Estimate, bootstrap_interval, format_mean, format_share, wilson_interval
from sememe.evaluation.still_oracle import StillOracle, join_twins, name_look
from sememe.video import Clip, resize_clip
from sememe.world import Script
from sememe.world.catalogue import parts_of


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


@dataclass(frozen=True, slots=True)
class Likeness:
    """How a clip resembles the true render of its script, frame by frame and pixel by pixel.

    Attributes:
        psnr: PSNR against it in decibels.
        rank: Place of that render among those of all cases of the row, 1 for the nearest.
        others: Mean PSNR against those of the other cases; None where there are none.
    """

    psnr: float
    rank: int
    others: float | None


@dataclass(frozen=True, slots=True)
class ScriptReading:
    """What a clip shows, whatever scene it is of.

    Attributes:
        asked: Words for the scene that the text names, by label; one word for places that look the same.
        read: Words that the reader finds.
        asked_conditions: What should happen, one after another; None for nothing.
        read_conditions: What the nearest renders of each span show, or, in long videos, what the reader finds.
        consistency: Likeness of moments to the first and the one before, by the reader's features.
        stays: Whether the reader finds the same subject and colour at the end as at the beginning.
    """

    asked: dict[str, str]
    read: dict[str, str]
    asked_conditions: tuple[str | None, ...]
    read_conditions: tuple[str | None, ...]
    consistency: float
    stays: bool

    @property
    def is_right(self) -> bool:
        return self.asked == self.read and self.asked_conditions == self.read_conditions


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """The result of a case.

    Attributes:
        case: What was asked for.
        likeness: Likeness to the true render; None where there is none of what the text asks for.
        moving_path: Correlation of the path of what moves with the subject's in the script; None where that is not
            asked.
        drift: Drift by the name of its measure.
        reading: What the clip shows.
        read_path: The same as `moving_path` of the path that the reader finds; None of long videos.
    """

    case: ScriptCase
    likeness: Likeness | None
    moving_path: float | None
    drift: dict[str, Drift]
    reading: ScriptReading
    read_path: float | None

    @property
    def is_right(self) -> bool:
        return self.reading.is_right

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "ScriptResult":
        """Return the result that `dataclasses.asdict` made these values of."""
        likeness, reading = values["likeness"], values["reading"]
        lists = {name: tuple(reading[name]) for name in ("asked_conditions", "read_conditions")}
        made = {
            "case": ScriptCase(**values["case"]),
            "likeness": None if likeness is None else Likeness(**likeness),
            "drift": {name: Drift(**each) for name, each in values["drift"].items()},
            "reading": ScriptReading(**(reading | lists)),
        }
        return cls(**(dict(values) | made))


def compare_renders(clip: Clip, renders: Sequence[Clip], place: int) -> Likeness:
    """Compare a clip with true renders of its own script and of others.

    Args:
        clip: Clip of the shape of all renders.
        renders: Renders of different scripts.
        place: Which of them is that of the clip's own script.
    """
    found = np.array([psnr(clip, each, skip_first=False) for each in renders])
    others = np.delete(found, place)
    return Likeness(
        psnr=round(float(found[place]), 4),
        rank=1 + int((others > found[place]).sum()),
        others=round(float(others.mean()), 4) if len(others) else None,
    )


def read_script(
    reader: ClipReader, stills: StillOracle | None, clip: Clip, asked: Script
) -> tuple[ScriptReading, Path2D]:
    """Read what a clip shows, and where its subject is.

    Args:
        reader: Finds subject, colour and place, and the subject's path.
        stills: Finds the scene of the first frame, in which all conditions are rendered and compared with each span.
            None for long videos, whose last spans look too little like the first frame: the reader reads each span.
        clip: Clip of a whole script.
        asked: What the text asks for.
    """
    names = tuple(name for name, _ in asked.spans)
    parts = _cut(clip, asked) if stills is None else [clip]
    readings = [reader.read(part, len(names) // len(parts)) for part in parts]
    half, first = clip.num_frames // 2, readings[0]
    ends = [reader.read(Clip(frames, clip.fps), 1) for frames in (clip.frames[:half], clip.frames[half:])]
    reading = ScriptReading(
        asked=name_look(asked.scene),
        read=join_twins({"subject": first.subject, "colour": first.colour, "place": first.place}),
        asked_conditions=names,
        read_conditions=(
            tuple(name for each in readings for name in each.conditions)
            if stills is None
            else _read_conditions(stills, clip, asked)
        ),
        consistency=round(measure_consistency(np.concatenate([each.features for each in readings])), 5),
        stays=(ends[0].subject, ends[0].colour) == (ends[1].subject, ends[1].colour),
    )
    return reading, np.concatenate([each.path for each in readings])


def _read_conditions(stills: StillOracle, clip: Clip, asked: Script) -> tuple[str | None, ...]:
    """Compare each span with renders of all conditions in the scene that is found in the first frame."""
    small = resize_clip(clip, max(16, clip.height // 2), max(16, clip.width // 2), "stretch")
    return read_spans(small, stills.read(clip.frames[0]), [seconds for _, seconds in asked.spans])


def _cut(clip: Clip, script: Script) -> list[Clip]:
    """Cut a video where spans end."""
    ends = np.floor(np.cumsum([seconds for _, seconds in script.spans]) * clip.fps + 0.5).astype(int)
    return [Clip(frames, clip.fps) for frames in np.split(clip.frames, ends[:-1])]


@dataclass(frozen=True, slots=True)
class ReadingSummary:
    """The figures of a row of what its clips show.

    Attributes:
        subject: Share of clips with the right subject.
        place: The same of the place.
        colour: The same of the subject's colour.
        condition: Share of spans that show their condition.
        order: Share of clips in which all spans do.
        everything: Share of clips in which all of this is right.
        stays: Share of clips with the same subject and colour at the end.
        consistency: Mean likeness of moments.
    """

    subject: Share
    place: Share
    colour: Share
    condition: Share
    order: Share
    everything: Share
    stays: Share
    consistency: Estimate

    def to_cells(self) -> dict[str, str]:
        """The figures, by their column in a table."""
        names = [field.name for field in fields(self) if field.name != "consistency"]
        shares = {name: format_share(getattr(self, name).wilson) for name in names}
        return {**shares, "consistency": format_mean(self.consistency, digits=3)}


@dataclass(frozen=True, slots=True)
class ScriptSummary:
    """The figures of a row.

    Attributes:
        num_generations: Number of cases.
        nearest: Share of clips to which the true render of their own script is the nearest among those of all cases of
            the row; None where clips have none, like the next two.
        psnr: Mean PSNR against it.
        others: Mean PSNR against those of the other cases.
        moving_path: Mean correlation of the path of what moves; None where that is not asked.
        read_path: The same of the path that the reader finds.
        drift: Mean start-end contrast, slope (without sign) and worst part by measure, in per cent.
        reading: What the clips show.
        by_group: Share of spans that show their condition, by family.
    """

    num_generations: int
    nearest: Estimate | None
    psnr: Estimate | None
    others: Estimate | None
    moving_path: Estimate | None
    read_path: Estimate | None
    drift: dict[str, dict[str, Estimate]]
    reading: ReadingSummary
    by_group: dict[str, Estimate]

    def to_cells(self) -> dict[str, Any]:
        """The headline figures, by their column in a table."""
        levels = {"PSNR": self.psnr, "PSNR to others": self.others}
        paths = {"moving path": self.moving_path, "read path": self.read_path}
        return {
            "generations": self.num_generations,
            "nearest": None if self.nearest is None else format_share(self.nearest),
            **{name: None if mean is None else format_mean(mean, "dB") for name, mean in levels.items()},
            **{name: None if mean is None else format_mean(mean, digits=2) for name, mean in paths.items()},
            **self.reading.to_cells(),
            **{f"drift of {name}": format_mean(values["start_end"], "%") for name, values in self.drift.items()},
        }


class _Span(NamedTuple):
    script: int
    name: str | None
    is_shown: bool


def summarise(results: Sequence[ScriptResult]) -> ScriptSummary:
    """Return the figures of finished cases."""
    scripts = [result.case.script for result in results]
    likenesses = [result.likeness for result in results if result.likeness is not None]
    spans = [
        _Span(result.case.script, asked, asked == read)
        for result in results
        for asked, read in zip(result.reading.asked_conditions, result.reading.read_conditions, strict=True)
    ]
    families: dict[str, list[bool]] = {}
    for span in spans:
        family = "+".join(part.family for part in parts_of(span.name)) or "nothing"
        families.setdefault(family, []).append(span.is_shown)
    ranks = [each.rank for each in likenesses]
    return ScriptSummary(
        num_generations=len(results),
        nearest=wilson_interval(ranks.count(1), len(ranks)) if ranks else None,
        psnr=_average([each.psnr for each in likenesses]),
        others=_average([each.others for each in likenesses]),
        moving_path=_average([result.moving_path for result in results]),
        read_path=_average([result.read_path for result in results]),
        drift={
            name: {
                part: bootstrap_interval([abs(getattr(result.drift[name], part)) for result in results], scripts)
                for part in ("start_end", "slope", "worst")
            }
            for name in MEASURES
        },
        reading=_summarise_readings(results, spans),
        by_group={family: wilson_interval(sum(hits), len(hits)) for family, hits in sorted(families.items())},
    )


def _average(values: Sequence[float | None]) -> Estimate | None:
    """Return the mean of the values that there are, each of a script of its own."""
    known = [value for value in values if value is not None]
    return bootstrap_interval(known) if known else None


def _summarise_readings(results: Sequence[ScriptResult], spans: Sequence[_Span]) -> ReadingSummary:
    scripts, readings = [result.case.script for result in results], [result.reading for result in results]

    def share(hits: Sequence[bool]) -> Share:
        return estimate_share(hits, scripts)

    return ReadingSummary(
        **{
            name: share([reading.asked[name] == reading.read[name] for reading in readings])
            for name in ("subject", "place", "colour")
        },
        condition=estimate_share([span.is_shown for span in spans], [span.script for span in spans]),
        order=share([reading.asked_conditions == reading.read_conditions for reading in readings]),
        everything=share([reading.is_right for reading in readings]),
        stays=share([reading.stays for reading in readings]),
        consistency=bootstrap_interval([reading.consistency for reading in readings], scripts),
    )
