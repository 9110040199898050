"""The exceptions that sememe raises on purpose: for input, with its kinds, output, and what is not installed.

Every message is one line and says what was expected, what came and what to do. The command line prints it
without a traceback and exits with code 2.
"""


class SememeError(Exception):
    """Base of every exception that sememe raises on purpose."""


class InputError(SememeError, ValueError):
    """Something that a person gave cannot be used."""


class VideoError(InputError):
    """A video or picture cannot be read, or not within the limits."""


class ModelError(InputError):
    """A model folder, name or tensor is not what was expected."""


class PlanError(InputError):
    """A plan file cannot be used, or plans cannot be edited as asked."""


class RecipeError(InputError):
    """A recipe, or an override of one of its settings, is not valid."""


class OutputError(SememeError, OSError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(SememeError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'sememe[{extra}]'")


def tell_reason(error: Exception) -> str:
    """Return the first line of what an exception of a library says, or its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
