"""Run-time checks of the functions and records that name shapes of arrays; `install` before sememe is imported.

The others are left as they are: mypy has read their types, and checking them too took a sixth of the time of all tests.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

# The numeric tower of PEP 484: an int is fine where a float is asked for, as mypy and every user would have it.
_check_types = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Have functions of sememe with arrays checked on every call, and records of arrays when they are made.

    jaxtyping's import hook puts its decorator on all functions and records, which checks arguments twice, and binds
    them before. Functions have another one here, which checks them once, and leaves the names of sizes to jaxtyping.
    """
    jaxtyping.jaxtyped = _decorate  # type: ignore[assignment]
    jaxtyping.install_import_hook("sememe", "shape_checks.check_types")
    _remember_protocols()


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the annotations of a function on every call; sizes that share a name only within `jaxtyped`."""
    checked: Callable[..., Any] = _check_types(function)
    return checked


def _decorate(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """Stand in for `jaxtyping.jaxtyped`."""

    def decorate(checked: Any) -> Any:
        if isinstance(checked, type):
            makes: Any = checked.__init__  # type: ignore[misc]
            return _jaxtyped(typechecker=typechecker)(checked) if _may_name_arrays(makes) else checked
        return _check_calls(checked) if _may_name_arrays(checked) else checked

    return decorate


def _may_name_arrays(function: Callable[..., Any]) -> bool:
    """Return whether an annotation is of arrays, or a text that cannot be read yet."""
    hints = getattr(function, "__annotations__", {}).values()  # built-in functions have none
    return any(isinstance(hint, str) or _find_dims(hint) for hint in hints)


def _check_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function on every call, but not while torch.compile traces it: that breaks the graph.

    The checks are made at its first call: most functions are never called in the process of one file of tests.
    """
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        nonlocal checked
        if torch.compiler.is_compiling() or jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **settings)
        if checked is None:
            checked = _make_checks(function)
        return checked(*arguments, **settings)

    return call


def _make_checks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its checks."""
    dims = _list_dims(function)
    if dims is None:  # a name that only a type checker imports, which jaxtyping does not ask for
        tolerant: Callable[..., Any] = _jaxtyped(typechecker=_check_types)(function)
        return tolerant
    if not dims:
        return function
    checked = check_types(function)
    if any("{" in each for each in dims):  # of a size that is an argument, for which all are bound
        named: Callable[..., Any] = _jaxtyped(typechecker=None)(checked)
        return named

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        with _jaxtyped("context"):  # in which sizes of one name are equal
            return checked(*arguments, **settings)

    return call


def _list_dims(function: Callable[..., Any]) -> list[str] | None:
    """List the sizes of the arrays that the annotations of a function name; None if they cannot be read."""
    try:
        hints = inspect.get_annotations(function, eval_str=True).values()
    except NameError:
        return None
    return [dims for hint in hints for dims in _find_dims(hint)]


def _find_dims(hint: Any) -> list[str]:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return [hint.dim_str]
    return [dims for part in typing.get_args(hint) for dims in _find_dims(part)]


def _remember_protocols() -> None:
    """Ask the instances of a class only once whether they do what a protocol says.

    Up to Python 3.11 the question reads every property, and the precision of a network is read off all its modules.
    """
    meta: Any = type(typing.Protocol)
    ask = meta.__instancecheck__
    known: set[tuple[type, type]] = set()

    def remember(protocol: type, instance: Any) -> bool:
        question = (protocol, type(instance))
        if question in known:
            return True
        answer: bool = ask(protocol, instance)
        if answer and getattr(protocol, "_is_protocol", False):
            known.add(question)
        return answer

    meta.__instancecheck__ = remember
