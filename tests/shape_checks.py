"""The run-time type checker that jaxtyping's import hook calls."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from beartype import BeartypeConf, beartype

# The numeric tower of PEP 484: an int is fine where a float is asked for, as mypy and every user would have it.
_decorate = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's annotations on every call, but not while torch.compile traces it: that breaks the graph.

    They are made at its first call: most functions are never called in the process of one file of tests.
    """
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        nonlocal checked
        if torch.compiler.is_compiling():
            return function(*arguments, **settings)
        if checked is None:
            checked = _decorate(function)
        return checked(*arguments, **settings)

    return call
