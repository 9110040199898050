"""Compiled blocks with experts: whole graphs, each kind of block once, and nothing anew from step to step."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig

from compute.feature_cache_configs import faster, pyramid, taylor
from sememe.compute.placement import apply_offload, apply_storage
from sememe.compute.speed import compile_transformer
from sememe.errors import InputError
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(kind: str) -> Any:
    settings: dict[str, Any] = {"num_inference_steps": 3, "reference_guidance_scale": 2.0}
    return make_cogvideox_pipeline(**settings) if kind == "cogvideox" else make_pipeline(kind, **settings)


def generate(pipe: Any, **settings: Any) -> torch.Tensor:
    given = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    return pipe(**given, generator=torch.Generator().manual_seed(0), **settings).frames


def nothing(_: Any) -> None:
    """Leaves a pipeline as it is."""


def cache(pipe: Any) -> None:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))


def mag(pipe: Any) -> None:
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=3, mag_ratios=[1.0] * 3, max_skip_steps=1))


def group(pipe: Any) -> None:
    apply_offload(pipe, "group", "cpu")


def count_graphs_by_step(pipe: Any, expected: torch.Tensor, behind: Callable[[Any], None] = nothing) -> list[int]:
    """Compiles, does one thing more, generates what is expected, and counts the graphs there were behind each step."""
    graphs: list[int] = []
    counts: list[int] = []

    def keep_graph(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    def note(*_: Any) -> dict[str, Any]:
        counts.append(len(graphs))
        return {}

    compile_transformer(pipe, backend=keep_graph)
    behind(pipe)
    torch.testing.assert_close(generate(pipe, callback_on_step_end=note), expected)
    return counts


# Graphs: without a reference (the null of guidance), with one, and the last expert, whose reference nobody reads.
# One-way there are two of a reference alone and two of the target. CogVideoX's first block is given views of a tensor.
@pytest.mark.parametrize(("kind", "num_graphs"), [("joint", 3), ("cached", 4), ("cogvideox", 4)])
def test_blocks_compile_once_in_whole_graphs(kind: str, num_graphs: int) -> None:
    pipe = make(kind)
    expected = generate(pipe)
    assert count_graphs_by_step(pipe, expected) == [num_graphs] * 3
    with pytest.raises(InputError, match="compiled already"):
        compile_transformer(pipe)


def leaf(pipe: Any) -> None:
    apply_offload(pipe, "group", "cpu", group_level="leaf")


REFUSED: list[tuple[Callable[[Any], None], str]] = [
    (leaf, "offloaded layer by layer"),
    (lambda pipe: apply_offload(pipe, "sequential", "cpu"), "offloaded layer by layer"),
    (lambda pipe: apply_storage(pipe, "fp8"), "fp8 storage casts weights within a block"),
    (lambda pipe: pipe.transformer.enable_cache(taylor(pipe)), "TaylorSeerCacheConfig keeps .* within a block"),
    (lambda pipe: pipe.transformer.enable_cache(pyramid(pipe)), "use FirstBlockCacheConfig or MagCacheConfig"),
    (lambda pipe: pipe.transformer.enable_cache(faster(pipe)), "use FirstBlockCacheConfig or MagCacheConfig"),
]


@pytest.mark.parametrize(("choose", "message"), REFUSED)
def test_behind_what_no_graph_can_hold_compiling_is_refused(choose: Callable[[Any], None], message: str) -> None:
    pipe = make("joint")
    choose(pipe)
    with pytest.raises(InputError, match=message) as refused:
        compile_transformer(pipe, backend="eager")
    assert "\n" not in str(refused.value)


def test_behind_compiling_what_no_graph_can_hold_is_refused() -> None:
    pipe = make("joint")
    expected = generate(pipe)
    compile_transformer(pipe, backend="eager")
    for choose, message in REFUSED:
        with pytest.raises(InputError, match=message) as refused:
            choose(pipe)
        assert "\n" not in str(refused.value)
    # Nothing of what was refused is left behind.
    assert torch.equal(generate(pipe), expected)


# As many graphs as without, and whole ones: what skips or fetches a block does so outside of them.
@pytest.mark.parametrize(
    ("is_first", "kind", "num_graphs", "choose"),
    [
        (False, "cached", 4, cache),
        (False, "cached", 4, group),
        (True, "cogvideox", 4, mag),
    ],
)
def test_block_caches_and_group_offload_go_with_compiled_blocks(
    is_first: bool, kind: str, num_graphs: int, choose: Callable[[Any], None]
) -> None:
    pipe, expected = make(kind), make(kind)
    choose(expected)
    if is_first:
        choose(pipe)
    counts = count_graphs_by_step(pipe, generate(expected), nothing if is_first else choose)
    assert counts == [num_graphs] * 3
    if choose is not group:
        pipe.transformer.disable_cache()
        assert torch.equal(generate(pipe), generate(make(kind))), "switched off, it is as if it never was"


def test_a_cache_a_group_offload_and_compiled_blocks_at_once() -> None:
    expected = make("joint")
    cache(expected)
    pipe = make("joint")
    group(pipe)
    cache(pipe)
    assert count_graphs_by_step(pipe, generate(expected)) == [3] * 3


def test_quantised_behind_compiling_it_is_as_before_it() -> None:
    expected = make("joint")
    apply_storage(expected, "nf4")
    pipe = make("joint")
    compile_transformer(pipe, backend="eager")
    apply_storage(pipe, "nf4")
    torch.testing.assert_close(generate(pipe), generate(expected))


@pytest.mark.parametrize(("mode", "kind"), [("joint", "group"), ("cached", "model")])
def test_offloaded_as_a_whole_or_by_block_it_compiles(mode: str, kind: str) -> None:
    pipe = make(mode)
    apply_offload(pipe, kind, "cpu")
    expected = generate(pipe)
    counts = count_graphs_by_step(pipe, expected)
    assert counts[0] > 0
    assert counts == counts[:1] * 3, "nothing is compiled anew behind the first step"


def test_more_graphs_than_torch_expects() -> None:
    pipe = make("cached")
    graphs: list[int] = []

    def keep_graph(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    ways: list[dict[str, Any]] = [{"height": 32, "width": 48}, {"height": 64, "width": 64}]
    ways += [{"reference_strength": 0.3}]
    expected = [generate(pipe, **way, num_inference_steps=1) for way in ways]
    compile_transformer(pipe, backend=keep_graph)
    for way, wanted in zip(ways, expected, strict=True):
        torch.testing.assert_close(generate(pipe, **way, num_inference_steps=1), wanted)
    assert len(graphs) > 8, "torch refuses a ninth unless it is told"


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="install one"):
        compile_transformer(make("joint"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiler_of_torch_gives_the_same() -> None:
    pipe = make("joint")
    expected = generate(pipe)
    compile_transformer(pipe)
    torch.testing.assert_close(generate(pipe), expected, atol=1e-4, rtol=1e-4)
