"""LoRA on a backbone whose weights are in fewer bits, or not on the device: the same, or one line that says why not."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig

from compute.hidden_weights import hide_offloaded
from compute.test_lora import TARGETS, each_family, make, make_target, predict, train, write_lora
from sememe.compute.lora import add_expert_adapter, load_expert_adapter, save_expert_adapter
from sememe.compute.placement import apply_offload, apply_storage
from sememe.compute.storage import ADAPTER_LAYER_PATTERN, find_storage, quantizable_layers
from sememe.errors import InputError, ModelError
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from video_as_prompt.pipeline_factories import make_clip, make_picture, make_pipeline


@dataclass(frozen=True)
class Expected:
    """Latents of a pipeline that is not offloaded: plain, and with an adapter, loaded and fused; and the adapter."""

    plain: torch.Tensor
    loaded: torch.Tensor
    fused: torch.Tensor
    folder: Path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    pipe, folder = make("wan"), tmp_path_factory.mktemp("adapter")
    plain = generate(pipe)
    write_lora(pipe, folder)
    pipe.load_lora_weights(folder)
    loaded = generate(pipe)
    pipe.fuse_lora()
    return Expected(plain, loaded, generate(pipe), folder)


KINDS = [("model", "block"), ("sequential", "block"), ("group", "block"), ("group", "leaf")]


def generate(pipe: Any) -> torch.Tensor:
    given = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    return pipe(**given, generator=torch.Generator().manual_seed(0)).frames


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if re.search(ADAPTER_LAYER_PATTERN, name)}


def in_one_line(refused: Any) -> bool:
    return "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("wan", "int8wo"),
        ("wan", "int8dq"),
        ("wan", "int8"),
        ("wan", "nf4"),
        ("cogvideox", "fp8wo"),
        ("cogvideox", "nf4"),
    ],
)
def test_quantised_before_or_after_it_is_the_same(family: str, kind: str, tmp_path: Path) -> None:
    before, after = make(family), make(family)
    write_lora(before, tmp_path)
    names = [name for name, _ in quantizable_layers(before.transformer)]
    apply_storage(before, kind)
    before.load_lora_weights(tmp_path, adapter_name="a")
    after.load_lora_weights(tmp_path, adapter_name="a")
    assert [name.replace(".base_layer", "") for name, _ in quantizable_layers(after.transformer)] == names
    kept = {name: weight.clone() for name, weight in adapter_weights(after.transformer).items()}
    assert kept
    apply_storage(after, kind)
    found = adapter_weights(after.transformer)
    assert all(torch.equal(found[name], weight) for name, weight in kept.items())
    assert find_storage(found.values()) is None
    target = make_target(before)
    assert torch.equal(predict(after.transformer, target), predict(before.transformer, target))
    after.unload_lora_weights()
    before.unload_lora_weights()
    assert torch.equal(predict(after.transformer, target), predict(before.transformer, target))


@each_family
def test_fp8_storage_rounds_adapted_layers_and_spares_adapters(family: str, tmp_path: Path) -> None:
    pipe, rounded = make(family), make(family)
    write_lora(pipe, tmp_path)
    for each in (pipe, rounded):
        each.load_lora_weights(tmp_path, adapter_name="a")
    apply_storage(pipe, "fp8")
    stored = {name for name, weight in pipe.transformer.named_parameters() if weight.dtype == torch.float8_e4m3fn}
    assert any("base_layer" in name for name in stored)
    assert not any(re.search(ADAPTER_LAYER_PATTERN, name) for name in stored)
    with torch.no_grad():
        for name, weight in rounded.transformer.named_parameters():
            if name in stored:
                weight.copy_(weight.to(torch.float8_e4m3fn).to(weight.dtype))
    target = make_target(pipe)
    assert torch.equal(predict(pipe.transformer, target), predict(rounded.transformer, target))
    # Another adapter may take the place of a loaded one, but none be added.
    pipe.load_lora_weights(tmp_path, adapter_name="a", hotswap=True)
    with pytest.raises(ModelError, match=r"the backbone's weights are .* \(fp8\), to which no adapter can be added"):
        pipe.load_lora_weights(tmp_path, adapter_name="b")


def test_adapters_of_an_expert_out_of_reach_are_refused(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=TARGETS)
    trained = make("wan").transformer
    add_expert_adapter(trained, config)
    save_expert_adapter(trained, tmp_path)
    pipe = make("wan")
    apply_storage(pipe, "fp8", "expert")
    for attempt in (
        lambda: add_expert_adapter(pipe.transformer, config),
        lambda: load_expert_adapter(pipe.transformer, tmp_path),
    ):
        with pytest.raises(ModelError, match=r"the expert's weights are .* choose the storage after that") as refused:
            attempt()
        assert in_one_line(refused)
    write_lora(make("wan"), tmp_path)
    pipe.load_lora_weights(tmp_path)  # the backbone's weights are whole
    pipe.fuse_lora()
    offloaded = make("wan")
    apply_offload(offloaded, "sequential", "cpu")
    with pytest.raises(ModelError, match="offloaded layer by layer"):
        add_expert_adapter(offloaded.transformer, config)


@pytest.mark.parametrize("kind", ["fp8", "int8wo", "nf4"])
def test_nothing_is_fused_with_weights_in_fewer_bits(kind: str, tmp_path: Path) -> None:
    pipe = make("wan")
    write_lora(pipe, tmp_path)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    apply_storage(pipe, kind)
    target = make_target(pipe)
    expected = predict(pipe.transformer, target)
    for change in (pipe.fuse_lora, pipe.unfuse_lora):
        with pytest.raises(InputError, match="cannot be fused with weights in fewer bits") as refused:
            change()
        assert in_one_line(refused)
    assert torch.equal(predict(pipe.transformer, target), expected)


@pytest.mark.parametrize(("kind", "level"), KINDS[:2] + KINDS[3:])
def test_loaded_fused_and_unloaded_under_offload(kind: str, level: str, expected: Expected) -> None:
    pipe = make("wan")
    apply_offload(pipe, kind, "cpu", group_level=level)
    pipe.load_lora_weights(expected.folder)
    assert torch.equal(generate(pipe), expected.loaded)
    if kind == "model":
        assert pipe.transformer._hf_hook.execution_device.type == "cpu"
    elif kind == "sequential":
        assert {weight.device.type for weight in pipe.transformer.parameters()} == {"meta"}
    pipe.fuse_lora()
    assert torch.equal(generate(pipe), expected.fused)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    with pytest.raises(ModelError, match="no LoRA weights"):
        pipe.load_lora_weights(expected.folder / "nowhere", local_files_only=True)
    torch.testing.assert_close(generate(pipe), expected.plain, atol=1e-5, rtol=1e-4)


def test_offloaded_parts_stay_offloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_pipeline("cached", clip=True)
    write_lora(expected, tmp_path)
    expected.load_lora_weights(tmp_path)
    latents = generate(expected)
    pipe = make_pipeline("cached", clip=True)
    safe = hide_offloaded(monkeypatch)
    apply_offload(pipe, "none", "cpu", parts=["encoders", "expert"])
    # What has left holds no numbers here; a real pipeline's weights are all there.
    safe.show([*pipe.text_encoder.parameters(), *pipe.image_encoder.parameters(), *pipe.transformer.parameters()])
    pipe.load_lora_weights(tmp_path)
    assert not hasattr(pipe.transformer, "_hf_hook"), "the transformer is no more offloaded than before"
    seen: list[bool] = []
    pipe.transformer.blocks[1].attn1.register_forward_hook(
        lambda *_: seen.append(safe.hides(pipe.text_encoder) and safe.hides(pipe.transformer.expert_embedder))
    )
    assert torch.equal(generate(pipe), latents)
    assert seen
    assert all(seen)


def test_an_adapter_of_the_expert_comes_and_goes_with_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make("wan")
    add_expert_adapter(expected.transformer, LoraConfig(r=2, target_modules=TARGETS))
    train(expected.transformer)
    save_expert_adapter(expected.transformer, tmp_path)
    latents = generate(expected)
    pipe = make("wan")
    assert not torch.equal(generate(pipe), latents)
    safe = hide_offloaded(monkeypatch)
    apply_offload(pipe, "group", "cpu", group_level="leaf")
    safe.show(pipe.transformer.parameters())  # what has left holds no numbers here, as no real weights do
    load_expert_adapter(pipe.transformer, tmp_path)
    assert torch.equal(generate(pipe), latents)
    assert all(id(weight) in safe.values for weight in adapter_weights(pipe.transformer).values())


def test_a_feature_cache_stays_as_layers_change(tmp_path: Path) -> None:
    pipes = [make("wan"), make("wan")]
    write_lora(pipes[0], tmp_path)
    pipes[0].load_lora_weights(tmp_path)
    for pipe in pipes:
        apply_offload(pipe, "group", "cpu")
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    pipes[1].load_lora_weights(tmp_path)
    calls: list[int] = []
    for pipe in pipes:
        pipe.transformer.blocks[-1].attn1.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(generate(pipes[1]), generate(pipes[0]))
    assert len(calls) == 2, "of two steps, the second uses what the first gave"


@pytest.mark.parametrize(("family", "kind"), [("wan", "fp8"), ("wan", "int8wo"), ("wan", "nf4"), ("cogvideox", "int8")])
def test_weights_in_fewer_bits_are_not_saved(family: str, kind: str, tmp_path: Path) -> None:
    pipe = make(family)
    apply_storage(pipe, kind, "backbone")
    model = pipe.transformer
    save: Callable[[Path], None]
    for save in (pipe.save_pretrained, model.save_pretrained, model.save_backbone):
        with pytest.raises(ModelError, match="stored in fewer bits") as refused:
            save(tmp_path / "saved")
        assert in_one_line(refused)
    assert not (tmp_path / "saved").exists()
    model.save_expert(tmp_path / "expert")  # its weights are whole
    other = make(family)
    apply_storage(other, kind, "expert")
    with pytest.raises(ModelError, match="stored in fewer bits"):
        other.transformer.save_expert(tmp_path / "saved")


@pytest.mark.parametrize(("kind", "level"), KINDS)
def test_an_offloaded_pipeline_is_saved_whole(kind: str, level: str, expected: Expected, tmp_path: Path) -> None:
    pipe, plain = make("wan"), make("wan").transformer.state_dict()
    apply_offload(pipe, kind, "cpu", group_level=level)
    pipe.save_pretrained(tmp_path)
    saved = VideoAsPromptPipeline.from_pretrained(tmp_path).transformer.state_dict()
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in plain.items())
    assert torch.equal(generate(pipe), expected.plain)
