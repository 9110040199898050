"""Making the clips of the Video-As-Prompt evaluation, and counting what they show."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sememe.backbones.autoencoder import decode_latents, encode_video
from sememe.backbones.pixels import clips_to_video, video_to_clips
from sememe.errors import InputError
from sememe.evaluation.candidates import SceneOracles
from sememe.evaluation.cases import Case
from sememe.evaluation.rows import CaseResult, RowSummary, estimate_share, judge_case, read_result, summarise_row
from sememe.evaluation.runner import TABLE, Row, SystemRows
from sememe.evaluation.splits import condition_groups
from sememe.video import Clip, SheetRow, read_clip, write_clip
from sememe.video_as_prompt.evaluation_rows import PromptedCase, RowSettings, deal_row, list_rows
from sememe.video_as_prompt.settings import Settings

VALIDATION = "validation"
"""The group of the rows to choose settings and checkpoints by."""
REFERENCE_QUALITY = 23.0  # the usual rate factor of H.264: references are lossy, as people's files are


@lru_cache(maxsize=4)
def scene_oracles(candidates: tuple[str, ...], num_frames: int, height: int, width: int, fps: float) -> SceneOracles:
    """Oracles of one size and length, shared by all rows that have it."""
    return SceneOracles(candidates, num_frames, height, width, fps)


class Maker:
    """Make and judge the clips of cases.

    Args:
        pipeline: a `VideoAsPromptPipeline`.
        settings: settings of the generations, but for their size.
        folder: for files of references.
        negative_reference: "neutral" for a negative reference in which nothing happens, in the reference's scene.
    """

    def __init__(self, pipeline: Any, settings: Settings, folder: Path, negative_reference: str | None = None) -> None:
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
            return self._through_autoencoder([self.truth(row, case) for case in cases])
        return self._generate(row, cases)

    def truth(self, row: RowSettings, case: Case) -> Clip:
        """Render the true target."""
        return self.oracles(row).film(case.scene, case.condition)

    def first_frame(self, row: RowSettings, case: Case) -> np.ndarray:
        """Render the picture that the clip starts from."""
        return self.oracles(row).film(case.scene, None).frames[0]

    def reference(self, row: RowSettings, case: Case, place: int) -> Clip:
        """Render the condition in another scene, write it to a lossy file and read it back.

        Args:
            row: Row of the case.
            case: what the reference shows.
            place: number of the file.
        """
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

    @torch.no_grad()
    def _through_autoencoder(self, clips: Sequence[Clip]) -> list[Clip]:
        vae = self.pipeline.vae
        return video_to_clips(decode_latents(vae, encode_video(vae, clips_to_video(clips))), clips[0].fps)


def paste_changes(picture: np.ndarray, reference: Clip) -> Clip:
    """Add the changes of the reference's pixels to the picture: the cheap trick that a model must beat.

    Args:
        picture: uint8 (height, width, 3).
        reference: clip of the same size.
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
    pipeline: Any,
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
        pipeline: a `VideoAsPromptPipeline`.
        settings: settings of the generations, but for their size.
        folder: for files of references.
        generations: number of cases in each row.
        per_scene: largest number of cases that share a scene.
        seed: seed of scenes, conditions and noise.
        negative_reference: "neutral" for a negative reference in which nothing happens, in the reference's scene.

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
