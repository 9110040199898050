"""Experts on CogVideoX under what wraps modules by their forward: sharding of parameters and offloading of blocks."""

import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from diffusers.hooks import apply_group_offloading
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from video_as_prompt.cogvideox_factories import LEARNED, make_reference, make_target, make_transformer


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
@pytest.mark.parametrize("mode", ["cached", "joint"])
def test_fully_sharded_blocks_give_the_same_gradients(mode: str) -> None:
    reference = make_reference()
    gradients = []
    for sharded in (False, True):
        model = make_transformer(attention_mode=mode)
        model.freeze_backbone()
        target = make_target(model)
        if sharded:
            mesh = init_device_mesh("cpu", (1,))
            for block in model.transformer_blocks:
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


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("mode", ["cached", "joint"])
@torch.no_grad()
def test_group_offloading_gives_the_same_result(mode: str, kind: str) -> None:
    model = make_transformer(attention_mode=mode, **LEARNED)
    target, reference = make_target(model), make_reference()
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
