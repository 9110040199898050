"""Generation from files to files."""

import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from sememe.errors import InputError
from sememe.files import hash_file
from sememe.video import Clip, Sampling, SheetRow, VideoLimits, contact_sheet, write_clip, write_image
from sememe.workflows import sidecar
from sememe.workflows.events import Progress, ProgressHandler, StepCounter, Stopwatch, ignore_progress
from sememe.workflows.input_files import ImageFile, ReferenceFile, read_picture, read_reference, survey_reference
from sememe.workflows.loading import Computing, LoadedModel, check_model_request, load_model
from sememe.workflows.model_memory import Guided
from sememe.workflows.outputs import OutputFiles
from sememe.workflows.plan import PlanRequest, Texts, check_plan_request

if TYPE_CHECKING:
    from sememe.video_as_prompt.pipeline import VideoAsPromptOutput

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class VideoAsPromptRequest:
    """One generation. None stands for the model's own setting.

    Attributes:
        references: video files of at least 2 frames; may be empty where `reference_guidance_scale` is 0.
        image: picture file, the first frame.
        output: video file to write (mp4, mov, mkv, webm or gif); an older one is replaced.
        prompt: what the result shows.
        negative_prompt: what text guidance leads away from.
        reference_prompts: captions of the references: none, one for all, or one each.
        model: a built-in name, a folder, or a repository on the Hugging Face hub.
        seed: 0 to 2^63 - 1; None for one by chance, which the result tells.
        num_inference_steps: of the scheduler.
        num_frames: of the result, and taken of each reference.
        num_reference_frames: taken of each reference, where that is another number.
        height: pixels.
        width: pixels.
        fps: frames a second of the result.
        guidance_scale: of the text; 1 is off.
        reference_guidance_scale: of the reference; 1 is off, 0 leaves it out.
        guidance_interval: timesteps, as parts of 1000, between which guidance acts.
        reference_sampling: how frames are taken of a reference: `even`, `fps` or `first`.
        batching: `sequential` or `batched`.
        autocast: `off` or `bfloat16`.
        device: where to compute; None for a GPU where there is one, the CPU otherwise.
        dtype: precision of the weights: `float32`, `bfloat16` or `float16`.
        last_image: picture file, the last frame, for models that can be told it.
        negative_references: video files to lead away from, instead of from what the backbone does by itself.
        reference_strength: 0 to 1, the weight of the reference in the target's attention; 1 is exact.
        approximate: for a model trained two-way: do not carry the reference through every step.
        reference_refresh: with `approximate`, carry it along every so many steps; None encodes it once.
        use_dynamic_cfg: text guidance that changes from step to step, as in the official CogVideoX demonstration.
        official_quirks: habits of the official pipelines to have back; ("all",) for all, or their names.
        reference_downscale: by how much references are smaller than the result in height and width; approximate.
        reference_positions: `dense`, or `spread` over the result's length where a reference has fewer frames.
        text_keys: keys and values of texts over the steps: `kept`, or `recomputed`, which takes less memory.
        attention: backend of attention, as diffusers names it.
        compiles: whether the transformer's blocks are compiled, which takes a while before the first step.
        vram: GB of the card, to be planned for; None to put the whole model on the device.
        storage: with `vram`, how the transformer's weights are stored: `fp8`, `int8wo`, `nf4`, ...; approximate.
        expert: for a stock model, the folder of an expert, or of a model that has one.
        revision: of a repository on the hub.
        sheet: picture file for a contact sheet: a row for each reference, and the result below.
        influence: whether to measure how far the result is from the same generation without the reference, which takes
            a second generation.
    """

    references: tuple[Path, ...]
    image: Path
    output: Path
    prompt: str = ""
    negative_prompt: str | None = None
    reference_prompts: tuple[str, ...] = ()
    model: str = "tiny"
    seed: int | None = None
    num_inference_steps: int | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reference_sampling: str = "even"
    batching: str | None = None
    autocast: str | None = None
    device: str | None = None
    dtype: str | None = None
    last_image: Path | None = None
    num_reference_frames: int | None = None
    negative_references: tuple[Path, ...] = ()
    reference_strength: float = 1.0
    approximate: bool = False
    reference_refresh: int | None = None
    use_dynamic_cfg: bool = False
    official_quirks: tuple[str, ...] = ()
    reference_downscale: int = 1
    reference_positions: str = "dense"
    text_keys: str | None = None
    attention: str | None = None
    compiles: bool = False
    vram: float | None = None
    storage: str | None = None
    expert: str | None = None
    revision: str | None = None
    sheet: Path | None = None
    influence: bool = False


@dataclass(frozen=True)
class VideoAsPromptResult:
    """What a generation wrote.

    Attributes:
        output: the video.
        sidecar: the JSON beside it.
        sheet: the contact sheet, where one was asked for.
        seed: that was used.
        document: the content of the sidecar.
    """

    output: Path
    sidecar: Path
    sheet: Path | None
    seed: int
    document: dict[str, Any]


def generate_video_as_prompt(
    request: VideoAsPromptRequest, on_progress: ProgressHandler = ignore_progress, loaded: LoadedModel | None = None
) -> VideoAsPromptResult:
    """Does to a picture what happens in reference clips, from files to files (arXiv 2510.20888).

    The video, its sidecar and the contact sheet appear together when all is done, or not at all. On one machine the
    same request with the same seed writes the same bytes of video.

    Args:
        request: what to do.
        on_progress: is told the stages and steps.
        loaded: a model in memory, in place of what the request says of a model and of how it is loaded.

    Raises:
        InputError: an argument, a file or the model is not what was expected.
        OutputError: the result cannot be written.
    """
    watch = Stopwatch()
    files = OutputFiles.beside(request.output, request.sheet)
    _check_request(request, files)
    if loaded is None:
        check_model_request(request.model, request.dtype, request.revision)
    on_progress(Progress("reading the inputs"))
    files_in = _InputFiles.survey(request)
    watch.lap("read")
    if loaded is None:
        on_progress(Progress(f"loading {request.model}"))
    model = loaded or _load(request)
    watch.lap("load")
    clips = _read_references(request, files_in.references, model)
    negatives = _read_references(request, files_in.negative_references, model)
    watch.lap("read")

    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    work = _Generation(request, model, files_in, clips, negatives, seed)
    output = work.run("generating", on_progress)
    _note_laps(watch, output)
    document = _describe(request, model, files_in, output, seed)
    if request.influence:
        document["influence"] = _measure_influence(work, output, on_progress)
        watch.lap("influence")
    on_progress(Progress("writing"))
    _write(document, output.clips[0], clips, files, watch, model.device)
    return VideoAsPromptResult(files.video, files.sidecar, files.sheet, seed, document)


@dataclass(frozen=True)
class _InputFiles:
    """What a request names, looked over."""

    image: ImageFile
    last_image: ImageFile | None
    references: tuple[ReferenceFile, ...]
    negative_references: tuple[ReferenceFile, ...]

    @classmethod
    def survey(cls, request: VideoAsPromptRequest) -> "_InputFiles":
        references = tuple(survey_reference(path) for path in request.references)
        negatives = tuple(survey_reference(path) for path in request.negative_references)
        last_image = None if request.last_image is None else read_picture(request.last_image)
        return cls(read_picture(request.image), last_image, references, negatives)


def _check_request(request: VideoAsPromptRequest, files: OutputFiles) -> None:
    """What can be said of a request before anything is read."""
    plan = _plan_request(request)
    if plan is None and request.storage is not None:
        raise InputError("storage has an effect only with vram, the GB of the card to plan for; say both or neither")
    _check_numbers(request)
    if plan is not None:
        check_plan_request(plan)
    if request.reference_sampling not in get_args(Sampling):
        choices = ", ".join(get_args(Sampling))
        raise InputError(f"expected reference_sampling to be one of {choices}, got {request.reference_sampling!r}")
    if request.influence and request.reference_guidance_scale == 0:
        raise InputError("influence has no meaning with reference_guidance_scale 0: the reference is left out anyway")
    if not request.references and request.reference_guidance_scale != 0:
        raise InputError("expected at least one reference video, got none; give one, or reference_guidance_scale 0")
    if request.reference_guidance_scale == 0:
        _check_left_out(request)
    if len(request.reference_prompts) not in {0, 1, len(request.references)}:
        raise InputError(
            f"expected one reference prompt per reference, or one for all, got {len(request.reference_prompts)} for "
            f"{len(request.references)}"
        )
    inputs = [*request.references, *request.negative_references, request.image]
    files.check(inputs if request.last_image is None else [*inputs, request.last_image])


def _check_left_out(request: VideoAsPromptRequest) -> None:
    """Raises `InputError` for what would have no effect where the reference is left out."""
    wanted = {
        "reference_prompts": any(request.reference_prompts),
        "negative_references": bool(request.negative_references),
        "reference_strength": request.reference_strength != 1.0,
        "approximate": request.approximate,
        "reference_refresh": request.reference_refresh is not None,
    }
    idle = ", ".join(name for name, is_wanted in wanted.items() if is_wanted)
    if idle:
        raise InputError(f"expected nothing of the reference with reference_guidance_scale 0, got {idle}; leave it out")


def check_seed(seed: int) -> None:
    """Raises `InputError` for a seed that a generation cannot have."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"expected a seed of 0 to {MAX_SEED}, got {seed}")


def _check_numbers(request: VideoAsPromptRequest) -> None:
    if request.seed is not None:
        check_seed(request.seed)
    for name in ("num_inference_steps", "num_frames", "num_reference_frames", "height", "width"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise InputError(f"expected {name} of at least 1, got {value}")
    for name in ("guidance_scale", "reference_guidance_scale"):
        value = getattr(request, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"expected {name} of at least 0 (1 is off), got {value}")
    if request.guidance_interval is not None:
        from sememe.diffusion.guidance import check_interval

        check_interval(request.guidance_interval)
    if not 0 <= request.reference_strength <= 1:
        raise InputError(f"expected reference_strength to be within 0..1, got {request.reference_strength}")
    if request.reference_downscale < 1:
        raise InputError(f"expected reference_downscale to be 1, 2, 3, ..., got {request.reference_downscale}")
    if request.reference_refresh is not None and request.reference_refresh < 1:
        raise InputError(f"expected reference_refresh of at least 1 step, got {request.reference_refresh}")


def _load(request: VideoAsPromptRequest) -> LoadedModel:
    computing = Computing(
        attention=request.attention,
        compiles=request.compiles,
        plan=_plan_request(request),
        texts=Texts(request.prompt, request.negative_prompt, request.reference_prompts),
    )
    return load_model(request.model, request.device, request.dtype, request.expert, request.revision, computing)


def _plan_request(request: VideoAsPromptRequest) -> PlanRequest | None:
    if request.vram is None:
        return None
    return PlanRequest(
        vram=request.vram,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_references=len(request.references),
        num_reference_frames=request.num_reference_frames,
        num_negative_references=len(request.negative_references),
        dtype=request.dtype,
        storage=request.storage,
        keeps_keys=request.approximate,
        compiles=request.compiles,
        guided=Guided(request.guidance_scale, request.reference_guidance_scale, request.batching),
        reference_downscale=request.reference_downscale,
        text_keys=request.text_keys,
    )


def _read_references(
    request: VideoAsPromptRequest, references: tuple[ReferenceFile, ...], model: LoadedModel
) -> list[Clip]:
    """The references as the model reads them; also refuses what the model cannot make."""
    made = model.pipeline.defaults.override(
        num_frames=request.num_frames, height=request.height, width=request.width, fps=request.fps
    )
    model.pipeline.grid.latent_shape(made.num_frames, made.height, made.width)
    num_frames = request.num_reference_frames or made.num_frames
    most = max(num_frames, made.num_frames)
    num_bytes, limit = 3 * most * made.height * made.width, VideoLimits().max_kept_bytes
    if num_bytes > limit:
        raise InputError(
            f"{most} frames of {made.width}x{made.height} take {num_bytes / 1e9:.1f} GB, the limit is "
            f"{limit / 1e9:.1f} GB; ask for fewer frames or smaller ones"
        )
    sampling = cast(Sampling, request.reference_sampling)
    # The official habits of stretching and of showing CLIP the whole frame need the whole frame.
    size = None if request.official_quirks else (made.height, made.width)
    return [read_reference(reference, num_frames, size, sampling, made.fps) for reference in references]


@dataclass(frozen=True)
class _Generation:
    """All that a generation needs, so that it can be run with its reference and without."""

    request: VideoAsPromptRequest
    model: LoadedModel
    inputs: _InputFiles
    references: list[Clip]
    negative_references: list[Clip]
    seed: int

    def run(self, stage: str, on_progress: ProgressHandler) -> "VideoAsPromptOutput":
        """One generation; without references, by the backbone alone."""
        import torch

        request, pipeline = self.request, self.model.pipeline
        steps = request.num_inference_steps or pipeline.defaults.num_inference_steps
        counter = StepCounter(stage, steps, on_progress)

        def on_step_end(*_: Any) -> dict[str, Any]:
            counter.advance()
            return {}

        last_image, encoded = self.inputs.last_image, self.model.prompt
        if encoded is not None and not self.references:
            encoded = replace(encoded, reference_prompts=None)
        return pipeline(
            image=self.inputs.image.pixels,
            references=self.references,
            prompt=request.prompt if encoded is None else encoded,
            negative_prompt=request.negative_prompt,
            reference_prompts=list(_spread_prompts(request)) if self.references else None,
            height=request.height,
            width=request.width,
            num_frames=request.num_frames,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            reference_guidance_scale=request.reference_guidance_scale if self.references else 0.0,
            guidance_interval=request.guidance_interval,
            # On the CPU, whatever computes: a seed means the same on every device.
            generator=torch.Generator("cpu").manual_seed(self.seed),
            reference_sampling=request.reference_sampling,
            callback_on_step_end=on_step_end,
            fps=request.fps,
            batching=request.batching,
            autocast=request.autocast,
            num_reference_frames=request.num_reference_frames,
            last_image=None if last_image is None else last_image.pixels,
            negative_references=self.negative_references or None,
            reference_strength=request.reference_strength if self.references else 1.0,
            approximate=request.approximate and bool(self.references),
            reference_refresh=request.reference_refresh if self.references else None,
            reference_positions=request.reference_positions,
            reference_downscale=request.reference_downscale,
            text_keys=request.text_keys or self.model.planned_text_keys,
            use_dynamic_cfg=request.use_dynamic_cfg,
            official_quirks=True if request.official_quirks == ("all",) else request.official_quirks,
        )


def _spread_prompts(request: VideoAsPromptRequest) -> tuple[str, ...]:
    """A caption for each reference."""
    given = request.reference_prompts or ("",)
    return given * len(request.references) if len(given) == 1 else given


def _note_laps(watch: Stopwatch, output: "VideoAsPromptOutput") -> None:
    """The pipeline's own laps in place of the one around it."""
    watch.lap("generate")
    del watch.seconds["generate"]
    watch.seconds |= output.timings


def _describe(
    request: VideoAsPromptRequest,
    model: LoadedModel,
    inputs: _InputFiles,
    output: "VideoAsPromptOutput",
    seed: int,
) -> dict[str, Any]:
    prompts = _spread_prompts(request) if inputs.references else ()
    clip = output.clips[0]
    return {
        "system": "video-as-prompt",
        "created": sidecar.now(),
        "versions": sidecar.describe_software(),
        "machine": sidecar.describe_machine(model.device),
        "model": sidecar.describe_model_used(model),
        "seed": seed,
        "generator_device": "cpu",
        "prompt": request.prompt,
        "settings": output.settings,
        "computing": sidecar.describe_computing(model),
        "exactness": sidecar.describe_exactness(output.settings, model),
        "inputs": sidecar.describe_inputs(
            inputs.image, inputs.references, prompts, inputs.last_image, inputs.negative_references
        ),
        "output": {
            "path": str(request.output),
            "num_frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "fps": clip.fps,
        },
        "influence": None,
    }


def _measure_influence(
    work: _Generation, output: "VideoAsPromptOutput", on_progress: ProgressHandler
) -> dict[str, Any]:
    """How far the result is from the same one without reference: the RMS over all frames, pixels and colours."""
    alone = replace(work, references=[], negative_references=[])
    without = alone.run("generating without reference", on_progress)
    difference = output.clips[0].frames.astype(np.float64) - without.clips[0].frames
    return {
        "rms": float(np.sqrt(np.mean(difference**2))),
        "unit": "levels of 255",
        "compared_with": "the same seed, picture and prompts with reference_guidance_scale 0",
    }


def _write(
    document: dict[str, Any], result: Clip, references: list[Clip], files: OutputFiles, watch: Stopwatch, device: str
) -> None:
    """Writes all files or none; completes the document on the way."""
    comment = None if files.video.suffix.lower() == ".gif" else sidecar.make_comment(document)
    with files.replace_together() as parts:
        write_clip(result, parts.video, metadata=comment)
        if parts.sheet is not None:
            write_image(contact_sheet(_sheet_rows(document, references, result)), parts.sheet)
        watch.lap("write")
        document["output"]["sha256"] = hash_file(parts.video)
        document["timings"] = {name: round(seconds, 4) for name, seconds in watch.seconds.items()}
        document["timings"]["total"] = round(watch.total, 4)
        document["peak_memory"] = sidecar.peak_memory(device)
        sidecar.write_sidecar(document, parts.sidecar)


def _sheet_rows(document: dict[str, Any], references: list[Clip], result: Clip) -> list[SheetRow]:
    names = [Path(reference["path"]).name for reference in document["inputs"]["references"]]
    rows = [SheetRow(f"reference: {name}", clip) for name, clip in zip(names, references, strict=True)]
    image = Path(document["inputs"]["image"]["path"]).name
    return [*rows, SheetRow(f"result: {image}, seed {document['seed']}", result)]
