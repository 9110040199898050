"""The verbs of the procedural world: render a clip, write a dataset, draw the gallery."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sememe.data.manifest import (
    MANIFEST_NAME,
    TRAINING_NAME,
    BenchmarkSample,
    VideoSample,
    add_hashes,
    write_benchmark,
    write_manifest,
    write_vap_data,
)
from sememe.errors import InputError
from sememe.evaluation.cases import Case, SeedRanges, deal_cases
from sememe.events import ProgressHandler, StepCounter, ignore_progress
from sememe.files import check_writable, make_folder
from sememe.video import write_clip, write_image
from sememe.workflows.gallery import draw_gallery
from sememe.world import EVALUATION_SEED, RenderedClip, can_show, conditions, random_scene, render
from sememe.world.catalogue import parts_of

NUM_REFERENCES = 4  # listed in a row of the csv, at most
_TRAINING_SCENES = SeedRanges(first_scene=0, first_reference=EVALUATION_SEED // 2)
_BENCHMARK_SCENES = SeedRanges(first_scene=EVALUATION_SEED, first_reference=2 * EVALUATION_SEED)
_PER_SCENE = 8


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of rendered clips: size in pixels, length in frames, frames per second."""

    height: int = 64
    width: int = 64
    num_frames: int = 17
    fps: float = 8.0

    def film(self, scene: int, condition: str | None) -> RenderedClip:
        """Render the scene of this seed under the condition; None is neutral."""
        size = (self.height, self.width)
        return render(random_scene(scene), condition, num_frames=self.num_frames, size=size, fps=self.fps)


def parse_size(text: str) -> tuple[int, int]:
    """Read (height, width) in pixels from "64" or "64x96".

    Raises:
        InputError: For anything else.
    """
    numbers = text.lower().split("x")
    if len(numbers) not in {1, 2} or not all(number.isdecimal() for number in numbers):
        raise InputError(f"expected a size such as 64, or 64x96 for height x width, got {text!r}")
    return int(numbers[0]), int(numbers[-1])


def render_world_clip(names: Sequence[str], scene: int, output: Path, shape: Shape) -> RenderedClip:
    """Render a clip and write it.

    Args:
        names: The condition; several at once; none for the neutral take.
        scene: Seed of the scene.
        output: Video file.
        shape: Shape of the clip.

    Raises:
        InputError: A condition is unknown, or a number is out of range.
        OutputError: The file cannot be written.
    """
    check_writable(output)
    condition = "+".join(names) or None
    parts_of(condition)
    shot = shape.film(scene, condition)
    metadata = {"scene": str(scene), "condition": condition or "none", "caption": shot.full_caption}
    write_clip(shot.clip, output, metadata={} if output.suffix.lower() == ".gif" else metadata)
    return shot


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """A dataset to write.

    Attributes:
        folder: Made if it is not there; it must not hold a dataset yet.
        num_clips: Clips to train on, 2 or more.
        split: Split of their conditions; None for seen and unseen.
        num_benchmark: Pairs of the benchmark, whose conditions are unseen; None for one per condition.
        seed: Seed of the choice of scenes and conditions.
        shape: Shape of the clips.
    """

    folder: Path
    num_clips: int
    split: str | None = "seen"
    num_benchmark: int | None = None
    seed: int = 0
    shape: Shape = Shape()


@dataclass(frozen=True)
class WrittenDataset:
    """What was written: rows of `vap_data.csv` and of `benchmark.csv`."""

    folder: Path
    samples: tuple[VideoSample, ...]
    benchmark: tuple[BenchmarkSample, ...]


def write_world_dataset(settings: DatasetSettings, on_progress: ProgressHandler = ignore_progress) -> WrittenDataset:
    """Write a dataset in VAP-Data's layout.

    `vap_data.csv` lists the clips with neutral captions and up to four references each, which show the same condition
    in other scenes; `manifest.jsonl` lists them with full captions, scenes and hashes. `benchmark.csv` lists pairs of
    unseen conditions, in scenes that no training meets. The lists are written at the end: a folder without them is
    not finished.

    Raises:
        InputError: A setting is out of range, or the folder holds a dataset.
        OutputError: A file cannot be written.
    """
    if settings.num_clips < 2 or (settings.num_benchmark or 1) < 1:
        raise InputError(
            f"expected num_clips of 2 or more and num_benchmark of 1 or more, got {settings.num_clips} and "
            f"{settings.num_benchmark}"
        )
    if (settings.folder / TRAINING_NAME).exists():
        raise InputError(f"{settings.folder} holds a dataset already; choose another folder or remove it")
    names = conditions(split=settings.split)
    # A condition needs two clips to make a pair: few clips mean few conditions.
    num_conditions = min(len(names), settings.num_clips // 2)
    some = [names[math.floor(place * len(names) / num_conditions)] for place in range(num_conditions)]
    deal = partial(
        deal_cases,
        per_scene=_PER_SCENE,
        seed=settings.seed,
        applies=lambda scene, name: can_show(random_scene(scene), name),
    )
    cases = deal(some, settings.num_clips, _TRAINING_SCENES)
    unseen = conditions(split="unseen")
    pairs = deal(unseen, settings.num_benchmark or len(unseen), _BENCHMARK_SCENES)
    make_folder(settings.folder)
    counter = StepCounter("clips", len(cases) + 2 * len(pairs), on_progress)
    samples = _list_references([_write_sample(settings, case, counter) for case in cases])
    benchmark = [_write_pair(settings, pair, index, counter) for index, pair in enumerate(pairs)]
    hashed = add_hashes(samples, settings.folder)
    write_benchmark(benchmark, settings.folder)
    write_manifest(hashed, settings.folder / MANIFEST_NAME)
    write_vap_data(hashed, settings.folder)
    return WrittenDataset(settings.folder, hashed, tuple(benchmark))


def write_gallery(output: Path, on_progress: ProgressHandler = ignore_progress) -> None:
    """Draw all conditions on one picture.

    Raises:
        OutputError: The file cannot be written.
    """
    check_writable(output)
    write_image(draw_gallery(on_progress=on_progress), output)


def _write_sample(settings: DatasetSettings, case: Case, counter: StepCounter) -> VideoSample:
    path = f"videos/{case.condition}/scene_{case.scene:08d}.mp4"
    shot = _write(settings, path, case.scene, case.condition, counter)
    return VideoSample(
        path=path,
        caption=shot.caption,
        condition=case.condition,
        scene=str(case.scene),
        full_caption=shot.full_caption,
        split="unseen" if case.condition in conditions(split="unseen") else "train",
    )


def _write_pair(settings: DatasetSettings, case: Case, index: int, counter: StepCounter) -> BenchmarkSample:
    target, reference = (f"benchmark/{index:04d}_{case.condition}_{role}.mp4" for role in ("target", "reference"))
    return BenchmarkSample(
        path=target,
        caption=_write(settings, target, case.scene, case.condition, counter).caption,
        reference=reference,
        reference_caption=_write(settings, reference, case.reference_scene, case.condition, counter).caption,
    )


def _write(settings: DatasetSettings, path: str, scene: int, condition: str, counter: StepCounter) -> RenderedClip:
    shot = settings.shape.film(scene, condition)
    place = settings.folder / path
    make_folder(place.parent)
    write_clip(shot.clip, place)
    counter.advance()
    return shot


def _list_references(samples: Sequence[VideoSample]) -> tuple[VideoSample, ...]:
    """Give each sample the next ones of its condition as references."""
    fellows: dict[str, list[str]] = {}
    for sample in samples:
        fellows.setdefault(sample.condition, []).append(sample.path)
    listed = []
    for sample in samples:
        paths = fellows[sample.condition]
        place = paths.index(sample.path)
        others = [*paths[place + 1 :], *paths[:place]][:NUM_REFERENCES]
        listed.append(replace(sample, references=tuple(others)))
    return tuple(listed)
