"""What the reader decides from what its network says."""

from itertools import product

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.evaluation.reader import find_path, find_sequence


def test_the_likeliest_runs_are_those_of_a_full_search() -> None:
    moments, values, shortest = 9, 3, 2
    scores = np.random.default_rng(0).normal(size=(moments, values))
    for count in (1, 2, 3, 4):
        best: dict[tuple[int, ...], float] = {}
        for said in product(range(values), repeat=moments):
            edges = [0, *(place for place in range(1, moments) if said[place] != said[place - 1]), moments]
            if len(edges) - 1 == count and min(np.diff(edges)) >= shortest:
                order = tuple(said[edge] for edge in edges[:-1])
                total = float(sum(scores[place, value] for place, value in enumerate(said)))
                best[order] = max(best.get(order, -np.inf), total)
        assert find_sequence(scores, count, shortest) == max(best, key=lambda order: best[order])
    with pytest.raises(InputError, match="at least 10 moments for 5 conditions, got 9"):
        find_sequence(scores, 5, shortest)


def test_a_path_is_that_of_the_covered_area() -> None:
    cover = np.zeros((3, 8, 8))
    cover[0, 1, 2] = 1.0  # row 1, column 2
    cover[1, 4:6, 0:4] = 0.5
    assert find_path(cover)[:2].tolist() == [[2.5 / 8, 1.5 / 8], [2 / 8, 5 / 8]]
    assert np.isnan(find_path(cover)[2]).all()
