"""Settings of a training run, and strict overrides of them by dotted keys. Imports no torch."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sememe.errors import RecipeError

Config = TypeVar("Config")


def _check(is_valid: object, message: str) -> None:
    if not is_valid:
        raise RecipeError(message)


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
        _check(self.warmup_steps >= 0, f"schedule.warmup_steps must be 0 or more, got {self.warmup_steps}")
        _check(
            0.0 < self.decay_fraction <= 1.0,
            f"schedule.decay_fraction must be above 0 and at most 1, got {self.decay_fraction}",
        )
        _check(
            self.decay_steps is None or self.decay_steps > 0,
            f"schedule.decay_steps must be above 0, got {self.decay_steps}",
        )
        _check(
            self.decay_steps is None or self.shape == "constant_then_decay",
            f"schedule.decay_steps has no effect on the shape {self.shape!r}; use shape 'constant_then_decay'",
        )
        _check(0.0 <= self.final_ratio <= 1.0, f"schedule.final_ratio must be between 0 and 1, got {self.final_ratio}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of the training loop, the same for every stage.

    Time: `max_minutes` is a budget for the whole run, resumed parts included; with `time_decay` the schedule follows
    the larger of the progress in steps and in time, so that its decay is complete when the budget is spent.
    `stop_after_minutes` limits one call only: it saves, stops, and the next call goes on.

    `learning_rate_factors` maps patterns of parameter names, such as "transformer.*embed*", to factors of the learning
    rate; where several match a name, their product counts. As text: "pattern:factor,pattern:factor".
    `ema_decay` 0 keeps no average of the weights; its decay is held down in the first steps, as (1 + n) / (10 + n).
    `optimizer` "muon" trains hidden matrices with Muon (step sizes matched to AdamW's, so the learning rate means the
    same) and everything else, including matrices whose name contains one of `muon_exclude`, with AdamW. The time of its
    update grows with the matrices' width: on one CPU core 3.4 s for a network of 32 million parameters (AdamW's 20 ms),
    but an eighth of a step of 24 clips for one of 5 million at width 192, which it more than makes up for.
    `gradient_clip` 0 does not clip. `prefetch_batches` makes that many batches ahead in as many threads.
    `num_threads` 0 leaves torch's setting. Steps count optimiser steps, each of `accumulation_steps` batches.
    """

    num_steps: int
    learning_rate: float = 1e-3
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    muon_momentum: float = 0.95
    muon_exclude: tuple[str, ...] = ("embed", "proj_out", "head")
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    accumulation_steps: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: Literal["none", "blocks"] = "none"
    device: str = "auto"
    num_threads: int = 0
    prefetch_batches: int = 0
    seed: int = 0
    max_minutes: float | None = None
    time_decay: bool = False
    stop_after_minutes: float | None = None
    log_every: int = 20
    tensorboard: bool = False
    save_every: int = 1000
    save_minutes: float | None = 10.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("num_steps", "accumulation_steps", "log_every", "save_every"):
            _check(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("seed", "num_threads", "prefetch_batches", "weight_decay", "gradient_clip"):
            _check(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("max_minutes", "stop_after_minutes", "save_minutes"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"{name} must be above 0 or none, got {value}")
        _check(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}")
        for pattern, factor in self.learning_rate_factors.items():
            _check(factor > 0, f"learning_rate_factors must be above 0, got {factor} for {pattern}")
        _check(self.epsilon > 0, f"epsilon must be above 0, got {self.epsilon}")
        _check(all(0 <= beta < 1 for beta in self.betas), f"betas must be at least 0 and below 1, got {self.betas}")
        _check(0 <= self.muon_momentum < 1, f"muon_momentum must be at least 0 and below 1, got {self.muon_momentum}")
        _check(0 <= self.ema_decay < 1, f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        _check(self.keep_checkpoints >= 2, f"keep_checkpoints must be 2 or more, got {self.keep_checkpoints}")
        self._check_time_decay()

    def _check_time_decay(self) -> None:
        if not self.time_decay:
            return
        _check(self.max_minutes is not None, "time_decay needs a budget; set max_minutes, or time_decay=false")
        _check(self.schedule.shape != "constant", "time_decay has no effect on the schedule shape 'constant'")
        _check(
            self.schedule.decay_steps is None,
            "with time_decay the number of steps is not known; give schedule.decay_fraction, not decay_steps",
        )


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return a copy of a (nested) dataclass with settings replaced, such as ``["training.learning_rate=1e-3"]``.

    Values are read by the type of the setting: numbers, true/false, strings, one of a fixed set of words, paths,
    comma-separated tuples, "none" where a setting may be None. All are applied together, so that settings which
    are valid only together can be given in any order.

    Raises `RecipeError` for an unknown key (naming the nearest), a value of another type, and a key given twice.
    """
    assert _is_record(config), f"settings must be a dataclass, got {type(config).__name__}"
    values: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        _check(bool(equals and key), f"an override must look like key=value, got {override!r}")
        _check(key not in values, f"{key} is given twice; give it once")
        values[key] = text.strip()
    known = _leaf_keys(config)
    for key in values:
        if key not in known:
            raise RecipeError(_describe_unknown(key, known))
    return _replace(config, values, prefix="")


def list_settings(config: object) -> dict[str, object]:
    """All settings of a (nested) dataclass by dotted key, in order."""
    return {key: _value_at(config, key) for key in _leaf_keys(config)}


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _leaf_keys(config: object) -> list[str]:
    keys: list[str] = []
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        keys += [f"{item.name}.{key}" for key in _leaf_keys(value)] if _is_record(value) else [item.name]
    return keys


def _value_at(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _describe_unknown(key: str, known: Sequence[str]) -> str:
    below = [name for name in known if name.startswith(key + ".")]
    if below:
        return f"{key} is a group of settings; set one of them: {', '.join(below)}"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    # A last part that is right but stands in the wrong group is the commonest slip, so it counts before spelling.
    same_name = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"there is no setting {key}; the nearest is {(same_name or nearest or ['none: there are no settings'])[0]}"


def _replace(config: Any, values: Mapping[str, str], prefix: str) -> Any:
    types_by_name = typing.get_type_hints(type(config))
    changes: dict[str, object] = {}
    for item in dataclasses.fields(config):
        below = {key.partition(".")[2]: text for key, text in values.items() if key.startswith(item.name + ".")}
        if below:
            changes[item.name] = _replace(getattr(config, item.name), below, f"{prefix}{item.name}.")
        elif item.name in values:
            changes[item.name] = _parse(values[item.name], types_by_name[item.name], f"{prefix}{item.name}")
    return dataclasses.replace(config, **changes)


_WORDS = {"true": True, "false": False}


def _parse(text: str, kind: Any, key: str) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, arguments, key)
    if origin is Literal:
        for choice in arguments:
            if text == str(choice):
                return typing.cast(object, choice)
        raise RecipeError(f"{key} must be one of {', '.join(map(str, arguments))}, got {text!r}")
    if origin is tuple:
        return _parse_tuple(text, arguments, key)
    if origin is Mapping:
        pairs = [part.rpartition(":") for part in text.split(",") if part.strip()]
        return {name.strip(): _parse(value, arguments[1], f"{key} for {name.strip()!r}") for name, _, value in pairs}
    if kind is bool:
        _check(text.lower() in _WORDS, f"{key} must be true or false, got {text!r}")
        return _WORDS[text.lower()]
    if kind in (int, float):
        try:
            return typing.cast(object, kind(text))
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise RecipeError(f"{key} must be {wanted}, got {text!r}") from None
    if kind is str:
        return text
    if isinstance(kind, type) and issubclass(kind, Path):
        return Path(text)
    raise RecipeError(f"{key} cannot be set from text; set it where the recipe is defined")


def _parse_union(text: str, choices: Sequence[Any], key: str) -> object:
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    problem: RecipeError | None = None
    for choice in choices:
        if choice is not type(None):
            try:
                return _parse(text, choice, key)
            except RecipeError as error:
                problem = problem or error
    assert problem is not None
    raise problem


def _parse_tuple(text: str, kinds: Sequence[Any], key: str) -> tuple[object, ...]:
    parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_parse(part, kinds[0], key) for part in parts)
    _check(len(parts) == len(kinds), f"{key} must be {len(kinds)} values separated by commas, got {text!r}")
    return tuple(_parse(part, kind, key) for part, kind in zip(parts, kinds, strict=True))
