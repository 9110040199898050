"""The demonstration: inputs of a system that are rendered, and what a model makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError, OutputError
from sememe.events import Progress, ProgressHandler, ignore_progress
from sememe.files import check_writable, hash_file, make_folder
from sememe.system import SystemInputs
from sememe.workflows.generate import GenerationRequest, check_seed, generate
from sememe.workflows.input_files import ImageFile
from sememe.workflows.loading import check_model_request, load_model
from sememe.workflows.outputs import read_recorded_hashes
from sememe.workflows.systems import SYSTEMS


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """What to show.

    Attributes:
        output_dir: Folder for the files; made if it is not there.
        system: Name of the system that is shown.
        image: Picture file to use instead of a rendered one, or, where none is rendered, beside the text.
        model: A model of the system, by name or folder.
        seed: Seed of all that is drawn and of the results.
        device: Where to compute; None for a GPU where there is one, the CPU otherwise.
    """

    output_dir: Path
    system: str = "video-as-prompt"
    image: Path | None = None
    model: str = "tiny"
    seed: int = 0
    device: str | None = None


@dataclass(frozen=True)
class DemoResult:
    """The results, a record of the system's own for each, and the contact sheet."""

    pairs: Sequence[Any]
    sheet: Path


def run_demo(request: DemoRequest, on_progress: ProgressHandler = ignore_progress) -> DemoResult:
    """Render inputs, generate from the files, and lay all out on a contact sheet.

    A demonstration that fails leaves none of the files that it has made.

    Raises:
        ModelError: There is no such model.
        InputError: The system has no demonstration, the seed is out of range, or the picture is none.
        OutputError: The folder cannot be made or written, or holds files that no demonstration made.
    """
    shown = {name: (each, each.demo) for name, each in SYSTEMS.items() if each.demo is not None}
    if request.system not in shown:
        raise InputError(f"expected a system with a demonstration ({', '.join(shown)}), got {request.system!r}")
    system, make = shown[request.system]
    loading, folder = LoadingSettings(device=request.device), request.output_dir
    check_model_request(system, request.model, loading)
    check_seed(request.seed)
    if request.image is not None:
        ImageFile.read(request.image)
    make_folder(folder)
    sheet = folder / "sheet.png"
    check_writable(sheet)
    _check_folder(folder)
    before = set(folder.iterdir())
    on_progress(Progress(f"loading {request.model}"))
    model = load_model(system, request.model, loading)

    def write(inputs: SystemInputs, output: Path) -> None:
        generation = GenerationRequest(inputs=inputs, output=output, model=request.model, seed=request.seed)
        generate(generation, on_progress, model)

    on_progress(Progress("rendering the inputs"))
    try:
        pairs = resolve_name(make)(sheet, request.image, request.seed, model.pipeline.defaults.size, write)
    except BaseException:
        for path in set(folder.iterdir()) - before:
            path.unlink()
        raise
    return DemoResult(pairs, sheet)


def _check_folder(folder: Path) -> None:
    """Raise `OutputError` for a folder with files that an earlier demonstration did not make; hidden ones may be."""
    sidecars = {path.name: read_recorded_hashes(path) for path in folder.glob("*.json")}
    made = {name: sha256 for recorded in sidecars.values() for name, sha256 in recorded.items()}
    for path in sorted(folder.iterdir()):
        is_own = bool(sidecars.get(path.name)) or (path.name == "sheet.png" and bool(made))
        if path.name.startswith(".") or not path.is_file() or is_own or made.get(path.name) == hash_file(path):
            continue
        raise OutputError(
            f"expected {folder} to be empty or to hold an earlier demonstration, but {path.name} is another file, "
            "which could be lost; choose another folder (--output-dir)"
        )
