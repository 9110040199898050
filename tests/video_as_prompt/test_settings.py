"""The settings record: names, documentation, and settings that contradict each other."""

from collections import Counter
from typing import Any, get_args

import pytest

from sememe.errors import InputError, ModelError
from sememe.records import list_fields
from sememe.video import Sampling
from sememe.video_as_prompt import settings as module
from sememe.video_as_prompt.settings import Quirk, Settings


def test_names_are_unique_and_documented() -> None:
    fields = list_fields(Settings)
    counts = Counter(key.rpartition(".")[2] for key in fields)
    assert [name for name, count in counts.items() if count > 1] == []
    assert [key for key, field in fields.items() if not field.help.endswith(".")] == []


def test_frames_are_taken_as_clips_take_them() -> None:
    assert get_args(module.Sampling) == get_args(Sampling)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_refresh": 2}, "reference_refresh has an effect only with approximate"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
        ({"reference_guidance_scale": 0, "negative_references": ["a.mp4"]}, "negative_references has no effect"),
        ({"official_quirks": "stretched"}, "official_quirks must be one of"),
        ({"reference_strenght": 1}, "nearest is reference.reference_strength"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings().override(**changes)
    with pytest.raises(ModelError, match=message):
        Settings.from_config(changes)


def test_quirks_are_chosen_by_name_or_all() -> None:
    assert Settings().override(official_quirks="all").experimental.official_quirks == get_args(Quirk)
    chosen = Settings().override(official_quirks={"stretched_frames", "sampled_latents"})
    assert chosen.experimental.official_quirks == ("sampled_latents", "stretched_frames")


def test_a_model_states_its_settings() -> None:
    settings = Settings().override(height=64, reference_downscale=2)
    stated = settings.to_config()
    assert (stated["height"], stated["reference_downscale"]) == (64, 2)
    assert "reference_sampling" not in stated
    assert Settings.from_config(stated) == settings


def test_without_its_reference_a_generation_can_be_made() -> None:
    settings = Settings().override(reference_strength=0.5, approximate=True, reference_refresh=2, height=64)
    assert settings.without_reference() == Settings().override(reference_guidance_scale=0.0, height=64)
