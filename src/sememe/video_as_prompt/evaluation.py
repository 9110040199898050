"""The Video-As-Prompt evaluation: its rows and their cases, how their clips are made, and what is counted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sememe.backbones.autoencoder import reconstruct_clips
from sememe.errors import InputError
from sememe.evaluation.cases import Case, SeedRanges, condition_groups, deal_cases, split_conditions
from sememe.evaluation.oracle import SceneOracles
from sememe.evaluation.rows import CaseResult, RowSummary, estimate_share, judge_case, read_result, summarise_row
from sememe.evaluation.runner import TABLE, Row, SystemRows
from sememe.video import Clip, SheetRow, read_clip, write_clip
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.settings import Settings
from sememe.world import EVALUATION_SEED, can_show, conditions, random_scene

Method = Literal["generate", "backbone", "paste", "autoencoder"]
RANGES = SeedRanges(first_scene=EVALUATION_SEED, first_reference=2 * EVALUATION_SEED)
VALIDATION_RANGES = SeedRanges(first_scene=3 * EVALUATION_SEED, first_reference=4 * EVALUATION_SEED)
_scene = lru_cache(maxsize=4096)(random_scene)  # rows deal from the same scenes
_SECOND_DEAL = ("sensitivity",)  # rows with scenes of their own; all others share theirs, and so the renders


@dataclass(frozen=True, slots=True)
class PromptedCase(Case):
    """A case whose prompt may name a condition, and then another one than the reference shows."""

    prompt_condition: str | None = None


@dataclass(frozen=True)
class RowSettings:
    """One row of the evaluation.

    Attributes:
        name: Name in reports and on the command line.
        about: What the row measures.
        split: Conditions that targets show (see `split_conditions`).
        method: Way in which clips are made.
        num_frames: Frames of targets and references.
        height: Height in pixels.
        width: Width in pixels.
        is_misled: Whether prompts name another condition than the reference shows, and captions of references the
            right one; all are empty otherwise.
        is_validation: Whether the row is for choosing settings and checkpoints; its scenes are in no other row.
    """

    name: str
    about: str
    split: str | None
    method: Method
    num_frames: int
    height: int
    width: int
    is_misled: bool = False
    is_validation: bool = False

    @property
    def conditions(self) -> list[str]:
        return split_conditions(self.split)

    @property
    def candidates(self) -> list[str]:
        """What the oracle chooses from: all seen and unseen conditions, and the novel pairs where those are tested."""
        return conditions() + (conditions(split="novel") if self.split == "novel" else [])


def list_rows(pipeline: VideoAsPromptPipeline) -> tuple[RowSettings, ...]:
    """List all rows, at the size and length of the model unless the row is about another one."""
    own, grid = pipeline.defaults.size, pipeline.grid
    frames, height, width = own.num_frames, own.height, own.width
    shorter, longer = grid.nearest_num_frames((frames + 1) // 2), grid.nearest_num_frames(2 * frames - 1)
    wide = grid.nearest_size(width * 3 // 2)

    def row(name: str, about: str, split: str | None, method: Method = "generate", **more: Any) -> RowSettings:
        return RowSettings(
            name, about, split, method, **({"num_frames": frames, "height": height, "width": width} | more)
        )

    return (
        row("seen", "conditions that the expert was trained on", "seen"),
        row("unseen", "conditions that the expert never saw and nothing was chosen on", "unseen"),
        row("novel", "two seen conditions at once, which nothing was trained on", "novel"),
        row("sensitivity", "same picture, prompt and noise, two references: do both results follow theirs?", "seen"),
        row("misled", "the prompt names another condition than the reference shows", "seen", is_misled=True),
        row("floor", "the backbone without a reference, judged against a condition drawn at random", None, "backbone"),
        row("paste", "no model: the reference's changes of pixels added to the picture", "unseen", "paste"),
        row("ceiling", "the true target through the autoencoder", None, "autoencoder"),
        row("shorter", "another length than the model was tuned for", "seen", num_frames=shorter),
        row("longer", "another length than the model was tuned for", "seen", num_frames=longer),
        row("wide", "a picture that is not square", "seen", width=wide),
        row("seen_validation", "for choosing: seen conditions", "seen", is_validation=True),
        row("unseen_validation", "for choosing: unseen conditions", "unseen_validation", is_validation=True),
    )


def deal_row(row: RowSettings, generations: int, per_scene: int, seed: int) -> tuple[PromptedCase, ...]:
    """Deal the cases of a row."""
    cases = deal_cases(
        row.conditions,
        generations,
        VALIDATION_RANGES if row.is_validation else RANGES,
        per_scene=per_scene,
        seed=2 * seed + (row.name in _SECOND_DEAL),
        applies=lambda scene, name: can_show(_scene(scene), name),
        same_noise=row.method != "backbone",  # without a reference the same noise would give the same clip
    )
    return tuple(PromptedCase(**asdict(case), prompt_condition=_other_condition(row, case)) for case in cases)


def _other_condition(row: RowSettings, case: Case) -> str | None:
    """Draw a condition for a misleading prompt."""
    if not row.is_misled:
        return None
    scene = _scene(case.scene)
    others = [name for name in row.conditions if name != case.condition and can_show(scene, name)]
    random = np.random.Generator(np.random.PCG64([case.scene, row.conditions.index(case.condition)]))
    return others[int(random.integers(len(others)))]


VALIDATION = "validation"
"""The group of the rows to choose settings and checkpoints by."""
REFERENCE_QUALITY = 23.0  # the usual rate factor of H.264: references are lossy, as people's files are


scene_oracles = lru_cache(maxsize=4)(SceneOracles)
"""The oracles of one size and length are shared by all rows that have it."""


class Maker:
    """Make and judge the clips of cases.

    Args:
        pipeline: Pipeline that makes the clips.
        settings: Settings of the generations, but for their size.
        folder: Folder for files of references.
        negative_reference: "neutral" for a negative reference in which nothing happens, in the reference's scene.
    """

    def __init__(
        self,
        pipeline: VideoAsPromptPipeline,
        settings: Settings,
        folder: Path,
        negative_reference: str | None = None,
    ) -> None:
        self.pipeline, self.settings, self.folder = pipeline, settings, folder
        self.negative_reference = negative_reference

    def oracles(self, row: RowSettings) -> SceneOracles:
        """Return the oracles of a row."""
        fps = self.pipeline.defaults.size.fps
        return scene_oracles(tuple(row.candidates), row.num_frames, row.height, row.width, fps)

    def make(self, row: RowSettings, cases: Sequence[PromptedCase]) -> list[Clip]:
        """Make one clip for each case."""
        if row.method == "paste":
            return [
                paste_changes(self.first_frame(row, case), self.reference(row, case, place))
                for place, case in enumerate(cases)
            ]
        if row.method == "autoencoder":
            return reconstruct_clips(self.pipeline.vae, [self.truth(row, case) for case in cases])
        return self._generate(row, cases)

    def truth(self, row: RowSettings, case: Case) -> Clip:
        """Render the true target."""
        return self.oracles(row).film(case.scene, case.condition)

    def first_frame(self, row: RowSettings, case: Case) -> np.ndarray:
        """Render the picture that the clip starts from."""
        return self.oracles(row).film(case.scene, None).frames[0]

    def reference(self, row: RowSettings, case: Case, place: int) -> Clip:
        """Render the condition in another scene, write it to the lossy file of number `place` and read it back."""
        path = self.folder / f"reference_{place}.mp4"
        write_clip(self.oracles(row).film(case.reference_scene, case.condition), path, quality=REFERENCE_QUALITY)
        return read_clip(path)

    def judge(self, row: RowSettings, case: Case, clip: Clip) -> CaseResult:
        """Compare a clip with renders of its scene."""
        oracle = self.oracles(row).oracle(case.scene)
        return judge_case(case, clip, self.truth(row, case), oracle, self.pipeline.grid)

    def show(self, row: RowSettings, case: Case, clip: Clip, result: CaseResult) -> list[SheetRow]:
        """Return rows of the sheet: reference, result and truth."""
        says = "right" if result.is_right else f"wrong: taken for {result.nearest}, right one at rank {result.rank}"
        strips = [
            SheetRow(f"result ({row.name}): {says}", clip),
            SheetRow(f"truth: {case.condition}", self.truth(row, case)),
        ]
        if row.method in {"generate", "paste"}:
            strips.insert(0, SheetRow(f"reference: {case.condition}", self.reference(row, case, 0)))
        return strips

    def _generate(self, row: RowSettings, cases: Sequence[PromptedCase]) -> list[Clip]:
        alone = row.method == "backbone"
        oracles = self.oracles(row)
        settings = self.settings.without_reference() if alone else self.settings
        extra: dict[str, Any] = {}
        if row.is_misled and settings.guidance.reference_guidance_scale != 0:
            extra["reference_prompts"] = [[oracles.caption(case.reference_scene, case.condition)] for case in cases]
        if self.negative_reference is not None and not alone:
            extra["negative_references"] = [[oracles.film(case.reference_scene, None)] for case in cases]
        output = self.pipeline(
            image=[self.first_frame(row, case) for case in cases],
            references=None if alone else [[self.reference(row, case, place)] for place, case in enumerate(cases)],
            prompt=[
                "" if case.prompt_condition is None else oracles.caption(case.scene, case.prompt_condition)
                for case in cases
            ],
            num_frames=row.num_frames,
            height=row.height,
            width=row.width,
            settings=settings,
            generator=[torch.Generator().manual_seed(case.noise_seed) for case in cases],
            **extra,
        )
        clips: list[Clip] = output.clips
        return clips


def paste_changes(picture: np.ndarray, reference: Clip) -> Clip:
    """Add the changes of the reference's pixels to the picture: the cheap trick that a model must beat.

    Args:
        picture: Picture, uint8 (height, width, 3).
        reference: Clip of the same size.
    """
    changes = reference.frames.astype(np.int16) - reference.frames[:1]
    return Clip((picture[None] + changes).clip(0, 255).astype(np.uint8), reference.fps)


def build_row(row: RowSettings, maker: Maker, cases: tuple[PromptedCase, ...]) -> Row[PromptedCase, CaseResult]:
    """Fill the runner's record of a row."""
    return Row(
        name=row.name,
        about={
            "about": row.about,
            "split": row.split or "seen and unseen",
            "method": row.method,
            "num_frames": row.num_frames,
            "height": row.height,
            "width": row.width,
        },
        cases=cases,
        make=partial(maker.make, row),
        judge=partial(maker.judge, row),
        summarise=partial(summarise, len(row.candidates)),
        read=partial(read_result, case=PromptedCase),
        show=partial(maker.show, row),
        group=VALIDATION if row.is_validation else TABLE,
    )


def build_rows(
    pipeline: VideoAsPromptPipeline,
    settings: Settings,
    folder: Path,
    *,
    generations: int,
    per_scene: int,
    seed: int,
    negative_reference: str | None = None,
) -> SystemRows[PromptedCase, CaseResult]:
    """Build all rows of the evaluation.

    Captions of targets and references are empty. References show the condition in other scenes and come from mp4
    files. What is generated is compared with renders of the same scene under all conditions.

    Args:
        pipeline: As in `Maker`, like the next two and the last.
        settings: Settings of the generations.
        folder: Folder for files of references.
        generations: Number of cases in each row.
        per_scene: Largest number of cases that share a scene.
        seed: Seed of scenes, conditions and noise.
        negative_reference: Kind of the negative reference.

    Raises:
        InputError: `negative_reference` is another one.
    """
    if negative_reference not in (None, "neutral"):
        raise InputError(f"expected negative_reference to be neutral, got {negative_reference!r}")
    maker = Maker(pipeline, settings, folder, negative_reference)
    rows = (build_row(row, maker, deal_row(row, generations, per_scene, seed)) for row in list_rows(pipeline))
    return SystemRows(tuple(rows), {"reference_quality": REFERENCE_QUALITY})


def summarise(num_candidates: int, results: Sequence[CaseResult]) -> RowSummary:
    """Summarise a row, with the shares that concern references and prompts.

    `both_follow` is the share of disjoint pairs with the same picture and noise and two references in which both were
    right. `follow_text` is the share of results that show the other condition, which the prompt named.
    """
    pairs = _pairs(results)
    prompted = [(result, result.case.prompt_condition) for result in results if isinstance(result.case, PromptedCase)]
    misled = [(result, name) for result, name in prompted if name is not None]
    shares = {
        "both_follow": [(first.case.scene, first.is_right and second.is_right) for first, second in pairs],
        "follow_text": [(result.case.scene, result.nearest == name) for result, name in misled],
    }
    return summarise_row(
        results,
        num_candidates,
        condition_groups,
        {
            name: estimate_share([hit for _, hit in trials], [scene for scene, _ in trials]) if trials else None
            for name, trials in shares.items()
        },
    )


def _pairs(results: Sequence[CaseResult]) -> list[tuple[CaseResult, CaseResult]]:
    """Pair neighbours that share the picture and the noise but not the condition; no result is in two pairs."""
    pairs, index = [], 0
    while index + 1 < len(results):
        first, second = results[index].case, results[index + 1].case
        same = (first.scene, first.noise_seed) == (second.scene, second.noise_seed)
        if same and first.condition != second.condition:
            pairs.append((results[index], results[index + 1]))
            index += 1
        index += 1
    return pairs
