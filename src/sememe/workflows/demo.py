"""The demonstration: two references, one picture, two results, and a sheet of them all."""

from dataclasses import dataclass
from pathlib import Path

from sememe.errors import OutputError
from sememe.files import check_writable, describe_write_error
from sememe.recipes.world_clips import EVALUATION_SEED
from sememe.video import SheetRow, contact_sheet, read_clip, write_clip, write_image
from sememe.workflows.events import Progress, ProgressHandler, ignore_progress
from sememe.workflows.generate import VideoAsPromptRequest, check_seed, generate_video_as_prompt
from sememe.workflows.inputs import read_picture
from sememe.workflows.loading import LoadedModel, check_model_request, load_model
from sememe.world import random_scene, render

# Scenes that no training has seen.
_PICTURE_SCENE = EVALUATION_SEED + 21
_REFERENCE_SCENES = (EVALUATION_SEED + 1000, EVALUATION_SEED + 1004)
CONDITIONS = ("flood", "heart")


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """What to show.

    Attributes:
        output_dir: folder for the files; made if it is not there.
        image: picture file to bring to life; None for one of the procedural world.
        model: a Video-As-Prompt model, by name or folder.
        seed: of both results.
        device: where to compute; None for a GPU where there is one, the CPU otherwise.
    """

    output_dir: Path
    image: Path | None = None
    model: str = "tiny"
    seed: int = 0
    device: str | None = None


@dataclass(frozen=True)
class DemoPair:
    """A reference, and the picture doing the same."""

    condition: str
    reference: Path
    result: Path


@dataclass(frozen=True)
class DemoResult:
    """Where everything is."""

    image: Path
    pairs: tuple[DemoPair, ...]
    sheet: Path


def run_demo(request: DemoRequest, on_progress: ProgressHandler = ignore_progress) -> DemoResult:
    """Renders two references and a picture, generates from the files, and lays all out on a contact sheet.

    Raises:
        ModelError: there is no such model.
        InputError: the seed is out of range, or the picture is none.
        OutputError: the folder cannot be made or written.
    """
    check_model_request(request.model, None)
    check_seed(request.seed)
    if request.image is not None:
        read_picture(request.image)
    folder = request.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(describe_write_error(folder, error)) from error
    result = DemoResult(
        request.image or folder / "image.png",
        tuple(
            DemoPair(condition, folder / f"reference{suffix}.mp4", folder / f"result{suffix}.mp4")
            for condition, suffix in zip(CONDITIONS, ("", "_2"), strict=True)
        ),
        folder / "sheet.png",
    )
    check_writable(result.sheet)
    on_progress(Progress(f"loading {request.model}"))
    model = load_model(request.model, request.device)
    on_progress(Progress("filming the references"))
    _film(result, model, draws_picture=request.image is None)
    for pair in result.pairs:
        inputs = VideoAsPromptRequest(
            references=(pair.reference,),
            image=result.image,
            output=pair.result,
            model=request.model,
            seed=request.seed,
        )
        generate_video_as_prompt(inputs, on_progress, model)
    _lay_out(result)
    return result


def _film(result: DemoResult, model: LoadedModel, *, draws_picture: bool) -> None:
    """Writes the references, and the picture where none is given, at the model's own size."""
    made = model.pipeline.defaults
    size = (made.height, made.width)
    for pair, seed in zip(result.pairs, _REFERENCE_SCENES, strict=True):
        take = render(random_scene(seed), pair.condition, num_frames=made.num_frames, size=size, fps=made.fps)
        write_clip(take.clip, pair.reference)
    if not draws_picture:
        return
    picture = render(random_scene(_PICTURE_SCENE), None, num_frames=1, size=size)
    write_image(picture.clip.frames[0], result.image)


def _lay_out(result: DemoResult) -> None:
    rows = []
    for pair in result.pairs:
        rows.append(SheetRow(f"reference: {pair.condition}", read_clip(pair.reference)))
        rows.append(SheetRow(f"the picture, following it: {pair.result.name}", read_clip(pair.result)))
    write_image(contact_sheet(rows), result.sheet)
