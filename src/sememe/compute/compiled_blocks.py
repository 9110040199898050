"""Blocks that are compiled beneath their hooks.

What is hooked on a block (weights that are fetched for it, a cache that may skip it) then stays outside of the graph,
which is whole all the same, and may be put on and taken off before and after.
"""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch

_MOST_GRAPHS = 64
"""Graphs per kind of block, over all models of a process: a way of reading, a size and a strength may each need one.
torch.compile refuses a ninth by default; older versions have no setting for the limit."""

_MARK = "_is_compiled_beneath_hooks"


def compile_blocks(model: Any, **options: Any) -> None:
    """Compiles the forward of each repeated block of a transformer, in whole graphs.

    Args:
        model: A model of diffusers; its `_repeated_blocks` name the classes.
        options: Options of `torch.compile`.
    """
    options = {"fullgraph": True} | options
    if "recompile_limit" in signature(torch.compile).parameters:
        options = {"recompile_limit": _MOST_GRAPHS} | options
    for block in list(_repeated_blocks(model)):
        # Blocks of one kind share their code, and with it the graphs.
        registry = getattr(block, "_diffusers_hook", None)
        first = registry._fn_refs[0] if registry is not None and registry._fn_refs else None
        if first is None:
            block.forward = torch.compile(block.forward, **options)
        elif first.original_forward is not None:
            first.original_forward = torch.compile(first.original_forward, **options)
        else:
            first.forward = torch.compile(first.forward, **options)
        setattr(block, _MARK, True)


def is_compiled(model: Any) -> bool:
    """Whether a block of a transformer is compiled."""
    return any(
        block._compiled_call_impl is not None or getattr(block, _MARK, False) for block in _repeated_blocks(model)
    )


def _repeated_blocks(model: Any) -> Iterator[Any]:
    """The blocks that `compile_blocks` compiles."""
    return (module for module in model.modules() if type(module).__name__ in (model._repeated_blocks or ()))
