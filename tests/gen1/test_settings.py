"""Settings: what the types of fields cannot check by themselves, and a model's own."""

import pytest

from sememe.errors import InputError, ModelError
from sememe.gen1.settings import Settings


def test_a_model_states_its_settings() -> None:
    settings = Settings().override(height=64, structure_level=3, structure_kinds={"edges": 2.0})
    assert Settings.from_config(settings.to_dict()) == settings
    assert (Settings().list_shortcuts(), settings.list_shortcuts()) == ([], ["structure of edges"])
    with pytest.raises(ModelError, match="no setting depth"):
        Settings.from_config({"depth": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure_level": 1.5}, "structure_level must be a whole number, got 1.5"),
        ({"structure_level": -1}, "structure_level of at least 0"),
        ({"temporal_guidance_scale": -0.1}, "temporal_guidance_scale of at least 0"),
        ({"structure_kinds": {"depth": "much"}}, "structure_kinds for 'depth' must be a number"),
        ({"structure_kinds": {"depth": 0.0}}, "structure_kinds for 'depth' above 0"),
        ({"structure_kinds": {}}, "structure_kinds with at least one of depth, edges, motion, got none"),
    ],
)
def test_what_is_out_of_range_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings().override(**changes)


def test_kinds_of_structure_are_read_from_a_text() -> None:
    assert Settings().override(structure_kinds="depth:1,edges:0.5").structure.structure_kinds == {
        "depth": 1.0,
        "edges": 0.5,
    }
