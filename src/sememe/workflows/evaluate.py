"""The verb "evaluate": measure a model with the world's oracle, row by row, resumable."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError
from sememe.evaluation.runner import EvaluationReport, Runner, SystemRows, choose_rows
from sememe.events import Progress, ProgressHandler, ignore_progress
from sememe.files import check_writable
from sememe.records import replace_fields
from sememe.video.picture import check_picture_output
from sememe.workflows.loading import LoadedModel, check_model_request, load_model
from sememe.workflows.sidecar import describe_machine, describe_software
from sememe.workflows.systems import SYSTEMS
from sememe.world import WORLD_VERSION


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Attributes:
        system: Name of the system.
        model: Built-in name, folder, or repository on the Hugging Face hub.
        generations: Number of cases in each row.
        rows: Names of rows, or of groups such as "validation" (those to choose settings by), in this order; None for
            the group "table".
        per_scene: Largest number of cases that share a scene.
        settings: Changes to the defaults of the model, by field name or dotted key.
        options: Further arguments of the function that makes the system's rows, by name.
        seed: Seed of scenes, conditions and noise.
        batch_size: Number of cases generated together; results agree up to rounding.
        loading: How the model is loaded.
        output: JSON report, saved after every batch and continued if it exists.
        sheet: PNG with examples.
        num_examples: Number of right and of wrong examples of each row on the sheet, drawn by the seed.
    """

    system: str = "video-as-prompt"
    model: str = "tiny"
    generations: int = 200
    rows: tuple[str, ...] | None = None
    per_scene: int = 8
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 8
    loading: LoadingSettings = LoadingSettings()
    output: Path | None = None
    sheet: Path | None = None
    num_examples: int = 2

    def __post_init__(self) -> None:
        numbers = {"generations": self.generations, "per_scene": self.per_scene, "batch_size": self.batch_size}
        for name, value in (numbers | {"num_examples": self.num_examples}).items():
            if value < 1:
                raise InputError(f"expected {name} of 1 or more, got {value}")
        default: Any = SYSTEMS[self.system].settings()
        if replace_fields(default, self.settings).size != default.size:
            raise InputError("each row has a size and length of its own, so that settings of size have no effect")
        if self.seed < 0:
            raise InputError(f"expected a seed of 0 or more, got {self.seed}")


def evaluate(settings: EvaluationSettings, on_progress: ProgressHandler = ignore_progress) -> EvaluationReport:
    """Measure a model on the rows of its system.

    Args:
        settings: What to measure and how.
        on_progress: Called with the progress, in which each row is a stage.

    Returns:
        The report that `settings.output` holds as well.

    Raises:
        InputError: A setting is not valid, or the output holds another report.
        ModelError: There is no such model, or it is not whole.
        OutputError: A file cannot be written.
    """
    system = SYSTEMS[settings.system]
    if system.evaluation is None:
        raise InputError(f"expected a system with an evaluation, but {system.title} has none")
    check_model_request(system, settings.model, settings.loading)
    if settings.output is not None:
        check_writable(settings.output)
    if settings.sheet is not None:
        check_picture_output(settings.sheet)
    with tempfile.TemporaryDirectory(prefix="sememe-") as folder:
        model = load_model(system, settings.model, settings.loading)
        resolved = replace_fields(model.pipeline.defaults, settings.settings)
        made: SystemRows[Any, Any] = resolve_name(system.evaluation)(
            model.pipeline,
            resolved,
            Path(folder),
            generations=settings.generations,
            per_scene=settings.per_scene,
            seed=settings.seed,
            **settings.options,
        )
        # What rows identify by its content may be moved, but not replaced.
        options = {name: value for name, value in settings.options.items() if name not in made.identity}
        identity = _identify(settings, model, resolved.to_dict() | options) | dict(made.identity)
        chosen = choose_rows(made.rows, settings.rows)
        runner = Runner(
            made.rows,
            EvaluationReport(settings.system, identity, _describe_environment(settings, model)),
            lambda *progress: on_progress(Progress(*progress)),
            output=settings.output,
            batch_size=settings.batch_size,
        )
        for row in chosen:
            runner.measure(row)
        if settings.sheet is not None:
            runner.write_sheet(chosen, settings.sheet, num_examples=settings.num_examples, seed=settings.seed)
    return runner.report


def _identify(settings: EvaluationSettings, model: LoadedModel, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the results depend on in every system."""
    return {
        "model_sha256": model.fingerprint.sha256,
        "dtype": model.dtype,
        "generation": generation,
        "generations": settings.generations,
        "per_scene": settings.per_scene,
        "seed": settings.seed,
        "world_version": WORLD_VERSION,
    }


def _describe_environment(settings: EvaluationSettings, model: LoadedModel) -> dict[str, Any]:
    return {
        "software": describe_software(),
        "machine": describe_machine(model.device),
        "model": settings.model,
        "batch_size": settings.batch_size,
    }
