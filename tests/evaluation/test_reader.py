"""What the reader decides from what its network says."""

from itertools import product

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.evaluation.reader import find_sequence


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
