"""Settings of a training run and of the autoencoder's stage. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sememe.errors import RecipeError


def check_setting(is_valid: object, message: str) -> None:
    """Raise `RecipeError` with this message if a setting is not valid."""
    if not is_valid:
        raise RecipeError(message)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """How the autoencoder's refinement is trained.

    Latents get noise of a standard deviation that is drawn for each clip, up to `max_noise`, and that the network is
    given. `generated_share` of each batch are latents with a sampler's errors, where there are such.
    `gradient_weight` weighs the error of spatial differences against that of pixels (both mean absolute).
    """

    batch_size: int = 16
    max_noise: float = 0.8
    generated_share: float = 0.25
    gradient_weight: float = 0.3

    def __post_init__(self) -> None:
        share = self.generated_share
        check_setting(self.batch_size >= 1, f"batch_size must be 1 or more, got {self.batch_size}")
        check_setting(0 <= share <= 1, f"generated_share must be from 0 to 1, got {share}")
        for name in ("max_noise", "gradient_weight"):
            check_setting(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over a run, as a factor of `TrainingConfig.learning_rate`.

    It rises linearly over `warmup_steps`; then "constant" stays, "cosine" falls to `final_ratio` at the end of the
    run, and "constant_then_decay" stays and falls linearly to `final_ratio` over the last `decay_steps` steps, or,
    where these are not given, over the last `decay_fraction` of the run.
    """

    warmup_steps: int = 0
    shape: Literal["constant", "cosine", "constant_then_decay"] = "constant_then_decay"
    decay_fraction: float = 0.2
    decay_steps: int | None = None
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_setting(self.warmup_steps >= 0, f"schedule.warmup_steps must be 0 or more, got {self.warmup_steps}")
        check_setting(
            0.0 < self.decay_fraction <= 1.0,
            f"schedule.decay_fraction must be above 0 and at most 1, got {self.decay_fraction}",
        )
        check_setting(
            self.decay_steps is None or self.decay_steps > 0,
            f"schedule.decay_steps must be above 0, got {self.decay_steps}",
        )
        check_setting(
            self.decay_steps is None or self.shape == "constant_then_decay",
            f"schedule.decay_steps has no effect on the shape {self.shape!r}; use shape 'constant_then_decay'",
        )
        check_setting(
            0.0 <= self.final_ratio <= 1.0, f"schedule.final_ratio must be between 0 and 1, got {self.final_ratio}"
        )


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of a run. By its name the stage decides what is trained in it, and on what.

    `learning_rate_factors` maps patterns of parameter names, such as "transformer.*embed*", to factors of the learning
    rate; where several match a name, their product counts. As text: "pattern:factor,pattern:factor".
    """

    name: str = "main"
    num_steps: int
    learning_rate: float = 1e-3
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        check_setting(self.num_steps >= 1, f"num_steps must be 1 or more, got {self.num_steps}")
        check_setting(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}")
        for pattern, factor in self.learning_rate_factors.items():
            check_setting(factor > 0, f"learning_rate_factors must be above 0, got {factor} for {pattern}")


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
class TrainingConfig:
    """Settings of the training loop, the same for every stage.

    A run has one phase, of `num_steps`, `learning_rate`, `learning_rate_factors` and `schedule` (see `PhaseConfig`), or
    those of `phases`, whose settings are reached by name, as in `training.phases.images.num_steps`.

    Time: `max_minutes` is a budget for the whole run, resumed parts included. With `time_decay` the last phase has its
    schedule follow the larger of the progress in steps and in time since it began, so that its decay is complete when
    the budget is spent; phases before it end by their steps.
    `stop_after_minutes` limits one call only: it saves, stops, and the next call goes on.

    `ema_decay` 0 keeps no average of the weights; its decay is held down in the first steps, as (1 + n) / (10 + n).
    `optimizer` "muon" trains hidden matrices with Muon (step sizes matched to AdamW's, so the learning rate means the
    same) and everything else, including matrices whose name contains one of `muon_exclude`, with AdamW. The time of its
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

    num_steps: int = 0
    learning_rate: float = 1e-3
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    muon_momentum: float = 0.95
    muon_exclude: tuple[str, ...] = ("embed", "proj_out", "head")
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    phases: tuple[PhaseConfig, ...] = ()
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    num_shares: int = 1
    precision: Precision = "auto"
    compile: Literal["none", "blocks"] = "none"
    device: str = "auto"
    num_threads: int = 0
    shard: int = 1
    context: int = 1
    checkpoints_activations: bool = False
    prefetch_batches: int = 0
    seed: int = 0
    max_minutes: float | None = None
    time_decay: bool = False
    stop_after_minutes: float | None = None
    log_every: int = 20
    trackers: tuple[TrackerName, ...] = ()
    save_every: int = 1000
    save_minutes: float | None = 10.0
    keep_checkpoints: int = 2
    validate_every: int = 0

    def __post_init__(self) -> None:
        self._check_phases()
        for name in ("num_shares", "context", "log_every", "save_every"):
            check_setting(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("seed", "num_threads", "prefetch_batches", "weight_decay", "gradient_clip", "validate_every"):
            check_setting(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("max_minutes", "stop_after_minutes", "save_minutes"):
            value = getattr(self, name)
            check_setting(value is None or value > 0, f"{name} must be above 0 or none, got {value}")
        check_setting(self.shard >= 1 or self.shard == -1, f"shard must be 1 or more, or -1 for all, got {self.shard}")
        check_setting(self.epsilon > 0, f"epsilon must be above 0, got {self.epsilon}")
        check_setting(
            all(0 <= beta < 1 for beta in self.betas), f"betas must be at least 0 and below 1, got {self.betas}"
        )
        check_setting(
            0 <= self.muon_momentum < 1, f"muon_momentum must be at least 0 and below 1, got {self.muon_momentum}"
        )
        check_setting(0 <= self.ema_decay < 1, f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        check_setting(self.keep_checkpoints >= 2, f"keep_checkpoints must be 2 or more, got {self.keep_checkpoints}")
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
        check_setting(
            schedule.decay_steps is None,
            "with time_decay the number of steps is not known; give schedule.decay_fraction, not decay_steps",
        )


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


def shorten(training: TrainingConfig) -> TrainingConfig:
    """Return the settings of a twin that takes seconds, for tests: four steps, or one in each phase."""
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
