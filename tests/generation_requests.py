"""Requests whose fields, and those of their inputs, settings and loading, are changed by name."""

from dataclasses import fields, replace
from typing import Any

from sememe.records import replace_fields
from sememe.workflows.generate import GenerationRequest


def vary(request: GenerationRequest, **changes: Any) -> GenerationRequest:
    """Return a request with fields changed, wherever they are."""
    own, inputs, loading, settings = {}, {}, {}, dict(request.settings)
    for name, value in changes.items():
        if name in {field.name for field in fields(request)}:
            own[name] = value
        elif name in {field.name for field in fields(request.inputs)}:
            inputs[name] = value
        elif name in {field.name for field in fields(request.loading)}:
            loading[name] = value
        elif value is not None:
            settings[name] = value
    return replace(
        request,
        **own,
        inputs=replace(request.inputs, **inputs),
        loading=replace_fields(request.loading, loading),
        settings=settings,
    )
