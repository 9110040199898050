"""Settings of a training run and of the autoencoder's stage. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from sememe.errors import RecipeError
from sememe.records import Count, Positive, Range, Record, Scale, Share, Whole

RecipeT = TypeVar("RecipeT")


def check_setting(is_valid: object, message: str) -> None:
    """Raise `RecipeError` with this message if a setting is not valid."""
    if not is_valid:
        raise RecipeError(message)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(Record):
    """How the autoencoder's refinement is trained.

    Latents get noise of a standard deviation that is drawn for each clip, up to `max_noise`, and that the network is
    given. `generated_share` of each batch are latents with a sampler's errors, where there are such.
    `gradient_weight` weighs the error of spatial differences against that of pixels (both mean absolute).
    """

    batch_size: Count = 16
    max_noise: Scale = 0.8
    generated_share: Share = 0.25
    gradient_weight: Scale = 0.3


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Record):
    """The learning rate over a run, as a factor of `TrainingConfig.learning_rate`.

    It rises linearly over `warmup_steps`; then "constant" stays, "cosine" falls to `final_ratio` at the end of the
    run, and "constant_then_decay" stays and falls linearly to `final_ratio` over the last `decay_fraction` of the run.
    """

    warmup_steps: Whole = 0
    shape: Literal["constant", "cosine", "constant_then_decay"] = "constant_then_decay"
    decay_fraction: Annotated[float, Range(above=0, most=1)] = 0.2
    final_ratio: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class PhaseConfig(Record):
    """A part of a run. By its name the stage decides what is trained in it, and on what.

    `learning_rate_factors` maps patterns of parameter names, such as "transformer.*embed*", to factors of the learning
    rate; where several match a name, their product counts. As text: "pattern:factor,pattern:factor".
    """

    name: str = "main"
    num_steps: Count
    learning_rate: Positive = 1e-3
    learning_rate_factors: Mapping[str, Positive] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


FREE_SETTINGS = frozenset(
    {"prefetch_batches", "device", "num_threads", "shard", "context", "checkpoints_activations", "compile"}
    | {"log_every", "trackers", "save_every", "save_minutes", "keep_checkpoints", "stop_after_minutes"}
)
"""Settings of `TrainingConfig` that decide where, how fast and how visibly a run goes, but not on what it computes."""

_OF_PHASES = ("num_steps", "learning_rate", "learning_rate_factors", "schedule")


Precision = Literal["auto", "bf16", "fp32"]
TrackerName = Literal["tensorboard", "wandb"]
"""Programs that show a run."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Record):
    """Settings of the training loop, the same for every stage.

    A run has one phase, of `num_steps`, `learning_rate`, `learning_rate_factors` and `schedule` (see `PhaseConfig`), or
    those of `phases`, whose settings are reached by name, as in `training.phases.images.num_steps`.

    Time: `max_minutes` is a budget for the whole run, resumed parts included. With `time_decay` the last phase has its
    schedule follow the larger of the progress in steps and in time since it began, so that its decay is complete when
    the budget is spent; phases before it end by their steps.
    `stop_after_minutes` limits one call only: it saves, stops, and the next call goes on.

    `ema_decay` 0 keeps no average of the weights; its decay is held down in the first steps, as (1 + n) / (10 + n).
    `optimizer` "muon" trains hidden matrices with Muon (step sizes matched to AdamW's, so the learning rate means the
    same) and everything else, embeddings and first and last layers among it, with AdamW. The time of its
    update grows with the matrices' width: on one CPU core 3.4 s for a network of 32 million parameters (AdamW's 20 ms),
    but an eighth of a step of 24 clips for one of 5 million at width 192, which it more than makes up for.
    `gradient_clip` 0 does not clip. `prefetch_batches` makes that many batches ahead in as many threads.
    `precision` "auto" is bf16 on devices that are fast in it and fp32 on others, such as CPUs without AVX-512.
    `num_threads` 0 leaves torch's setting. Steps count optimiser steps, each of `num_shares` batches of the stage: the
    shares of a step, whose gradients are summed. The processes of a run divide the shares among themselves, so that
    their number changes nothing but rounding. `shard` is the number of processes over which one copy of the weights
    is spread, with gradients, moments and averages: 1 keeps all of them in each process, -1 spreads them over all
    processes, and any other divides the number of processes. `context` is the number of processes that compute one
    share together, each some of its tokens; it divides the number of processes, too. With `checkpoints_activations`
    the blocks of networks are computed once more on the way back, and their activations are not kept.

    `trackers` are programs that show figures and samples beside `log.jsonl`: TensorBoard, Weights & Biases.

    With `validate_every` a part of the data is held out, on which the averaged weights are validated after so many
    steps each time, and at the end of each phase. 0 holds nothing out.
    """

    num_steps: Whole = 0
    learning_rate: Positive = 1e-3
    learning_rate_factors: Mapping[str, Positive] = field(default_factory=dict)
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.99)
    epsilon: Positive = 1e-8
    weight_decay: Scale = 0.01
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    phases: tuple[PhaseConfig, ...] = ()
    ema_decay: Share = 0.999
    gradient_clip: Scale = 1.0
    num_shares: Count = 1
    precision: Precision = "auto"
    compile: Literal["none", "blocks"] = "none"
    device: str = "auto"
    num_threads: Whole = 0
    shard: int = 1
    context: Count = 1
    checkpoints_activations: bool = False
    prefetch_batches: Whole = 0
    seed: Whole = 0
    max_minutes: Positive | None = None
    time_decay: bool = False
    stop_after_minutes: Positive | None = None
    log_every: Count = 20
    trackers: tuple[TrackerName, ...] = ()
    save_every: Count = 1000
    save_minutes: Positive | None = 10.0
    keep_checkpoints: Annotated[int, Range(least=2)] = 2
    validate_every: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_phases()
        check_setting(self.shard >= 1 or self.shard == -1, f"shard must be 1 or more, or -1 for all, got {self.shard}")
        check_setting(max(self.betas) < 1, f"betas must be below 1, got {self.betas}")
        check_setting(self.ema_decay < 1, f"ema_decay must be below 1, got {self.ema_decay}")
        self._check_time_decay()

    def list_phases(self) -> tuple[PhaseConfig, ...]:
        """The phases, of which there is at least one."""
        return self.phases or (PhaseConfig(**{name: getattr(self, name) for name in _OF_PHASES}),)

    def _check_phases(self) -> None:
        names = [phase.name for phase in self.list_phases()]
        check_setting(len(set(names)) == len(names), f"phases must differ in name, got {', '.join(names)}")
        for item in dataclasses.fields(self) if self.phases else ():
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            is_free = item.name not in _OF_PHASES or getattr(self, item.name) == default
            check_setting(is_free, f"{item.name} has no effect beside phases; set it in each of them")

    def _check_time_decay(self) -> None:
        if not self.time_decay:
            return
        schedule = self.list_phases()[-1].schedule
        check_setting(self.max_minutes is not None, "time_decay needs a budget; set max_minutes, or time_decay=false")
        check_setting(schedule.shape != "constant", "time_decay has no effect on the schedule shape 'constant'")


UNBOUNDED = 100_000
"""Steps of runs that end by the clock."""


def train_transformer(
    *, learning_rate: float, warmup_steps: int, ema_decay: float, max_minutes: float, **others: Any
) -> TrainingConfig:
    """Return how the small transformers that sememe ships are trained: with Muon, until the clock ends the run.

    Args:
        learning_rate: Field of `TrainingConfig`, as are the others.
        warmup_steps: Field of its schedule.
        ema_decay: Decay of the average of the weights.
        max_minutes: Budget.
        others: Further fields.
    """
    return TrainingConfig(
        num_steps=UNBOUNDED,
        learning_rate=learning_rate,
        optimizer="muon",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        schedule=ScheduleConfig(warmup_steps=warmup_steps, shape="cosine", final_ratio=0.03),
        ema_decay=ema_decay,
        max_minutes=max_minutes,
        time_decay=True,
        prefetch_batches=1,
        save_minutes=6.0,
        **others,
    )


def train_adapter(*, learning_rate: float, warmup_steps: int, ema_decay: float, max_minutes: float) -> TrainingConfig:
    """Return how small matrices beside those of a network are trained; arguments as in `train_transformer`.

    By AdamW: Muon would bring all directions of a product of two matrices to one length.
    """
    training = train_transformer(
        learning_rate=learning_rate, warmup_steps=warmup_steps, ema_decay=ema_decay, max_minutes=max_minutes
    )
    return dataclasses.replace(training, optimizer="adamw", weight_decay=0.0)


def make_twin(recipe: RecipeT, **changes: Any) -> RecipeT:
    """Return a recipe's twin that takes seconds, for tests; its name begins with "smoke-" in place of "tiny-".

    Args:
        recipe: A record with a name and a description, and settings of a training where it is one.
        changes: Further fields.
    """
    own: Any = recipe
    if hasattr(own, "training"):
        changes["training"] = _shorten(own.training)
    about = f"seconds-long twin of {own.name}, for tests"
    return dataclasses.replace(own, name=f"smoke-{own.name.removeprefix('tiny-')}", description=about, **changes)


def _shorten(training: TrainingConfig) -> TrainingConfig:
    """Take four steps, or one in each phase."""
    steps: dict[str, Any] = {"num_steps": 4, "schedule": ScheduleConfig(warmup_steps=1, shape="cosine")}
    if training.phases:
        phases = (dataclasses.replace(phase, num_steps=1, schedule=ScheduleConfig()) for phase in training.phases)
        steps = {"phases": tuple(phases)}
    return dataclasses.replace(
        training,
        **steps,
        max_minutes=None,
        time_decay=False,
        compile="none",
        log_every=1,
        precision="fp32",
    )
