"""The rows of the Video-As-Prompt evaluation: what each one films, and how its clips come about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sememe.backbones.autoencoder import decode_latents, encode_video
from sememe.backbones.pixels import clips_to_video, video_to_clips
from sememe.evaluation.candidates import SceneOracles
from sememe.evaluation.cases import Case, SeedRanges, deal_cases
from sememe.evaluation.splits import split_conditions
from sememe.video import Clip, read_clip, write_clip
from sememe.video_as_prompt.defaults import GenerationDefaults
from sememe.world import EVALUATION_SEED, can_show, conditions, random_scene

Method = Literal["generate", "backbone", "paste", "autoencoder"]
NegativeReference = Literal["neutral"]
CONTROLS = (
    *("reference_strength", "approximate", "reference_refresh"),
    *("num_reference_frames", "reference_positions", "reference_downscale", "guidance_interval"),
)
"""Arguments of the pipeline whose effect can be measured."""
RANGES = SeedRanges(first_scene=EVALUATION_SEED, first_reference=2 * EVALUATION_SEED)
VALIDATION_RANGES = SeedRanges(first_scene=3 * EVALUATION_SEED, first_reference=4 * EVALUATION_SEED)
REFERENCE_QUALITY = 23.0  # the usual rate factor of H.264: references are lossy, as people's files are
_SECOND_DEAL = ("sensitivity",)  # rows with scenes of their own; all others share theirs, and so the renders


@dataclass(frozen=True)
class Row:
    """One row of the evaluation.

    Attributes:
        name: by which it is asked for.
        about: what it measures.
        split: of the conditions that targets show (see `split_conditions`).
        method: how the clips come about.
        num_frames: of targets and references.
        height: pixels.
        width: pixels.
        is_misled: whether prompts name another condition than the reference shows, and captions of references theirs;
            otherwise all are empty.
        is_validation: whether it is for choosing settings and checkpoints, in scenes that no other row shows.
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
        """Among what the oracle chooses: everything seen and unseen, and the novel pairs where those are tested."""
        return conditions() + (conditions(split="novel") if self.split == "novel" else [])


def list_rows(pipeline: Any) -> tuple[Row, ...]:
    """All rows, at the model's own size and length unless the row is about another one."""
    own: GenerationDefaults = pipeline.defaults
    grid = pipeline.grid
    frames, height, width = own.num_frames, own.height, own.width
    shorter, longer = grid.nearest_num_frames((frames + 1) // 2), grid.nearest_num_frames(2 * frames - 1)
    wide = grid.nearest_size(width * 3 // 2)

    def row(name: str, about: str, split: str | None, method: Method = "generate", **more: Any) -> Row:
        return Row(name, about, split, method, **({"num_frames": frames, "height": height, "width": width} | more))

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


def deal_row(row: Row, generations: int, per_scene: int, seed: int) -> tuple[Case, ...]:
    """The cases of a row."""
    return deal_cases(
        row.conditions,
        generations,
        VALIDATION_RANGES if row.is_validation else RANGES,
        per_scene=per_scene,
        seed=2 * seed + (row.name in _SECOND_DEAL),
        applies=lambda scene, name: can_show(random_scene(scene), name),
        same_noise=row.method != "backbone",  # without a reference the same noise would give the same clip
    )


def find_told(row: Row, case: Case) -> str | None:
    """The other condition that the prompt names, where it names one."""
    if not row.is_misled:
        return None
    scene = random_scene(case.scene)
    others = [name for name in row.conditions if name != case.condition and can_show(scene, name)]
    random = np.random.Generator(np.random.PCG64([case.scene, row.conditions.index(case.condition)]))
    return others[int(random.integers(len(others)))]


@lru_cache(maxsize=4)
def scene_oracles(candidates: tuple[str, ...], num_frames: int, height: int, width: int, fps: float) -> SceneOracles:
    """The oracles of a size and length, shared by all rows of these."""
    return SceneOracles(candidates, num_frames, height, width, fps)


@dataclass(frozen=True)
class Sampler:
    """How the pipeline is called; None stands for the model's own setting.

    Attributes:
        num_inference_steps: see the pipeline, as for the next two.
        guidance_scale: of the text.
        reference_guidance_scale: of the reference.
        controls: further arguments of the pipeline, by name (see `CONTROLS`).
        negative_reference: "neutral" to lead away from a clip of the reference's scene in which nothing happens.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    controls: Mapping[str, Any] = field(default_factory=dict)
    negative_reference: NegativeReference | None = None


class Maker:
    """Makes the clips of cases.

    Args:
        pipeline: a `VideoAsPromptPipeline`.
        sampler: its settings.
        folder: where reference files may be written.
    """

    def __init__(self, pipeline: Any, sampler: Sampler, folder: Path) -> None:
        self.pipeline = pipeline
        self.sampler = sampler
        self.folder = folder

    def oracles(self, row: Row) -> SceneOracles:
        """The oracles for a row."""
        fps = self.pipeline.defaults.fps
        return scene_oracles(tuple(row.candidates), row.num_frames, row.height, row.width, fps)

    def make(self, row: Row, cases: Sequence[Case]) -> list[Clip]:
        """One clip per case."""
        if row.method == "paste":
            return [
                paste_changes(self.first_frame(row, case), self.reference(row, case, place))
                for place, case in enumerate(cases)
            ]
        if row.method == "autoencoder":
            return self._through_autoencoder([self.truth(row, case) for case in cases])
        return self._generate(row, cases)

    def truth(self, row: Row, case: Case) -> Clip:
        """The true target."""
        return self.oracles(row).film(case.scene, case.condition)

    def first_frame(self, row: Row, case: Case) -> np.ndarray:
        """The picture that is given."""
        return self.oracles(row).film(case.scene, None).frames[0]

    def reference(self, row: Row, case: Case, place: int) -> Clip:
        """The condition in another scene, through a file; `place` tells files of one batch apart."""
        path = self.folder / f"reference_{place}.mp4"
        write_clip(self.oracles(row).film(case.reference_scene, case.condition), path, quality=REFERENCE_QUALITY)
        return read_clip(path)

    def _generate(self, row: Row, cases: Sequence[Case]) -> list[Clip]:
        alone = row.method == "backbone"
        oracles = self.oracles(row)
        extra: dict[str, Any] = {} if alone else dict(self.sampler.controls)
        settings = self.pipeline.defaults.override(reference_guidance_scale=self.sampler.reference_guidance_scale)
        if row.is_misled and settings.reference_guidance_scale != 0:
            extra["reference_prompts"] = [[oracles.caption(case.reference_scene, case.condition)] for case in cases]
        if self.sampler.negative_reference is not None and not alone:
            extra["negative_references"] = [[oracles.film(case.reference_scene, None)] for case in cases]
        told = [find_told(row, case) for case in cases]
        output = self.pipeline(
            image=[self.first_frame(row, case) for case in cases],
            references=None if alone else [[self.reference(row, case, place)] for place, case in enumerate(cases)],
            prompt=[
                "" if name is None else oracles.caption(case.scene, name)
                for case, name in zip(cases, told, strict=True)
            ],
            num_frames=row.num_frames,
            height=row.height,
            width=row.width,
            num_inference_steps=self.sampler.num_inference_steps,
            guidance_scale=self.sampler.guidance_scale,
            reference_guidance_scale=0.0 if alone else self.sampler.reference_guidance_scale,
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
    """The cheap trick: every pixel of the picture changes as the reference's pixel at that place does.

    Args:
        picture: uint8 (height, width, 3).
        reference: of the same size.
    """
    changes = reference.frames.astype(np.int16) - reference.frames[:1]
    return Clip((picture[None] + changes).clip(0, 255).astype(np.uint8), reference.fps)
