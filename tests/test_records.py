"""Settings records: overrides, documentation, JSON schema."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sememe.errors import InputError
from sememe.records import (
    Count,
    Record,
    Share,
    apply_overrides,
    flatten,
    list_fields,
    replace_fields,
)
from sememe.training.config import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    name: str = "small"
    folder: Path = Path("here")
    is_mirrored: bool = False
    size: int | tuple[int, int] = 64
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(num_steps=10))


def test_overrides_are_read_by_the_type_of_the_setting() -> None:
    recipe = apply_overrides(
        Recipe(),
        [
            "training.learning_rate=1e-3",
            "training.num_steps=20",
            "training.betas=0.8, 0.95",
            "training.trackers=tensorboard,wandb",
            "training.learning_rate_factors=vae.*:0.1,*embed*:2",
            "training.max_minutes=2",
            "training.save_minutes=none",
            "training.schedule.shape=cosine",
            "training.time_decay=true",
            "folder=there",
            "is_mirrored=True",
            "size=32,48",
        ],
    )
    training = recipe.training
    assert (training.learning_rate, training.num_steps, training.betas) == (1e-3, 20, (0.8, 0.95))
    assert (training.trackers, training.max_minutes, training.save_minutes) == (("tensorboard", "wandb"), 2.0, None)
    assert training.learning_rate_factors == {"vae.*": 0.1, "*embed*": 2.0}
    assert (training.schedule.shape, training.time_decay) == ("cosine", True)
    assert (recipe.folder, recipe.is_mirrored, recipe.size) == (Path("there"), True, (32, 48))
    assert Recipe().training.num_steps == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learing_rate=1", "no setting training.learing_rate; the nearest is training.learning_rate"),
        ("training.num_steps=1.5", "training.num_steps must be a whole number, got '1.5'"),
        ("training.learning_rate=fast", "must be a number, got 'fast'"),
        ("training.time_decay=1", "training.time_decay must be true or false"),
        ("learing_rate=1", "the nearest is training.learning_rate"),
        ("rate=1", "the nearest is training.learning_rate"),
        ("zzz.qqq=1", "there is no setting zzz.qqq; settings and groups are name, "),
        ("schedule.num_steps=1", "the nearest is training.num_steps"),
        ("training.schedule.shape=linear", "must be one of constant, cosine, constant_then_decay, got 'linear'"),
        ("training.schedule=cosine", "is a group of settings; set one of them: training.schedule.warmup_steps"),
        ("training.betas=0.9", "must be 2 values"),
        ("training.learning_rate", "must look like key=value"),
        ("training.learning_rate=-1", "expected training.learning_rate above 0, got -1.0"),
        ("training.learning_rate_factors=embed", "must be names and values such as a:1,b:2, got 'embed'"),
        ("training.keep_checkpoints=1", "expected training.keep_checkpoints of at least 2, got 1"),
        ("training.time_decay=true", "set max_minutes"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides(Recipe(), [override])
    assert message in str(caught.value)


def test_a_list_is_no_mapping() -> None:
    with pytest.raises(InputError, match="must be names and values such as a:1,b:2"):
        replace_fields(Recipe(), {"training.learning_rate_factors": ["embed"]})


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="given twice"):
        apply_overrides(Recipe(), ["name=a", "name=b"])


def test_settings_are_listed_by_dotted_key() -> None:
    settings = flatten(Recipe())
    assert settings["training.schedule.warmup_steps"] == 0
    assert "training" not in settings


class Inner(Record):
    """A group.

    Attributes:
        size: Pixels
            of a side.
        names: Words.
        share: A part.
    """

    size: Count = 8
    names: tuple[str, ...] = ()
    share: Share | None = None


class Outer(Record):
    """Two groups of the same fields."""

    first: Inner = Inner()
    second: Inner = Inner(size=9)


def test_groups_may_be_left_out_where_the_name_is_unique() -> None:
    assert apply_overrides(Recipe(), ["learning_rate=2"]).training.learning_rate == 2.0
    assert apply_overrides(Outer(), ["second.size=3"]) == Outer(second=Inner(size=3))
    with pytest.raises(InputError, match=r"several settings size.* first\.size, second\.size"):
        apply_overrides(Outer(), ["size=3"])


def test_lists_may_hold_commas() -> None:
    assert apply_overrides(Inner(), ["names=a, b"]).names == ("a", "b")
    assert apply_overrides(Inner(), ['names=["a, b", "c"]']).names == ("a, b", "c")


def test_a_large_value_is_not_shown_whole() -> None:
    with pytest.raises(InputError, match="names must be a list") as caught:
        Inner(names=Recipe("n" * 1000))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size of at least 1"),
        ({"size": 1.5}, "size must be a whole number"),
        ({"size": True}, "size must be a whole number"),
        ({"share": 1.01}, "share of at most 1"),
        ({"share": float("nan")}, "share of at least 0"),
        ({"names": 3}, "names must be a list"),
        ({"names": [3]}, "names must be a text"),
    ],
)
def test_fields_are_checked_by_their_type(changes: dict[str, Any], message: str) -> None:
    for make in (lambda: Inner(**changes), lambda: Inner().override(**changes)):
        with pytest.raises(InputError, match=message):
            make()


def test_values_become_the_type_of_the_field() -> None:
    made = Inner(names=["b", "a"], share=1)  # type: ignore[arg-type]
    assert (made.names, made.share, type(made.share)) == (("b", "a"), 1.0, float)
    assert Inner(names={"b", "a"}).names == ("a", "b")  # type: ignore[arg-type]
    assert Inner(size=3).override(size=None) == Inner(size=3)


def test_what_was_flattened_can_be_set_again() -> None:
    changed = Outer(first=Inner(names=("a",), share=0.5))
    assert replace_fields(Outer(), flatten(changed)) == changed
    assert Inner().override(**json.loads(json.dumps(changed.first.to_dict()))) == changed.first


def test_fields_are_documented_in_the_docstring() -> None:
    fields = list_fields(Outer)
    assert list(fields) == list(flatten(Outer()))
    assert (fields["second.size"].help, fields["second.size"].default) == ("Pixels of a side.", 9)


def test_a_record_that_may_be_left_out_is_not_read_from_a_text() -> None:
    @dataclass(frozen=True)
    class Outer:
        training: TrainingConfig | None = None

    with pytest.raises(InputError, match="training cannot be set from a value"):
        apply_overrides(Outer(), ["training=fast"])
