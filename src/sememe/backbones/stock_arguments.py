"""Subclasses of stock networks that take the arguments of their class."""

import inspect
from collections.abc import Callable


def takes_arguments_of(stock: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let an `__init__` take the arguments of a stock class before its own ones, which come by keyword only.

    diffusers reads off the signature what belongs to a configuration.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(init).parameters.values()
        own = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
        inherited = inspect.signature(stock.__init__).parameters.values()  # type: ignore[misc]
        init.__signature__ = inspect.Signature([*inherited, *own])  # type: ignore[attr-defined]
        return init

    return decorate
