"""The choice among ways to compute, on small networks whose every byte can be counted."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sememe.compute.placement import name_smaller_plan
from sememe.compute.plan import Planner
from sememe.compute.rehearsal import Phase, Workload
from sememe.compute.strategy import STORAGES, Constraints, Strategy
from sememe.errors import InputError

# Weights in bytes, in float32: a layer of 10 x 10, three blocks of 100 x 100, and one of 10 x 20.
ENCODER, BLOCK, HEAD, DECODER = 400, 40_000, 4_000, 800


class Network(nn.Module):
    """Blocks in a list, and a head outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(100, 100, bias=False) for _ in range(3))
        self.head = nn.Linear(100, 10, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens)


def build(dtype: str = "float32") -> Workload:
    """Encode, step with or without a kept tensor, decode whole or in half."""
    precision = getattr(torch, dtype)
    with torch.device("meta"):
        encoder, decoder = nn.Linear(10, 10, bias=False), nn.Linear(10, 20, bias=False)
        network = Network()
    for module in (encoder, network, decoder):
        module.to(precision)
    state: dict[str, torch.Tensor] = {}

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=precision, device="meta")

    def encode() -> None:
        state["code"] = encoder(empty(25, 10))

    def step(num_kept: int) -> None:
        keys = empty(num_kept, 100)
        network(empty(50, 100))
        del keys

    def decode(num_rows: int) -> None:
        decoder(empty(num_rows, 10))

    phases = [
        Phase("encode", encode),
        Phase("denoise", lambda: step(100), keeps_text_keys=True),
        Phase("denoise", lambda: step(1), keeps_text_keys=False),
        Phase("decode", lambda: decode(2000), tiles=False),
        Phase("decode", lambda: decode(20), tiles=True),
    ]
    parts = {"encoder": encoder, "network": network, "decoder": decoder}
    return Workload("a video", parts, phases, main="network", settings={"num_frames": 5})


NETWORK = 3 * BLOCK + HEAD
TOTAL = ENCODER + NETWORK + DECODER
CODE = 25 * 10 * 4
# The caller's tensor, and a layer's input and output.
STEP = 3 * 50 * 100 * 4
KEYS, LEAN_KEYS = 40_000, 400
DECODED, TILED = 2000 * 30 * 4, 20 * 30 * 4


def constraints(vram: float = 1.0, **settings: Any) -> Constraints:
    given: dict[str, Any] = {"vram": vram, "dtypes": ("float32",), "own_dtype": "float32"}
    return Constraints(**(given | settings))


def peaks(strategy: Strategy) -> dict[str, int]:
    return {name: peak.total for name, peak in Planner(build).estimate(strategy).phases.items()}


def test_everything_on_the_device() -> None:
    assert peaks(Strategy("float32")) == {
        "encode": TOTAL + 2 * CODE,
        "denoise": TOTAL + CODE + STEP + KEYS,
        "decode": TOTAL + CODE + DECODED,
    }
    # One component after another leaves for the device.
    assert Planner(build).estimate(Strategy("float32")).host_bytes == NETWORK


def test_a_component_sends_the_one_before_it_away() -> None:
    found = peaks(Strategy("float32", offload="model", keeps_text_keys=False))
    assert found["encode"] == ENCODER + 2 * CODE
    assert found["denoise"] == NETWORK + CODE + STEP + LEAN_KEYS
    assert found["decode"] == max(DECODER + CODE + DECODED, NETWORK + CODE + 2000 * 10 * 4)
    assert Planner(build).estimate(Strategy("float32", offload="model")).host_bytes == TOTAL


@pytest.mark.parametrize(
    ("offload", "weights"), [("group", 2 * BLOCK + HEAD), ("group-leaf", 2 * BLOCK), ("sequential", BLOCK)]
)
def test_blocks_and_layers_that_come_and_go(offload: Any, weights: int) -> None:
    found = Planner(build).estimate(Strategy("float32", offload=offload, keeps_text_keys=False)).phases["denoise"]
    assert (found.weights, found.tensors) == (weights, CODE + STEP + LEAN_KEYS)


def test_tiles_change_the_autoencoder_alone() -> None:
    whole, tiled = (peaks(Strategy("float32", tiles=tiles)) for tiles in (False, True))
    assert whole["decode"] - tiled["decode"] == DECODED - TILED
    assert (whole["encode"], whole["denoise"]) == (tiled["encode"], tiled["denoise"])


def test_a_precision_halves_all() -> None:
    full, half = (Planner(build).estimate(Strategy(dtype)).peak for dtype in ("float32", "bfloat16"))
    assert full == 2 * half


def test_fewer_bits_for_the_blocks_of_the_main_network() -> None:
    full, stored = (
        Planner(build).estimate(Strategy("float32", storage)).phases["denoise"] for storage in ("full", "fp8")
    )
    # A byte for each weight, and one layer widened while it computes.
    assert stored.weights == TOTAL - 3 * BLOCK + 3 * BLOCK // 4 + BLOCK
    assert stored.tensors == full.tensors


def test_candidates_are_exact_first_then_fast_and_each_takes_less() -> None:
    found = [each.strategy for each in Planner(build).list_candidates(constraints(dtypes=("float32", "bfloat16")))]
    assert [(way.dtype, way.tiles) for way in found] == sorted(
        ((way.dtype, way.tiles) for way in found), key=lambda way: (way[0] == "bfloat16", way[1])
    )
    assert found[0] == Strategy("float32")
    candidates = [each for each in Planner(build).list_candidates(constraints()) if each.strategy.tiles]
    sizes = [each.estimate.peak for each in candidates]
    assert sizes == sorted(set(sizes), reverse=True)


def test_each_phase_is_measured_once() -> None:
    calls: list[str] = []

    def counted(dtype: str) -> Workload:
        workload = build(dtype)

        def note(phase: Phase) -> Phase:
            def run() -> None:
                calls.append(phase.name)
                phase.run()

            return replace(phase, run=run)

        return replace(workload, phases=[note(phase) for phase in workload.phases])

    planner = Planner(counted)
    list(planner.list_candidates(constraints()))
    list(planner.list_candidates(constraints(storage="nf4")))
    assert sorted(calls) == ["decode", "decode", "denoise", "denoise", "encode"]


def test_more_memory_never_makes_it_slower() -> None:
    planner = Planner(build)
    order = [each.strategy for each in planner.list_candidates(constraints())]
    sizes = sorted(each.estimate.peak for each in planner.list_candidates(constraints()))
    chosen = [order.index(planner.choose(constraints(size / 1e9)).strategy) for size in sizes]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] == 0


def test_nothing_fits_and_the_least_does() -> None:
    planner = Planner(build)
    with pytest.raises(InputError, match="a video does not fit in 1e-06 GB") as caught:
        planner.choose(constraints(1e-6))
    least = float(str(caught.value).split("would do is ")[1].split(" GB")[0])
    plan = planner.choose(constraints(least))
    assert plan.chosen.estimate.peak <= least * 1e9 < 1.1 * plan.chosen.estimate.peak


def test_what_is_compiled_is_not_offloaded_by_layer() -> None:
    found = [each.strategy for each in Planner(build).list_candidates(constraints(compiles=True))]
    assert {way.offload for way in found} <= {"none", "model", "group"}
    with pytest.raises(InputError, match="fp8"):
        constraints(compiles=True, storage="fp8")


@pytest.mark.parametrize("storage", STORAGES)
def test_no_storage_is_offloaded_in_ways_that_its_library_refuses(storage: str) -> None:
    refused = {"int8": {"group", "group-leaf", "sequential"}, "nf4": {"group", "group-leaf", "sequential"}}
    found = {each.strategy.offload for each in Planner(build).list_candidates(constraints(storage=storage))}
    assert not found & refused.get(storage, set() if storage == "full" else {"sequential"})


def test_a_faster_way_is_a_hint_alone() -> None:
    planner = Planner(build)
    fp8 = planner.estimate(Strategy("float32", "fp8", tiles=True)).peak
    plan = planner.choose(constraints(fp8 / 1e9))
    assert plan.faster is not None
    assert plan.strategy.storage == "full"
    assert plan.faster.strategy.offload == "none" != plan.strategy.offload
    assert any("faster but approximate" in line for line in plan.explain())


def test_the_machine_has_to_hold_what_is_offloaded() -> None:
    planner = Planner(build)
    small = planner.estimate(Strategy("float32", offload="group", tiles=True, keeps_text_keys=False)).peak / 1e9
    with pytest.raises(InputError, match=r"expected 0\.00013 GB free there"):
        planner.choose(constraints(small, host=TOTAL / 2e9))
    for host, how in ((None, "lean"), (1.5 * TOTAL / 1e9, "lean"), (2 * TOTAL / 1e9, "pinned")):
        plan = planner.choose(constraints(small, host=host))
        assert (plan.strategy.offload, plan.host_memory) == ("group", how)
    assert planner.choose(constraints(1.0, host=NETWORK / 1e9)).host_memory is None
    with pytest.raises(InputError, match=r"machine's own memory than there is: expected 0\.00013 GB"):
        planner.choose(constraints(1.0, host=0.9 * NETWORK / 1e9))
    assert planner.choose(constraints(1.0, storage="fp8", host=NETWORK / 1e9)).strategy.offload == "none"
    stored = Strategy("float32", "fp8", "model")
    others = TOTAL - NETWORK
    small_network = 3 * BLOCK // 4 + HEAD
    assert planner.estimate(stored).host_bytes == max(NETWORK, small_network + others), "the main network goes first"
    assert Planner(build, stores_last=True).estimate(stored).host_bytes == TOTAL


def test_running_out_of_memory_names_the_next_smaller_plan() -> None:
    plan = Planner(build).choose(constraints())
    assert plan.smaller is not None
    assert plan.smaller.estimate.peak < plan.chosen.estimate.peak
    for error, where in ((torch.OutOfMemoryError("much"), "cuda:0"), (MemoryError(), "the machine itself")):
        with (
            pytest.raises(InputError, match=rf"{where} ran out .* next smaller plan is vram 0\.00025"),
            name_smaller_plan("cuda:0", plan),
        ):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), name_smaller_plan("cpu", plan):
        raise RuntimeError("shapes differ")


def test_a_plan_as_plain_values() -> None:
    plan = Planner(build).choose(constraints(dtypes=("bfloat16",)))
    document = plan.to_document()
    assert json.loads(json.dumps(document)) == document
    assert (document["num_frames"], document["label"]) == (5, "approximate")
    assert document["shortcuts"] == ["bfloat16 in place of float32"]
    assert document["phases_gb"].keys() == {"encode", "denoise", "decode"}
    assert replace(plan, constraints=constraints(own_dtype="bfloat16")).shortcuts == []


@pytest.mark.parametrize(("vram", "storage"), [(0.0, "full"), (float("nan"), "full"), (24, "int3")])
def test_bad_wishes(vram: float, storage: str) -> None:
    with pytest.raises(InputError, match="vram" if storage == "full" else "int3"):
        constraints(vram, storage=storage)
