"""The training loop: one for every stage of every system."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sememe.compute.host import peak_memory
from sememe.files import atomic_folder
from sememe.training.checkpoint import (
    Checkpoint,
    Resume,
    count_steps,
    load_checkpoint,
    load_initial,
    name_checkpoint,
)
from sememe.training.checkpoint_writer import CheckpointWriter, choose_checkpoint
from sememe.training.config import TrainingConfig
from sememe.training.frozen_weights import list_rounded, round_weights
from sememe.training.hang_watch import HangWatch
from sememe.training.optimizer import (
    NamedOptimizer,
    WeightAverage,
    copy_tensors,
    replaced,
    tracked_tensors,
)
from sememe.training.phases import check_checkpoint, find_phase, plan_phases, schedule_factor
from sememe.training.process import (
    Distribution,
    StopRequest,
    checkpoint_activations,
    list_compiled,
    listen_for_stop,
    open_distribution,
    resolve_precision,
    torch_settings,
)
from sememe.training.progress import (
    NOISE_NAMES,
    CheckpointSaved,
    Ending,
    EventHandler,
    FiniteWatch,
    IntervalMeter,
    IntervalSums,
    RunLog,
    TrainingEvent,
    TrainingProgress,
    TrainingSummary,
    ValidationRecord,
)
from sememe.training.sharding import Sharding, choose_shard, divide_and_clip
from sememe.training.share_states import ShareStates
from sememe.training.stage import BatchSource, Stage, StepLoss, derive_seed, step_generator
from sememe.training.validation import Validator, find_record

BEST_NAME = "best"
_ENOUGH_STEPS = 20
"""Steps of a phase after which each parameter should have had a gradient; batches may be of several kinds."""

logger = logging.getLogger(__name__)


def train(
    stage: Stage,
    config: TrainingConfig,
    output_dir: Path | str,
    resume: Resume = "auto",
    init_from: Path | str | None = None,
    on_event: EventHandler | None = None,
    on_begin: Callable[[], None] | None = None,
) -> TrainingSummary:
    """Train a stage in `output_dir`, or resume its training.

    The folder gets `checkpoints/`, `log.jsonl` and, when the run is complete, `model/` (averaged weights where
    `config.ema_decay` is not 0). With `config.validate_every` there are also `best/model/`, the model at the lowest
    validation loss, and `samples/`, if the stage can make samples.

    `resume` "auto" resumes from the newest undamaged checkpoint; on a CPU the result is bit for bit that of an
    uninterrupted run, unless the learning rate follows the clock (`time_decay`).
    `init_from` is a checkpoint or a run's folder, whose weights (averaged, if it has averages) a new run begins with.
    Under torchrun, the processes divide the shares of a step among themselves (`config.num_shares`); the number of
    processes, which may change on resuming, changes the result only by rounding.
    `on_begin` is called by the main process once the run is restored, before its first step.

    Raises `RecipeError` for settings that do not fit, and if loss or gradients are not finite, with the step;
    `ModelError` for checkpoints of another model; `OutputError` if something cannot be written.
    """
    with open_distribution(config.device, config.context) as distribution, listen_for_stop() as request:
        config = resolve_precision(config, distribution.device)
        with torch_settings(config, distribution.device):
            run = _Run(stage, config, Path(output_dir), distribution, on_event)
            run.restore(resume, None if init_from is None else Path(init_from))
            if on_begin is not None and distribution.is_main:
                on_begin()
            return run.work(request)


class _Run:
    def __init__(
        self,
        stage: Stage,
        config: TrainingConfig,
        folder: Path,
        distribution: Distribution,
        on_event: EventHandler | None,
    ) -> None:
        self._stage, self._config, self._folder = stage, config, folder
        self._distribution, self._on_event = distribution, on_event
        self._device = distribution.device
        self._modules = stage.modules()
        shard = choose_shard(config.shard, distribution.num_ranks)
        round_weights(list_rounded(stage, config))
        # Before sharding, which changes the class names of blocks.
        for module in list_compiled(self._modules, config):
            module.compile_repeated_blocks()  # type: ignore[operator]
        self._sharding = Sharding(stage, distribution, shard)
        distribution.share_weights(stage.state().values())
        self._writer = CheckpointWriter(folder / "checkpoints", distribution, shard, config.keep_checkpoints)
        self._phases = plan_phases(stage, config)
        self._num_steps = self._phases[-1].stop
        trained = {name for phase in self._phases for name in phase.parameters}
        state = {f"stage/{name}": tensor for name, tensor in stage.state().items()}
        self._tensors = tracked_tensors(self._modules, trained) | state
        self._shares = distribution.take_shares(config.num_shares)
        untrained = [tensor for tensor in self._tensors.values() if not isinstance(tensor, nn.Parameter)]
        self._states = ShareStates(untrained, config.num_shares)
        self._validator = Validator(stage, config, distribution, untrained) if config.validate_every else None
        self._average: WeightAverage | None = None
        self._meter = IntervalMeter()
        self._step = self._num_samples = self._num_uncounted = 0
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._saved_seconds = self._phase_seconds = 0.0
        self._loss: float | None = None
        self._saved: Path | None = None
        self._saved_step, self._saved_at = -1, 0.0
        self._watch = FiniteWatch(self._device)
        self._unreached: set[str] = set()

    # Beginning

    def restore(self, resume: Resume, init_from: Path | None) -> None:
        """Resume from the newest checkpoint, or begin with given weights, or with those of the stage."""
        latest = choose_checkpoint(self._folder, resume, self._distribution)
        loaded = None if latest is None else load_checkpoint(latest, is_verified=True)
        if loaded is not None and latest is not None:
            self._take_up(loaded, latest)
        elif init_from is not None:
            path, initial = load_initial(init_from)
            copy_tensors(initial.model_weights, self._tensors, str(path))
        optimizer, average = ({}, None) if loaded is None else (loaded.optimizer, loaded.average)
        record = None
        if loaded is not None and self._validator is not None:
            record = find_record(loaded, self._folder / "checkpoints", self._distribution)
        # A phase that is over is resumed too: it may not have been validated at its end.
        names = [phase.settings.name for phase in self._phases]
        self._enter(0 if loaded is None else names.index(loaded.phase), optimizer, average or {}, record)
        checkpoint_activations(self._modules, self._config)

    def _enter(
        self,
        index: int,
        optimizer: Mapping[str, Tensor],
        average: Mapping[str, Tensor],
        validation: ValidationRecord | None = None,
    ) -> None:
        """Begin a phase; parameters that it goes on training keep their state in optimiser and average."""
        self._phase, self._is_last = self._phases[index], index == len(self._phases) - 1
        self._stage.enter(self._phase.settings.name)
        self._parameters = self._phase.parameters
        self._optimizer = NamedOptimizer(self._modules, self._config, self._phase.settings)
        self._optimizer.load(optimizer)
        if self._config.ema_decay:
            self._average = WeightAverage(self._parameters, self._config.ema_decay, self._phase.begun)
            self._average.load(average)
        if self._validator is not None:
            # Losses of different phases are not comparable.
            is_within = validation is not None and validation.step > self._phase.start
            self._validator.enter(self._phase.settings.name, validation if is_within else None)

    def _take_up(self, loaded: Checkpoint, path: Path) -> None:
        check_checkpoint(loaded, path, self._stage, self._config, self._phases)
        copy_tensors(loaded.weights, self._tensors, str(path))
        self._step, self._num_samples = loaded.step, int(loaded.state["num_samples"])
        self._seconds_before = self._saved_seconds = float(loaded.state["seconds"])
        self._phase_seconds = float(loaded.state.get("phase_seconds", 0.0))
        self._loss = loaded.state["loss"]
        if self._distribution.is_main and "interval" in loaded.state:
            self._meter.go_on(IntervalSums.from_state(loaded.state["interval"]))
        self._saved, self._saved_step = path, loaded.step

    # The loop

    def work(self, request: StopRequest) -> TrainingSummary:
        """Train until the end of the run, of its time, or of this call."""
        is_main = self._distribution.is_main
        self._started = time.monotonic()
        self._log = RunLog(self._folder, self._step, self._config.trackers) if is_main else None
        self._meter.start_clock()
        try:
            while (ending := self._run_phase(request)) is None:
                average = {} if self._average is None else self._average.tensors()
                self._enter(find_phase(self._phases, self._step), self._optimizer.tensors(), average)
                self._phase_seconds = self._seconds()
            self._watch.check()
            # The last checkpoint must know that the budget is spent, or the next call would take another step.
            forgets_ending = ending == "budget" and self._saved_seconds < 60.0 * (self._config.max_minutes or 0.0)
            self._count_samples()
            if self._distribution.share([float(self._saved_step != self._step or forgets_ending)])[0]:
                self._begin_checkpoint()
            self._complete_checkpoint()
        finally:
            if self._writer.is_pending and self._distribution.num_ranks == 1:
                self._writer.complete()
            self._writer.close()
            if self._log is not None:
                self._log.close()
        return self._summarise(ending, request)

    def _run_phase(self, request: StopRequest) -> Ending | None:
        """Train to the end of the phase (None), or of the run, its time or this call."""
        # No batch is prefetched before its phase.
        batches = BatchSource(
            self._stage,
            self._config,
            shares=self._shares,
            device=self._device,
            start=self._step,
            stop=self._phase.stop,
        )
        watch = HangWatch(self._distribution.rank, self._distribution.num_ranks)
        watch.start()
        try:
            return self._loop(batches, request, watch)
        finally:
            watch.stop()
            batches.close()

    def _loop(self, batches: BatchSource, request: StopRequest, watch: HangWatch) -> Ending | None:
        while True:
            seconds, call_seconds, is_stopped = self._agree(request)
            if self._writer.is_pending and not self._is_writing:
                watch.pause()
                self._complete_checkpoint()
            ending = self._find_ending(seconds, call_seconds)
            if ending is None and is_stopped:
                ending = "signal"
            if self._is_validation_due(ending):
                watch.pause()
                batches.rest()
                self._validate(request)
                continue
            if ending is not None:
                return ending
            if self._is_save_due(call_seconds):
                watch.pause()
                self._save(request)
                continue
            if self._step == self._phase.stop and not self._is_last:
                return None
            watch.begin_step(self._step)
            learning_rate = self._find_learning_rate(seconds)
            grad_norm = self._take_step(batches, learning_rate)
            if self._step % self._config.log_every == 0 or self._step in (1, self._num_steps):
                self._report(learning_rate, grad_norm)

    def _agree(self, request: StopRequest) -> tuple[float, float, bool]:
        now = time.monotonic() - self._started
        if self._distribution.num_ranks == 1:
            self._is_writing = self._writer.is_busy
            return self._seconds_before + now, now, request.is_made
        # All ranks must decide the same: the longest time, and a stop if any of them was asked to.
        values = [now, float(request.is_made), float(self._writer.is_busy)]
        in_call, stopped, writing = self._distribution.reduce(values, dist.ReduceOp.MAX)
        self._is_writing = bool(writing)
        return self._seconds_before + in_call, in_call, bool(stopped)

    def _find_learning_rate(self, seconds: float) -> float:
        phase, config, time_progress = self._phase.settings, self._config, 0.0
        if self._is_last and config.time_decay and config.max_minutes:
            begun = self._phase_seconds
            time_progress = (seconds - begun) / max(60.0 * config.max_minutes - begun, 1e-9)
        return phase.learning_rate * schedule_factor(phase, self._step - self._phase.start, time_progress)

    def _find_ending(self, seconds: float, call_seconds: float) -> Ending | None:
        config = self._config
        if self._step >= self._num_steps:
            return "finished"
        if config.max_minutes is not None and seconds >= 60.0 * config.max_minutes:
            return "budget"
        if config.stop_after_minutes is not None and call_seconds >= 60.0 * config.stop_after_minutes:
            return "paused"
        return None

    def _take_step(self, batches: BatchSource, learning_rate: float) -> Tensor:
        weight = torch.zeros((), device=self._device)
        self._states.begin()
        for share in self._shares:
            result = self._compute_loss(batches.take(), share)
            result.total.backward()
            self._states.add()
            if self._distribution.counts_shares:
                weight += result.divisor
                self._num_uncounted += result.num_samples
                self._meter.add(result)
            self._watch.add(result.total, self._step)
        self._states.finish(self._distribution)
        grad_norm = self._finish_gradients(weight)
        self._watch.add(grad_norm, self._step)
        if self._device.type == "cpu":
            self._watch.check()
        self._optimizer.set_learning_rate(learning_rate)
        self._optimizer.step()
        self._optimizer.clear_gradients()
        if self._average is not None:
            self._average.update(self._step)
        self._step += 1
        return grad_norm

    def _compute_loss(self, batch: object, share: int) -> StepLoss:
        seed, step = self._config.seed, self._step
        # For modules that draw from torch's global generator (dropout): resuming must not change what they draw.
        torch.manual_seed(derive_seed(seed, step, share, "modules"))
        with self._autocast():
            return self._stage.loss(batch, step_generator(seed, step, share, "loss", self._device))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16")

    def _finish_gradients(self, weight: Tensor) -> Tensor:
        """Turn the sums of this rank into the mean over all samples of the step, and clip it; return its norm."""
        parameters = self._parameters
        self._distribution.sum_gradients(parameters, self._sharding.take_reached(parameters), weight)
        if self._step == self._phase.start:
            self._unreached = set(parameters)
        self._unreached -= {name for name, parameter in parameters.items() if parameter.grad is not None}
        if self._unreached and self._step == self._phase.start + _ENOUGH_STEPS - 1:
            count, example = len(self._unreached), min(self._unreached)
            text = "%d of %d parameters got no gradient in %d steps, such as %s"
            logger.warning(text, count, len(parameters), _ENOUGH_STEPS, example)
        # If all weights of a step are zero, its gradients are zero, not NaN.
        divisor = torch.where(weight == 0, 1.0, weight)
        return divide_and_clip(list(parameters.values()), divisor, self._config.gradient_clip)

    # Validating, reporting and saving

    def _is_validation_due(self, ending: Ending | None) -> bool:
        if self._validator is None or ending in ("signal", "paused") or self._step == self._phase.start:
            return False
        return self._validator.is_due(self._step, is_over=ending is not None or self._step == self._phase.stop)

    def _validate(self, request: StopRequest) -> None:
        """Validate the weights that would be exported, and save them if they are the best so far."""
        assert self._validator is not None
        self._watch.check()
        with self._applied(), self._autocast():
            record = self._validator.validate(self._step, self._log)
        if record.best_step == self._step:
            self._save(request)

    def _applied(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.applied()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _report(self, learning_rate: float, grad_norm: Tensor) -> None:
        self._watch.check()
        interval = self._meter.read(self._distribution)
        values = interval.means()
        self._meter.restart()
        loss = values.pop("loss")
        by_noise = {name: values.pop(name) for name in NOISE_NAMES if name in values}
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        if self._log is None:
            return
        peak = peak_memory(str(self._device))
        progress = TrainingProgress(
            step=self._step,
            num_steps=self._num_steps,
            loss=self._loss,
            learning_rate=learning_rate,
            grad_norm=float(grad_norm),
            samples_per_second=interval.num_samples / max(interval.seconds, 1e-9),
            seconds=self._seconds(),
            seconds_left=self._estimate_left(interval.seconds * self._config.num_shares / interval.num_batches),
            memory_bytes=peak["process_bytes"] if peak["device_bytes"] is None else peak["device_bytes"],
            validation=None if self._validator is None else self._validator.record,
            metrics=values,
        )
        phase = {"phase": self._phase.settings.name} if len(self._phases) > 1 else {}
        self._log.write({**values, **by_noise, **phase, **progress.to_line(loss)})
        self._send(progress)

    def _estimate_left(self, seconds_per_step: float) -> float:
        left = (self._num_steps - self._step) * seconds_per_step
        if self._config.max_minutes is not None:
            left = min(left, 60.0 * self._config.max_minutes - self._seconds())
        return max(left, 0.0)

    def _is_save_due(self, call_seconds: float) -> bool:
        if self._step in (0, self._saved_step):
            return False
        minutes, limit = (call_seconds - self._saved_at) / 60.0, self._config.save_minutes
        return self._step % self._config.save_every == 0 or (limit is not None and minutes >= limit)

    def _save(self, request: StopRequest) -> None:
        """Begin saving, on all ranks together."""
        self._watch.check()
        self._count_samples()
        self._begin_checkpoint()
        self._saved_at = self._agree(request)[1]

    def _count_samples(self) -> None:
        self._num_samples += int(self._distribution.reduce([self._num_uncounted])[0])
        self._num_uncounted = 0

    def _begin_checkpoint(self) -> None:
        self._complete_checkpoint()
        seconds, interval = self._seconds(), self._meter.read(self._distribution)
        record = None if self._validator is None else self._validator.record
        checkpoint = Checkpoint(
            step=self._step,
            weights=self._tensors,
            average=None if self._average is None else self._average.tensors(),
            optimizer=self._optimizer.tensors(),
            state={
                "stage": self._stage.name,
                "phase": self._phase.settings.name,
                "phase_step": self._step - self._phase.start,
                "phase_seconds": self._phase_seconds,
                "seconds": seconds,
                "num_samples": self._num_samples,
                "loss": self._loss,
                "interval": interval.to_state(),
                "validation": None if record is None else dataclasses.asdict(record),
                "config": dataclasses.asdict(self._config),
                "torch": torch.__version__,
            },
        )
        self._writer.begin(checkpoint, None if record is None else record.best_step)
        self._saved_step, self._saved_seconds = self._step, seconds

    def _complete_checkpoint(self) -> None:
        """Wait for the checkpoint that is begun, if any, on all ranks together."""
        if not self._writer.is_pending:
            return
        self._saved = self._writer.complete()
        if self._distribution.is_main:
            self._send(CheckpointSaved(step=count_steps(self._saved), path=self._saved))

    def _send(self, event: TrainingEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _summarise(self, ending: Ending, request: StopRequest) -> TrainingSummary:
        record = None if self._validator is None else self._validator.record
        model = self._folder / "model" if ending in ("finished", "budget") else None
        if model is not None:
            self._export(model, self._applied())
            if record is not None:
                path = name_checkpoint(self._folder / "checkpoints", record.best_step)
                best = replaced(self._tensors, load_checkpoint(path).model_weights, str(path))
                self._export(self._folder / BEST_NAME / "model", best)
        return TrainingSummary(
            step=self._step,
            num_steps=self._num_steps,
            num_samples=self._num_samples,
            seconds=self._seconds(),
            loss=self._loss,
            ending=ending,
            signal_name=request.signal_name,
            checkpoint=self._saved,
            model=model,
            validation=record,
        )

    def _export(self, folder: Path, weights: AbstractContextManager[None]) -> None:
        with weights, self._sharding.gathered():
            if self._distribution.is_main:
                with atomic_folder(folder) as temporary:
                    self._stage.export(temporary)
