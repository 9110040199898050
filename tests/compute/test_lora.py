"""LoRA on a pipeline with an expert: the backbone's as on the stock class, the expert's apart."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.loaders import WanLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.lora import LORA_NAME, add_expert_adapter, load_expert_adapter, save_expert_adapter
from sememe.errors import InputError, ModelError
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

# Endings that backbone and expert have alike.
TARGETS = ["to_q", "to_out.0", "linear_1", "proj_out"]
each_family = pytest.mark.parametrize("family", ["wan", "cogvideox"])


def make(family: str) -> Any:
    return make_pipeline("joint") if family == "wan" else make_cogvideox_pipeline()


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(InputError, match=r"a finite scale for the LoRA weights .*a\.safetensors, got nan"):
        _ = LoadingSettings(lora=(f"{tmp_path}/a.safetensors:nan",)).adapters


def make_stock(pipe: Any) -> Any:
    """The stock class with the pipeline's backbone."""
    model = pipe.transformer
    names = model.config.keys() - set(model.own_settings)
    stock = model.backbone_class(**{name: model.config[name] for name in names if not name.startswith("_")})
    own = {key: tensor for key, tensor in model.state_dict().items() if not model.key_map.is_expert_key(key)}
    stock.load_state_dict(own)
    return stock.eval()


@torch.no_grad()
def train(model: Any) -> None:
    """A new adapter changes nothing; this one is as if trained."""
    random = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))


def write_lora(pipe: Any, folder: Path, *, has_settings: bool = True) -> Any:
    """Weights as a trainer of the stock class writes them; gives the stock class with them."""
    stock = make_stock(pipe)
    stock.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS), "a")
    train(stock)
    settings = stock.peft_config["a"].to_dict() if has_settings else None
    if settings is not None:
        settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    layers = get_peft_model_state_dict(stock, adapter_name="a")
    WanLoraLoaderMixin.save_lora_weights(folder, layers, transformer_lora_adapter_metadata=settings)
    if not has_settings:
        stock.set_adapters("a", 0.5)  # nobody says alpha, so it is taken for equal to the rank
    return stock


def make_target(pipe: Any) -> dict[str, Any]:
    if pipe.family.name == "wan":
        return wan_factories.make_target()
    return cogvideox_factories.make_target(pipe.transformer)


@torch.no_grad()
def predict(model: Any, target: Mapping[str, Any]) -> torch.Tensor:
    return model(**target).sample


def expert_tensors(pipe: Any) -> dict[str, torch.Tensor]:
    tensors = pipe.transformer.state_dict()
    return {key: tensors[key].clone() for key in tensors if pipe.transformer.key_map.is_expert_key(key)}


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def adapted(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


@each_family
def test_loading_scaling_fusing_and_unloading_leave_the_expert_alone(family: str, tmp_path: Path) -> None:
    pipe = make(family)
    stock, target = write_lora(pipe, tmp_path), make_target(pipe)
    plain, expert, whole = predict(pipe.transformer, target), expert_tensors(pipe), pipe.transformer.state_dict()

    pipe.load_lora_weights(tmp_path, adapter_name="a")
    assert adapted(pipe.transformer) == adapted(stock)
    assert equal(expert_tensors(pipe), expert)
    assert torch.equal(predict(pipe.transformer, target), predict(stock, target))
    assert not torch.allclose(predict(stock, target), plain, atol=1e-2)
    with pytest.raises(InputError, match="'a' is loaded already"):
        pipe.load_lora_weights(tmp_path, adapter_name="a")
    with pytest.raises(InputError, match="adapters are loaded \\(a\\)"):
        pipe.save_pretrained(tmp_path / "saved")

    pipe.set_adapters("a", 0.5)
    stock.set_adapters("a", 0.5)
    half = predict(stock, target)
    assert torch.equal(predict(pipe.transformer, target), half)

    pipe.fuse_lora(adapter_names=["a"])
    assert equal(expert_tensors(pipe), expert)
    torch.testing.assert_close(predict(pipe.transformer, target), half, atol=1e-5, rtol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert equal(expert_tensors(pipe), expert)
    after = pipe.transformer.state_dict()
    assert after.keys() == whole.keys()
    torch.testing.assert_close(predict(pipe.transformer, target), plain, atol=1e-5, rtol=1e-4)


@each_family
def test_weights_without_settings_touch_no_expert_either(family: str, tmp_path: Path) -> None:
    pipe = make(family)
    stock, target = write_lora(pipe, tmp_path, has_settings=False), make_target(pipe)
    pipe.load_lora_weights(tmp_path)
    assert adapted(pipe.transformer) == adapted(stock)
    torch.testing.assert_close(predict(pipe.transformer, target), predict(stock, target), atol=1e-6, rtol=1e-5)


@each_family
def test_new_adapters_of_the_backbone_spare_the_expert(family: str) -> None:
    pipe = make(family)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "linear_1"], exclude_modules=["linear_1"]))
    names = adapted(pipe.transformer)
    assert len(names) == (6 if family == "wan" else 3)
    assert all(name.endswith("to_q") and "expert" not in name for name in names)


def test_a_step_distilled_lora_needs_one_forward_per_step(tmp_path: Path) -> None:
    """In the form in which such files go round: the original names, with alphas and differences of biases."""
    random, tensors = torch.Generator().manual_seed(0), {}
    for index in range(3):
        for attention in ("self_attn", "cross_attn"):
            for name in "qkvo":
                stem = f"diffusion_model.blocks.{index}.{attention}.{name}"
                tensors[f"{stem}.lora_down.weight"] = torch.randn(2, 48, generator=random)
                tensors[f"{stem}.lora_up.weight"] = 0.1 * torch.randn(48, 2, generator=random)
                tensors[f"{stem}.alpha"] = torch.tensor(1.0)
                tensors[f"{stem}.diff_b"] = 0.1 * torch.randn(48, generator=random)
    safetensors.torch.save_file(tensors, tmp_path / "distilled.safetensors")
    pipe = make("wan")
    expert = expert_tensors(pipe)
    layer = pipe.transformer.blocks[1].attn1.to_q
    pipe.load_lora_weights(tmp_path / "distilled.safetensors")
    assert equal(expert_tensors(pipe), expert)
    features = torch.randn(1, 48)
    down, up, shift = (
        tensors[f"diffusion_model.blocks.1.self_attn.q.{name}"]
        for name in ("lora_down.weight", "lora_up.weight", "diff_b")
    )
    wanted = layer(features) + 0.5 * features @ down.T @ up.T + shift
    torch.testing.assert_close(pipe.transformer.blocks[1].attn1.to_q(features), wanted)

    forwards: list[int] = []
    pipe.transformer.proj_out.register_forward_hook(lambda *_: forwards.append(1))
    given = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    result = pipe(**given, num_inference_steps=4, guidance_scale=1.0, reference_guidance_scale=1.0)
    assert len(forwards) == 4
    assert result.frames.isfinite().all()


@each_family
def test_weights_that_do_not_fit_are_refused_in_one_line(family: str, tmp_path: Path) -> None:
    pipe = make(family)
    other = "transformer_blocks" if family == "wan" else "blocks"
    own = pipe.transformer.key_map.blocks

    def lora(path: str, width: int = 48 if family == "wan" else 32) -> dict[str, torch.Tensor]:
        name = f"transformer.{path}"
        return {f"{name}.lora_A.weight": torch.zeros(2, width), f"{name}.lora_B.weight": torch.zeros(width, 2)}

    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_lora_weights.bin").write_bytes(b"x")
    for source, message in (
        (lora(f"{other}.0.attn1.to_q"), f"another model: it changes {other}.0.attn1.to_q"),
        (lora(f"{own}.3.attn1.to_q"), f"{own}.3.attn1.to_q, which a .* such as this does not have"),
        (lora(f"{own}.0.attn1.to_q", 5120), "lora_A.weight has width 5120, where this one has"),
        (lora(f"{own}.0.expert.projection.to_q"), "an adapter of the expert .* use load_expert_adapter"),
        ({"unet.lora_A.weight": torch.zeros(2, 2)}, "no LoRA weights of a transformer"),
        ({"transformer.weight": torch.zeros(2, 2)}, "another model"),
        (tmp_path / "empty", "no LoRA weights"),
        (tmp_path / "pickled", "no LoRA weights"),
    ):
        with pytest.raises(ModelError, match=message) as refused:
            pipe.load_lora_weights(source, local_files_only=True)
        assert "\n" not in str(refused.value)
    assert adapted(pipe.transformer) == []


class Canary:
    """What appears as a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".bin", ""])
@pytest.mark.parametrize("way", ["weight_name", "file", "both", "safetensors_and_weight_name"])
def test_pickled_weights_are_never_read(suffix: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary, pickled, pipe = tmp_path / "canary", tmp_path / f"lora{suffix}", make("wan")
    torch.save({"transformer.blocks.0.attn1.to_q.lora_A.weight": Canary(canary)}, pickled)
    write_lora(pipe, tmp_path)
    # As a torch whose own protection can be evaded.
    unpickle = functools.partial(torch.load, weights_only=False)  # noqa: TID251 (the trap)
    monkeypatch.setattr(torch, "load", lambda file, **_: unpickle(file))
    source = {
        "weight_name": tmp_path,
        "file": pickled,
        "both": pickled,
        "safetensors_and_weight_name": tmp_path / "pytorch_lora_weights.safetensors",
    }[way]
    with pytest.raises(ModelError, match=r"in a \.safetensors file, got lora") as refused:
        pipe.load_lora_weights(source, **({} if way == "file" else {"weight_name": pickled.name}))
    assert "\n" not in str(refused.value)
    assert not canary.exists()
    unpickle(pickled)
    assert canary.exists(), "the trap does not work"


def test_a_misspelt_or_damaged_file_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"dear diary")
    pipe = make("wan")
    for name, message in (("nope.safetensors", "there is no such file"), ("damaged.safetensors", "no LoRA weights")):
        with pytest.raises(ModelError, match=message):
            pipe.load_lora_weights(tmp_path / name)


@each_family
def test_an_adapter_of_the_expert_saves_and_loads_alone(family: str, tmp_path: Path) -> None:
    pipe, target = make(family), make_target(make(family))
    model = pipe.transformer
    random = wan_factories.make_reference() if family == "wan" else cogvideox_factories.make_reference()
    plain, backbone = predict(model, target), model(**target, reference=random).sample
    add_expert_adapter(model, LoraConfig(r=2, target_modules=TARGETS), "style")
    train(model)
    assert all("expert" in name for name in adapted(model))
    assert torch.equal(predict(model, target), plain), "without a reference there is only the backbone"
    expected = model(**target, reference=random).sample
    assert not torch.allclose(expected, backbone, atol=1e-3)
    save_expert_adapter(model, tmp_path, "style")
    assert [path.name for path in tmp_path.iterdir()] == [LORA_NAME]

    other = make(family).transformer
    load_expert_adapter(other, tmp_path, "style")
    assert adapted(other) == adapted(model)
    torch.testing.assert_close(other(**target, reference=random).sample, expected)
    with pytest.raises(ModelError, match="no adapter 'other', only"):
        save_expert_adapter(other, tmp_path, "other")
    with pytest.raises(ModelError, match="found nothing there"):
        load_expert_adapter(other, tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no layer of the expert"):
        add_expert_adapter(make(family).transformer, LoraConfig(r=2, target_modules=["proj_out"]))
    fewer = wan_factories.make_transformer(expert_blocks=[0]) if family == "wan" else None
    if fewer is not None:
        with pytest.raises(ModelError, match="another model"):
            load_expert_adapter(fewer, tmp_path)
