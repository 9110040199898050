"""The memory of a training is that of its blocks, and less where they are computed twice."""

from dataclasses import replace
from functools import partial

from benchmarks.training_memory import extend, measure_planner, measure_renderer
from sememe.semanticgen.recipes import wan_1_3b_renderer
from sememe.semanticgen.stage_settings import PlannerNetwork

NETWORK = PlannerNetwork(num_layers=4, num_attention_heads=2, attention_head_dim=24, ffn_dim=48, freq_dim=16)


def test_two_and_three_blocks_say_what_four_need() -> None:
    measure = partial(measure_planner, 8)
    assert extend(measure, NETWORK) == measure(NETWORK)


def test_blocks_that_are_computed_twice_keep_less() -> None:
    recipe = wan_1_3b_renderer()
    whole = replace(recipe, training=replace(recipe.training, checkpoints_activations=False))
    twice, once = (measure_renderer(each, NETWORK, feature_dim=16) for each in (recipe, whole))
    assert (twice.num_parameters, twice.state_bytes) == (once.num_parameters, once.state_bytes)
    assert twice.activation_bytes < once.activation_bytes / 2
