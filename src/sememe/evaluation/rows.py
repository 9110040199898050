"""Results of cases that the oracle judges, and the figures of a row of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sememe.backbones.autoencoder import LatentGrid
from sememe.errors import InputError
from sememe.evaluation.cases import Case
from sememe.evaluation.metrics import GridDifferences, GridTraces, compare_grids, measure_grid, psnr, ssim
from sememe.evaluation.oracle import Confusion, Oracle, Verdict, count_confusions
from sememe.evaluation.statistics import Estimate, bootstrap_interval, format_mean, format_share, wilson_interval
from sememe.video import Clip


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result of a case.

    Attributes:
        case: What was asked for.
        nearest: The condition that the oracle sees.
        rank: Place of the right condition among the candidates, 1 for the nearest.
        distance: Mean squared distance to the true target, as the oracle measures it.
        psnr: PSNR against the true target in decibels.
        ssim: Structural similarity to it, at most 1.
        differences: Differences between neighbouring pixels and frames of the clip.
        true_differences: Differences in the true target.
    """

    case: Case
    nearest: str
    rank: int
    distance: float
    psnr: float
    ssim: float
    differences: GridDifferences
    true_differences: GridDifferences

    @property
    def is_right(self) -> bool:
        return self.rank == 1

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.case.condition, self.nearest, self.rank, self.distance)


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion with two intervals: Wilson's, and a bootstrap over scenes."""

    wilson: Estimate
    scenes: Estimate


@dataclass(frozen=True, slots=True)
class RowSummary:
    """The figures of a row.

    Attributes:
        num_generations: Number of cases.
        num_scenes: Number of different scenes among them.
        num_candidates: Conditions among which the oracle chose, fewer in whole photographs; a guess is right once in so
            many.
        accuracy: Share of cases in which the right condition was the nearest.
        top_5: Share of cases in which it was among the five nearest.
        shares: What the system counts besides, by name; None where it does not apply to the row.
        psnr: PSNR against the true target in decibels: the mean over cases, with an interval over scenes.
        ssim: Structural similarity to it, the same.
        grid: Traces of the latent grid, relative to the true targets.
        by_group: Accuracy by group of conditions, such as families.
        confusions: The most frequent wrong verdicts.
    """

    num_generations: int
    num_scenes: int
    num_candidates: int
    accuracy: Share
    top_5: Share
    shares: Mapping[str, Share | None]
    psnr: Estimate
    ssim: Estimate
    grid: GridTraces
    by_group: dict[str, Estimate]
    confusions: tuple[Confusion, ...]

    def to_cells(self) -> dict[str, Any]:
        """Return the headline figures, by their column in a table."""
        shares = {
            name.replace("_", " "): None if share is None else format_share(share.wilson)
            for name, share in self.shares.items()
        }
        return {
            "generations": self.num_generations,
            "scenes": self.num_scenes,
            "candidates": self.num_candidates,
            "oracle accuracy": format_share(self.accuracy.wilson),
            "over scenes": format_share(self.accuracy.scenes),
            "top 5": format_share(self.top_5.wilson),
            **shares,
            "PSNR": format_mean(self.psnr, "dB"),
            "tiles": format_mean(self.grid.tiles, digits=2),
            "seams": format_mean(self.grid.seams, digits=2),
            "flicker": format_mean(self.grid.flicker, digits=2),
        }


def judge_case(case: Case, clip: Clip, truth: Clip, oracle: Oracle, grid: LatentGrid) -> CaseResult:
    """Compare a clip with all candidates and with its true target."""
    verdict = oracle.judge(clip, case.condition)
    return CaseResult(
        case=case,
        nearest=verdict.nearest,
        rank=verdict.rank,
        distance=verdict.distance,
        psnr=round(psnr(clip, truth), 4),
        ssim=round(ssim(clip, truth), 5),
        differences=measure_grid(clip, grid),
        true_differences=measure_grid(truth, grid),
    )


def read_result(values: Mapping[str, Any], case: type[Case] = Case) -> CaseResult:
    """Return the result of which `dataclasses.asdict` made these values."""
    grids = {name: GridDifferences(**values[name]) for name in ("differences", "true_differences")}
    return CaseResult(**(dict(values) | grids | {"case": case(**values["case"])}))


def estimate_share(hits: Sequence[bool], scenes: Sequence[int]) -> Share:
    """Return the proportion of hits among trials; `scenes` has the scene of each."""
    return Share(wilson_interval(sum(hits), len(hits)), bootstrap_interval([float(hit) for hit in hits], scenes))


def summarise_row(
    results: Sequence[CaseResult],
    num_candidates: int,
    groups: Callable[[str], Sequence[str]] | None = None,
    shares: Mapping[str, Share | None] | None = None,
) -> RowSummary:
    """Return the figures of finished cases.

    Args:
        results: Results, at least one.
        num_candidates: Conditions that the oracle chooses among.
        groups: Function that gives the groups of a condition; None for no groups.
        shares: What the system counts besides.

    Raises:
        InputError: If there are no results.
    """
    if not results:
        raise InputError("expected at least one result, got none")
    scenes = [result.case.scene for result in results]
    members: dict[str, list[bool]] = {}
    for result in results:
        for group in groups(result.case.condition) if groups else ():
            members.setdefault(group, []).append(result.is_right)
    return RowSummary(
        num_generations=len(results),
        num_scenes=len(set(scenes)),
        num_candidates=num_candidates,
        accuracy=estimate_share([result.is_right for result in results], scenes),
        top_5=estimate_share([result.rank <= 5 for result in results], scenes),
        shares=shares or {},
        psnr=bootstrap_interval([result.psnr for result in results], scenes),
        ssim=bootstrap_interval([result.ssim for result in results], scenes),
        grid=compare_grids(
            [result.differences for result in results], [result.true_differences for result in results], scenes
        ),
        by_group={group: wilson_interval(sum(right), len(right)) for group, right in members.items()},
        confusions=count_confusions([result.verdict for result in results])[:12],
    )
