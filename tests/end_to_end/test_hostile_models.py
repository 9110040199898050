"""Model folders that try to run code: each carries a canary, a file that appears as soon as any of its code runs."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, UMT5EncoderModel
from transformers.integrations import hub_kernels

from cli.runs import Outcome, refused, run_here
from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_folder
from sememe.errors import ModelError
from sememe.video import write_image
from sememe.video_as_prompt.blueprint import read_blueprint
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from video_files import counting_frames, encode

EVIL_TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({canary!r}).touch()
class Evil(PreTrainedTokenizerFast): pass
"""
EVIL_MAP = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
KERNEL = "stranger/kernel@branch"

Run = Callable[[], Outcome]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    path = tmp_path / "outputs"
    path.mkdir()
    return path


@pytest.fixture
def generate(folder: Path, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on good files with the model folder."""
    video = encode(tmp_path / "good.mp4", counting_frames(12))
    write_image(np.full((40, 40, 3), 90, np.uint8), tmp_path / "good.png")
    given = ["--reference", video, "--image", tmp_path / "good.png", "--model", folder, "--output", outputs / "out.mp4"]
    return lambda: run_here(capsys, "generate", "video-as-prompt", *given, "--set", "loading.device=cpu")


@pytest.fixture
def consent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Answers y to every question."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 1000))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, canary: Path) -> None:
    """A machine that has the package which fetches native code from the hub."""

    def get_kernel(*_: object, **__: object) -> ModuleType:
        canary.touch()
        raise ValueError("fetched")

    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "_kernels_available", True, raising=False)  # what older versions ask
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)


def change(path: Path, **settings: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | settings))


@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("class_name", ["AutoTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.usefixtures("consent")
def test_code_of_the_folder_does_not_run_though_a_person_consents(
    place: str, class_name: str, folder: Path, outputs: Path, canary: Path, generate: Run
) -> None:
    (folder / "tokenizer" / "evil.py").write_text(EVIL_TOKENIZER.format(canary=str(canary)))
    change(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="Evil")
    change(folder / "tokenizer" / place, auto_map=EVIL_MAP, model_type="evil")
    change(folder / "model_index.json", tokenizer=["transformers", class_name])
    error = refused(generate())
    assert "auto_map" in error or "AutoTokenizer" in error
    assert not canary.exists()
    assert os.listdir(outputs) == []


@pytest.mark.usefixtures("consent")
def test_the_trap_of_the_tokenizer_works(folder: Path, canary: Path) -> None:
    (folder / "tokenizer" / "evil.py").write_text(EVIL_TOKENIZER.format(canary=str(canary)))
    change(folder / "tokenizer" / "tokenizer_config.json", auto_map=EVIL_MAP, tokenizer_class="Evil")
    AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    assert canary.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.usefixtures("kernels")
def test_a_config_does_not_choose_native_code(
    name: str, folder: Path, outputs: Path, canary: Path, generate: Run
) -> None:
    change(folder / "text_encoder" / "config.json", **{name: KERNEL})
    assert name in refused(generate())
    assert not canary.exists()
    assert os.listdir(outputs) == []
    if name == "attn_implementation":  # which every version of transformers obeys
        with pytest.raises(ValueError, match="fetched"):
            UMT5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        assert canary.exists(), "the trap does not work"


@pytest.mark.parametrize(
    ("part", "method"), [("text_encoder", "gptq"), ("transformer", "bitsandbytes"), ("vae", "torchao")]
)
def test_a_config_does_not_choose_a_quantizer(
    part: str, method: str, folder: Path, outputs: Path, generate: Run
) -> None:
    change(folder / part / "config.json", quantization_config={"quant_method": method, "bits": 4})
    assert "quantization_config" in refused(generate())
    assert os.listdir(outputs) == []


def test_a_nested_setting_is_found(folder: Path, generate: Run) -> None:
    change(folder / "text_encoder" / "config.json", text_config=[{"auto_map": {"AutoModel": "evil.Evil"}}])
    assert "auto_map" in refused(generate())


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "tokenizer/tokenizer_config.json"])
def test_json_that_would_not_end_is_refused(name: str, folder: Path, generate: Run) -> None:
    path = folder / name
    path.write_text("[" * 100_000)
    assert path.name in refused(generate())
    path.write_bytes(b" " * 11_000_000)
    assert "at most 10 MB" in refused(generate())
    path.unlink()
    path.symlink_to("/dev/zero")
    assert path.name in refused(generate())
    path.unlink()
    os.mkfifo(path)
    assert path.name in refused(generate())


def test_what_a_library_would_open_beside_is_a_file(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer" / "special_tokens_map.json")
    (folder / "scheduler" / "chat_template.jinja").symlink_to("/dev/zero")
    for part, name in (("tokenizer", "special_tokens_map.json"), ("scheduler", "chat_template.jinja")):
        with pytest.raises(ModelError, match=f"{name} to be a file of at most 100 MB"):
            load_component(part, folder / part)


@pytest.mark.parametrize(
    ("place", "settings", "message"),
    [
        ("model_index.json", {"_class_name": ["VideoAsPromptPipeline"]}, r"names \['VideoAsPromptPipeline'\]"),
        ("model_index.json", {"vae": "linear"}, "library and class of vae"),
        ("model_index.json", {"generation_defaults": [1]}, "generation_defaults"),
        ("model_index.json", {"generation_defaults": {"height": "tall"}}, "height"),
        ("transformer/config.json", {"num_layers": 100_000}, "num_layers = 1e\\+05"),
        ("transformer/config.json", {"rope_max_seq_len": 10**9}, "rope_max_seq_len = 1e\\+09"),
        ("transformer/config.json", {"num_attention_heads": "two"}, "transformer"),
        ("transformer/config.json", {"eps": {}}, "expected a number as eps"),
        ("text_encoder/config.json", {"num_layers": 100_000}, "num_layers = 1e\\+05"),
        ("text_encoder/config.json", {"d_model": -8}, "text_encoder"),
        ("text_encoder/config.json", {"pad_token_id": []}, "pad_token_id"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 4 * 10**8}, "num_train_timesteps = 4e\\+08"),
        ("scheduler/scheduler_config.json", {"shift": float("nan")}, "NaN"),
        ("scheduler/scheduler_config.json", {"shift": "far"}, "scheduler"),
    ],
)
def test_settings_that_no_model_has_are_refused_before_anything_is_built(
    place: str, settings: dict[str, Any], message: str, folder: Path
) -> None:
    change(folder / place, **settings)
    with pytest.raises(ModelError, match=message) as caught:
        VideoAsPromptPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": {"height": 8, "width": 1.5}}, "whole pixels as width of its crop_size, got 1.5"),
        ({"size": {"height": 100_000, "width": 100_000}}, "whole pixels as height of its size, got 100000"),
        ({"image_mean": [0.5, 0.5]}, "CLIPImageProcessorPil"),
    ],
)
def test_a_processor_that_can_take_no_picture_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    load_component("image_processor", tmp_path)
    change(tmp_path / "preprocessor_config.json", **settings)
    with pytest.raises(ModelError, match=message):
        load_component("image_processor", tmp_path)


def test_a_setting_of_a_later_version_is_left_out(folder: Path) -> None:
    change(folder / "transformer" / "config.json", setting_to_come=3)
    read_blueprint(folder)
    VideoAsPromptPipeline.from_pretrained(folder)


def test_weights_that_are_integers_are_refused(folder: Path) -> None:
    path = next((folder / "expert").glob("*.safetensors"))
    save_file({key: tensor.to(torch.int64) for key, tensor in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=r"floating point, but .* holds I64"):
        VideoAsPromptPipeline.from_pretrained(folder)


def test_a_header_that_would_fill_the_memory_is_not_read(folder: Path) -> None:
    path = next((folder / "expert").glob("*.safetensors"))
    path.write_bytes((11_000_000).to_bytes(8, "little") + b" " * 11_000_000)
    with pytest.raises(ModelError, match="no safetensors file"):
        VideoAsPromptPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["", " ", "a" * 5000, "a/" + "b" * 5000, "a\0b"])
def test_names_of_models_that_cannot_be(name: str) -> None:
    with pytest.raises(ModelError, match="expected"):
        find_folder(name)


def test_a_byte_order_mark_is_read(folder: Path, generate: Run) -> None:
    path = folder / "model_index.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert generate().code == 0


def test_other_files_of_a_text_encoder_are_not_read(
    folder: Path, generate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the pickle of an adapter, nor a second config, nor other weights."""
    part = folder / "text_encoder"
    change(part / "adapter_config.json", peft_type="LORA", r=2, target_modules=["q"], base_model_name_or_path="other")
    torch.save({"base_model.model.q.lora_A.weight": torch.zeros(2, 2)}, part / "adapter_model.bin")
    change(part / "config.0.0.1.json", auto_map={"AutoModel": "evil.Evil"})
    change(part / "config.json", configuration_files=["config.0.0.1.json"], transformers_weights="adapter_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    assert generate().code == 0


def test_weights_that_are_no_numbers_make_no_black_video(folder: Path, outputs: Path, generate: Run) -> None:
    path = next((folder / "expert").glob("*.safetensors"))
    save_file({key: torch.full_like(tensor, torch.nan) for key, tensor in load_file(path).items()}, path)
    assert "not finite after step 1" in refused(generate())
    assert os.listdir(outputs) == []
