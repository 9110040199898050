"""Weights in fewer bits: how far results move, what is left alone, and what is refused."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from sememe.compute.placement import apply_offload, apply_storage, cast_layerwise
from sememe.compute.storage import find_library, quantizable_layers, quantize_transformer
from sememe.errors import InputError, MissingExtraError
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

# Relative distance of a forward, with room above what was seen: 0.0012, 0.0022, 0.0076, 0.0013 and 0.03.
BOUNDS = {"int8wo": 0.005, "int8dq": 0.01, "fp8wo": 0.03, "int8": 0.005, "nf4": 0.1}
KEPT = ("embed", "norm", "proj_out", "modulation")


def make_model(family: str, mode: str = "cached") -> Any:
    made: Any = wan_factories if family == "wan" else cogvideox_factories
    return made.make_transformer(attention_mode=mode)


@torch.no_grad()
def predict(model: Any, family: str) -> torch.Tensor:
    if family == "wan":
        return model(**wan_factories.make_target(), reference=wan_factories.make_reference()).sample
    target = cogvideox_factories.make_target(model)
    return model(**target, reference=cogvideox_factories.make_reference()).sample


def measure_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def generate(pipe: VideoAsPromptPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipe(make_picture(), [make_clip()], generator=generator, output_type="latent").frames


@pytest.mark.parametrize("mode", ["cached", "joint"])
@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_fp8_storage_is_rounding_of_the_layers_and_nothing_else(family: str, mode: str) -> None:
    plain = predict(make_model(family, mode), family)
    rounded, cast = make_model(family, mode), make_model(family, mode)
    cast_layerwise(cast)
    stored = {name for name, weight in cast.named_parameters() if weight.dtype == torch.float8_e4m3fn}
    assert stored
    assert not [name for name in stored if any(part in name for part in KEPT)]
    linear = {f"{name}.weight" for name, _ in quantizable_layers(rounded)}
    assert linear <= stored
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if name in stored:
                weight.copy_(weight.to(torch.float8_e4m3fn).to(weight.dtype))
    found = predict(cast, family)
    assert torch.equal(found, predict(rounded, family))
    assert 0.0 < measure_distance(found, plain) < 0.05
    assert cast.dtype == torch.float32
    # After a forward the weights are small again.
    assert all(dict(cast.named_parameters())[name].dtype == torch.float8_e4m3fn for name in stored)


@pytest.mark.parametrize("parts", ["backbone", "expert"])
def test_fp8_storage_of_one_part(parts: str) -> None:
    model = make_model("wan")
    cast_layerwise(model, parts)
    owners = {
        model.key_map.is_expert_key(name)
        for name, weight in model.named_parameters()
        if weight.dtype == torch.float8_e4m3fn
    }
    assert owners == {parts == "expert"}


def test_fp8_storage_computes_in_bfloat16() -> None:
    pipe = make_pipeline()
    pipe.transformer.to(torch.bfloat16)
    expected = generate(pipe)
    apply_storage(pipe, "fp8")
    assert pipe.transformer.dtype == torch.bfloat16
    assert 0.0 < measure_distance(generate(pipe), expected) < 0.1


@pytest.mark.parametrize(
    ("make", "storage"),
    [(make_pipeline, "fp8"), (make_cogvideox_pipeline, "int8wo"), (make_pipeline, "nf4")],
)
def test_a_generation_with_small_weights(make: Any, storage: str) -> None:
    expected = generate(make())
    pipe = make()
    apply_storage(pipe, storage)
    apply_offload(pipe, "model", "cpu")
    assert 0.0 < measure_distance(generate(pipe), expected) < 0.1


@pytest.mark.parametrize("storage", ["fp8", "int8wo"])
def test_small_weights_under_group_offload(storage: str) -> None:
    pipe, offloaded = make_pipeline(), make_pipeline()
    for each in (pipe, offloaded):
        apply_storage(each, storage)
    apply_offload(offloaded, "group", "cpu")
    assert torch.equal(generate(offloaded), generate(pipe))


@pytest.mark.parametrize(
    ("family", "kind"), [*(("wan", kind) for kind in BOUNDS), ("cogvideox", "int8wo"), ("cogvideox", "nf4")]
)
def test_quantised_backbone_and_both(family: str, kind: str) -> None:
    expected = predict(make_model(family), family)
    distances = []
    for parts in ("backbone", "both"):
        model = make_model(family)
        names = [name for name, _ in quantizable_layers(model, parts)]
        assert names
        assert not [name for name in names if any(part in name for part in KEPT)]
        assert any(".expert." in name for name in names) == (parts == "both")
        untouched = [name for name, _ in quantizable_layers(model) if name not in names]
        quantize_transformer(model, kind, parts)
        assert all(find_library(model.get_submodule(name)) for name in names)
        assert not any(find_library(model.get_submodule(name)) for name in untouched)
        found = predict(model, family)
        assert torch.isfinite(found).all()
        distances.append(measure_distance(found, expected))
    assert min(distances) > 0.0
    assert max(distances) < BOUNDS[kind]
    assert torch.get_float32_matmul_precision() == "highest", "other networks of the process compute as before"


@pytest.mark.parametrize("kind", ["int8wo", "nf4"])
def test_quantised_weights_compute_in_bfloat16(kind: str) -> None:
    model = make_model("wan").to(torch.bfloat16)
    target = {
        key: value if key == "timestep" else value.to(torch.bfloat16)
        for key, value in wan_factories.make_target().items()
    }
    with torch.no_grad():
        expected = model(**target).sample
        quantize_transformer(model, kind)
        assert model.dtype == torch.bfloat16
        assert measure_distance(model(**target).sample, expected) < BOUNDS[kind] + 0.02


@pytest.mark.parametrize(("kind", "library"), [("fp8wo", "torchao"), ("nf4", "bitsandbytes")])
def test_without_its_extra_quantisation_says_what_to_install(
    kind: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    model = make_model("wan")
    with pytest.raises(MissingExtraError, match=rf"{library} is not installed; .* pip install 'sememe\[quant\]'"):
        quantize_transformer(model, kind)
    assert all(type(layer) is nn.Linear for _, layer in quantizable_layers(model))


def test_what_cannot_be_is_refused() -> None:
    pipe = make_pipeline()
    for storage, parts, message in (
        ("int3", "both", "expected storage to be one of full, fp8, int8wo, .*, got 'int3'"),
        ("fp8", "half", "expected parts to be one of backbone, expert, both, got 'half'"),
    ):
        with pytest.raises(InputError, match=message):
            apply_storage(pipe, storage, parts)
    apply_storage(pipe, "full")
    apply_storage(pipe, "nf4")
    for again in ("fp8", "int8wo"):
        with pytest.raises(InputError, match="in fewer bits already"):
            apply_storage(pipe, again)
    with pytest.raises(InputError, match="quantised already"):
        quantize_transformer(pipe.transformer, "int8")
    for kind, message in (("group", "bitsandbytes cannot be offloaded in groups"), ("sequential", "layer by layer")):
        with pytest.raises(InputError, match=message):
            apply_offload(pipe, kind, "cpu")


@pytest.mark.parametrize(("storage", "kind"), [("fp8", "sequential"), ("int8wo", "group"), ("nf4", "group")])
def test_the_storage_is_chosen_before_the_offload(storage: str, kind: str) -> None:
    pipe = make_pipeline()
    expected = generate(pipe)
    apply_offload(pipe, kind, "cpu")
    with pytest.raises(InputError, match="choose the storage first, then the offload") as refused:
        apply_storage(pipe, storage)
    assert "\n" not in str(refused.value)
    assert torch.equal(generate(pipe), expected)
