from collections import Counter

import numpy as np

from sememe.training.clips import WorldClips, WorldItem, render_item, world_item
from sememe.training.recipes import ClipFormat, WorldData
from sememe.world import EVALUATION_SEED, can_show, conditions, random_scene, render
from sememe.world.catalogue import CATALOGUE


def test_a_scene_has_so_many_clips() -> None:
    assert [world_item(index).scene for index in (0, 7, 8, 39_999)] == [0, 0, 1, 4_999]


def test_conditions_are_dealt_evenly_and_never_twice_to_a_scene() -> None:
    items = [world_item(index) for index in range(8 * 400)]
    assert max(Counter(items).values()) == 1
    counts = Counter(item.condition for item in items)
    assert set(counts) == set(conditions())
    layered = [counts[entry.name] for entry in CATALOGUE if entry.needs_layers]
    others = [counts[entry.name] for entry in CATALOGUE if not entry.needs_layers]
    assert abs(np.mean(layered) / np.mean(others) - 1) < 0.1, "photographs show the others alone, and it evens out"
    assert max(counts.values()) < 4 * min(counts.values())


def test_random_conditions_are_dealt_as_well_and_trained_on() -> None:
    data = WorldData(num_clips=8 * 100, num_random=100)
    items = [world_item(index, data) for index in range(data.num_clips)]
    assert max(Counter(items).values()) == 1
    assert all(can_show(random_scene(item.scene), item.condition) for item in items[:80])
    drawn = [index for index, item in enumerate(items) if item.condition.startswith("random_")]
    assert 80 < len({items[index].condition for index in drawn}) <= 100
    assert 0.3 < len(drawn) / len(items) < 0.5
    clips = WorldClips(ClipFormat(num_frames=5, height=16, width=16), data)
    assert clips.item(drawn[0]).split == "train"
    assert clips.version != WorldClips(ClipFormat(num_frames=5, height=16, width=16), WorldData(num_clips=800)).version


def test_scenes_are_dealt_what_they_can_show() -> None:
    assert all(can_show(random_scene(item.scene), item.condition) for item in map(world_item, range(8 * 50)))


def test_a_scene_can_show_all_conditions() -> None:
    number = len(conditions())
    items = [world_item(index, WorldData(clips_per_scene=number)) for index in range(number)]
    assert {item.condition for item in items} == set(conditions())
    assert {item.scene for item in items} == {0}


def test_clips_are_rendered_as_they_are_named() -> None:
    item = WorldItem(scene=3, condition="melt")
    clip = render_item(item, num_frames=5, size=(16, 24), fps=4).clip
    assert clip.frames.shape == (5, 16, 24, 3)
    assert clip.fps == 4
    assert np.array_equal(clip.frames, render(random_scene(3), "melt", num_frames=5, size=(16, 24)).clip.frames)
    assert world_item(8 * 1000).scene < EVALUATION_SEED
