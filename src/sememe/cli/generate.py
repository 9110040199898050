"""`sememe generate SYSTEM`: from files to a video file. Each system's options derive from its record."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.cli.setting_options import (
    AsJson,
    Device,
    ModelName,
    Overrides,
    make_help_all,
    make_setting,
    read_overrides,
)
from sememe.records import list_fields
from sememe.system import GenerationSpec, System, SystemInputs
from sememe.workflows.systems import SYSTEMS

_INPUTS, _RESULT = "Inputs", "Result"
_STEPS = "sampling.num_inference_steps"


def register(app: typer.Typer) -> None:
    """Add the verb, with a command for each system."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    for system in SYSTEMS.values():
        if system.generation is not None:
            group.command(system.name, help=system.generation.summary)(make_command(system, system.generation))
    # With a callback typer keeps the name of a group's only command.
    group.callback()(_group)
    app.add_typer(group, name="generate", help="Generate a video.")


def _group() -> None:
    """Generate a video."""


def make_command(system: System, spec: GenerationSpec) -> Callable[..., None]:
    """Return the command of a system: flags for its inputs and for some of its settings, and those of all systems."""
    inputs, settings = _list_inputs(spec), _list_settings(spec)
    shared = [each for each in inspect.signature(_run).parameters.values() if each.kind is each.KEYWORD_ONLY]
    options = [each.annotation.__metadata__[0] for each in (*inputs.values(), *shared)]
    # As typer does, the first name of an option in an annotation stands in the place of the default.
    rare = {option.default: option.help for option in options if option.hidden}
    help_all = _parameter("_help_all", bool, make_help_all(system.settings, rare), default=False)

    def command(_help_all: bool = False, **given: Any) -> None:
        changes = {key: given.pop(name) for name, key in settings.items()}
        values = {name: given.pop(name) for name in inputs}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        _run(spec.inputs(**{name: value for name, value in values.items() if value is not None}), changes, **given)

    parameters = [*inputs.values(), *_make_flags(system, settings), *shared, help_all]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _run(
    inputs: SystemInputs,
    changes: Mapping[str, Any],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Video to write (mp4, mov, mkv, webm or gif); a JSON of the same name records how it was made.",
            rich_help_panel=_RESULT,
        ),
    ],
    model: ModelName = "tiny",
    seed: Annotated[int | None, typer.Option(help="0 or more; the same seed gives the same file again.")] = None,
    device: Device = None,
    vram: Annotated[
        float | None, typer.Option(help="GB of the card, to compute in the fastest way that fits.", metavar="GB")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Contact sheet to write: videos that are read above, result below.", rich_help_panel=_RESULT),
    ] = None,
    influence: Annotated[
        bool, typer.Option("--influence", help="Measure what the conditions change (generates twice).", hidden=True)
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Generate, and say where; the options are those that every system has."""
    from sememe.workflows.generate import GenerationRequest, generate

    flags = {**changes, "loading.device": device, "loading.vram": vram}
    settings, loading = read_overrides(SYSTEMS[inputs.system].settings, flags, overrides)
    request = GenerationRequest(
        inputs=inputs,
        output=output,
        model=model,
        seed=seed,
        settings=settings,
        loading=loading,
        sheet=sheet,
        influence=influence,
    )
    with show_progress() as on_progress:
        result = generate(request, on_progress)
    if as_json:
        echo_json(result.document)
    else:
        typer.echo(str(result.output))


def _list_inputs(spec: GenerationSpec) -> dict[str, inspect.Parameter]:
    """Return the parameters of a system's inputs; a field that holds several is given by its singular, repeated."""
    found = {}
    for name, field in list_fields(spec.inputs).items():
        is_many = typing.get_origin(field.type) is tuple
        kind = list[typing.get_args(field.type)[0]] if is_many else field.type  # type: ignore[misc]
        flag = f"--{(name.removesuffix('s') if is_many else name).replace('_', '-')}"
        if name in spec.arguments:
            option = typer.Argument(help=field.help, show_default=False)
        else:
            option = typer.Option(flag, help=field.help, rich_help_panel=_INPUTS, hidden=name in spec.rare)
        default = None if is_many else field.default
        found[name] = _parameter(name, kind | None if is_many else kind, option, default=default)
    return found


def _list_settings(spec: GenerationSpec) -> dict[str, str]:
    """Return the settings that have a flag, by the name of its parameter."""
    return {"steps": _STEPS} | {key.rpartition(".")[2]: key for key in spec.flags}


def _make_flags(system: System, settings: Mapping[str, str]) -> list[inspect.Parameter]:
    setting, fields = make_setting(system.settings), list_fields(system.settings)
    return [
        _parameter(name, _bare(fields[key].type) | None, setting(key, f"--{name.replace('_', '-')}"), default=None)
        for name, key in settings.items()
    ]


def _bare(kind: Any) -> Any:
    """Return the type in which the command line reads a setting: numbers, or texts that the record converts."""
    while typing.get_origin(kind) in (Annotated, typing.Union, types.UnionType):
        kind = typing.get_args(kind)[0]
    return kind if kind in (int, float, bool) else str


def _parameter(name: str, kind: Any, option: Any, *, default: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
