"""The verb "evaluate": measures a model with the world's oracle, row by row, resumable."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import yaml

from sememe.errors import InputError
from sememe.evaluation.cases import Case
from sememe.evaluation.reports import EvaluationReport, RowReport, SavedRow, read_saved_rows, write_report
from sememe.evaluation.rows import CaseResult, judge_case, summarise_row
from sememe.evaluation.splits import condition_groups
from sememe.files import check_writable
from sememe.video import Clip, SheetRow, contact_sheet, write_image
from sememe.video_as_prompt.evaluation import (
    CONTROLS,
    REFERENCE_QUALITY,
    Maker,
    NegativeReference,
    Row,
    Sampler,
    deal_row,
    find_told,
    list_rows,
)
from sememe.workflows.events import Progress, ProgressHandler, ignore_progress
from sememe.workflows.loading import LoadedModel, check_model_request, load_model
from sememe.workflows.sidecar import describe_machine, describe_software
from sememe.world import WORLD_VERSION

VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Attributes:
        model: a built-in name, a folder, or a repository on the Hugging Face hub.
        generations: cases of each row.
        rows: names of rows, in this order, or `VALIDATION` for those to choose by; None for all others.
        per_scene: cases that share a scene, at most.
        num_inference_steps: None for the model's own, as in the next two.
        guidance_scale: of the text.
        reference_guidance_scale: of the reference.
        controls: further arguments of the pipeline, of `CONTROLS`, by name.
        negative_reference: "neutral" to lead away from a clip of the reference's scene in which nothing happens.
        seed: of scenes, conditions and noise.
        batch_size: cases that are generated together; results agree up to rounding.
        threads: of torch; None leaves it as it is.
        dtype: precision of the transformer's weights; None for float32.
        device: None for a GPU where there is one.
        output: JSON report; saved after every batch, and continued if it is there.
        sheet: PNG with examples.
        num_examples: right ones and wrong ones of each row on the sheet, drawn by the seed.
    """

    model: str = "tiny"
    generations: int = 200
    rows: tuple[str, ...] | None = None
    per_scene: int = 8
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    controls: Mapping[str, Any] = field(default_factory=dict)
    negative_reference: str | None = None
    seed: int = 0
    batch_size: int = 8
    threads: int | None = None
    dtype: str | None = None
    device: str | None = None
    output: Path | None = None
    sheet: Path | None = None
    num_examples: int = 2

    def __post_init__(self) -> None:
        numbers = {"generations": self.generations, "per_scene": self.per_scene, "batch_size": self.batch_size}
        for name, value in (numbers | {"threads": self.threads, "num_examples": self.num_examples}).items():
            if value is not None and value < 1:
                raise InputError(f"expected {name} of 1 or more, got {value}")
        unknown = sorted(self.controls.keys() - set(CONTROLS))
        if unknown:
            raise InputError(f"expected controls of {', '.join(CONTROLS)}, got {', '.join(unknown)}")
        if self.negative_reference not in (None, *get_args(NegativeReference)):
            raise InputError(f"expected negative_reference to be neutral, got {self.negative_reference!r}")
        if self.seed < 0:
            raise InputError(f"expected a seed of 0 or more, got {self.seed}")


def evaluate_video_as_prompt(
    settings: EvaluationSettings, on_progress: ProgressHandler = ignore_progress
) -> EvaluationReport:
    """Measures a Video-As-Prompt model.

    Captions of targets and references are empty. References show the condition in other scenes and come from mp4
    files. What is generated is compared with renders of the same scene under all conditions.

    Args:
        settings: see there.
        on_progress: told where the run stands, a stage per row.

    Returns:
        the report, which `settings.output` holds as well.

    Raises:
        InputError: a setting is not valid, or the output holds another report.
        ModelError: there is no such model, or it is not whole.
        OutputError: a file cannot be written.
    """
    check_model_request(settings.model, settings.dtype)
    for path in (settings.output, settings.sheet):
        if path is not None:
            check_writable(path)
    with _threads(settings.threads), tempfile.TemporaryDirectory(prefix="sememe-") as folder:
        model = load_model(settings.model, settings.device, settings.dtype)
        sampler = Sampler(
            settings.num_inference_steps,
            settings.guidance_scale,
            settings.reference_guidance_scale,
            settings.controls,
            cast("NegativeReference | None", settings.negative_reference),
        )
        maker = Maker(model.pipeline, sampler, Path(folder))
        rows = choose_rows(list_rows(model.pipeline), settings.rows)
        evaluation = _Evaluation(settings, model, maker, on_progress)
        report = evaluation.run(rows)
        if settings.sheet is not None:
            evaluation.write_sheet(rows, report, settings.sheet)
    return report


def choose_rows(rows: tuple[Row, ...], names: tuple[str, ...] | None) -> tuple[Row, ...]:
    """The rows of these names, in this order; `VALIDATION` stands for the rows to choose by, None for all others.

    Raises:
        InputError: a row does not exist or comes twice.
    """
    if names is None:
        return tuple(row for row in rows if not row.is_validation)
    by_name = {row.name: (row,) for row in rows} | {VALIDATION: tuple(row for row in rows if row.is_validation)}
    chosen = [row for name in names for row in by_name.get(name, ())]
    if not by_name.keys() >= set(names) or len(set(chosen)) != len(chosen) or not chosen:
        raise InputError(f"expected different rows of {', '.join(by_name)}, got {', '.join(names) or 'none'}")
    return tuple(chosen)


def parse_controls(assignments: Sequence[str]) -> dict[str, Any]:
    """Reads `name=value`, with values as in YAML.

    Raises:
        InputError: one is not of that form.
    """
    controls: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign or not value:
            raise InputError(f"expected a control as name=value, got {assignment!r}")
        try:
            controls[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"expected a number, a word or a list as the value of {name}, got {value!r}") from error
    return controls


class _Evaluation:
    """One run: rows are measured batch by batch, and saved as they grow."""

    def __init__(
        self, settings: EvaluationSettings, model: LoadedModel, maker: Maker, on_progress: ProgressHandler
    ) -> None:
        self.settings, self.maker, self.on_progress = settings, maker, on_progress
        self.identity = _identify(settings, model)
        self.environment = {"software": describe_software(), "machine": describe_machine(model.device)} | {
            "model": settings.model,
            "batch_size": settings.batch_size,
        }
        self.done: dict[str, RowReport] = {}

    def run(self, rows: tuple[Row, ...]) -> EvaluationReport:
        output = self.settings.output
        saved = read_saved_rows(output, self.identity) if output is not None else {}
        # Rows of an earlier run that are not asked for now stay in the report.
        for row in list_rows(self.maker.pipeline):
            if row.name in saved:
                self._record(row, self._deal(row), saved[row.name])
        for row in rows:
            self._measure(row, saved.get(row.name, SavedRow((), 0.0)))
        return self._report()

    def _measure(self, row: Row, saved: SavedRow) -> None:
        cases = self._deal(row)
        results, spent = list(saved.results), 0.0
        already, total = len(results), len(cases)
        self.on_progress(Progress(row.name, already, total))
        while len(results) < total:
            begin = time.monotonic()
            results += self._judge(row, cases[len(results) : len(results) + self.settings.batch_size])
            spent += time.monotonic() - begin
            self._record(row, cases, SavedRow(tuple(results), saved.seconds + spent))
            if self.settings.output is not None:
                write_report(self._report(), self.settings.output)
            left = spent / (len(results) - already) * (total - len(results))
            self.on_progress(Progress(row.name, len(results), total, left))

    def _judge(self, row: Row, cases: tuple[Case, ...]) -> list[CaseResult]:
        clips = self.maker.make(row, cases)
        return [self._judge_one(row, case, clip) for case, clip in zip(cases, clips, strict=True)]

    def _judge_one(self, row: Row, case: Case, clip: Clip) -> CaseResult:
        maker = self.maker
        oracle = maker.oracles(row).oracle(case.scene)
        return judge_case(case, clip, maker.truth(row, case), oracle, maker.pipeline.grid, find_told(row, case))

    def _deal(self, row: Row) -> tuple[Case, ...]:
        return deal_row(row, self.settings.generations, self.settings.per_scene, self.settings.seed)

    def _record(self, row: Row, cases: tuple[Case, ...], saved: SavedRow) -> None:
        results = saved.results
        if tuple(result.case for result in results) != cases[: len(results)]:
            raise InputError(
                f"the saved cases of row {row.name} are not those of these settings; choose another output"
            )
        summary = summarise_row(results, len(row.candidates), condition_groups) if results else None
        about = {"about": row.about, "split": row.split or "seen and unseen", "method": row.method} | {
            "num_frames": row.num_frames,
            "height": row.height,
            "width": row.width,
        }
        self.done[row.name] = RowReport(row.name, about, len(cases), results, summary, saved.seconds)

    def _report(self) -> EvaluationReport:
        return EvaluationReport("video-as-prompt", self.identity, self.environment, tuple(self.done.values()))

    def write_sheet(self, rows: tuple[Row, ...], report: EvaluationReport, path: Path) -> None:
        """Right and wrong examples of every row, drawn by the seed and never chosen; made once more for the sheet."""
        strips: list[SheetRow] = []
        reports = {row.name: row for row in report.rows}
        for row in rows:
            for right in (True, False):
                pool = [result for result in reports[row.name].results if result.is_right is right]
                rng = np.random.Generator(np.random.PCG64(self.settings.seed))
                picks = rng.permutation(len(pool))[: self.settings.num_examples]
                strips += self._examples(row, tuple(pool[int(pick)].case for pick in picks))
        write_image(contact_sheet(strips, columns=9, cell_height=96), path)

    def _examples(self, row: Row, cases: tuple[Case, ...]) -> list[SheetRow]:
        if not cases:
            return []
        strips = []
        for case, clip in zip(cases, self.maker.make(row, cases), strict=True):
            truth, result = self.maker.truth(row, case), self._judge_one(row, case, clip)
            says = "right" if result.is_right else f"wrong: taken for {result.nearest}, right one at rank {result.rank}"
            if row.method in {"generate", "paste"}:
                strips.append(SheetRow(f"reference: {case.condition}", self.maker.reference(row, case, 0)))
            strips += [SheetRow(f"result ({row.name}): {says}", clip), SheetRow(f"truth: {case.condition}", truth)]
        return strips


def _identify(settings: EvaluationSettings, model: LoadedModel) -> dict[str, Any]:
    """All that the results depend on: what is left open is resolved to the model's own settings."""
    resolved = model.pipeline.defaults.override(
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        reference_guidance_scale=settings.reference_guidance_scale,
    )
    controls = dict(settings.controls)
    if settings.negative_reference is not None:
        controls["negative_reference"] = settings.negative_reference
    return {
        "model_sha256": model.fingerprint.sha256,
        "dtype": model.dtype,
        "generation": asdict(resolved),
        "generations": settings.generations,
        "per_scene": settings.per_scene,
        "seed": settings.seed,
        "reference_quality": REFERENCE_QUALITY,
        "world_version": WORLD_VERSION,
    } | ({"controls": controls} if controls else {})


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Has torch use so many threads."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
