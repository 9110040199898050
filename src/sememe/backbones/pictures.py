"""Image embeddings of pictures, as image-to-video backbones read them."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float
from torch import Tensor
from transformers import BaseImageProcessor, CLIPVisionModel, CLIPVisionModelWithProjection

from sememe.errors import ModelError

Pixels = Float[Tensor, "picture 3 _ _"]
"""Pictures as a processor gives them to its network."""


def encode_pictures(
    image_encoder: CLIPVisionModel, image_processor: BaseImageProcessor, pictures: Sequence[np.ndarray]
) -> Float[Tensor, "picture image_token image_dim"]:
    """Encode pictures by the last layer but one of a CLIP vision model, as Wan2.1 reads it.

    Args:
        image_encoder: A `CLIPVisionModel`.
        image_processor: Its processor, which scales and crops.
        pictures: RGB pictures (height, width, 3), uint8.

    Raises:
        ModelError: The processor gives pictures of another size than the model reads.
    """
    pixels = image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    check_size(image_encoder, pixels)
    pixels = pixels.to(get_module_execution_device(image_encoder), image_encoder.dtype)
    embeds: torch.Tensor = image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    return embeds


def check_size(image_encoder: CLIPVisionModel | CLIPVisionModelWithProjection, pixels: Pixels) -> None:
    """Check that pictures have the size that a CLIP vision model has positions for.

    Raises:
        ModelError: They have another, so model and processor do not belong together.
    """
    side = image_encoder.config.image_size
    height, width = pixels.shape[2:]
    if (height, width) != (side, side):
        raise ModelError(
            f"expected an image_processor that gives pictures of {side}x{side} pixels, which the image_encoder reads, "
            f"but it gives {width}x{height} (width x height)"
        )
