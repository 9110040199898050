"""Compiled blocks with experts: whole graphs, each kind of block once, and nothing anew from step to step."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipelines.factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline
from sememe.errors import InputError
from sememe.pipelines.acceleration import compile_transformer
from sememe.pipelines.memory import apply_offload, apply_storage


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


def count_graphs_by_step(pipe: Any, expected: torch.Tensor) -> list[int]:
    """Compiles, generates what is expected, and tells how many graphs there were behind each step."""
    graphs: list[int] = []
    counts: list[int] = []

    def keep_graph(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    def note(*_: Any) -> dict[str, Any]:
        counts.append(len(graphs))
        return {}

    compile_transformer(pipe, backend=keep_graph)
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


@pytest.mark.parametrize(
    ("storage", "kind", "level", "message"),
    [
        ("full", "group", "leaf", "layer by layer"),
        ("full", "sequential", "block", "layer by layer"),
        ("fp8", "none", "block", "fp8 storage casts weights within a block"),
    ],
)
def test_what_no_graph_can_hold_is_refused(storage: str, kind: str, level: str, message: str) -> None:
    pipe = make("joint")
    apply_storage(pipe, storage)
    apply_offload(pipe, kind, "cpu", group_level=level)
    with pytest.raises(InputError, match=message):
        compile_transformer(pipe, backend="eager")


@pytest.mark.parametrize("mode", ["joint", "cached"])
@pytest.mark.parametrize("kind", ["model", "group"])
def test_offloaded_as_a_whole_or_by_block_it_compiles(mode: str, kind: str) -> None:
    pipe = make(mode)
    apply_offload(pipe, kind, "cpu")
    expected = generate(pipe)
    counts = count_graphs_by_step(pipe, expected)
    assert counts[0] > 0
    assert counts == counts[:1] * 3, "nothing is compiled anew behind the first step"


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
