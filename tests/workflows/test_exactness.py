"""The label of a result: exact, adapted or approximate, and why, whatever made it so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig

from generation_requests import vary
from model_folders import make_stock, save_model, save_published
from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.placement import apply_storage, enable_tiling
from sememe.video import write_clip, write_image
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.video_as_prompt.model_folders import read_own_dtype
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
from sememe.workflows.generate import GenerationRequest, generate
from sememe.workflows.loading import LoadedModel, load_model
from sememe.workflows.sidecar import describe_exactness
from video_as_prompt.pipeline_factories import make_clip, make_picture, make_pipeline
from video_as_prompt.wan_factories import make_wan_vae

SETTINGS = Settings().override(height=32, width=48)


def label(model: LoadedModel, **settings: Any) -> dict[str, Any]:
    return describe_exactness(SETTINGS.override(**settings), model)


@pytest.fixture
def model(model_folder: Path) -> LoadedModel:
    return load_model(VIDEO_AS_PROMPT, str(model_folder), LoadingSettings(device="cpu"))


def test_another_precision_is_approximate_without_a_plan_too(model_folder: Path, tmp_path: Path) -> None:
    write_clip(make_clip(), tmp_path / "reference.mp4")
    write_image(make_picture(), tmp_path / "image.png")
    inputs = VideoAsPromptInputs(references=(tmp_path / "reference.mp4",), image=tmp_path / "image.png")
    loading = LoadingSettings(device="cpu")
    request = GenerationRequest(
        inputs=inputs, output=tmp_path / "out.mp4", model=str(model_folder), seed=7, loading=loading
    )
    for dtype in ("bfloat16", "float16"):
        document = generate(vary(request, dtype=dtype)).document
        assert document["exactness"]["label"] == "approximate"
        assert document["exactness"]["shortcuts"] == [f"{dtype} in place of float32"]
        assert (document["model"]["dtype"], document["model"]["own_dtype"]) == (dtype, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_released_models_have_the_precision_of_their_files(dtype: str, tmp_path: Path) -> None:
    folder = save_published(tmp_path / "published")
    torch_dtype = getattr(torch, dtype)
    from sememe.video_as_prompt.transformer_files import load_merged, save_merged

    save_merged(load_merged(folder / "transformer", torch_dtype), folder / "transformer")
    assert read_own_dtype(folder) == dtype
    for used in ("float32", "bfloat16", "float16"):
        told = label(load_model(VIDEO_AS_PROMPT, str(folder), LoadingSettings(device="cpu", dtype=used)))
        expected = [] if used in (dtype, "float32") else [f"{used} in place of {dtype}"]
        assert told["shortcuts"] == expected, used


def test_models_with_a_timestep_for_each_token_have_a_precision(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "ti2v", in_channels=4, expand_timesteps=True)
    assert label(load_model(VIDEO_AS_PROMPT, str(folder), LoadingSettings(device="cpu")))["label"] == "exact"
    told = label(load_model(VIDEO_AS_PROMPT, str(folder), LoadingSettings(device="cpu", dtype="bfloat16")))
    assert told["shortcuts"] == ["bfloat16 in place of float32"]


def test_an_expert_apart_counts(model_folder: Path, tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    make_pipeline(vae="wan").to(torch.bfloat16).save_pretrained(stock)
    make_stock(stock, "WanImageToVideoPipeline")
    # Half of the numbers are a float32 expert's, which take more bytes than the backbone's.
    assert read_own_dtype(stock, model_folder / "expert") == "float32"
    halved = tmp_path / "halved"
    make_pipeline().to(torch.bfloat16).save_pretrained(halved)
    assert read_own_dtype(stock, halved / "expert") == "bfloat16"


@pytest.mark.parametrize("mode", ["cached", "joint"])
@pytest.mark.parametrize(("vae", "dtype"), [("linear", "float32"), ("wan", "bfloat16")])
def test_what_is_trained_here_computes_in_float32_however_it_is_stored(
    mode: str, vae: str, dtype: str, tmp_path: Path
) -> None:
    make_pipeline(mode, vae).to(torch.bfloat16).save_pretrained(tmp_path)
    assert read_own_dtype(tmp_path) == dtype
    assert load_model(VIDEO_AS_PROMPT, str(tmp_path), LoadingSettings(device="cpu")).dtype == dtype


def test_what_was_set_up_on_the_pipeline_is_told(model: LoadedModel) -> None:
    model.pipeline.register_modules(vae=make_wan_vae())
    assert label(model) == {"label": "exact", "shortcuts": [], "adapters": []}
    enable_tiling(model.pipeline.vae)
    assert label(model)["label"] == "exact", "one tile covers all of it"
    assert label(model, width=512)["shortcuts"] == ["autoencoder in tiles"]
    model.pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    assert label(model)["shortcuts"] == ["feature cache FirstBlockCache"]
    model.pipeline.transformer.disable_cache()
    apply_storage(model.pipeline, "fp8")
    assert label(model) == {"label": "approximate", "shortcuts": ["weights stored as fp8"], "adapters": []}


def test_quantised_weights_are_told(model: LoadedModel) -> None:
    pytest.importorskip("torchao")
    apply_storage(model.pipeline, "int8wo")
    assert label(model)["shortcuts"] == ["weights quantised by torchao"]


def test_lora_weights_are_named(model: LoadedModel) -> None:
    pipeline = model.pipeline
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "quick")
    assert label(model) == {"label": "adapted", "shortcuts": [], "adapters": ["quick"]}
    assert label(model, autocast="bfloat16")["label"] == "approximate"
    pipeline.disable_lora()
    assert label(model)["label"] == "exact"
    pipeline.enable_lora()
    pipeline.fuse_lora(adapter_names=["quick"], components=["transformer"])
    pipeline.unload_lora_weights()
    assert label(model)["adapters"] == ["quick"], "fused it stays in the weights"


def test_attention_in_8_bits_is_told(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for processor in model.pipeline.transformer.attn_processors.values():
        monkeypatch.setattr(processor, "_attention_backend", "sage")
    assert label(model)["shortcuts"] == ["attention backend sage"]
