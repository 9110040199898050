"""Gen-1 on public weights, from the folders in which they are published.

Neither weights nor code of Gen-1 were released. There are two ways to a model:

- `load_public_pipeline` needs no training. Stable Diffusion 1.5 with the motion modules of AnimateDiff is the video
  model, and without them the image model; a ControlNet reads structure; content is a prompt, or a picture by an
  IP-Adapter.
- `inflate_stable_diffusion` is where training starts: the U-Net of Stable Diffusion 1 or 2 with temporal layers.

Repositories of the Hugging Face hub that hold such folders:

| part | repository |
|---|---|
| Stable Diffusion | stable-diffusion-v1-5/stable-diffusion-v1-5 |
| motion adapter | guoyww/animatediff-motion-adapter-v1-5-2, guoyww/animatediff-motion-adapter-v1-5-3 |
| ControlNet for depth | lllyasviel/control_v11f1p_sd15_depth |
| ControlNet for edges | lllyasviel/control_v11p_sd15_canny |
| depth | Intel/dpt-large, depth-anything/Depth-Anything-V2-Small-hf |
| IP-Adapter | h94/IP-Adapter: models/ip-adapter_sd15.safetensors, and models/image_encoder |
| prior with its encoders | kandinsky-community/kandinsky-2-2-prior |

A prior and an image encoder are a pair only where they come from one repository, or where their spaces are equal
(`sememe.gen1.prior.identify_space`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPImageProcessorPil, CLIPTextModel, DPTImageProcessorPil

from sememe.checkpoints.components import load_component
from sememe.checkpoints.headers import read_json
from sememe.errors import ModelError
from sememe.gen1.network_unet import Gen1UNet, check_architecture
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.gen1.prior import identify_space, make_prior_scheduler

# The settings that all of Stable Diffusion 1 and 2 share, where a folder does not state them.
_BETAS: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
_OTHERS = {
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxPipeline": "FLUX",
}


def load_public_pipeline(
    stable_diffusion: str | Path,
    motion_adapter: str | Path,
    controlnet: str | Path,
    depth_estimator: str | Path | None = None,
    image_encoder: str | Path | None = None,
    torch_dtype: torch.dtype | None = None,
) -> Gen1Pipeline:
    """Put a pipeline together from published folders; none of it was trained as Gen-1.

    `Gen1Pipeline.save_pretrained` then writes one folder for `from_pretrained`.

    Args:
        stable_diffusion: Folder of Stable Diffusion 1.5.
        motion_adapter: Folder of a motion adapter of AnimateDiff for it.
        controlnet: Folder of a ControlNet for it.
        depth_estimator: Folder of a depth network with its preprocessor_config.json; None where structure is given, or
            of another kind.
        image_encoder: Folder of the image encoder that an IP-Adapter reads; None without one.
        torch_dtype: Dtype of U-Net, ControlNet and text encoder; None for float32.

    Raises:
        ModelError: A folder is missing, damaged, or of another kind.
    """
    base = check_stable_diffusion(stable_diffusion)
    adapter = load_component("motion_adapter", _folder(motion_adapter), torch_dtype)
    image_model = load_component("unet", base / "unet", torch_dtype, UNet2DConditionModel)
    try:
        unet = UNetMotionModel.from_unet2d(image_model, adapter)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the motion adapter in {motion_adapter} does not fit {base}: {reason}") from error
    parts: dict[str, Any] = {
        "vae": load_component("vae", base / "vae"),
        "unet": unet.eval(),
        "scheduler": make_scheduler(base, beta_schedule="linear", timestep_spacing="linspace"),
        "tokenizer": load_component("tokenizer", base / "tokenizer"),
        "text_encoder": load_component("text_encoder", base / "text_encoder", torch_dtype, CLIPTextModel),
        "controlnet": load_component("controlnet", _folder(controlnet), torch_dtype),
    }
    if depth_estimator is not None:
        parts |= load_depth(depth_estimator)
    if image_encoder is not None:
        parts["image_encoder"] = load_component("image_encoder", _folder(image_encoder))
        # The repository of IP-Adapters holds no preprocessor_config.json; CLIP's own is meant.
        parts["image_processor"] = CLIPImageProcessorPil()
    return Gen1Pipeline(**parts)


def load_depth(folder: str | Path) -> dict[str, Any]:
    """Load `depth_estimator` and `depth_processor` from the folder of a depth network.

    Raises:
        ModelError: The folder is missing or of another kind.
    """
    place = _folder(folder)
    return {
        "depth_estimator": load_component("depth_estimator", place),
        "depth_processor": load_component("depth_processor", place, component=DPTImageProcessorPil),
    }


def load_prior(folder: str | Path, torch_dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Load a prior with the encoders that it was trained with, as components of a `Gen1Pipeline` on a `Gen1UNet`.

    Args:
        folder: Folder in the layout of Kandinsky's prior: prior, scheduler, tokenizer, text_encoder, image_encoder and
            image_processor.
        torch_dtype: Dtype of prior and text encoder; None for float32.

    Raises:
        ModelError: The folder is missing or of another kind.
    """
    place = _folder(folder)
    image_encoder = load_component("image_encoder", place / "image_encoder")
    return {
        "prior": load_component("prior", place / "prior", torch_dtype),
        "prior_scheduler": make_prior_scheduler(load_component("prior_scheduler", place / "scheduler")),
        "tokenizer": load_component("tokenizer", place / "tokenizer"),
        "text_encoder": load_component("text_encoder", place / "text_encoder", torch_dtype),
        "image_encoder": image_encoder,
        "image_processor": load_component(
            "image_processor", place / "image_processor", component=CLIPImageProcessorPil
        ),
        "content_space": identify_space(image_encoder),
    }


def inflate_stable_diffusion(folder: str | Path, max_frames: int = 8, content_dim: int | None = None) -> dict[str, Any]:
    """Load `vae`, `unet` and `scheduler` of an untrained Gen-1 model from an image model.

    Args:
        folder: Folder of Stable Diffusion 1 or 2.
        max_frames: Frames that the model predicts at once.
        content_dim: Length of content embeddings; None for that of the folder's own texts.

    Raises:
        ModelError: The folder is missing, damaged, or of another architecture.
    """
    base = check_stable_diffusion(folder)
    image_model = load_component("unet", base / "unet", component=UNet2DConditionModel)
    return {
        "vae": load_component("vae", base / "vae"),
        "unet": Gen1UNet.from_image_model(image_model, max_frames, content_dim),
        "scheduler": make_scheduler(base, beta_schedule="scaled_linear", prediction_type="v_prediction"),
    }


def check_stable_diffusion(folder: str | Path) -> Path:
    """Return the folder of Stable Diffusion 1 or 2.

    Raises:
        ModelError: It is of another architecture, which the message names, or is not a model.
    """
    place = _folder(folder)
    index = read_json(place / "model_index.json")
    named = str(index.get("_class_name"))
    if not (place / "unet" / "config.json").is_file():
        raise ModelError(
            f"expected a folder of Stable Diffusion 1 or 2 with a unet, got {_OTHERS.get(named, named)} in {place}"
        )
    check_architecture(read_json(place / "unet" / "config.json"))
    return place


def make_scheduler(folder: Path, **settings: Any) -> DDIMScheduler:
    """Return a DDIM scheduler with the noise schedule of a Stable Diffusion folder."""
    stated = read_json(folder / "scheduler" / "scheduler_config.json")
    known = {name: stated[name] for name in (*_BETAS, "prediction_type", "beta_schedule") if name in stated}
    return DDIMScheduler(**(dict(_BETAS) | {"clip_sample": False, "steps_offset": 1} | known | settings))


def _folder(name: str | Path) -> Path:
    if not Path(name).is_dir():
        raise ModelError(f"expected a local folder, but {name} is none; download the repository first")
    return Path(name)
