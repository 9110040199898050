"""The demonstration: two references, a drawn picture and a photograph that do the same, and a sheet of them all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import OutputError
from sememe.files import check_writable, describe_write_error
from sememe.video import SheetRow, contact_sheet, read_clip, write_clip, write_image
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.workflows.events import Progress, ProgressHandler, ignore_progress
from sememe.workflows.generate import GenerationRequest, check_seed, generate
from sememe.workflows.input_files import ImageFile
from sememe.workflows.loading import LoadedModel, check_model_request, load_model
from sememe.world import EVALUATION_SEED, Scene, can_show, conditions, random_scene, render
from sememe.world.catalogue import FAMILIES, condition
from sememe.world.scene import Crop

_NUM_SCENES = 1_000_000  # to draw from, none of which any training has seen


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """What to show.

    Attributes:
        output_dir: folder for the files; made if it is not there.
        image: picture file to use instead of the second picture.
        model: a Video-As-Prompt model, by name or folder.
        seed: Seed of the conditions, the scenes and both results; families take turns from one seed to the next.
        device: where to compute; None for a GPU where there is one, the CPU otherwise.
    """

    output_dir: Path
    image: Path | None = None
    model: str = "tiny"
    seed: int = 0
    device: str | None = None


@dataclass(frozen=True)
class DemoPair:
    """A condition in a reference, a picture, and the picture doing the same."""

    condition: str
    reference: Path
    image: Path
    result: Path


@dataclass(frozen=True)
class DemoResult:
    """Where everything is."""

    pairs: tuple[DemoPair, ...]
    sheet: Path


def run_demo(request: DemoRequest, on_progress: ProgressHandler = ignore_progress) -> DemoResult:
    """Render two references and two pictures, generate from the files, and lay all out on a contact sheet.

    Raises:
        ModelError: there is no such model.
        InputError: the seed is out of range, or the picture is none.
        OutputError: the folder cannot be made or written.
    """
    loading = LoadingSettings(device=request.device)
    check_model_request(request.model, loading)
    check_seed(request.seed)
    if request.image is not None:
        ImageFile.read(request.image)
    folder = request.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(describe_write_error(folder, error)) from error
    first, second = choose_conditions(request.seed)
    result = DemoResult(
        (
            DemoPair(first, folder / "reference.mp4", folder / "image.png", folder / "result.mp4"),
            DemoPair(
                second, folder / "reference_2.mp4", request.image or folder / "image_2.png", folder / "result_2.mp4"
            ),
        ),
        folder / "sheet.png",
    )
    check_writable(result.sheet)
    on_progress(Progress(f"loading {request.model}"))
    model = load_model(request.model, loading)
    on_progress(Progress("rendering references and pictures"))
    _render_inputs(result, request, model)
    for pair in result.pairs:
        inputs = VideoAsPromptInputs(references=(pair.reference,), image=pair.image)
        generation = GenerationRequest(inputs=inputs, output=pair.result, model=request.model, seed=request.seed)
        generate(generation, on_progress, model)
    _write_sheet(result)
    return result


def choose_conditions(seed: int) -> tuple[str, str]:
    """Two conditions of different families, which take turns; seen and unseen ones, drawn and never picked by hand."""
    rng = np.random.Generator(np.random.PCG64(seed))
    first, second = (str(rng.choice(conditions(family=FAMILIES[(seed + shift) % len(FAMILIES)]))) for shift in (0, 2))
    return first, second


def _render_inputs(result: DemoResult, request: DemoRequest, model: LoadedModel) -> None:
    """Write the references, and the pictures that are not given, at the model's own size."""
    defaults = model.pipeline.defaults.size
    size = (defaults.height, defaults.width)
    rng = np.random.Generator(np.random.PCG64([request.seed, 1]))
    for place, pair in enumerate(result.pairs):
        reference = _draw_scene(rng, pair.condition)
        take = render(reference, pair.condition, num_frames=defaults.num_frames, size=size, fps=defaults.fps)
        write_clip(take.clip, pair.reference)
        if pair.image != request.image:
            picture = _draw_scene(rng, pair.condition, has_photograph=place > 0)
            write_image(render(picture, None, num_frames=1, size=size).clip.frames[0], pair.image)


def _draw_scene(rng: np.random.Generator, name: str, *, has_photograph: bool | None = None) -> Scene:
    """Draw a scene that can show the condition, with or without a photograph; None for either."""
    while True:
        scene = random_scene(EVALUATION_SEED + int(rng.integers(_NUM_SCENES)))
        if can_show(scene, name) and has_photograph in (None, isinstance(scene.backdrop, Crop)):
            return scene


def _write_sheet(result: DemoResult) -> None:
    rows = []
    for pair in result.pairs:
        shown = condition(pair.condition)
        label = f"{shown.name} ({shown.family}, {shown.split} in training): reference above, result below"
        rows += [SheetRow(label, read_clip(pair.reference)), SheetRow("", read_clip(pair.result))]
    write_image(contact_sheet(rows), result.sheet)
