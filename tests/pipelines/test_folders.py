"""Models on disk: a round trip through a fresh process, and folders that are not what they should be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from pipelines.factories import make_clip, make_picture, make_pipeline
from sememe.errors import InputError, ModelError
from sememe.pipelines.video_as_prompt import VideoAsPromptPipeline

FRESH_PROCESS = """
import sys
import numpy as np
import torch
from sememe.pipelines.video_as_prompt import VideoAsPromptPipeline
from sememe.video import Clip

folder, data, result = sys.argv[1:]
given = np.load(data)
pipe = VideoAsPromptPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
out = pipe(given["picture"], [Clip(given["frames"], 12.0)], generator=torch.Generator().manual_seed(1))
np.save(result, out.clips[0].frames)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline(reference_guidance_scale=2.0).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_round_trip_in_a_fresh_process(saved: Path, tmp_path: Path) -> None:
    picture, clip = make_picture(), make_clip()
    loaded = VideoAsPromptPipeline.from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    expected = loaded(picture, [clip], generator=torch.Generator().manual_seed(1)).clips[0]
    np.savez(tmp_path / "given.npz", picture=picture, frames=clip.frames)
    arguments = [str(saved), str(tmp_path / "given.npz"), str(tmp_path / "result.npy")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, *arguments], check=True, timeout=120)
    result = np.load(tmp_path / "result.npy")
    assert np.array_equal(result, expected.frames)

    original = make_pipeline(reference_guidance_scale=2.0)
    before = original(picture, [clip], generator=torch.Generator().manual_seed(1)).clips[0]
    assert np.abs(before.frames.astype(int) - result).max() <= 1


def test_the_layout_is_stock_with_the_expert_apart(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "expert", "model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"
    }  # fmt: skip
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "VideoAsPromptPipeline"
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["image_encoder"] == [None, None]
    assert index["generation_defaults"]["num_frames"] == 5
    stock = WanTransformer3DModel.from_pretrained(saved / "transformer")
    assert not any("expert" in key for key in stock.state_dict())
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors"}
    loaded = VideoAsPromptPipeline.from_pretrained(str(saved))
    assert loaded.defaults.reference_guidance_scale == 2.0
    assert loaded.transformer.config.attention_mode == "cached"
    assert not loaded.transformer.training


def test_clip_components_travel_too(tmp_path: Path) -> None:
    pipe = make_pipeline("joint", clip=True)
    pipe.save_pretrained(tmp_path)
    loaded = VideoAsPromptPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    results = [
        given(make_picture(), [make_clip()], generator=torch.Generator().manual_seed(1), output_type="latent").frames
        for given in (pipe, loaded)
    ]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_shards_precision_and_replaced_components(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path, max_shard_size=100_000)
    assert (tmp_path / "expert" / "diffusion_pytorch_model.safetensors.index.json").exists()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
    loaded = VideoAsPromptPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, scheduler=scheduler)
    assert loaded.scheduler is scheduler
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.text_encoder.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32
    loaded.set_progress_bar_config(disable=True)
    assert loaded(make_picture(), [make_clip()]).clips[0].num_frames == 5
    with pytest.raises(InputError, match="components of the pipeline"):
        VideoAsPromptPipeline.from_pretrained(tmp_path, variant="fp16")


def change_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "WanPipeline"}, "expected to hold a VideoAsPromptPipeline, it holds a WanPipeline"),
        ({"vae": ["os", "system"]}, r"os\.system; expected one of"),
        ({"text_encoder": ["transformers", "AutoModel"]}, "expected one of"),
        ({"scheduler": None}, "must name the library and class of scheduler"),
        ({"generation_defaults": {"steps": 3}}, "unknown settings: steps"),
        ({"generation_defaults": {"batching": "both"}}, "batching must be one of"),
    ],
)
def test_an_index_that_names_something_else_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    change_index(copy, **changes)
    with pytest.raises(ModelError, match=message):
        VideoAsPromptPipeline.from_pretrained(copy)


@pytest.mark.parametrize("name", ["vae", "text_encoder", "transformer", "expert"])
@pytest.mark.parametrize("change", ["missing", "extra"])
def test_every_tensor_is_accounted_for(copy: Path, name: str, change: str) -> None:
    path = next((copy / name).glob("*.safetensors"))
    tensors = load_file(path)
    if change == "missing":
        del tensors[next(key for key in sorted(tensors) if tensors[key].ndim > 1)]
    else:
        tensors["surplus"] = torch.zeros(2)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing|surplus") as caught:
        VideoAsPromptPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vae", "text_encoder", "transformer", "expert", "scheduler", "tokenizer"])
def test_every_folder_is_needed(copy: Path, name: str) -> None:
    for path in (copy / name).iterdir():
        path.unlink()
    with pytest.raises(ModelError) as caught:
        VideoAsPromptPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ModelError, match="AutoencoderKLWan"):
        VideoAsPromptPipeline.from_pretrained(copy)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        VideoAsPromptPipeline.from_pretrained(tmp_path)
    for name in (tmp_path / "absent", str(tmp_path / "absent"), "./absent"):
        with pytest.raises(ModelError, match="is not a folder"):
            VideoAsPromptPipeline.from_pretrained(name)
    with pytest.raises(ModelError, match="cannot be had from the hub"):
        VideoAsPromptPipeline.from_pretrained("nobody/nothing-of-this-name")
