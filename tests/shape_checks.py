"""The run-time type checker that jaxtyping's import hook calls."""

from beartype import BeartypeConf, beartype

# The numeric tower of PEP 484: an int is fine where a float is asked for, as mypy and every user would have it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
