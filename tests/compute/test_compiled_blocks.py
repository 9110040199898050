"""Compiled blocks with experts: whole graphs, each kind of block once, and nothing anew from step to step."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig

from compute.feature_cache_configs import faster, pyramid, taylor
from sememe.compute.placement import apply_offload, apply_storage
from sememe.compute.speed import compile_blocks, compile_transformer
from sememe.errors import InputError
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline


@pytest.fixture(autouse=True)
def forget_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The oldest torch that is allowed cannot trace the checks of shapes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(kind: str) -> Any:
    settings: dict[str, Any] = {"num_inference_steps": 3, "reference_guidance_scale": 2.0}
    return make_cogvideox_pipeline(**settings) if kind == "cogvideox" else make_pipeline(kind, **settings)


def generate(pipe: Any, **settings: Any) -> torch.Tensor:
    given = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"} | settings
    return pipe(**given, generator=torch.Generator().manual_seed(0)).frames


ALONE: dict[str, Any] = {"references": [], "reference_guidance_scale": 0.0}
"""No reference, and so a single graph."""


def nothing(_: Any) -> None:
    """Leaves a pipeline as it is."""


def cache(pipe: Any) -> None:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))


def mag(pipe: Any) -> None:
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=3, mag_ratios=[1.0] * 3, max_skip_steps=1))


def group(pipe: Any) -> None:
    apply_offload(pipe, "group", "cpu")


def count_graphs_by_step(
    pipe: Any, expected: torch.Tensor, behind: Callable[[Any], None] = nothing, **settings: Any
) -> list[int]:
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
    torch.testing.assert_close(generate(pipe, callback_on_step_end=note, **settings), expected)
    return counts


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


# Graphs: without a reference (the null of guidance), with one, and the last expert, whose reference nobody reads.
# One-way there are two of a reference alone and two of the target. CogVideoX's first block is given views of a tensor.
@pytest.mark.parametrize(("kind", "num_graphs"), [("joint", 3), ("cached", 4), ("cogvideox", 4)])
def test_blocks_compile_once_in_whole_graphs(kind: str, num_graphs: int) -> None:
    pipe = make(kind)
    expected = generate(pipe)
    assert count_graphs_by_step(pipe, expected) == [num_graphs] * 3
    with pytest.raises(InputError, match="compiled already"):
        compile_transformer(pipe)
    for choose, message in REFUSED if kind == "joint" else []:
        with pytest.raises(InputError, match=message) as refused:
            choose(pipe)
        assert "\n" not in str(refused.value)
    assert torch.equal(generate(pipe), expected), "nothing of what was refused is left behind"


# As many graphs as without, and whole ones: what skips or fetches a block does so outside of them.
def test_a_block_cache_and_group_offload_go_with_compiled_blocks() -> None:
    pipe, expected = make("joint"), make("joint")
    cache(expected)
    group(pipe)
    assert count_graphs_by_step(pipe, generate(expected), cache) == [3] * 3
    pipe.transformer.disable_cache()
    expected.transformer.disable_cache()
    assert torch.equal(generate(pipe), generate(expected)), "switched off, it is as if it never was"


def test_blocks_with_a_cache_are_compiled_beneath_it() -> None:
    pipe, expected = make("joint"), make("joint")
    mag(expected)
    mag(pipe)
    assert count_graphs_by_step(pipe, generate(expected, **ALONE), **ALONE) == [1] * 3


def test_quantised_behind_compiling_it_is_as_before_it() -> None:
    expected = make("joint")
    apply_storage(expected, "nf4")
    pipe = make("joint")
    compile_transformer(pipe, backend="eager")
    apply_storage(pipe, "nf4")
    torch.testing.assert_close(generate(pipe, **ALONE), generate(expected, **ALONE))


def test_offloaded_as_a_whole_it_compiles() -> None:
    pipe = make("joint")
    apply_offload(pipe, "model", "cpu")
    assert count_graphs_by_step(pipe, generate(pipe, **ALONE), **ALONE) == [1] * 3, (
        "nothing is compiled anew behind the first step"
    )


class Block(torch.nn.Module):
    def forward(self, values: torch.Tensor, way: str) -> torch.Tensor:
        return values + len(way)


class Blocks(torch.nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()


def test_more_graphs_than_torch_expects() -> None:
    model: Any = Blocks()
    graphs: list[torch.fx.GraphModule] = []

    def keep_graph(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_blocks(model, backend=keep_graph)
    for count in range(1, 13):
        assert torch.equal(model.block(torch.zeros(1), "x" * count), torch.tensor([float(count)]))
    assert len(graphs) == 12, "torch refuses a ninth unless it is told"


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="install one"):
        compile_transformer(make("joint"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiler_of_torch_gives_the_same() -> None:
    pipe = make("joint")
    expected = generate(pipe, **ALONE)
    compile_transformer(pipe)
    torch.testing.assert_close(generate(pipe, **ALONE), expected, atol=1e-4, rtol=1e-4)
