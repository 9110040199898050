"""The checks of all tests find wrong shapes, and types beside them, in arguments, in results and in records."""

from dataclasses import dataclass
from typing import Any, TypeVar

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from shape_checks import check_types

Rows = Float[Tensor, "row dim"]
Found = TypeVar("Found")


def _checked(found: Found) -> Found:
    """Put on it what the import hook puts on all that sememe has."""
    check: Any = jaxtyping.jaxtyped(typechecker=check_types)
    made: Found = check(found)
    return made


@_checked
def pass_on(first: Rows, second: Rows | None, result: Any, scale: float = 1.0) -> Rows:
    return result


@_checked
def repeat(text: Any, result: Any) -> tuple[str, ...]:
    return result


@_checked
def make_rows(count: int, result: Any) -> Float[Tensor, "{count} dim"]:
    return result


@_checked
@dataclass(frozen=True)
class Pair:
    first: Rows
    second: Rows
    name: str = ""


ROWS, OTHER = torch.zeros(2, 3), torch.zeros(4, 3)


def test_what_is_right_passes() -> None:
    assert pass_on(ROWS, ROWS, ROWS, scale=2) is ROWS
    assert pass_on(ROWS, None, ROWS) is ROWS
    assert repeat("a", ("a", "a")) == ("a", "a")
    assert repeat(1, None) is None, "types without arrays are mypy's"
    assert make_rows(2, ROWS) is ROWS
    assert Pair(ROWS, ROWS, "a").second is ROWS


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (pass_on, (torch.zeros(2), ROWS, ROWS)),
        (pass_on, (torch.zeros(2, 3, dtype=torch.int64), ROWS, ROWS)),
        (pass_on, (ROWS, OTHER, ROWS)),
        (pass_on, (ROWS, "rows", ROWS)),
        (pass_on, (ROWS, ROWS, ROWS, "one")),
        (pass_on, (ROWS, ROWS, OTHER)),
        (pass_on, (ROWS, None, torch.zeros(2))),
        (pass_on, (ROWS, ROWS, None)),
        (make_rows, ("2", ROWS)),
        (make_rows, (2, OTHER)),
        (Pair, (ROWS, OTHER)),
        (Pair, (ROWS, torch.zeros(2))),
        (Pair, (ROWS, ROWS, 1)),
    ],
)
def test_what_is_wrong_is_refused(function: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeCheckError):
        function(*arguments)
