"""Where the time of a computation goes, and what it would be where matrices are multiplied faster."""

import pytest
import torch
from torch.nn import functional

from benchmarks.products import PRODUCT_SIZE, Shares, bring_to_rate, divide, find_rate, measure_shares
from benchmarks.timing import Timing


def test_operators_are_sorted_into_products_attention_and_the_rest() -> None:
    """Which operators run is checked, not how long they take: a cold first profile spends its time elsewhere."""
    matrix, heads = torch.randn(8, 8), torch.randn(1, 4, 8, 8)
    multiplied = measure_shares(lambda: functional.linear(matrix, matrix, matrix[0]))
    attended = measure_shares(lambda: functional.scaled_dot_product_attention(heads, heads, heads))
    assert multiplied.products > 0.0
    assert attended.attention > 0.0
    assert multiplied.attention == attended.products == 0.0


def test_shares_are_those_of_the_time() -> None:
    names = {
        "aten::addmm": 3.0,
        "aten::mm": 1.0,
        "aten::_scaled_dot_product_flash_attention_for_cpu": 4.0,
        "aten::add": 2.0,
    }
    assert divide(names) == Shares(products=0.4, attention=0.4, rest=0.2)


def test_only_products_become_faster() -> None:
    shares = Shares(products=0.5, attention=0.3, rest=0.2)
    brought = bring_to_rate(Timing((2.0, 4.0)), shares, rate=300e9, wanted_rate=600e9)
    assert brought.seconds == pytest.approx((1.5, 3.0))
    assert bring_to_rate(brought, shares, rate=300e9, wanted_rate=300e9) == brought


def test_the_rate_is_that_of_the_best_round() -> None:
    assert find_rate(Timing((0.4, 0.1, 0.2))) == pytest.approx(2 * PRODUCT_SIZE**3 / 0.1)
