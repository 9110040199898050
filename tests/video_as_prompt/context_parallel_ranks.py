"""Two ranks that share out target and reference, each in a process of its own, and what one computes beside it."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from sememe.compute.context_parallel import MESH_NAMES, share_tokens
from sememe.errors import ModelError
from sememe.training.config import TrainingConfig
from sememe.training.loop import train
from sememe.training.networks import make_text_encoder, train_tokenizer
from sememe.training.optimizer import trained_parameters
from sememe.training.stage import Stage
from sememe.video_as_prompt.recipes import smoke_backbone
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.video_as_prompt.stage_settings import ExpertSettings
from sememe.video_as_prompt.stages import BackboneStage, make_transformer
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.stage_data import PAIRS, Latents, Texts

CASES = [("wan", "joint"), ("wan", "cached"), ("cogvideox", "joint"), ("cogvideox", "cached"), ("wan", "backbone")]


def make_wan(mode: str) -> tuple[Any, dict[str, Any], ReferenceInputs]:
    # No expert in the first block: the target is split before there is a reference beside it.
    blocks = [1, 2] if mode == "cached" else None
    model = wan_factories.make_transformer(attention_mode=mode, expert_blocks=blocks)
    return model, wan_factories.make_target(), wan_factories.make_reference(num_frames=(3, 1))


def make_cogvideox(mode: str) -> tuple[Any, dict[str, Any], ReferenceInputs]:
    model = cogvideox_factories.make_transformer(attention_mode=mode)
    # Texts are shared out as well, so their tokens must be even in number.
    target = cogvideox_factories.make_target(model) | {"encoder_hidden_states": torch.randn(2, 6, 16)}
    reference = cogvideox_factories.make_reference(num_frames=(3, 1))
    return model, target, ReferenceInputs(reference.latents, (torch.randn(2, 4, 16), torch.randn(2, 4, 16)))


@torch.no_grad()
def encode(model: Any, reference: ReferenceInputs) -> ReferenceCache | ReferenceTokens:
    if model.config.attention_mode == "cached":
        return model.encode_reference(reference)
    return model.embed_reference(reference)


@torch.no_grad()
def predict(model: Any, target: dict[str, Any], reference: ReferenceInputs) -> list[torch.Tensor]:
    given, again = encode(model, reference), []
    if model.config.attention_mode == "joint":
        names = ("hidden_states", "encoder_hidden_states", "timestep")
        if "image_rotary_emb" not in target:
            names = ("hidden_states", "timestep", "encoder_hidden_states")
        others = {name: value for name, value in target.items() if name not in names}
        refreshed = model.refresh_reference(*(target[name] for name in names), reference=given, **others)
        again = [refreshed.sample, model(**target, reference=refreshed.reference).sample]
    weaker = model(**target, reference=given, reference_strength=0.5).sample
    if "image_rotary_emb" not in target:
        kept = model.rotary_tables(target["hidden_states"])
        again.append(model(**target, reference=given, image_rotary_emb=kept).sample)
    return [model(**target).sample, model(**target, reference=given).sample, weaker, *again]


def compare_all(rank: int, port: int, folder: Path) -> None:
    """Compare every (family, mode); runs are in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    # diffusers counts accelerators, and divides by their number.
    torch.accelerator.device_count = lambda: 1
    for family, mode in CASES:
        if mode == "backbone":
            compare_runs(make_backbone, rank, folder / mode)
            continue
        with pytest.MonkeyPatch.context() as patch:
            # As in a build of torch for accelerators, on a machine that has none.
            patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
            compare(family, mode)
        compare_gradients(family, mode)
        if family == "wan":
            compare_runs(partial(make_expert, mode), rank, folder / mode)
    dist.destroy_process_group()


def compare(family: str, mode: str) -> None:
    torch.manual_seed(0)
    model, target, reference = (make_wan if family == "wan" else make_cogvideox)(mode)
    expected = predict(model, target, reference)
    whole = encode(model, reference)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))
    with pytest.raises(ModelError, match=r"encoded for 1 rank\(s\), but .* among 2"):
        model(**target, reference=whole)
    shares: list[int] = []
    model.proj_out.register_forward_pre_hook(lambda _, inputs: shares.append(inputs[0].shape[1]))
    for got, wanted in zip(predict(model, target, reference), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert set(shares) == {18}, "each rank computes half of the 36 tokens"


def compare_gradients(family: str, mode: str) -> None:
    """By shares of different lengths, of three heads, and with blocks that are computed twice."""
    torch.manual_seed(0)
    factories = wan_factories if family == "wan" else cogvideox_factories
    model = factories.make_transformer(attention_mode=mode, num_attention_heads=3, attention_head_dim=16).train()
    model.freeze_backbone()
    target, reference = factories.make_target(model), factories.make_reference(num_frames=(1, 2))
    # Nine tokens a frame, and, on CogVideoX, five of each text.
    target["hidden_states"] = target["hidden_states"][..., :6, :]
    if "image_rotary_emb" in target:
        target["image_rotary_emb"] = model.rotary_tables(3, 6, 6)
    reference = ReferenceInputs(tuple(each[..., :6, :] for each in reference.latents), reference.text_embeds)
    alone = ReferenceInputs(reference.latents[:1], reference.text_embeds[:1])
    expected = differentiate(model, target, reference, alone)
    share_tokens(model, init_device_mesh("cpu", (1, 1, 2), mesh_dim_names=MESH_NAMES))
    model.enable_gradient_checkpointing()
    found = differentiate(model, target, reference, alone)
    for tensor in found.values():
        dist.all_reduce(tensor)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def differentiate(
    model: Any, target: dict[str, Tensor], reference: ReferenceInputs, alone: ReferenceInputs
) -> dict[str, Tensor]:
    """Gradients of the means of a prediction with references, and of one of a reference alone."""
    model.zero_grad()
    total = model(**target, reference=reference).sample.square().mean()
    total = total + model.denoise_reference(alone, torch.tensor([300.0, 300.0])).square().mean()
    total.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


class OddLatents(Latents):
    """Of 27 tokens, which two ranks cannot share evenly."""

    def select(self, name: str, indices: Tensor) -> Tensor:
        return torch.randn((6, 4, 3, 6, 6), generator=torch.Generator().manual_seed(len(name)))[indices]


def make_expert(mode: str) -> Stage:
    """A stage that also learns from the references alone."""
    model = wan_factories.make_transformer(attention_mode=mode, num_layers=2)
    return ExpertStage(model, Texts(), OddLatents(), ExpertSettings(**PAIRS, reference_weight=0.5))


def make_backbone() -> Stage:
    torch.manual_seed(0)
    recipe, latents = smoke_backbone(), OddLatents()
    tokenizer = train_tokenizer(latents.full_captions, recipe.text)
    text_encoder = make_text_encoder(recipe.text, len(tokenizer))
    return BackboneStage(
        make_transformer(recipe.network, 4, recipe.text.d_model), text_encoder, tokenizer, latents, recipe.settings
    )


def compare_runs(make: Callable[[], Stage], rank: int, folder: Path) -> None:
    """Four steps."""
    # Adam divides a gradient by its own size, and one that is rounding for the most part is divided by epsilon instead.
    config: dict[str, Any] = {"num_steps": 4, "learning_rate": 1e-3, "epsilon": 1e-6, "precision": "fp32"}

    def run(**changes: Any) -> dict[str, Tensor]:
        stage = make()
        train(stage, TrainingConfig(**config, **changes, device="cpu", num_threads=1), folder / "-".join(changes))
        return {name: each.detach() for name, each in trained_parameters(stage.modules()).items()}

    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    found = run(context=2)
    os.environ["WORLD_SIZE"] = "1"
    expected = run() if rank == 0 else found
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
