"""The Gen-1 evaluation: scenes of the world are given other looks, whose true result can be rendered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler

from sememe.backbones.autoencoder import clips_to_video, encode_video, reconstruct_clips
from sememe.checkpoints.components import load_component
from sememe.checkpoints.fingerprint import identify_model
from sememe.checkpoints.zoo import find_part
from sememe.errors import ModelError
from sememe.evaluation.metrics import psnr
from sememe.evaluation.oracle import Oracle
from sememe.evaluation.runner import TABLE, Row, SystemRows
from sememe.evaluation.statistics import (
    Estimate,
    bootstrap_interval,
    format_mean,
    format_share,
    wilson_interval,
)
from sememe.gen1.content import embed_images
from sememe.gen1.network_unet import Gen1UNet
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.gen1.prior import encode_texts
from sememe.gen1.settings import MAX_LEVEL, Settings
from sememe.gen1.structure import DepthEstimator
from sememe.video import Clip, SheetRow
from sememe.world import EVALUATION_SEED, RenderedClip, Scene, can_show, conditions, random_scene, render, repaint

Method = Literal["generate", "source", "sdedit", "autoencoder"]
By = Literal["picture", "mirrored", "text", "other_scene"]
NUM_LOOKS = 32
LEVELS, TIME = "levels", "time"
"""Groups of rows beside "picture": structure levels 1 to 7, and temporal guidance below and above 1."""
_STRENGTH = 0.6
_scene = lru_cache(maxsize=4096)(random_scene)


@dataclass(frozen=True, slots=True)
class LookCase:
    """One trial: a scene that moves in one look, and the look that it is to get.

    Attributes:
        scene: Seed of the scene.
        condition: What moves.
        first_look: The first of `NUM_LOOKS` looks, which are seeds of `repaint`; it is the source's.
        look: The look that the result should have, another of these.
        other_scene: Seed of the scene from which the row "other_scene" takes its picture.
        noise_seed: Seed of the noise.
    """

    scene: int
    condition: str
    first_look: int
    look: int
    other_scene: int
    noise_seed: int

    def paint(self, look: int) -> Scene:
        """Return the scene in a look."""
        return repaint(_scene(self.scene), look)


@dataclass(frozen=True, slots=True)
class LookResult:
    """The result of a case.

    Attributes:
        case: What was asked for.
        nearest: The look that the result resembles most.
        rank: Place of the right look among all, 1 for the nearest.
        psnr: PSNR against the true repaint in decibels.
        structure: Correlation of the result's estimated nearness with the scene's true one, over pixels and frames.
        frame_consistency: Mean cosine of the image embeddings of successive frames (arXiv 2302.03011, section 4.2).
        prompt_consistency: Mean cosine of the frames' embeddings and that of the look's caption (the same section);
            None without a text encoder.
    """

    case: LookCase
    nearest: int
    rank: int
    psnr: float
    structure: float
    frame_consistency: float
    prompt_consistency: float | None

    @property
    def is_right(self) -> bool:
        return self.rank == 1


@dataclass(frozen=True, slots=True)
class LookSummary:
    """The figures of a row, with intervals over scenes.

    Attributes:
        num_generations: Number of cases.
        accuracy: Share of cases in which the right look was the nearest of `NUM_LOOKS`; None where no look is right.
        psnr: PSNR against the true repaint; None where there is none.
        structure: Correlation with the true depth.
        frame_consistency: As in `LookResult`.
        prompt_consistency: As in `LookResult`.
        by_group: Accuracy by what moves.
    """

    num_generations: int
    accuracy: Estimate | None
    psnr: Estimate | None
    structure: Estimate
    frame_consistency: Estimate
    prompt_consistency: Estimate | None
    by_group: Mapping[str, Estimate]

    def to_cells(self) -> dict[str, Any]:
        """Return the headline figures, by their column in a table."""
        prompt = self.prompt_consistency
        return {
            "generations": self.num_generations,
            "content": None if self.accuracy is None else format_share(self.accuracy),
            "PSNR": None if self.psnr is None else format_mean(self.psnr, "dB"),
            "structure": format_mean(self.structure, digits=3),
            "frame consistency": format_mean(self.frame_consistency, digits=4),
            "prompt consistency": None if prompt is None else format_mean(prompt, digits=4),
        }


@dataclass(frozen=True)
class RowSettings:
    """One row.

    Attributes:
        name: Name in reports and on the command line.
        about: What the row measures.
        method: Way in which clips are made.
        by: What gives the content: the look's picture or caption, that picture mirrored, or another scene's.
        changes: Settings of its generations that differ.
        group: Group that the row is chosen with.
    """

    name: str
    about: str
    method: Method = "generate"
    by: By = "picture"
    changes: Mapping[str, Any] = field(default_factory=dict)
    group: str = TABLE


_ALONE = {"window_frames": 1, "window_overlap": 0}
ROWS = (
    RowSettings("picture", "the look of a picture, structure in full detail"),
    RowSettings("text", "the look of a caption", by="text"),
    RowSettings("mirrored", "the look of that picture mirrored: its geometry must not show (leakage)", by="mirrored"),
    RowSettings("other_scene", "the look of a picture of another scene, with other things in it", by="other_scene"),
    RowSettings("frames_alone", "baseline: the image model, frame by frame", changes=_ALONE),
    RowSettings(
        "sdedit",
        "baseline: SDEdit by the image model, almost without structure",
        "sdedit",
        changes=_ALONE | {"structure_level": MAX_LEVEL},
    ),
    RowSettings("sdedit_depth", "baseline: SDEdit by the image model, with structure", "sdedit", changes=_ALONE),
    RowSettings("source", "floor: the source as it is", "source"),
    RowSettings("ceiling", "ceiling: the true repaint through the autoencoder", "autoencoder"),
    *(
        RowSettings(f"level_{level}", f"structure at level {level}", changes={"structure_level": level}, group=LEVELS)
        for level in range(1, MAX_LEVEL + 1)
    ),
    *(
        RowSettings(
            f"time_{scale}", f"temporal guidance of {scale}", changes={"temporal_guidance_scale": scale}, group=TIME
        )
        for scale in (0.5, 1.5)
    ),
)
"""All rows; structure is in full detail and temporal guidance off unless a row says otherwise."""


def deal_looks(generations: int, per_scene: int, seed: int) -> tuple[LookCase, ...]:
    """Deal looks to scenes that training never saw."""
    rng = np.random.Generator(np.random.PCG64(seed))
    moves = (*conditions("motion"), *conditions("camera"))
    cases: list[LookCase] = []
    while len(cases) < generations:
        scene, other = _draw_scene(rng), _draw_scene(rng)
        able = [name for name in moves if can_show(_scene(scene), name)]
        move, first = able[int(rng.integers(len(able)))], int(rng.integers(1 << 16))
        looks = first + 1 + rng.permutation(NUM_LOOKS - 1)[: min(per_scene, generations - len(cases))]
        cases += [LookCase(scene, move, first, int(look), other, int(rng.integers(1 << 31))) for look in looks]
    return tuple(cases)


def _draw_scene(rng: np.random.Generator) -> int:
    """Draw a scene with a subject; whole photographs have no depth."""
    while True:
        scene = EVALUATION_SEED + int(rng.integers(1 << 20))
        if _scene(scene).subject is not None:
            return scene


class PartialScheduler(DDIMScheduler):
    """Begins where `strength` of the noise is left, as SDEdit does (arXiv 2108.01073)."""

    strength = _STRENGTH

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Take the last of the steps."""
        super().set_timesteps(num_inference_steps, device=device)
        self.timesteps: torch.Tensor = self.timesteps[-max(1, round(self.strength * num_inference_steps)) :]


class Maker:
    """Make and judge the clips of cases."""

    def __init__(self, pipeline: Gen1Pipeline, settings: Settings, estimator: DepthEstimator) -> None:
        self.pipeline, self.estimator = pipeline, estimator
        self.settings = settings.override(structure_level=0, temporal_guidance_scale=1.0)
        size = settings.size
        self._size = (size.height or 64, size.width or 64)
        self._num_frames = size.num_frames or int(pipeline.unet.config.max_frames)
        self._film = lru_cache(maxsize=256)(self._render)
        self._oracle = lru_cache(maxsize=256)(self._make_oracle)

    def make(self, row: RowSettings, cases: Sequence[LookCase]) -> list[Clip]:
        """Make one clip for each case."""
        if row.method == "source":
            return [self.source(case).clip for case in cases]
        if row.method == "autoencoder":
            return reconstruct_clips(self.pipeline.vae, [self.truth(case).clip for case in cases])
        settings, made = self.settings.override(**row.changes), []
        for case in cases:
            given: dict[str, Any] = {"source": self.source(case).clip, "content": self.content(row, case)}
            generator = torch.Generator().manual_seed(case.noise_seed)
            if row.method == "sdedit":
                made += self._edit(settings, given, generator)
            else:
                made += self.pipeline(**given, settings=settings, generator=generator).clips
        return made

    def source(self, case: LookCase) -> RenderedClip:
        """Render the source."""
        return self._film(case.paint(case.first_look), case.condition)

    def truth(self, case: LookCase) -> RenderedClip:
        """Render the true result."""
        return self._film(case.paint(case.look), case.condition)

    def content(self, row: RowSettings, case: LookCase) -> Any:
        """Return the text, or the picture, that says what the result looks like."""
        if row.by == "text":
            return self.truth(case).caption
        if row.by == "other_scene":
            return self._film(repaint(_scene(case.other_scene), case.look), None).clip.frames[0]
        picture = self.truth(case).clip.frames[0]
        return np.ascontiguousarray(picture[:, ::-1]) if row.by == "mirrored" else picture

    @torch.no_grad()
    def judge(self, row: RowSettings, case: LookCase, clip: Clip) -> LookResult:
        """Compare a clip with renders of its scene in all looks."""
        del row
        truth = self.truth(case)
        verdict = self._oracle(case.scene, case.condition, case.first_look).judge(clip, str(case.look))
        images = embed_images(self.pipeline.image_encoder, self.pipeline.image_processor, list(clip.frames))
        images = torch.nn.functional.normalize(images.float(), dim=-1)
        prompt = None
        if self.pipeline.text_encoder is not None:
            text = encode_texts(self.pipeline.tokenizer, self.pipeline.text_encoder, [truth.caption]).pooled
            prompt = float((images @ torch.nn.functional.normalize(text.float(), dim=-1).T).mean())
        return LookResult(
            case=case,
            nearest=int(verdict.nearest),
            rank=verdict.rank,
            psnr=round(psnr(clip, truth.clip, skip_first=False), 4),
            structure=round(correlate(self.estimator(clip).numpy(), 1.0 / truth.depth), 5),
            frame_consistency=round(float((images[1:] * images[:-1]).sum(dim=-1).mean()), 5),
            prompt_consistency=None if prompt is None else round(prompt, 5),
        )

    def show(self, row: RowSettings, case: LookCase, clip: Clip, result: LookResult) -> list[SheetRow]:
        """Return rows of the sheet: source, result and truth."""
        says = "right" if result.is_right else f"wrong: the right look at rank {result.rank}"
        truth = self.truth(case)
        return [
            SheetRow(f"source: {self.source(case).caption}", self.source(case).clip),
            SheetRow(f"result ({row.name}): {says}", clip),
            SheetRow(f"truth: {truth.caption}", truth.clip),
        ]

    def _render(self, scene: Scene, condition: str | None) -> RenderedClip:
        return render(scene, condition, num_frames=self._num_frames, size=self._size)

    def _make_oracle(self, scene: int, condition: str, first_look: int) -> Oracle:
        looks = range(first_look, first_look + NUM_LOOKS)
        painted = {str(look): repaint(_scene(scene), look) for look in looks}
        return Oracle({name: self._render(each, condition).clip for name, each in painted.items()})

    @torch.no_grad()
    def _edit(self, settings: Settings, given: Mapping[str, Any], generator: torch.Generator) -> list[Clip]:
        """Generate from the source's own latents with noise."""
        pipeline, own = self.pipeline, self.pipeline.scheduler
        scheduler = PartialScheduler.from_config(own.config)
        scheduler.set_timesteps(settings.sampling.num_inference_steps)
        latents = encode_video(pipeline.vae, clips_to_video([given["source"]])).float()
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        start = scheduler.add_noise(latents, noise, scheduler.timesteps[:1])
        pipeline.register_modules(scheduler=scheduler)
        try:
            clips: list[Clip] = pipeline(**given, settings=settings, latents=start, generator=generator).clips
        finally:
            pipeline.register_modules(scheduler=own)
        return clips


def correlate(found: np.ndarray, true: np.ndarray) -> float:
    """Return Pearson's correlation of two maps, which does not depend on scale and shift; 0 where one is constant."""
    first, second = (np.asarray(each, np.float64).ravel() - np.mean(each) for each in (found, true))
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale > 0 else 0.0


def build_rows(
    pipeline: Gen1Pipeline,
    settings: Settings,
    folder: Path,
    *,
    generations: int,
    per_scene: int,
    seed: int,
    depth: str | None = None,
) -> SystemRows[LookCase, LookResult]:
    """Build all rows of the evaluation.

    Args:
        pipeline: Pipeline of an inflated U-Net with an image encoder, which makes the clips.
        settings: Settings of the generations.
        folder: Not used: everything is in memory.
        generations: Number of cases in each row.
        per_scene: Largest number of cases that share a scene.
        seed: Seed of scenes, looks and noise.
        depth: Run or model whose depth network judges structure, such as a second run of `tiny-gen1-depth`; None takes
            the model's own, which the generation has used.

    Raises:
        ModelError: There is no such depth network, or the model lacks what rows are made or judged by.
    """
    del folder
    estimator = pipeline.estimators.get("depth")
    identity: dict[str, Any] = {"looks": NUM_LOOKS, "sdedit_strength": _STRENGTH}
    if depth is not None:
        parts = {name: find_part(depth, name) for name in ("depth_estimator", "depth_processor")}
        estimator = DepthEstimator(*(load_component(name, part) for name, part in parts.items()))
        identity["depth"] = " ".join(map(identify_model, parts.values()))
    is_whole = isinstance(pipeline.unet, Gen1UNet) and pipeline.image_encoder is not None
    if not is_whole or not isinstance(estimator, DepthEstimator):
        raise ModelError(
            "expected a model with a Gen1UNet, an image_encoder and a depth_estimator to evaluate, and this one lacks "
            "one of them; depth, a run that has one, stands for the last"
        )
    maker, cases = Maker(pipeline, settings, estimator), deal_looks(generations, per_scene, seed)
    rows = [
        Row(
            name=row.name,
            about={"about": row.about, "method": row.method, "by": row.by, **row.changes},
            cases=cases,
            make=partial(maker.make, row),
            judge=partial(maker.judge, row),
            summarise=partial(summarise, has_truth=row.by != "other_scene"),
            read=read_result,
            show=partial(maker.show, row),
            group=row.group,
        )
        for row in ROWS
    ]
    return SystemRows(tuple(rows), identity)


def read_result(values: Mapping[str, Any]) -> LookResult:
    """Return the result that `dataclasses.asdict` made these values of."""
    return LookResult(**(dict(values) | {"case": LookCase(**values["case"])}))


def summarise(results: Sequence[LookResult], *, has_truth: bool = True) -> LookSummary:
    """Summarise a row.

    Args:
        results: Results, at least one.
        has_truth: Whether there is a true result, to be compared with.
    """
    scenes = [result.case.scene for result in results]
    prompts = [result.prompt_consistency for result in results if result.prompt_consistency is not None]
    camera = set(conditions("camera"))
    groups: dict[str, list[bool]] = {}
    for result in results if has_truth else ():
        moves = "camera" if result.case.condition in camera else "motion"
        groups.setdefault(moves, []).append(result.is_right)
    return LookSummary(
        num_generations=len(results),
        accuracy=wilson_interval(sum(result.is_right for result in results), len(results)) if has_truth else None,
        psnr=bootstrap_interval([result.psnr for result in results], scenes) if has_truth else None,
        structure=bootstrap_interval([result.structure for result in results], scenes),
        frame_consistency=bootstrap_interval([result.frame_consistency for result in results], scenes),
        prompt_consistency=bootstrap_interval(prompts, scenes) if len(prompts) == len(results) else None,
        by_group={name: wilson_interval(sum(right), len(right)) for name, right in groups.items()},
    )
