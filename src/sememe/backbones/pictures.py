"""Image embeddings of pictures, as image-to-video backbones read them."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float
from torch import Tensor
from transformers import BaseImageProcessor, CLIPVisionModel


def encode_pictures(
    image_encoder: CLIPVisionModel, image_processor: BaseImageProcessor, pictures: Sequence[np.ndarray]
) -> Float[Tensor, "picture image_token image_dim"]:
    """Encode pictures by the last layer but one of a CLIP vision model, as Wan2.1 reads it.

    Args:
        image_encoder: A `CLIPVisionModel`.
        image_processor: Its processor, which scales and crops.
        pictures: RGB pictures (height, width, 3), uint8.
    """
    pixels = image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    pixels = pixels.to(get_module_execution_device(image_encoder), image_encoder.dtype)
    embeds: torch.Tensor = image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    return embeds
