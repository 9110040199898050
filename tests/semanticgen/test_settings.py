"""The settings record of SemanticGen."""

import pytest

from sememe.errors import InputError
from sememe.records import list_fields
from sememe.semanticgen.settings import BUILT_IN, Settings


def test_every_field_is_documented_and_has_a_name_of_its_own() -> None:
    fields = list_fields(Settings)
    assert all(field.help for field in fields.values())
    assert len({key.rpartition(".")[2] for key in fields}) == len(fields)


def test_values_out_of_range_are_refused() -> None:
    assert BUILT_IN.override(window_seconds="none").plan.window_seconds is None
    with pytest.raises(InputError, match="plan_noise of at least 0"):
        Settings().override(plan_noise=-0.1)
    with pytest.raises(InputError, match="window_seconds above 0"):
        Settings().override(window_seconds=0.0)
