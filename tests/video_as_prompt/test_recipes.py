from dataclasses import replace

import pytest

from sememe.errors import InputError, RecipeError
from sememe.records import apply_overrides, flatten
from sememe.system import System
from sememe.training.recipes import Regeneration
from sememe.video_as_prompt.recipes import tiny_autoencoder, tiny_expert
from sememe.video_as_prompt.stage_settings import BackboneSettings, ExpertRecipe, ExpertSettings, WanNetwork
from sememe.workflows.recipe_list import find_recipe, recipes
from sememe.workflows.systems import SYSTEMS, kind_of


@pytest.mark.parametrize("name", recipes())
def test_recipes_know_their_names(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.name == name
    assert find_recipe(name.replace("-", "_").upper()) == recipe
    assert kind_of(recipe) in ("latents", "model") or kind_of(recipe).replace("_", "-") in name


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_there_is_a_quick_twin_of_every_kind(system: System) -> None:
    for size in ("tiny", "smoke"):
        kinds = {kind_of(find_recipe(name)) for name in system.recipes if name.startswith(size)}
        assert kinds == {*system.stages, "latents", "model"}


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("tiny-expert-")])
def test_ablations_are_a_few_settings_away(name: str) -> None:
    recipe = find_recipe(name)
    assert isinstance(recipe, ExpertRecipe)
    assert recipe.description.startswith("ablation: ")
    ours, base = flatten(recipe), flatten(tiny_expert())
    changed = {key for key in ours if ours[key] != base[key]} - {"name", "description"}
    assert 1 <= len(changed) <= 3, changed


def test_unknown_names() -> None:
    with pytest.raises(RecipeError, match="did you mean tiny-expert"):
        find_recipe("tiny-expart")
    with pytest.raises(RecipeError, match="`sememe recipes` lists them"):
        find_recipe("?")


def test_overrides_reach_every_depth() -> None:
    recipe = apply_overrides(
        tiny_expert(),
        [
            "training.learning_rate=3e-4",
            "settings.num_references=8",
            "expert_blocks=0,4",
            "settings.captions.full_share=1",
        ],
    )
    assert (recipe.training.learning_rate, recipe.settings.num_references) == (3e-4, 8)
    assert (recipe.expert_blocks, recipe.settings.captions.full_share) == ((0, 4), 1.0)
    assert apply_overrides(recipe, ["expert_blocks=none"]).expert_blocks is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["clips.width=60"], "clips.width must be a multiple of 8"),
        (["clips.num_frames=20"], "clips.num_frames must be 1 more"),
        (["network.hidden_channels=90"], "network.hidden_channels as a multiple of 8, got 90"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply_overrides(tiny_autoencoder(), settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BackboneSettings(sigma_std=0), "sigma_std above 0"),
        (lambda: BackboneSettings(batch_size=0), "batch_size of at least 1"),
        (lambda: ExpertSettings(num_references=0), "num_references of at least 1"),
        (lambda: ExpertSettings(same_scene_share=2), "same_scene_share of at most 1"),
        (lambda: replace(tiny_expert(), num_conditions=1), "num_conditions of at least 2"),
        (lambda: replace(tiny_expert(), reference_timestep=-1.0), "reference_timestep of at least 0"),
        (lambda: WanNetwork(attention_head_dim=25), "attention_head_dim as a multiple of 2"),
        (lambda: Regeneration(model="a", min_strength=0.0), "strengths must rise"),
    ],
)
def test_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
