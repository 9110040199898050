"""Public weights: tiny folders in the formats in which they are published become a pipeline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, PNDMScheduler, UnCLIPScheduler, UNetMotionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from gen1.depth_factories import make_dpt
from gen1.model_factories import (
    STEPS,
    make_controlnet,
    make_image_encoder,
    make_image_processor,
    make_motion_pipeline,
    make_motion_unet,
    make_picture,
    make_prior,
    make_source,
    make_text_encoder,
    make_vae,
    write_vocabulary,
)
from gen1.unet_factories import CONTENT_DIM, fold, make_image_model, make_inputs, stir
from sememe.errors import InputError, ModelError
from sememe.gen1.content import Keyframe
from sememe.gen1.models import share_image_model
from sememe.gen1.network_unet import Gen1UNet
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.gen1.public_weights import (
    check_stable_diffusion,
    inflate_stable_diffusion,
    load_prior,
    load_public_pipeline,
)


def make_adapter() -> MotionAdapter:
    torch.manual_seed(6)
    return stir(
        MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
            use_motion_mid_block=False,
        )
    )


def rename_tensors(path: Path, changes: dict[str, str], extra: dict[str, torch.Tensor]) -> None:
    tensors = load_file(path)
    for old, new in changes.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors | extra, path, metadata={"format": "pt"})


def write_stable_diffusion(folder: Path, **settings: Any) -> Path:
    """Write what stable-diffusion-v1-5 holds, with its older names of tensors."""
    make_image_model(**settings).save_pretrained(folder / "unet")
    make_vae().save_pretrained(folder / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    rename_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", old, {})
    make_text_encoder(CLIPTextModel).save_pretrained(folder / "text_encoder")
    positions = {"text_model.embeddings.position_ids": torch.arange(9)[None]}
    rename_tensors(folder / "text_encoder" / "model.safetensors", {}, positions)
    write_vocabulary(folder / "tokenizer")
    PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    places = {name: tmp_path / name for name in ("motion_adapter", "controlnet", "depth_estimator", "image_encoder")}
    make_adapter().save_pretrained(places["motion_adapter"])
    make_controlnet().save_pretrained(places["controlnet"])
    make_dpt().save_pretrained(places["depth_estimator"])
    processor = {"image_processor_type": "DPTImageProcessor", "size": {"height": 32, "width": 32}}
    (places["depth_estimator"] / "preprocessor_config.json").write_text(json.dumps(processor))
    make_image_encoder().save_pretrained(places["image_encoder"])
    return places | {"stable_diffusion": write_stable_diffusion(tmp_path / "stable_diffusion")}


def write_ip_adapter(unet: UNetMotionModel, folder: Path) -> None:
    """Write what ip-adapter_sd15.safetensors holds."""
    random = torch.Generator().manual_seed(0)
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * CONTENT_DIM, CONTENT_DIM, generator=random),
        "image_proj.proj.bias": torch.zeros(4 * CONTENT_DIM),
        "image_proj.norm.weight": torch.ones(CONTENT_DIM),
        "image_proj.norm.bias": torch.zeros(CONTENT_DIM),
    }
    number = 1
    for name in unet.attn_processors:
        if "attn2" in name and "motion_modules" not in name:
            layer = unet.get_submodule(name.removesuffix(".processor"))
            for part in ("to_k_ip", "to_v_ip"):
                tensors[f"ip_adapter.{number}.{part}.weight"] = torch.randn(
                    layer.inner_dim, CONTENT_DIM, generator=random
                )
            number += 2
    folder.mkdir(parents=True)
    save_file(tensors, folder / "ip-adapter_sd15.safetensors")


def generate(pipe: Gen1Pipeline, **arguments: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {
        "source": make_source(),
        "content": "gold",
        "generator": torch.Generator().manual_seed(0),
        "num_inference_steps": STEPS,
    }
    return pipe(**(given | arguments)).clips[0].frames


@torch.no_grad()
def test_without_motion_modules_it_is_bitwise_the_image_model() -> None:
    unet = UNetMotionModel.from_unet2d(make_image_model(), make_adapter()).eval()
    images = fold(make_inputs())
    assert torch.equal(share_image_model(unet)(**images).sample, make_image_model()(**images).sample)
    assert share_image_model(unet).conv_in is unet.conv_in


def test_published_folders_become_a_pipeline(folders: dict[str, Any], tmp_path: Path) -> None:
    pipe = load_public_pipeline(**folders)
    assert pipe.scheduler.config.beta_schedule == "linear"
    assert pipe.scheduler.config.prediction_type == "epsilon"
    results = [
        generate(pipe),
        generate(pipe, content="snow"),
        generate(pipe, structure_level=2),
        generate(pipe, temporal_guidance_scale=1.5),
        generate(pipe, temporal_guidance_scale=0.5),
        generate(pipe, controlnet_scale=0.5),
        generate(pipe, content=[Keyframe(0.0, "gold"), Keyframe(0.3, "snow")]),
    ]
    for place, first in enumerate(results):
        assert first.shape == (4, 16, 16, 3)
        for second in results[place + 1 :]:
            assert not np.array_equal(first, second)
    pipe.save_pretrained(tmp_path / "saved")
    assert np.array_equal(generate(Gen1Pipeline.from_pretrained(tmp_path / "saved")), results[0])


def test_content_by_picture_needs_an_ip_adapter(tmp_path: Path) -> None:
    pipe = make_motion_pipeline(tmp_path)
    by_text = generate(pipe)
    with pytest.raises(InputError, match="needs an IP-Adapter"):
        generate(pipe, content=make_picture())
    write_ip_adapter(pipe.unet, tmp_path / "adapters" / "models")
    with pytest.raises(ModelError, match=r"in safetensors, but .*other\.bin"):
        pipe.load_ip_adapter(tmp_path / "adapters", "models", "other.bin")
    pipe.load_ip_adapter(tmp_path / "adapters", "models")
    for scale in (1.0, 1.2):
        first, second = (generate(pipe, content=make_picture(seed), temporal_guidance_scale=scale) for seed in (1, 2))
        assert not np.array_equal(first, second)
    pipe.set_ip_adapter_scale(0.0)
    assert np.array_equal(generate(pipe, content=make_picture(1)), generate(pipe, content=make_picture(2)))
    changing = [Keyframe(0.0, make_picture(1)), Keyframe(0.3, make_picture(2))]
    with pytest.raises(InputError, match="one picture for the whole clip"):
        generate(pipe, content=changing)
    with pytest.raises(InputError, match="unload_ip_adapter"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.unload_ip_adapter()
    assert np.array_equal(generate(pipe), by_text)


def test_a_prior_comes_with_its_encoders(tmp_path: Path) -> None:
    make_prior().save_pretrained(tmp_path / "prior")
    UnCLIPScheduler(clip_sample_range=5.0, prediction_type="sample").save_pretrained(tmp_path / "scheduler")
    make_text_encoder().save_pretrained(tmp_path / "text_encoder")
    write_vocabulary(tmp_path / "tokenizer")
    make_image_encoder().save_pretrained(tmp_path / "image_encoder")
    make_image_processor().save_pretrained(tmp_path / "image_processor")
    base = write_stable_diffusion(tmp_path / "base")
    parts = load_prior(tmp_path)
    pipe = Gen1Pipeline(**inflate_stable_diffusion(base), **parts)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.prior_scheduler.config.clip_sample_range == 5.0
    frames = generate(pipe, structure_kinds={"edges": 1.0}, prior_num_inference_steps=2)
    assert frames.shape == (4, 16, 16, 3)
    ends = pipe.prior_scheduler.alphas_cumprod[[0, -1]]
    torch.testing.assert_close(ends, UnCLIPScheduler().alphas_cumprod[[0, -1]])


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    write_stable_diffusion(
        tmp_path / "xl",
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )
    (tmp_path / "sd3").mkdir()
    (tmp_path / "sd3" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    for name, message in (("xl", "Stable Diffusion XL"), ("sd3", "Stable Diffusion 3 in"), ("none", "local folder")):
        with pytest.raises(ModelError, match=message):
            check_stable_diffusion(tmp_path / name)


def test_networks_go_with_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads structure through a ControlNet"):
        make_motion_pipeline(tmp_path, controlnet=None)
    with pytest.raises(ModelError, match="leave the controlnet out"):
        make_motion_pipeline(tmp_path, unet=Gen1UNet.from_image_model(make_image_model()))
    assert make_motion_unet().config.motion_max_seq_length == 32


def test_a_motion_adapter_of_another_model_is_refused(folders: dict[str, Any], tmp_path: Path) -> None:
    other = MotionAdapter(block_out_channels=(8, 16, 16), motion_layers_per_block=1, motion_norm_num_groups=4)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="does not fit"):
        load_public_pipeline(**(folders | {"motion_adapter": tmp_path / "other"}))
