"""Shapes of what goes through the room, by name."""

from jaxtyping import Float
from torch import Tensor

Structure = Float[Tensor, "frame height width"]
"""Structure of one clip, in [0, 1]."""
StructureVideo = Float[Tensor, "batch frame height width"]
Latents = Float[Tensor, "batch channel frame latent_height latent_width"]
Embedding = Float[Tensor, " dim"]
"""One content, as an image encoder embeds it."""
