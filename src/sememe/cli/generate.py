"""`sememe generate SYSTEM`: from files to a video file. Each system's options derive from its record."""

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sememe.cli.console import echo_json, show_progress
from sememe.cli.setting_options import (
    MODEL,
    AsJson,
    Device,
    Overrides,
    make_help_all,
    make_setting,
    read_overrides,
)
from sememe.errors import InputError
from sememe.records import list_fields
from sememe.system import SAVING, GenerationSpec, System, SystemInputs
from sememe.workflows.systems import SYSTEMS

if TYPE_CHECKING:
    from sememe.workflows.generate import GenerationRequest
    from sememe.workflows.request_files import StoredRequest

_INPUTS, _RESULT = "Inputs", "Result"
_STEPS = "sampling.num_inference_steps"


def register(app: typer.Typer) -> None:
    """Add the verb, with a command for each system."""
    # With a callback typer keeps the name of a group's only command.
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", callback=lambda: None)
    for system in SYSTEMS.values():
        if system.generation is not None:
            group.command(system.name, help=system.generation.summary)(make_command(system, system.generation))
    app.add_typer(group, name="generate", help="Generate a video.")


def make_command(system: System, spec: GenerationSpec) -> Callable[..., None]:
    """Return the command of a system: flags for its inputs and for some of its settings, and those of all systems."""
    inputs, settings = _list_inputs(spec), _list_settings(spec)
    required = [name for name, field in list_fields(spec.inputs).items() if field.default is MISSING]
    shared = [each for each in inspect.signature(_run).parameters.values() if each.kind is each.KEYWORD_ONLY]
    options = [each.annotation.__metadata__[0] for each in (*inputs.values(), *shared)]
    # As in typer, the first name of an option in an annotation is in the place of the default.
    rare = {option.default: option.help for option in options if option.hidden}
    help_all = _parameter("_help_all", bool, make_help_all(system.settings, rare), default=False)

    def command(_help_all: bool = False, config: Path | None = None, **given: Any) -> None:
        from sememe.workflows.request_files import StoredRequest, read_request

        stored = StoredRequest() if config is None else read_request(config, system)
        changes = {key: given.pop(name) for name, key in settings.items()}
        values = {name: given.pop(name) for name in inputs}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        values = dict(stored.inputs) | {name: value for name, value in values.items() if value not in (None, ())}
        for name in required:
            if name not in values:
                flag = f"argument '{name.upper()}'" if name in spec.arguments else f"option '{_flag(name)}'"
                raise InputError(f"Missing {flag}.")
        several = values.get(spec.each) if spec.each else None
        ones = [{str(spec.each): one} for one in several] if isinstance(several, tuple) else [{}]
        _run(system, stored, [spec.inputs(**(values | one)) for one in ones], changes, **given)

    config = _parameter("config", Path | None, _CONFIG, default=None)
    parameters = [*inputs.values(), *_make_flags(system, settings), config, *shared, help_all]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


_CONFIG = typer.Option(
    "--config",
    "--like",
    help="YAML file with model, seed, inputs, settings and loading, or the JSON beside a result; flags go before it.",
    rich_help_panel=_INPUTS,
)


def _run(
    system: System,
    stored: "StoredRequest",
    inputs: Sequence[SystemInputs],
    changes: Mapping[str, Any],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Video to write (mp4, mov, mkv, webm or gif); a JSON of the same name records how it was made. Names "
            "of pictures and seeds are added where there are several.",
            rich_help_panel=_RESULT,
        ),
    ],
    model: Annotated[str | None, MODEL] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="0 or more; the same seed gives the same file again. Repeatable, with a result for each."),
    ] = None,
    device: Device = None,
    vram: Annotated[
        float | None, typer.Option(help="GB of the card to plan for; its free memory if not given.", metavar="GB")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="LoRA weights in safetensors; may be repeated.", metavar="FILE[:SCALE]")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Contact sheet to write: input videos above, result below; with the name of a video (mp4, gif "
            "...) a clip in which they play side by side.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    influence: Annotated[
        bool, typer.Option("--influence", help="Measure what the conditions change (generates twice).", hidden=True)
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Generate, and say where; the options are those that every system has."""
    adapters = json.dumps(lora) if lora else None
    flags = {**changes, "loading.device": device, "loading.vram": vram, "loading.lora": adapters}
    settings, loading = read_overrides(system.settings, flags, overrides, stored.loading)
    shared: dict[str, Any] = {
        "model": model or stored.model or "tiny",
        "settings": {**stored.settings, **settings},
        "loading": loading,
        "influence": influence,
    }
    seeds: Sequence[int | None] = seed or [stored.seed]
    _generate(_vary(system, inputs, seeds, {"output": output, "sheet": sheet}, shared), as_json=as_json)


def _vary(
    system: System,
    inputs: Sequence[SystemInputs],
    seeds: Sequence[int | None],
    files: Mapping[str, Path | None],
    shared: Mapping[str, Any],
) -> "list[GenerationRequest]":
    """Return a request for each of the inputs with each seed; names of files say which where there are several."""
    from sememe.workflows.generate import GenerationRequest

    requests = []
    for each in inputs:
        for seed in seeds:
            words = [str(seed)] if len(seeds) > 1 else []
            if len(inputs) > 1:
                assert system.generation is not None
                words = [Path(getattr(each, str(system.generation.each))).stem, *words]
            named: dict[str, Any] = {name: path and _add_words(path, words) for name, path in files.items()}
            saved = {f"{SAVING}{name}": _add_words(path, words) for name, path in each.extra_files().items()}
            requests.append(GenerationRequest(inputs=replace(each, **saved), seed=seed, **named, **shared))
    return requests


def _generate(requests: "Sequence[GenerationRequest]", *, as_json: bool) -> None:
    from sememe.workflows.generate import generate_all

    documents = []
    with show_progress() as on_progress:
        for result in generate_all(requests, on_progress):
            documents.append(result.document)
            if not as_json:
                typer.echo(str(result.output))
    if as_json:
        echo_json(documents if len(documents) > 1 else documents[0])


def _add_words(path: Path, words: Sequence[str]) -> Path:
    return path.with_name("-".join([path.stem, *words]) + path.suffix)


def _list_inputs(spec: GenerationSpec) -> dict[str, inspect.Parameter]:
    """Return the parameters of a system's inputs."""
    found = {}
    for name, field in list_fields(spec.inputs).items():
        is_tuple = typing.get_origin(field.type) is tuple
        kind = typing.get_args(field.type)[0] if is_tuple else field.type
        if is_tuple or name == spec.each:
            kind = list[kind]  # type: ignore[valid-type]
        if name in spec.arguments:
            option = typer.Argument(help=field.help, show_default=False)
        else:
            flag = _flag(name, field.type)
            option = typer.Option(flag, help=field.help, rich_help_panel=_INPUTS, hidden=name in spec.rare)
        # A missing value may be in a config file.
        found[name] = _parameter(name, kind | None, option, default=None)
    return found


def _list_settings(spec: GenerationSpec) -> dict[str, str]:
    """Return the settings that have a flag, by the name of its parameter."""
    return {"steps": _STEPS} | {key.rpartition(".")[2]: key for key in spec.flags}


def _make_flags(system: System, settings: Mapping[str, str]) -> list[inspect.Parameter]:
    setting, fields = make_setting(system.settings), list_fields(system.settings)
    return [
        _parameter(name, _bare(fields[key].type) | None, setting(key, _flag(name)), default=None)
        for name, key in settings.items()
    ]


def _bare(kind: Any) -> Any:
    """Return the type in which the command line reads a setting: numbers, or texts that the record converts."""
    while typing.get_origin(kind) in (Annotated, typing.Union, types.UnionType):
        kind = typing.get_args(kind)[0]
    return kind if kind in (int, float, bool) else str


# Single words may be ordinary English, and names within a path are not settings.
_NAME = re.compile(r"(?<![\w./\\-])[a-z]+(?:_[a-z]+)+(?![\w/\\-]|\.\w)")


def name_flags(message: str) -> str:
    """Return a message in which inputs and settings that have a flag have its name in place of Python's."""
    flags = dict[str, str]()
    for system in SYSTEMS.values():
        if system.generation is not None:
            settings = _list_settings(system.generation)
            flags |= {key.rpartition(".")[2]: _flag(name) for name, key in settings.items()}
            flags |= {name: _flag(name, field.type) for name, field in list_fields(system.generation.inputs).items()}
    return _NAME.sub(lambda found: flags.get(found[0], found[0]), message)


def _flag(name: str, kind: Any = None) -> str:
    """Return the flag of an input or a setting; a field that holds several is given by its singular, repeated."""
    singular = name.removesuffix("s") if typing.get_origin(kind) is tuple else name
    return f"--{singular.replace('_', '-')}"


def _parameter(name: str, kind: Any, option: Any, *, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
