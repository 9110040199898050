"""Names for the shapes of the tensors that networks, pipeline and training stages exchange.

A dimension's name stands for one size within a call: the tests check every call against these.
"""

from jaxtyping import Float, Num
from torch import Tensor

VideoLatents = Float[Tensor, "batch channel frame height width"]
"""Latents of Wan, with or without the channels of mask and first frame."""

FrameFirstLatents = Float[Tensor, "batch frame channel height width"]
"""Latents in CogVideoX's order, with or without the channels of the first frame."""

ReferenceLatents = Float[Tensor, "batch _ _ height width"]
"""Latents of a reference, in the order of its backbone."""

TextEmbeds = Float[Tensor, "batch text_token text_dim"]
"""Output of the text encoder."""

ImageEmbeds = Float[Tensor, "batch image_token image_dim"]
"""Output of the image encoder."""

Tokens = Float[Tensor, "batch token dim"]
"""Tokens between blocks, or what attention adds to them."""

TokenStreams = tuple[Float[Tensor, "batch _ dim"], ...]
"""Tokens of a video, followed by those of its texts where they are tokens of the blocks too."""

TextTokens = Float[Tensor, "batch text_token dim"]
"""Text after its projection to the width of the blocks."""

Heads = Float[Tensor, "batch token head head_dim"]
"""Queries, keys or values."""

ReferenceHeads = Float[Tensor, "batch reference_token head head_dim"]
"""Queries, keys or values of a reference's tokens."""

RotaryTable = Float[Tensor, "1 rotary_token 1 head_dim"] | Float[Tensor, "rotary_token head_dim"]
"""Cosines or sines: Wan's shape, and CogVideoX's."""

Timesteps = Num[Tensor, " batch"]
"""One timestep per target, in 0..1000."""

TokenTimesteps = Num[Tensor, "batch token"]
"""One timestep per token, for backbones that take a first frame as clean tokens."""

TimeEmbeds = Float[Tensor, "time_batch time_dim"]
"""Embedded timesteps; one entry serves a whole batch."""
