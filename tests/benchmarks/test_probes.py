"""Probes read what is in tokens by construction, and nothing from noise."""

import numpy as np
import pytest

from benchmarks.probes import average_shown, fit_ridge, probe_label, probe_path


def test_a_probe_reads_the_word_that_a_channel_holds() -> None:
    rng = np.random.default_rng(0)
    words = ["cat", "egg", "car"] * 20
    tokens = rng.normal(size=(60, 2, 8))
    tokens[..., 3] += np.array([-5.0, 0.0, 5.0] * 20)[:, None]
    tokens[..., 4] += np.array([5.0, 0.0, 5.0] * 20)[:, None]
    (read,) = probe_label(tokens[:42], words[:42], [tokens[42:]])
    assert read == words[42:]


def test_subjects_are_read_where_they_are_and_places_elsewhere() -> None:
    cover = np.zeros((1, 1, 2, 2))
    cover[0, 0, 0, 0], cover[0, 0, 0, 1] = 1.0, 0.5
    tokens = np.array([4.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2, 1)
    assert average_shown(tokens, cover, "subject").item() == pytest.approx(3.0, abs=0.01)
    assert average_shown(tokens, cover, "place").item() == pytest.approx(0.2, abs=0.01)


def test_a_path_is_read_from_places_that_say_how_much_of_them_is_subject() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(12, 8, 4, 4, 3))
    cover = np.zeros((12, 8, 4, 4))
    steps = np.arange(8)
    cover[:, steps, 1, steps // 2] = 1.0
    tokens[..., 1] = 1 - 2 * cover
    explained, path = probe_path(tokens[:8], cover[:8], tokens[8:], cover[8:])
    assert explained == pytest.approx(1.0, abs=0.01)
    assert path.value == pytest.approx(1.0, abs=0.01)
    assert path.count == 4
    lost, _ = probe_path(tokens[:8, ..., :1], cover[:8], tokens[8:, ..., :1], cover[8:])
    assert abs(lost) < 0.05


def test_without_a_penalty_a_linear_function_is_found_exactly() -> None:
    inputs = np.random.default_rng(0).normal(size=(30, 4))
    weights = np.array([[1.0], [-2.0], [0.0], [3.0]])
    found = fit_ridge(inputs, inputs @ weights + 7, 0.0)(np.eye(4))
    np.testing.assert_allclose(found, weights + 7, atol=1e-4)
