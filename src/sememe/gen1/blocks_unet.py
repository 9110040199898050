"""Blocks of an image U-Net with temporal layers after their spatial ones (arXiv 2302.03011, section 3.2).

Frames are folded into the batch, (batch frame) first, as the stock blocks take them. How many frames belong together is
read off the shapes of the arguments: with an axis for frames in the timestep's embedding, and in the tokens of
cross-attention, temporal layers act. Without it the stock block is computed.
"""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Images = Float[Tensor, "batch_frame channel height width"]
TimeEmbedding = Float[Tensor, "batch_frame dim"] | Float[Tensor, "batch frame dim"]


class DispatchedAttention:
    """Attention as the stock processor computes it, by the backend that `set_attention_backend` chose."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "batch query dim"],
        encoder_hidden_states: Float[Tensor, "batch key content_dim"] | None = None,
        attention_mask: Float[Tensor, "batch 1 key"] | None = None,
    ) -> Float[Tensor, "batch query dim"]:
        """Attend to the content, or to the tokens themselves; the mask is added to all heads' logits."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(tokens).unflatten(-1, (attn.heads, -1))
            for layer, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        mask = None if attention_mask is None else attention_mask.unsqueeze(1)
        found = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
        output: Tensor = attn.to_out[1](attn.to_out[0](found.flatten(2).to(query)))
        return output


class SplitConv(nn.Conv2d):
    """A convolution that adds up latents and conditioning channels separately.

    Where the weights of the conditioning are 0, the result is that of a convolution of the latents alone.

    Args:
        num_latent_channels: Channels at the front that are latents.
        stock: Convolution of all channels, for its shape.
    """

    def __init__(self, num_latent_channels: int, stock: nn.Conv2d) -> None:
        kernel: Any = stock.kernel_size
        padding: Any = stock.padding
        super().__init__(stock.in_channels, stock.out_channels, kernel, padding=padding)
        self.num_latent_channels = num_latent_channels

    def forward(self, input: Images) -> Float[Tensor, "batch_frame out height width"]:  # noqa: A002 (the stock name)
        """Convolve."""
        split = self.num_latent_channels
        latents = self._conv_forward(input[:, :split], self.weight[:, :split], self.bias)
        return latents + self._conv_forward(input[:, split:], self.weight[:, split:], None)


class TemporalConv(nn.Module):
    """A convolution over frames, added to its input; new ones change nothing.

    At both ends of the video the frames beyond count as zeros, as pixels beyond the border do.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(num_channels, num_channels, (3, 1, 1), padding=(1, 0, 0))
        self.reset_output()

    def reset_output(self) -> None:
        """Set the weights that give the output to 0."""
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, images: Images, num_frames: int) -> Images:
        """Convolve along each run of `num_frames` images."""
        video = images.unflatten(0, (-1, num_frames)).transpose(1, 2)
        return images + self.conv(video).transpose(1, 2).flatten(0, 1)


class TemporalTransformer(nn.Module):
    """Self-attention over the frames at each place, with learned frame positions, and a feed-forward layer.

    It is added to its input; new ones change nothing. The paper does not say whether content enters here as well: it
    does not, because every spatial transformer reads it.
    """

    def __init__(self, num_channels: int, num_heads: int, num_groups: int, max_frames: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, num_channels, eps=1e-6)
        self.proj_in = nn.Linear(num_channels, num_channels)
        self.frame_positions = nn.Embedding(max_frames, num_channels)
        self.block = BasicTransformerBlock(num_channels, num_heads, num_channels // num_heads)
        self.proj_out = nn.Linear(num_channels, num_channels)
        self.reset_output()

    def reset_output(self) -> None:
        """Set the weights that give the output to 0, and draw small frame positions."""
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        nn.init.normal_(self.frame_positions.weight, std=0.02)

    def embed(self, images: Images, num_frames: int) -> Float[Tensor, "place frame channel"]:
        """Return the tokens of all places, each with the position of its frame."""
        # (batch frame, channel, height, width) -> (batch, height, width, frame, channel)
        video = self.norm(images).unflatten(0, (-1, num_frames)).permute(0, 3, 4, 1, 2)
        # By a call, not by its weight: offloading fetches what is called.
        positions: Tensor = self.frame_positions(torch.arange(num_frames, device=images.device))
        return self.proj_in(video.flatten(0, 2)) + positions

    def add(self, images: Images, tokens: Float[Tensor, "place frame channel"]) -> Images:
        """Add the tokens, as the block left them, to the images."""
        num_images, _, height, width = images.shape
        num_videos = num_images // tokens.shape[1]
        change = self.proj_out(tokens).unflatten(0, (num_videos, height, width))
        return images + change.permute(0, 3, 4, 1, 2).flatten(0, 1)


class VideoResnetBlock(ResnetBlock2D):
    """`ResnetBlock2D` with a temporal convolution after each spatial one.

    Args:
        stock: Block of an image model, for its shape; its weights are not taken over.
        act_fn: Name of its activation.
    """

    def __init__(self, stock: ResnetBlock2D, act_fn: str) -> None:
        super().__init__(
            in_channels=stock.in_channels,
            out_channels=stock.out_channels,
            dropout=stock.dropout.p,
            temb_channels=stock.time_emb_proj.in_features,
            groups=stock.norm1.num_groups,
            groups_out=stock.norm2.num_groups,
            eps=stock.norm1.eps,
            non_linearity=act_fn,
            output_scale_factor=stock.output_scale_factor,
        )
        self.temporal_conv1 = TemporalConv(stock.out_channels)
        self.temporal_conv2 = TemporalConv(stock.out_channels)

    def forward(
        self, input_tensor: Images, temb: TimeEmbedding, *_unused: Any
    ) -> Float[Tensor, "batch_frame out height width"]:
        """Run the block.

        Args:
            input_tensor: Images.
            temb: Embedded timestep: (batch, frame, dim) for videos, (image, dim) for images without temporal layers.
        """
        if temb.ndim == 2:
            return super().forward(input_tensor, temb)
        num_frames, temb = temb.shape[1], temb.flatten(0, 1)
        hidden = self.temporal_conv1(self.conv1(self.nonlinearity(self.norm1(input_tensor))), num_frames)
        hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(self.nonlinearity(self.norm2(hidden))))
        hidden = self.temporal_conv2(hidden, num_frames)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return (input_tensor + hidden) / self.output_scale_factor


class VideoTransformer2D(Transformer2DModel):
    """`Transformer2DModel` with a temporal transformer after it.

    Args:
        stock: Block of an image model, for its shape; its weights are not taken over.
        max_frames: Number of learned frame positions.
    """

    def __init__(self, stock: Transformer2DModel, max_frames: int) -> None:
        config = {name: value for name, value in stock.config.items() if not name.startswith("_")}
        super().__init__(**config)
        self.temporal_transformer = TemporalTransformer(
            config["in_channels"], config["num_attention_heads"], config["norm_num_groups"], max_frames
        )

    def forward(
        self,
        hidden_states: Images,
        encoder_hidden_states: Float[Tensor, "batch_frame token dim"] | Float[Tensor, "batch frame token dim"],
        return_dict: bool = True,  # noqa: FBT001, FBT002 (the stock signature)
        **stock: Any,
    ) -> Transformer2DModelOutput | tuple[Images]:
        """Run the block.

        Args:
            hidden_states: Images.
            encoder_hidden_states: Content: with an axis for frames for videos, without it for images without temporal
                layers.
            return_dict: Whether the result is a record.
            stock: Further arguments of the stock class.
        """
        if encoder_hidden_states.ndim == 3:
            return super().forward(hidden_states, encoder_hidden_states, return_dict=return_dict, **stock)
        num_frames, content = encoder_hidden_states.shape[1], encoder_hidden_states.flatten(0, 1)
        images = super().forward(hidden_states, content, return_dict=False, **stock)[0]
        layer = self.temporal_transformer
        tokens = layer.embed(images, num_frames)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            tokens = self._gradient_checkpointing_func(layer.block, tokens)
        else:
            tokens = layer.block(tokens)
        images = layer.add(images, tokens)
        return Transformer2DModelOutput(sample=images) if return_dict else (images,)


def widen_weight(
    weight: Float[Tensor, "out latent height width"], num_channels: int
) -> Float[Tensor, "out all height width"]:
    """Return the weight of a convolution with zeros for further channels, up to `num_channels`."""
    return F.pad(weight, (0, 0, 0, 0, 0, num_channels - weight.shape[1]))
