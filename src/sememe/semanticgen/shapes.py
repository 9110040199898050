"""Names for the shapes of the tensors that encoder, compressor and networks exchange.

A dimension's name stands for one size within a call: the tests check every call against these.
"""

from jaxtyping import Float, Num
from torch import Tensor

VideoLatents = Float[Tensor, "batch channel frame height width"]
"""Latents, with or without the channels of mask and first frame."""

PredictedLatents = Float[Tensor, "batch out_channel frame height width"]
"""What a transformer predicts for latents, without the channels beside them."""

VideoPart = Float[Tensor, "batch channel part_frame height width"]
"""Some latent frames of a video."""

EncoderFeatures = Float[Tensor, "batch slice row column feature_dim"]
"""Output of a semantic encoder."""

PlanFeatures = Float[Tensor, "batch slice row column semantic_dim"]
"""Compressed features of unit variance: what planners make and renderers read."""

TextEmbeds = Float[Tensor, "batch text_token text_dim"]
"""Output of the text encoder."""

ImageEmbeds = Float[Tensor, "batch image_token image_dim"]
"""Output of the image encoder."""

Tokens = Float[Tensor, "batch token dim"]
"""Tokens between blocks."""

TextTokens = Float[Tensor, "batch text_token dim"]
"""Text after its projection to the width of the blocks."""

Timesteps = Num[Tensor, " batch"]
"""One timestep per sample, in 0..1000."""

Positions = Float[Tensor, "token 3"]
"""Time, row and column of tokens, in latent frames and latent tokens."""

RotaryTable = Float[Tensor, "rotary_batch rotary_token 1 head_dim"]
"""Cosines or sines of the rotations of tokens."""
