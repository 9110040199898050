"""Results of single cases, and the figures of a row of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sememe.backbones.autoencoder import LatentGrid
from sememe.errors import InputError
from sememe.evaluation.cases import Case
from sememe.evaluation.grid import GridDifferences, GridTraces, compare_grids, measure_grid
from sememe.evaluation.metrics import psnr, ssim
from sememe.evaluation.oracle import Confusion, Oracle, Verdict, count_confusions
from sememe.evaluation.statistics import Estimate, bootstrap_interval, wilson_interval
from sememe.evaluation.tables import format_mean, format_share, to_markdown
from sememe.video import Clip


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What a case gave.

    Attributes:
        case: what was asked for.
        nearest: the condition that the oracle sees.
        rank: place of the right condition among the candidates, 1 for the nearest.
        distance: mean squared distance to the true target, as the oracle measures it.
        psnr: against the true target, decibels.
        ssim: the same.
        differences: between neighbouring pixels and frames of the clip.
        true_differences: the same in the true target.
        told: another condition that the prompt named; None where it named none.
    """

    case: Case
    nearest: str
    rank: int
    distance: float
    psnr: float
    ssim: float
    differences: GridDifferences
    true_differences: GridDifferences
    told: str | None = None

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
        num_generations: cases.
        num_scenes: different scenes among them.
        num_candidates: conditions among which the oracle chose, fewer in whole photographs; a guess is right once in so
            many.
        accuracy: the right condition was the nearest.
        top_5: it was among the five nearest.
        both_follow: of disjoint pairs with the same picture and noise and two references, both were right; None
            where cases do not come in such pairs.
        follow_text: the nearest condition was the other one, that the prompt named; None where prompts name none.
        psnr: against the true target, decibels, over scenes.
        ssim: the same.
        grid: traces of the latent grid, relative to the true targets.
        by_group: accuracy by group of conditions, such as families.
        confusions: the most frequent wrong verdicts.
    """

    num_generations: int
    num_scenes: int
    num_candidates: int
    accuracy: Share
    top_5: Share
    both_follow: Share | None
    follow_text: Share | None
    psnr: Estimate
    ssim: Estimate
    grid: GridTraces
    by_group: dict[str, Estimate]
    confusions: tuple[Confusion, ...]


def judge_case(
    case: Case, clip: Clip, truth: Clip, oracle: Oracle, grid: LatentGrid, told: str | None = None
) -> CaseResult:
    """Compare a clip with all candidates and with its true target.

    Args:
        case: what was asked for.
        clip: what was made.
        truth: the true target.
        oracle: of the case's scene.
        grid: of the autoencoder that decoded the clip.
        told: another condition that the prompt named.
    """
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
        told=told,
    )


def summarise_row(
    results: Sequence[CaseResult], num_candidates: int, groups: Callable[[str], Sequence[str]] | None = None
) -> RowSummary:
    """The figures of finished cases.

    Args:
        results: at least one.
        num_candidates: of the oracle.
        groups: to which groups a condition belongs.

    Raises:
        InputError: if there are no results.
    """
    if not results:
        raise InputError("expected at least one result, got none")
    scenes = [result.case.scene for result in results]
    members: dict[str, list[bool]] = {}
    for result in results:
        for group in groups(result.case.condition) if groups else ():
            members.setdefault(group, []).append(result.is_right)
    pairs = _pairs(results)
    told = [result for result in results if result.told is not None]
    return RowSummary(
        num_generations=len(results),
        num_scenes=len(set(scenes)),
        num_candidates=num_candidates,
        accuracy=_share([result.is_right for result in results], scenes),
        top_5=_share([result.rank <= 5 for result in results], scenes),
        both_follow=_share(
            [first.is_right and second.is_right for first, second in pairs], [first.case.scene for first, _ in pairs]
        )
        if pairs
        else None,
        follow_text=_share([result.nearest == result.told for result in told], [result.case.scene for result in told])
        if told
        else None,
        psnr=bootstrap_interval([result.psnr for result in results], scenes),
        ssim=bootstrap_interval([result.ssim for result in results], scenes),
        grid=compare_grids(
            [result.differences for result in results], [result.true_differences for result in results], scenes
        ),
        by_group={group: wilson_interval(sum(right), len(right)) for group, right in members.items()},
        confusions=count_confusions([result.verdict for result in results])[:12],
    )


def to_table(summaries: Mapping[str, RowSummary]) -> str:
    """The headline figures of rows as Markdown."""
    return to_markdown(
        [
            {
                "row": name,
                "generations": row.num_generations,
                "scenes": row.num_scenes,
                "candidates": row.num_candidates,
                "oracle accuracy": format_share(row.accuracy.wilson),
                "over scenes": format_share(row.accuracy.scenes),
                "top 5": format_share(row.top_5.wilson),
                "both follow": format_share(row.both_follow.wilson) if row.both_follow else None,
                "follow text": format_share(row.follow_text.wilson) if row.follow_text else None,
                "PSNR": format_mean(row.psnr, "dB"),
                "tiles": format_mean(row.grid.tiles, digits=2),
                "seams": format_mean(row.grid.seams, digits=2),
                "flicker": format_mean(row.grid.flicker, digits=2),
            }
            for name, row in summaries.items()
        ]
    )


def to_group_table(summaries: Mapping[str, RowSummary]) -> str:
    """The accuracy of rows by group of conditions as Markdown."""
    return to_markdown(
        [
            {"row": name} | {group: format_share(share) for group, share in row.by_group.items()}
            for name, row in summaries.items()
        ]
    )


def _share(hits: Sequence[bool], scenes: Sequence[int]) -> Share:
    return Share(wilson_interval(sum(hits), len(hits)), bootstrap_interval([float(hit) for hit in hits], scenes))


def _pairs(results: Sequence[CaseResult]) -> list[tuple[CaseResult, CaseResult]]:
    """Disjoint pairs of neighbours that share the picture and the noise but not the condition."""
    pairs, index = [], 0
    while index + 1 < len(results):
        first, second = results[index].case, results[index + 1].case
        same = (first.scene, first.noise_seed) == (second.scene, second.noise_seed)
        if same and first.condition != second.condition:
            pairs.append((results[index], results[index + 1]))
            index += 1
        index += 1
    return pairs
