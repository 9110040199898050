"""The networks that predict: an inflated U-Net, or Stable Diffusion with motion modules and a ControlNet.

Both predict a run of frames together, by the video model, or each alone, by the image model. They are the same network
with and without its temporal layers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, ModelMixin, UNet2DConditionModel, UNetMotionModel
from jaxtyping import Float, Int, Num
from torch import Tensor

from sememe.backbones.autoencoder import Autoencoder, encode_video
from sememe.errors import ModelError
from sememe.gen1.network_unet import Gen1UNet
from sememe.gen1.shapes import Latents, StructureVideo
from sememe.gen1.structure import embed_level, simplify_structure

Timestep = Num[Tensor, ""]
Conditions = Float[Tensor, "batch condition_channel frame condition_height condition_width"]


@dataclass(frozen=True)
class FrameContents:
    """Content of each frame of each clip.

    Attributes:
        tokens: What cross-attention reads.
        images: What an IP-Adapter reads; None for models without one.
    """

    tokens: Float[Tensor, "batch frame token dim"]
    images: Float[Tensor, "batch frame dim"] | None = None

    def __getitem__(self, frames: slice) -> "FrameContents":
        return FrameContents(self.tokens[:, frames], None if self.images is None else self.images[:, frames])


@dataclass(frozen=True)
class InflatedModel:
    """A `Gen1UNet`: structure is encoded by the autoencoder and joins the latents as channels."""

    unet: Gen1UNet

    @property
    def max_frames(self) -> int:
        """Frames that are predicted at once."""
        return int(self.unet.config.max_frames)

    def condition(self, vae: Autoencoder, structure: StructureVideo, level: int) -> Conditions:
        """Encode structure as a grey video, and add the level's channels."""
        return encode_structure(vae, structure, torch.full((len(structure),), level))

    def predict(
        self, latents: Latents, timestep: Timestep, structure: Conditions, content: FrameContents, *, together: bool
    ) -> Latents:
        """Predict a run of frames."""
        joined = torch.cat([latents, structure], dim=1).to(self.unet.dtype)
        predicted: Tensor = self.unet(
            joined, timestep, content.tokens.to(joined), return_dict=False, is_temporal=together
        )[0]
        return predicted


def encode_structure(vae: Autoencoder, structure: StructureVideo, levels: Int[Tensor, " batch"]) -> Conditions:
    """Return the channels that a `Gen1UNet` is given: structure as grey videos, encoded, and its level.

    Args:
        vae: Autoencoder of the latents.
        structure: Structure of each clip, in [0, 1].
        levels: Level of each, 0 to 7; where they are on the CPU, a GPU is not waited for.
    """
    maps = torch.empty_like(structure)
    for level in levels.unique().tolist():
        chosen = (levels == level).nonzero().squeeze(1).to(structure.device)
        maps[chosen] = simplify_structure(structure[chosen], level)
    encoded = encode_video(vae, maps.unsqueeze(1).expand(-1, 3, -1, -1, -1) * 2.0 - 1.0)
    channels = embed_level(levels.float()).to(encoded)
    spread = channels[:, :, None, None, None].expand(-1, -1, *encoded.shape[2:])
    return torch.cat([encoded, spread], dim=1)


class MotionModel:
    """A `UNetMotionModel` with a `ControlNetModel`, which reads structure as grey pictures.

    Args:
        unet: Stable Diffusion with motion modules.
        controlnet: ControlNet of the same Stable Diffusion.
        scale: Strength of the ControlNet.
    """

    def __init__(self, unet: UNetMotionModel, controlnet: ControlNetModel, scale: float = 1.0) -> None:
        self.unet, self.controlnet, self.scale = unet, controlnet, scale
        self.image_model = share_image_model(unet)

    @property
    def max_frames(self) -> int:
        """Frames that are predicted at once: those that motion modules have positions for, or were trained with."""
        # Public adapters have positions for 32 frames, and were trained with 16.
        return min(16, int(self.unet.config.motion_max_seq_length))

    def condition(self, vae: Autoencoder, structure: StructureVideo, level: int) -> Conditions:
        """Return structure at a level as grey pictures in [0, 1]."""
        del vae
        return simplify_structure(structure, level).unsqueeze(1).expand(-1, 3, -1, -1, -1)

    def predict(
        self, latents: Latents, timestep: Timestep, structure: Conditions, content: FrameContents, *, together: bool
    ) -> Latents:
        """Predict a run of frames."""
        num_videos, num_frames = latents.shape[0], latents.shape[2]
        dtype = self.unet.dtype
        images = latents.transpose(1, 2).flatten(0, 1).to(dtype)
        tokens = content.tokens.flatten(0, 1).to(images)
        down, mid = self.controlnet(
            images,
            timestep,
            tokens,
            structure.transpose(1, 2).flatten(0, 1).to(images),
            conditioning_scale=self.scale,
            return_dict=False,
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        options: dict[str, Any] = {"return_dict": False, **residuals}
        if content.images is not None:
            pictures = content.images[:, :1] if together else content.images.flatten(0, 1).unsqueeze(1)
            options["added_cond_kwargs"] = {"image_embeds": [pictures.to(images)]}
        if together:
            predicted: Tensor = self.unet(latents.to(dtype), timestep, tokens, **options)[0]
            return predicted
        hook = getattr(self.unet, "_hf_hook", None)
        if hook is not None:  # offload brings the U-Net to its device when it is called, but not the image model
            hook.pre_forward(self.unet)
        frames = self.image_model(images, timestep, tokens, **options)[0]
        return frames.unflatten(0, (num_videos, num_frames)).transpose(1, 2)


Model = InflatedModel | MotionModel
"""A network that predicts frames together or alone."""


def share_image_model(unet: UNetMotionModel) -> UNet2DConditionModel:
    """Return the image model within a model with motion modules: the same modules, but for these.

    Weights, adapters and attention processors are those of `unet`, wherever they move.
    """
    config = dict(unet.config)
    config |= {
        "down_block_types": [name.replace("Motion", "2D") for name in config["down_block_types"]],
        "up_block_types": [name.replace("Motion", "2D") for name in config["up_block_types"]],
        "attention_head_dim": config.pop("num_attention_heads"),
        "num_attention_heads": None,
        "encoder_hid_dim_type": None,
    }
    known = UNet2DConditionModel._get_init_keys(UNet2DConditionModel)
    with torch.device("meta"):
        shared = UNet2DConditionModel(**{name: value for name, value in config.items() if name in known})
    for name in ("conv_in", "time_proj", "time_embedding", "conv_norm_out", "conv_act", "conv_out", "encoder_hid_proj"):
        setattr(shared, name, getattr(unet, name, None))
    shared.register_to_config(encoder_hid_dim_type=unet.config.encoder_hid_dim_type)
    blocks = zip(
        (*shared.down_blocks, shared.mid_block, *shared.up_blocks),
        (*unet.down_blocks, unet.mid_block, *unet.up_blocks),
        strict=True,
    )
    for own, other in blocks:
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            if hasattr(own, name):
                setattr(own, name, getattr(other, name))
    own = {id(parameter) for parameter in unet.parameters()}
    if any(id(parameter) not in own for parameter in shared.parameters()):
        raise ModelError("expected a UNetMotionModel of Stable Diffusion 1 or 2, got one with other blocks")
    return shared.eval()


def make_model(unet: ModelMixin, controlnet: ControlNetModel | None, controlnet_scale: float = 1.0) -> Model:
    """Return the model of a network.

    Raises:
        ModelError: The network is of another class, or a ControlNet is missing or of no use.
    """
    if isinstance(unet, Gen1UNet):
        if controlnet is not None:
            raise ModelError("a Gen1UNet reads structure as channels; leave the controlnet out")
        return InflatedModel(unet)
    if not isinstance(unet, UNetMotionModel):
        raise ModelError(f"expected a Gen1UNet or a UNetMotionModel as the unet, got a {type(unet).__name__}")
    if controlnet is None:
        raise ModelError("a UNetMotionModel reads structure through a ControlNet; give one (controlnet=)")
    return MotionModel(unet, controlnet, controlnet_scale)
