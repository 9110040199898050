"""Plans: what they hold, their files, and edits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sememe.errors import PlanError
from sememe.semanticgen.plan import Plan, colour_plan, draw_plan
from sememe.semanticgen.plan_edits import blend, cut, hold, repeat, replace_span, reverse, splice
from sememe.video import Clip


def make_plan(num_slices: int = 4, seed: int = 0, **settings: Any) -> Plan:
    """A plan of half seconds, whose captions count the slices."""
    features = np.random.default_rng(seed).normal(size=(num_slices, 2, 3, 8)).astype(np.float32)
    given: dict[str, Any] = {"encoder": "encoder", "compressor": "compressor"}
    given["captions"] = tuple(f"{seed}.{index}" for index in range(num_slices))
    return Plan(features, 0.5, **(given | settings))


def same(first: Plan, second: Plan) -> bool:
    return np.array_equal(first.features, second.features) and first.captions == second.captions


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_files_give_back_what_was_saved(tmp_path: Path, dtype: type) -> None:
    plan = make_plan()
    plan = plan.with_slices(plan.features.astype(dtype), plan.captions)
    plan.save(tmp_path / "a.plan")
    loaded = Plan.load(tmp_path / "a.plan")
    assert same(loaded, plan)
    assert loaded.features.dtype == dtype
    assert (loaded.slice_seconds, loaded.encoder, loaded.compressor) == (0.5, "encoder", "compressor")
    assert loaded.times.tolist() == [0.25, 0.75, 1.25, 1.75]
    assert loaded.seconds == 2.0


def test_a_plan_of_another_model_is_refused() -> None:
    plan = make_plan()
    plan.check("encoder", "compressor")
    with pytest.raises(PlanError, match=r"this model's encoder \(other\), got one of another \(encoder\)"):
        plan.check("other", "compressor")
    with pytest.raises(PlanError, match="this model's compressor"):
        plan.check("encoder", "other")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_plan_that_is_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.plan"
    make_plan().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(PlanError, match="damaged or cut short"):
        Plan.load(path)


META = {"format": "sememe-plan-1", "slice_seconds": "0.5", "encoder": "e", "compressor": "c", "captions": "[]"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"features": np.zeros((4, 2, 3), np.float32)}, {}, r"features of shape .*got \(4, 2, 3\)"),
        ({"features": np.zeros((0, 2, 3, 8), np.float32)}, {}, "features of shape"),
        ({"features": np.zeros((3, 2, 3, 8), np.float32)}, {}, "features of 3 slices, but times"),
        ({"features": np.zeros((4, 2, 3, 8))}, {}, "dtype float32 or float16, got float64"),
        ({"features": np.full((4, 2, 3, 8), np.nan, np.float32)}, {}, "finite features"),
        ({"times": np.zeros(4)}, {}, "times that are not theirs"),
        ({"other": np.zeros(1)}, {}, "another kind of file"),
        ({}, {"format": "pt"}, "another kind of file"),
        ({}, {"slice_seconds": "nan"}, "slice_seconds above 0"),
        ({}, {"slice_seconds": "fast"}, "metadata are not valid"),
        ({}, {"captions": "{"}, "metadata are not valid"),
        ({}, {"captions": "[" * 100_000}, "metadata are not valid"),
        ({}, {"captions": "[1]"}, "captions as a list of texts"),
        ({}, {"captions": '["one"]'}, "a caption for each of 4 slices, got 1"),
    ],
)
def test_an_edited_file_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str], message: str
) -> None:
    whole = {"features": np.zeros((4, 2, 3, 8), np.float32), "times": make_plan().times}
    save_file(whole | tensors, tmp_path / "a.plan", META | metadata)
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "a.plan")


def test_a_missing_file_and_missing_metadata_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there is no file"):
        Plan.load(tmp_path / "none.plan")
    make_plan().save(tmp_path / "a.plan")
    save_file(load_file(tmp_path / "a.plan"), tmp_path / "b.plan")
    with pytest.raises(PlanError, match="another kind of file"):
        Plan.load(tmp_path / "b.plan")


def test_parts_joined_are_the_whole() -> None:
    plan = make_plan(6)
    assert same(splice(cut(plan, 0.0, 1.0), cut(plan, 1.0, 3.0)), plan)
    assert same(replace_span(plan, 1.0, cut(plan, 1.0, 2.0)), plan)
    assert same(reverse(reverse(plan)), plan)
    assert same(repeat(plan, 2), splice(plan, plan))
    assert same(repeat(plan, 1), plan)


def test_edits_move_captions_with_their_slices() -> None:
    plan, other = make_plan(4), make_plan(2, seed=1)
    assert reverse(plan).captions == ("0.3", "0.2", "0.1", "0.0")
    assert hold(plan, 0.6, 1.0).captions == ("0.0", "0.1", "0.1", "0.1", "0.2", "0.3")
    assert replace_span(plan, 0.5, other).captions == ("0.0", "1.0", "1.1", "0.3")
    assert splice(plan, make_plan(1, captions=())).captions == (*plan.captions, "")
    assert splice(make_plan(1, captions=()), make_plan(1, captions=())).captions == ()


def test_held_slices_are_equal() -> None:
    held = hold(make_plan(), 0.5, 1.0)
    assert np.array_equal(held.features[[1, 2, 3]], make_plan().features[[1, 1, 1]])
    assert held.num_slices == 6
    assert hold(make_plan(), 0.5, 0.01).num_slices == 5
    # 0.3 / 0.1 is a little less than 3.
    assert hold(replace(make_plan(), slice_seconds=0.1), 0.3, 0.1).captions == ("0.0", "0.1", "0.2", "0.3", "0.3")


@given(weight=st.floats(0.0, 1.0))
def test_blends_lie_between_their_ends(weight: float) -> None:
    first, second = make_plan(), make_plan(seed=1)
    mixed = blend(first, second, weight)
    np.testing.assert_allclose(mixed.features, blend(second, first, 1 - weight).features, atol=1e-6)
    if weight in (0.0, 1.0):
        assert same(mixed, (first, second)[int(weight)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda plan: cut(plan, 1.0, 1.0), "start before stop by a slice of 0.5 s"),
        (lambda plan: cut(plan, 0.0, 9.0), "stop within the plan's 2 s, got 9"),
        (lambda plan: repeat(plan, 0), "count of at least 1"),
        (lambda plan: repeat(plan, 25_001), "at most 100000 slices, got 100004"),
        (lambda plan: hold(plan, 0.0, 50_000.0), "at most 100000 slices, got 100004"),
        (lambda plan: hold(plan, 2.0, 1.0), "a moment within the plan's 2 s, got 2"),
        (lambda plan: hold(plan, 0.0, 0.0), "seconds above 0, got 0"),
        (lambda plan: blend(plan, make_plan(3), 0.5), "plans of one length, got 4 and 3 slices"),
        (lambda plan: blend(plan, plan, 1.5), r"weight in 0\.\.1, got 1\.5"),
        (lambda plan: replace_span(plan, 1.5, make_plan(2)), "a part that ends within the plan's 2 s"),
        (lambda plan: splice(plan, make_plan(encoder="other")), "this model's encoder"),
        (lambda plan: splice(plan, plan.with_slices(plan.features[:, :1])), "plans of the same rows, columns"),
    ],
)
def test_impossible_edits_are_refused(edit: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        edit(make_plan())


def test_colours_tell_tokens_apart_and_nothing_else() -> None:
    plan = make_plan()
    features = plan.features.copy()
    features[3] = features[0]
    colours = colour_plan(plan.with_slices(features))
    assert colours.shape == (4, 2, 3, 3)
    assert np.array_equal(colours[3], colours[0])
    assert not np.array_equal(colours[1], colours[0])
    # The principal components of rotated features are the same.
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))
    rotated = colour_plan(plan.with_slices((features @ rotation).astype(np.float32))).astype(int)
    mirrored = np.minimum(np.abs(rotated - colours), np.abs(255 - rotated - colours))
    assert mirrored.max() <= 1


def test_one_token_and_one_number_are_grey() -> None:
    plan = Plan(np.ones((1, 1, 1, 2), np.float32), 0.5, "encoder", "compressor")
    assert colour_plan(plan).tolist() == [[[[128, 128, 128]]]]


def test_a_picture_has_a_row_for_the_plan_and_one_for_the_frames() -> None:
    clip = Clip(np.zeros((16, 8, 12, 3), np.uint8), 8.0)
    alone, both = draw_plan(make_plan()), draw_plan(make_plan(), clip)
    assert both.shape[0] > alone.shape[0]
    assert both.shape[1] >= alone.shape[1]
