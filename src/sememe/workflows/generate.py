"""Generation from files to files, the same for every system.

A system states its inputs (see `SystemInputs`); seed, progress, files, record, contact sheet and influence are here.
"""

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sememe.checkpoints.zoo import is_hub_id
from sememe.compute.host import peak_memory
from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.stopwatch import Stopwatch
from sememe.errors import InputError, OutputError, SememeError
from sememe.events import Progress, ProgressHandler, StepCounter, ignore_progress
from sememe.files import atomic_path, hash_file
from sememe.records import find_key, flatten, replace_fields
from sememe.system import SystemInputs
from sememe.video import (
    Clip,
    SheetRow,
    VideoLimits,
    contact_sheet,
    put_side_by_side,
    write_clip,
    write_clips,
    write_image,
)
from sememe.video.writer import WRITTEN_VIDEOS
from sememe.workflows import sidecar
from sememe.workflows.input_files import ImageFile, VideoFile
from sememe.workflows.loading import LoadedModel, check_model_request, load_model
from sememe.workflows.outputs import OutputFiles
from sememe.workflows.request_files import describe_request
from sememe.workflows.systems import SYSTEMS

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One generation.

    Attributes:
        inputs: Files and texts.
        output: Video file to write (mp4, mov, mkv, webm or gif); an older one is replaced.
        model: Built-in name, folder, or repository on the Hugging Face hub.
        seed: 0 to 2^63 - 1; None draws one, which the result states.
        settings: Changes to the model's own settings, by field name or dotted key.
        loading: How the model is loaded.
        sheet: Picture file for a contact sheet, with a row per video that is read, and the result below; or video file
            in which all play side by side.
        influence: Whether to measure how far the result is from its baseline, which takes a second generation.
    """

    inputs: SystemInputs
    output: Path
    model: str = "tiny"
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    loading: LoadingSettings = LoadingSettings()
    sheet: Path | None = None
    influence: bool = False


@dataclass(frozen=True)
class GenerationResult:
    """What a generation wrote.

    Attributes:
        output: The video.
        sidecar: The JSON beside it.
        sheet: The contact sheet, where one was asked for.
        seed: The seed that was used.
        document: Content of the sidecar.
    """

    output: Path
    sidecar: Path
    sheet: Path | None
    seed: int
    document: dict[str, Any]


def generate(
    request: GenerationRequest, on_progress: ProgressHandler = ignore_progress, loaded: LoadedModel | None = None
) -> GenerationResult:
    """Generate a video file.

    The video, its sidecar and the contact sheet appear together when all is done, or not at all. On one machine the
    same request with the same seed writes the same bytes of video.

    Args:
        request: Inputs, outputs and settings.
        on_progress: Called with the stages and steps.
        loaded: Model in memory, in place of the one that the request names.

    Raises:
        InputError: An argument, a file or the model is not what was expected.
        OutputError: The result cannot be written; a video that is finished is then saved elsewhere, if it can be.
    """
    watch = Stopwatch()
    files = _list_files(request)
    _check_request(request, files)
    if loaded is None:
        check_model_request(SYSTEMS[request.inputs.system], request.model, request.loading)
    on_progress(Progress("reading the inputs"))
    opened = _OpenedFiles.open(request.inputs, _resolve(request, SYSTEMS[request.inputs.system].settings()))
    watch.lap("read")
    model = loaded or _load(request, on_progress)
    watch.lap("load")
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    settings = request.inputs.fit(model.pipeline, _resolve(request, model.pipeline.defaults))
    work = _Generation(request.inputs, opened, model, settings, seed)
    work.check_size()
    files.check_space(3 * settings.size.num_frames * settings.size.height * settings.size.width)
    for announced in request.inputs.announce(model.pipeline, settings):
        on_progress(Progress(announced, stays=True))
    _ = work.clips  # read now, so that their time counts as reading
    watch.lap("read")
    output = work.run("generating", on_progress)
    watch.replace_lap(output.timings)
    document = _describe(request, work, output)
    if request.influence:
        document["influence"] = _measure_influence(work, output, on_progress)
        watch.lap("influence")
    on_progress(Progress("writing"))
    try:
        _write(document, work, output, files, watch)
    except OutputError as error:
        raise _rescue(work, output, files, error) from error
    return GenerationResult(files.video, files.sidecar, files.sheet, seed, document)


def generate_all(
    requests: Sequence[GenerationRequest], on_progress: ProgressHandler = ignore_progress
) -> Iterator[GenerationResult]:
    """Generate several video files with one model, which is loaded once; yield each result when it is written.

    Args:
        requests: Requests of one system for one model, loaded in one way; all are checked, and their pictures read,
            before the first is made.
        on_progress: Called with the stages and steps.

    Raises:
        InputError: As `generate`, or two results would have one name.
        OutputError: As `generate`.
    """
    model = None
    if len(requests) > 1:
        outputs = [path for request in requests for path in _list_files(request).paths]
        if len(set(outputs)) < len(outputs):
            raise InputError(f"expected a different name for each result, got {', '.join(map(str, outputs))}")
        assert len({(request.inputs.system, request.model) for request in requests}) == 1
        for request in requests:
            _check_request(request, _list_files(request))
        for picture in sorted({path for request in requests for path in request.inputs.images().values()}):
            ImageFile.read(picture)
        check_model_request(SYSTEMS[requests[0].inputs.system], requests[0].model, requests[0].loading)
        model = _load(requests[0], on_progress)
    for request in requests:
        yield generate(request, on_progress, model)


def check_seed(seed: int) -> None:
    """Raise `InputError` for a seed that a generation cannot have."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"expected a seed of 0 to {MAX_SEED}, got {seed}")


def _resolve(request: GenerationRequest, settings: Any) -> Any:
    return replace_fields(settings, request.settings)


def _list_files(request: GenerationRequest) -> OutputFiles:
    return OutputFiles.beside(request.output, request.sheet, request.inputs.extra_files())


def _check_request(request: GenerationRequest, files: OutputFiles) -> None:
    """Check what needs no picture or video to be read and no model to be loaded."""
    if request.seed is not None:
        check_seed(request.seed)
    inputs, settings = request.inputs, _resolve(request, SYSTEMS[request.inputs.system].settings())
    known, replaced = flatten(settings), inputs.replaced_settings()
    for key in (find_key(key, list(known)) for key in request.settings):
        if key in replaced and known[key] is not None:
            raise InputError(f"expected {key} or {replaced[key]}, which takes its place, got both; leave one out")
    inputs.check(settings)
    if request.influence:
        inputs.baseline(settings)
    videos = [path for paths in inputs.videos(settings).values() for path in paths]
    files.check([*videos, *inputs.read_files()])


def _load(request: GenerationRequest, on_progress: ProgressHandler) -> LoadedModel:
    how = " (`sememe download` shows the progress of fetching it)" if is_hub_id(request.model) else ""
    on_progress(Progress(f"loading {request.model}{how}"))
    settings = _resolve(request, SYSTEMS[request.inputs.system].settings())
    values = flatten(settings)
    changed = [find_key(key, list(values)) for key in request.settings]
    own = {key.rpartition(".")[2]: values[key] for key in changed}
    planned = {**own, **request.inputs.workload(settings)}
    model = load_model(SYSTEMS[request.inputs.system], request.model, request.loading, planned)
    if model.plan is not None:
        on_progress(Progress(f"{model.device}, {model.plan.summary}"))
    return model


@dataclass(frozen=True)
class _OpenedFiles:
    images: Mapping[str, ImageFile]
    videos: Mapping[str, tuple[VideoFile, ...]]

    @classmethod
    def open(cls, inputs: SystemInputs, settings: Any) -> "_OpenedFiles":
        """Survey the videos, then read the pictures."""
        section = inputs.section(settings)
        videos = {
            name: tuple(VideoFile.survey_path(path, section, inputs.least_frames) for path in paths)
            for name, paths in inputs.videos(settings).items()
        }
        largest = max(settings.size.height or 0, settings.size.width or 0)
        return cls({name: ImageFile.read(path, largest) for name, path in inputs.images().items()}, videos)

    def to_document(self) -> dict[str, Any]:
        images = {name: image.to_document() for name, image in self.images.items()}
        return images | {name: [video.to_document() for video in videos] for name, videos in self.videos.items()}


@dataclass(frozen=True)
class _Generation:
    """A generation whose model is loaded."""

    inputs: SystemInputs
    files: _OpenedFiles
    model: LoadedModel
    settings: Any
    seed: int

    def check_size(self) -> None:
        """Raise `InputError` for a result that the model cannot make, or that no memory holds."""
        size = self.settings.size
        self.model.pipeline.grid.latent_shape(size.num_frames, size.height, size.width)
        if self.inputs.is_written_in_pieces:
            return
        num_bytes, limit = 3 * size.num_frames * size.height * size.width, VideoLimits().max_kept_bytes
        if num_bytes > limit:
            raise InputError(
                f"{size.num_frames} frames of {size.width}x{size.height} take {num_bytes / 1e9:.1f} GB, the limit is "
                f"{limit / 1e9:.1f} GB; ask for fewer frames or smaller ones"
            )

    @cached_property
    def clips(self) -> Mapping[str, list[Clip]]:
        """The videos as the model reads them."""
        return {
            name: [
                video.read(self.inputs.reading(self.settings, place, len(videos))) for place, video in enumerate(videos)
            ]
            for name, videos in self.files.videos.items()
        }

    def baseline(self) -> "_Generation":
        """Return the generation with which influence compares."""
        inputs, settings = self.inputs.baseline(self.settings)
        kept = inputs.videos(settings)
        videos = {name: self.files.videos[name] if paths else () for name, paths in kept.items()}
        return _Generation(inputs, _OpenedFiles(self.files.images, videos), self.model, settings, self.seed)

    def run(self, stage: str, on_progress: ProgressHandler) -> Any:
        """Call the pipeline."""
        import torch

        from sememe.compute.placement import name_smaller_plan

        steps = self.inputs.list_steps(self.settings)
        first, counters = next(iter(steps)), dict[str, StepCounter]()

        def count(name: str) -> StepCounter:
            if name not in counters:
                what, num_steps = steps[name]
                counters[name] = StepCounter(f"{stage}: {what}" if what else stage, num_steps, on_progress)
            return counters[name]

        def on_step_end(_: Any, _step: int, _timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
            count(next(iter(tensors), first)).advance()
            return {}

        count(first)

        images = {name: image.pixels for name, image in self.files.images.items()}
        arguments = self.inputs.arguments(self.settings, images, self.clips)
        with name_smaller_plan(self.model.device, self.model.plan):
            return self.model.pipeline(
                **arguments,
                # On the CPU, whatever computes: a seed means the same on every device.
                generator=torch.Generator("cpu").manual_seed(self.seed),
                callback_on_step_end=on_step_end,
            )


def _describe(request: GenerationRequest, work: _Generation, output: Any) -> dict[str, Any]:
    model = work.model
    # Videos among the settings are stated by their paths.
    videos = request.inputs.videos(work.settings)
    settings = output.settings.to_dict()
    settings |= {name: [str(path) for path in paths] for name, paths in videos.items() if name in settings}
    changed = {key: videos.get(key.rpartition(".")[2], value) for key, value in request.settings.items()}
    # Built-in and released models go before a folder of their name.
    is_folder = model.folder == Path(request.model)
    name = str(model.folder.absolute()) if is_folder else request.model
    return {
        "system": request.inputs.system,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": sidecar.describe_software(),
        "machine": sidecar.describe_machine(model.device),
        "model": sidecar.describe_model_used(model),
        "seed": work.seed,
        "generator_device": "cpu",
        **request.inputs.texts(),
        "settings": settings,
        "guidance": output.guidance,
        "computing": {
            "attention": model.attention,
            "compiled": model.is_compiled,
            "plan": None if model.plan is None else model.plan.to_document(),
        },
        "exactness": sidecar.describe_exactness(output.settings, model),
        "inputs": work.files.to_document(),
        "request": describe_request(name, request.inputs, changed, request.loading),
        "output": {"path": str(request.output)},
        "influence": None,
    }


def _measure_influence(work: _Generation, output: Any, on_progress: ProgressHandler) -> dict[str, Any]:
    """Measure how far the result is from the baseline: the RMS over all frames, pixels and colours."""
    name = work.inputs.baseline_name
    without = work.baseline().run(f"generating {name}", on_progress)
    difference = output.clips[0].frames.astype(np.float64) - without.clips[0].frames
    return {
        "rms": float(np.sqrt(np.mean(difference**2))),
        "unit": "levels of 255",
        "compared_with": f"the same generation {name}",
    }


def _write(document: dict[str, Any], work: _Generation, output: Any, files: OutputFiles, watch: Stopwatch) -> None:
    """Write all files or none; complete the document on the way."""
    comment = sidecar.make_comment(document, work.inputs.texts(), output.settings)
    pieces = _Pieces(work.inputs.pieces(work.model.pipeline, output), keeps=files.sheet is not None)
    with files.replace_together() as parts:
        write_clips(pieces, parts.video, metadata=None if files.video.suffix.lower() == ".gif" else comment)
        document["output"] |= pieces.shape
        if parts.sheet is not None:
            shown = work.inputs.shown(output)
            _write_sheet(_sheet_rows(document, work.clips, shown, pieces.join()), parts.sheet)
        for name, path in parts.extra.items():
            work.inputs.write_extra(name, output, path)
            document["output"][name] = {"path": str(files.extra[name]), "sha256": hash_file(path)}
        watch.lap("write")
        document["output"]["sha256"] = hash_file(parts.video)
        document["timings"] = {name: round(seconds, 4) for name, seconds in watch.seconds.items()}
        document["timings"]["total"] = round(watch.total, 4)
        document["peak_memory"] = peak_memory(work.model.device)
        sidecar.write_sidecar(document, parts.sidecar)


def _rescue(work: _Generation, output: Any, files: OutputFiles, error: OutputError) -> OutputError:
    """Save the video that could not be written in a temporary folder; return the error that says where, if so."""
    folder = Path(tempfile.mkdtemp(prefix="sememe-"))
    path = folder / files.video.name
    try:
        with atomic_path(path) as part:
            write_clips(work.inputs.pieces(work.model.pipeline, output), part)
    except SememeError:
        shutil.rmtree(folder, ignore_errors=True)
        return error
    return OutputError(f"{error}; the video alone is saved as {path}")


class _Pieces:
    """Clips that pass by one after another: their shape together, and on request their frames."""

    def __init__(self, clips: Iterator[Clip], *, keeps: bool) -> None:
        self._clips, self._keeps = clips, keeps
        self._kept: list[Clip] = []
        self.shape: dict[str, Any] = {"num_frames": 0}

    def __iter__(self) -> Iterator[Clip]:
        for clip in self._clips:
            num_frames = self.shape["num_frames"] + clip.num_frames
            self.shape = {"num_frames": num_frames, "height": clip.height, "width": clip.width, "fps": clip.fps}
            self._kept += [clip] if self._keeps else []
            yield clip

    def join(self) -> Clip:
        """Return all frames as one clip."""
        return Clip(np.concatenate([clip.frames for clip in self._kept]), self._kept[0].fps)


def _write_sheet(rows: Sequence[SheetRow], path: Path) -> None:
    if path.suffix.lower() in WRITTEN_VIDEOS:
        write_clip(put_side_by_side([row.clip for row in rows]), path)
    else:
        write_image(contact_sheet(rows), path)


def _sheet_rows(
    document: dict[str, Any], clips: Mapping[str, list[Clip]], shown: Mapping[str, Clip], result: Clip
) -> list[SheetRow]:
    inputs = document["inputs"]
    rows = [
        SheetRow(f"{name.removesuffix('s').replace('_', ' ')}: {Path(file['path']).name}", clip)
        for name, found in clips.items()
        for file, clip in zip(inputs[name], found, strict=True)
    ]
    rows += [SheetRow(name, clip) for name, clip in shown.items()]
    images = [Path(file["path"]).name for file in inputs.values() if isinstance(file, dict)]
    label = ", ".join([*images, f"seed {document['seed']}"])
    return [*rows, SheetRow(f"result: {label}", result)]
