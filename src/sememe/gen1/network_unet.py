"""Stable Diffusion's U-Net, inflated to video (arXiv 2302.03011, section 3.2).

An image is a video of one frame: temporal layers act on videos only, and all other weights are shared. So one network
gives two predictions, that of the image model, frame by frame, and that of the video model.
"""

from typing import Any, ClassVar

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from sememe.errors import ModelError
from sememe.gen1.blocks_unet import (
    DispatchedAttention,
    SplitConv,
    TemporalConv,
    TemporalTransformer,
    VideoResnetBlock,
    VideoTransformer2D,
    widen_weight,
)
from sememe.gen1.structure import NUM_LEVEL_CHANNELS

Video = Float[Tensor, "batch channel frame height width"]
Timestep = Float[Tensor, ""] | Int[Tensor, ""] | Float[Tensor, " batch"] | Int[Tensor, " batch"] | float | int
FrameTimesteps = Num[Tensor, "batch frame"]
Content = Float[Tensor, "batch token dim"] | Float[Tensor, "batch frame token dim"]

_BLOCKS = frozenset({"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"})
_EXPECTED: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "dual_cross_attention": False,
    "attention_type": "default",
}


class Gen1UNet(UNet2DConditionModel):
    """`UNet2DConditionModel` with temporal layers; new ones add exactly zero.

    Args:
        max_frames: Number of learned frame positions, and so the longest video that is predicted at once. The paper
            trains with 8.
        stock: Arguments of the stock class. `in_channels` are those of the latents, as many as `out_channels`, and
            those of structure and its level.

    Raises:
        ModelError: The arguments are those of another architecture than Stable Diffusion 1 or 2.
    """

    _no_split_modules: ClassVar[list[str]] = [
        "BasicTransformerBlock",
        "VideoResnetBlock",
        "CrossAttnUpBlock2D",
        "UpBlock2D",
    ]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm", "frame_positions"]

    def __init__(self, *, max_frames: int = 8, **stock: Any) -> None:
        check_architecture(stock)
        super().__init__(**({"in_channels": count_channels(stock.get("out_channels", 4))} | stock))
        self.register_to_config(max_frames=max_frames)
        first: Any = self.conv_in
        self.conv_in: nn.Module = SplitConv(self.config.out_channels, first)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            resnets = [VideoResnetBlock(each, self.config.act_fn) for each in block.resnets]
            block.resnets = nn.ModuleList(resnets)
            if hasattr(block, "attentions"):
                block.attentions = nn.ModuleList([VideoTransformer2D(each, max_frames) for each in block.attentions])
        # Each attention has a processor of its own, because diffusers writes the chosen backend into it.
        self.set_attn_processor({name: DispatchedAttention() for name in self.attn_processors})

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # diffusers reads the names of settings from the signature, where those of the stock class are not repeated.
        return UNet2DConditionModel._get_init_keys(UNet2DConditionModel) | {"max_frames"}

    @classmethod
    def from_image_model(
        cls, image_model: ModelMixin, max_frames: int = 8, content_dim: int | None = None
    ) -> "Gen1UNet":
        """Inflate the U-Net of Stable Diffusion 1 or 2.

        The new model takes over the image model's tensors without copying them, so do not use `image_model` afterwards.
        Channels for conditions join its first convolution with weights of 0.

        Args:
            image_model: `UNet2DConditionModel` for latents alone.
            max_frames: Number of learned frame positions.
            content_dim: Length of content embeddings; None for that of the image model's own texts. Where it differs,
                a new linear layer projects them.

        Raises:
            ModelError: The model has another architecture.
        """
        if not isinstance(image_model, UNet2DConditionModel) or isinstance(image_model, cls):
            raise ModelError(_describe(f"a {type(image_model).__name__}"))
        config = {name: value for name, value in image_model.config.items() if not name.startswith("_")}
        num_channels = config["out_channels"]
        if config["in_channels"] != num_channels:
            found = f"one with {config['in_channels']} input channels (inpainting, depth or the like)"
            raise ModelError(_describe(found))
        config["in_channels"] = count_channels(num_channels)
        if content_dim not in (None, config["cross_attention_dim"]):
            config |= {"encoder_hid_dim": content_dim, "encoder_hid_dim_type": "text_proj"}
        with torch.device("meta"):
            model = cls(max_frames=max_frames, **config)
        tensors = image_model.state_dict()
        tensors["conv_in.weight"] = widen_weight(tensors["conv_in.weight"], config["in_channels"])
        model.load_state_dict(tensors, strict=False, assign=True)
        model._begin_new_layers(image_model)
        return model.train(image_model.training)

    def _begin_new_layers(self, image_model: UNet2DConditionModel) -> None:
        new: list[nn.Module] = [each for each in self.modules() if isinstance(each, TemporalConv | TemporalTransformer)]
        if self.encoder_hid_proj is not None:
            new.append(self.encoder_hid_proj)
        for module in new:
            module.to_empty(device=image_model.device).to(image_model.dtype)
            for layer in module.modules():
                reset: Any = getattr(layer, "reset_parameters", None)
                if reset is not None:
                    reset()
            if isinstance(module, TemporalConv | TemporalTransformer):
                module.reset_output()

    def get_time_embed(
        self, sample: Float[Tensor, "picture channel height width"], timestep: Timestep | FrameTimesteps
    ) -> Float[Tensor, "..."]:
        """Embed timesteps; those with an axis for frames, (batch, frame), keep it."""
        if isinstance(timestep, Tensor) and timestep.ndim == 2:
            embedded: Tensor = super().get_time_embed(sample, timestep.flatten())
            return embedded.unflatten(0, timestep.shape)
        return super().get_time_embed(sample, timestep)

    def forward(
        self,
        sample: Video,
        timestep: Timestep,
        encoder_hidden_states: Content,
        return_dict: bool = True,  # noqa: FBT001, FBT002 (the stock signature)
        *,
        is_temporal: bool = True,
        **stock: Any,
    ) -> UNet2DConditionOutput | tuple[Float[Tensor, "batch out frame height width"]]:
        """Predict.

        Args:
            sample: Noisy latents, encoded structure and level channels, in this order.
            timestep: Timestep of all videos, or of each.
            encoder_hidden_states: Content of each video, or of each of its frames.
            return_dict: Whether the result is a record.
            is_temporal: Whether temporal layers act; without them all frames are images of one batch. They never act
                on a video of one frame.
            stock: Further arguments of the stock class, with frames folded into the batch.

        Raises:
            ModelError: There are more frames than positions.
        """
        num_videos, num_frames = sample.shape[0], sample.shape[2]
        if is_temporal and num_frames > self.config.max_frames:
            raise ModelError(f"expected at most {self.config.max_frames} frames at once, got {num_frames}; use windows")
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1, 1).expand(num_videos, num_frames)
        content = encoder_hidden_states
        if content.ndim == 3:
            content = content.unsqueeze(1).expand(-1, num_frames, -1, -1)
        if not is_temporal or num_frames == 1:
            times, content = times.flatten(), content.flatten(0, 1)
        images = sample.transpose(1, 2).flatten(0, 1)
        predicted = super().forward(images, times, content, return_dict=False, **stock)[0]
        video = predicted.unflatten(0, (num_videos, num_frames)).transpose(1, 2)
        return UNet2DConditionOutput(sample=video) if return_dict else (video,)


def count_channels(num_latent_channels: int) -> int:
    """Return how many channels the network reads: latents, structure as the same autoencoder encodes it, its level.

    With Stable Diffusion's autoencoder these are 12.
    """
    return 2 * num_latent_channels + NUM_LEVEL_CHANNELS


def check_architecture(config: dict[str, Any]) -> None:
    """Refuse settings of a U-Net that are not those of Stable Diffusion 1 or 2.

    Raises:
        ModelError: Names what was given.
    """
    if config.get("addition_embed_type") is not None:
        named = "that of Stable Diffusion XL" if config["addition_embed_type"] == "text_time" else "another"
        raise ModelError(_describe(f"{named} (addition_embed_type {config['addition_embed_type']!r})"))
    for name, expected in _EXPECTED.items():
        if config.get(name, expected) != expected:
            raise ModelError(_describe(f"one with {name} {config[name]!r}"))
    for name in ("down_block_types", "up_block_types"):
        unknown = sorted(set(config.get(name, ())) - _BLOCKS)
        if unknown:
            raise ModelError(_describe(f"one with blocks {', '.join(unknown)}"))


def _describe(found: str) -> str:
    return f"expected the U-Net of Stable Diffusion 1 or 2 (UNet2DConditionModel for latents alone), got {found}"
