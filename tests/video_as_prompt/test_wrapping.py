"""Experts under what wraps modules by their forward: sharding of parameters and offloading of blocks."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers.hooks import apply_group_offloading
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from video_as_prompt import cogvideox_factories, wan_factories

both_modes = pytest.mark.parametrize("mode", ["cached", "joint"])


@pytest.fixture
def process_group() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [wan_factories, cogvideox_factories], ids=["wan", "cogvideox"])
@both_modes
def test_fully_sharded_blocks_give_the_same_gradients(family: Any, mode: str) -> None:
    reference = family.make_reference()
    gradients = []
    for sharded in (False, True):
        model = family.make_transformer(attention_mode=mode)
        model.freeze_backbone()
        target = family.make_target(model)
        if sharded:
            mesh = init_device_mesh("cpu", (1,))
            for block in getattr(model, model.key_map.blocks):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            register_fsdp_forward_method(model, "encode_reference")
        given = model.encode_reference(reference) if mode == "cached" else reference
        model(**target, reference=given).sample.square().mean().backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        gradients.append({name: grad.full_tensor() if sharded else grad for name, grad in found.items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(
    ("family", "settings"),
    [(wan_factories, {}), (cogvideox_factories, cogvideox_factories.LEARNED)],
    ids=["wan", "cogvideox"],
)
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@both_modes
@torch.no_grad()
def test_group_offloading_gives_the_same_result(family: Any, settings: dict[str, Any], mode: str, kind: str) -> None:
    model, reference = family.make_transformer(attention_mode=mode, **settings), family.make_reference()
    target = family.make_target(model)
    expected = model(**target, reference=reference).sample
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
    )
    if mode == "cached":
        cache = model.encode_reference(reference)
        assert torch.equal(model(**target, reference=cache).sample, expected)
    assert torch.equal(model(**target, reference=reference).sample, expected)
