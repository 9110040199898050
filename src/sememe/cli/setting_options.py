"""Options that derive from settings records, the same for every system."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from sememe.compute.loading_settings import LoadingSettings
from sememe.records import Record, list_fields, parse_overrides

_LOADING = list_fields(LoadingSettings, "loading.")

MODEL = typer.Option("--model", help="Built-in or released name (see `sememe models`), folder, or owner/name.")
ModelName = Annotated[str, MODEL]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; a GPU if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="GROUP.FIELD=VALUE", help="Change any other setting (see --help-all); may be repeated."
    ),
]


def make_setting(kind: type[Record]) -> Callable[..., Any]:
    """Return a function that makes the option of one field, with the documentation of the record.

    Args:
        kind: Settings record of the system; `loading.` fields are known besides.
    """
    fields = list_fields(kind) | _LOADING

    def setting(key: str, *names: str, **options: Any) -> Any:
        return typer.Option(*names, help=fields[key].help, show_default=False, **options)

    return setting


def make_help_all(kind: type[Record], rare: Mapping[str, str] | None = None) -> Any:
    """Return an eager option that lists all settings of a system, after its rarer options, and exits."""

    def show(value: bool) -> bool:
        if not value:
            return value
        for flag, text in (rare or {}).items():
            typer.echo(f"{flag}\n    {text}")
        for key, field in (list_fields(kind) | _LOADING).items():
            typer.echo(f"{key}={_write(field.default).lower()}\n    {field.help}")
        raise typer.Exit

    return typer.Option("--help-all", callback=show, is_eager=True, help="List rarer flags and all settings, and exit.")


def _write(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{each}" for key, each in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_overrides(
    kind: type[Record],
    flags: Mapping[str, Any],
    overrides: Sequence[str] | None,
    loading: Mapping[str, Any] | None = None,
) -> tuple[dict[str, str], LoadingSettings]:
    """Return the changes to a system's settings, and how its model is loaded.

    Args:
        kind: Settings record of the system.
        flags: Values of flags by dotted key; None for those that were not given.
        overrides: Texts of `--set`.
        loading: Fields of the loading settings from elsewhere, which flags and overrides replace.

    Raises:
        InputError: A key is unknown or given twice, or a value is not valid.
    """
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    changes = parse_overrides([*given, *(overrides or ())], [*list_fields(kind), *_LOADING])
    given_loading = {key.removeprefix("loading."): value for key, value in changes.items() if key in _LOADING}
    settings = {key: value for key, value in changes.items() if key not in _LOADING}
    return settings, LoadingSettings().override(**{**(loading or {}), **given_loading})
