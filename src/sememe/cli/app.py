"""The `sememe` command: its verbs, and how errors are reported.

Exit codes: 0 success; 1 a bug, or a check that did not pass; 2 a mistake of the user, in one line; 130 Ctrl-C; 143
SIGTERM.
"""

import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

import sememe
from sememe.cli import (
    data,
    demo,
    environment,
    evaluate,
    generate,
    models,
    plan,
    semanticgen,
    train,
    video_as_prompt,
    world,
)
from sememe.cli.console import drop_stderr
from sememe.cli.generate import name_flags
from sememe.errors import SememeError

USER_ERROR = 2
INTERRUPTED = 130

_SETTINGS = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# Diffusers imports these if they are installed, and they log missing optional parts.
_TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")


@dataclass
class Session:
    """State of one run of the command."""

    debug: bool = False


def make_app(session: Session) -> typer.Typer:
    """The command with all its verbs; options of all verbs are stored in `session`."""
    app = typer.Typer(
        name="sememe",
        help="Steer video generation by meaning: show a clip, and your picture does the same.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback()
    def configure(
        debug: Annotated[
            bool,
            typer.Option("--debug", help="Show tracebacks and what libraries say (SEMEME_DEBUG=1 does the same)."),
        ] = False,
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        session.debug = session.debug or debug
        if not session.debug:
            _silence_libraries()

    app.command()(demo.demo)
    generate.register(app)
    app.command()(video_as_prompt.encode_reference)
    for verb in (train.train, train.precompute, train.assemble, train.recipes, evaluate.evaluate, plan.plan):
        app.command()(verb)
    semanticgen.register(app)
    app.command("models")(models.list_models)
    app.command()(models.download)
    app.command()(video_as_prompt.convert)
    world.register(app)
    data.register(app)
    app.command()(video_as_prompt.check_parity)
    app.command("env")(environment.show_environment)
    return app


def _silence_libraries() -> None:
    """Ask libraries that are not loaded yet for errors only, without progress bars; what is set already stays."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _show_version(value: bool) -> bool:
    if value:
        typer.echo(f"sememe {sememe.__version__}")
        raise typer.Exit
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments (those of the process if None) and exit."""
    if sys.stderr is None:  # closed by the caller
        drop_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text in this locale
    # By default it ends the process at once, which would leave unfinished files behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code; errors are written to standard error."""
    session = Session(debug=os.environ.get("SEMEME_DEBUG", "") not in {"", "0"})
    try:
        code = typer.main.get_command(make_app(session)).main(
            args=None if argv is None else list(argv), prog_name="sememe", standalone_mode=False
        )
    except BrokenPipeError:
        # The reader of our output has gone; do not fail again when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (SememeError, typer.TyperException) as error:
        return _tell_user_error(error, session)
    except Exception as error:  # the last line of defence: one line instead of a traceback
        return _tell_fault(error, session)
    if code == INTERRUPTED:  # typer makes it of most interruptions
        typer.echo("interrupted", err=True)
    return code if isinstance(code, int) else 0


def _tell_user_error(error: SememeError | typer.TyperException, session: Session) -> int:
    if session.debug:
        traceback.print_exception(error)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help text has been shown
        return USER_ERROR
    message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    typer.echo(f"error: {name_flags(_one_line(message))}", err=True)
    return USER_ERROR


def _tell_fault(error: Exception, session: Session) -> int:
    if session.debug:
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    typer.echo(f"error: unexpected {_one_line(what)[:500]} (run `sememe --debug ...` for the traceback)", err=True)
    return 1


def _one_line(text: str) -> str:
    return " ".join(text.split())
