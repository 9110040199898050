"""Pictures as the processors of transformers give them to networks, and image embeddings of them."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float, UInt8
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


def read_pictures(
    frames: UInt8[np.ndarray, "picture height width 3"],
    processor: BaseImageProcessor,
    device: torch.device | str = "cpu",
) -> Pixels:
    """Return pictures, colours 0 to 255, as a processor gives them to its network, on a device.

    Those that need no resizing are not taken through the processor, which computes picture by picture on the CPU. It is
    a `DPTImageProcessorPil`, `CLIPImageProcessorPil` or one with the same settings.
    """
    if _keeps_size(processor, *frames.shape[1:3]):
        return prepare_pictures(torch.tensor(frames, device=device).float(), processor)
    pixels: Tensor = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    return pixels.to(device)


def prepare_pictures(
    levels: Float[Tensor, "picture height width 3"], processor: BaseImageProcessor
) -> Float[Tensor, "_ 3 _ _"]:
    """Return colours 0 to 255 as a processor of transformers gives pictures that need no resizing to its network."""
    mean, std = levels.new_tensor(processor.image_mean), levels.new_tensor(processor.image_std)
    return ((levels * processor.rescale_factor - mean) / std).permute(0, 3, 1, 2)


def _keeps_size(processor: BaseImageProcessor, height: int, width: int) -> bool:
    if not (processor.do_resize and processor.do_rescale and processor.do_normalize) or getattr(
        processor, "do_pad", False
    ):
        return False
    size, crop = processor.size, getattr(processor, "crop_size", None)
    is_size = (size.get("height"), size.get("width")) == (height, width)
    is_size |= size.get("shortest_edge") == height == width
    is_crop = crop is not None and (crop.get("height"), crop.get("width")) == (height, width)
    return bool(is_size and (is_crop or not getattr(processor, "do_center_crop", False)))
