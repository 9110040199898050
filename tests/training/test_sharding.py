import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from sememe.errors import RecipeError
from sememe.training.sharding import choose_shard, count_kept, find_units
from training.ranks import CAN_SHARD


class Nested(nn.Module):
    """Blocks with lists in them, a large layer beside them and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(3, 5)])}) for _ in range(2)])
        self.encoder = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(4, 4))


@pytest.fixture(scope="module")
def nested() -> Nested:
    with torch.device("meta"):
        return Nested()


def test_blocks_and_large_layers_are_sharded_each_once(nested: Nested) -> None:
    assert list(find_units(nested)) == ["blocks.0", "blocks.1", "encoder.0"]


def test_a_process_keeps_its_rows_of_units_and_the_rest_whole(nested: Nested) -> None:
    counts = count_kept(nested, 4)
    assert counts["blocks.1.parts.0.weight"] == 2 * 3, "the first processes have two of the five rows"
    assert counts["encoder.0.weight"] == 256 * 1024
    assert counts["encoder.1.weight"] == 16
    assert sum(count_kept(nested, 1).values()) == sum(parameter.numel() for parameter in nested.parameters())


def test_a_torch_that_is_too_old_to_shard_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params", raising=False)
    assert choose_shard(1, 8) == 1
    with pytest.raises(RecipeError, match=r"torch 2\.13 or newer for training\.shard=-1, got torch 2\."):
        choose_shard(-1, 8)


@pytest.mark.skipif(not CAN_SHARD, reason="sharding needs torch 2.13")
def test_weights_are_spread_over_a_number_that_divides_the_processes() -> None:
    assert [choose_shard(shard, 8) for shard in (1, 4, -1)] == [1, 4, 8]
    with pytest.raises(RecipeError, match=r"training\.shard to divide the number of processes, 8, got 3"):
        choose_shard(3, 8)
