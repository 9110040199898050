from collections import Counter

import numpy as np

from sememe.training.world_clips import EVALUATION_SEED, WorldItem, render_item, world_item
from sememe.world import conditions, random_scene, render


def test_the_mapping_is_what_the_built_in_model_was_trained_on() -> None:
    assert [world_item(index).scene for index in (0, 7, 8, 39_999)] == [0, 0, 1, 4_999]
    deck = np.random.Generator(np.random.PCG64(4)).permutation(len(conditions()))
    assert [world_item(24 + place).condition for place in range(8)] == [conditions()[n] for n in deck[:8]]


def test_conditions_are_dealt_evenly_and_never_twice_to_a_scene() -> None:
    items = [world_item(index) for index in range(8 * 400)]
    assert max(Counter(items).values()) == 1
    counts = Counter(item.condition for item in items)
    assert set(counts) == set(conditions())
    assert max(counts.values()) < 5 * min(counts.values())


def test_a_scene_can_show_all_conditions() -> None:
    number = len(conditions())
    items = [world_item(index, number) for index in range(number)]
    assert {item.condition for item in items} == set(conditions())
    assert {item.scene for item in items} == {0}


def test_clips_are_rendered_as_they_are_named() -> None:
    item = WorldItem(scene=3, condition="melt")
    clip = render_item(item, num_frames=5, size=(16, 24), fps=4).clip
    assert clip.frames.shape == (5, 16, 24, 3)
    assert clip.fps == 4
    assert np.array_equal(clip.frames, render(random_scene(3), "melt", num_frames=5, size=(16, 24)).clip.frames)
    assert world_item(8 * 1000).scene < EVALUATION_SEED
