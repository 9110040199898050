"""Content of a clip: embeddings of a picture or a text, mixtures of two, and embeddings that change over time.

A content embedding is what cross-attention reads. For an inflated model that is one token, the CLIP embedding of a
picture (arXiv 2302.03011, section 3.3), which a prior makes of a text. For Stable Diffusion with motion modules it is
the prompt's tokens, and for a picture what an IP-Adapter reads.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float
from torch import Tensor
from transformers import BaseImageProcessor, CLIPVisionModelWithProjection, PreTrainedModel

from sememe.backbones.pictures import check_size, read_pictures
from sememe.backbones.text import Tokenizer, encode_prompts_padded
from sememe.errors import InputError, ModelError
from sememe.gen1.prior import PriorSampler
from sememe.gen1.shapes import Embedding
from sememe.video import to_picture


@dataclass(frozen=True, eq=False)
class ContentEmbedding:
    """One content, encoded.

    Attributes:
        tokens: What cross-attention reads.
        image: What an IP-Adapter reads; None for models without one.
    """

    tokens: Float[Tensor, "token dim"]
    image: Embedding | None = None


@dataclass(frozen=True)
class Keyframe:
    """A content at a moment of the clip.

    Attributes:
        seconds: Time from the beginning of the clip.
        content: Text, picture, or `ContentEmbedding`.
    """

    seconds: float
    content: Any


def embed_images(
    image_encoder: CLIPVisionModelWithProjection | None,
    image_processor: BaseImageProcessor | None,
    images: Sequence[np.ndarray],
) -> Float[Tensor, "image dim"]:
    """Return the embeddings of pictures, each uint8 (height, width, 3), as CLIP projects them.

    Raises:
        ModelError: There is no image encoder, or the processor gives pictures of another size than it reads.
    """
    if image_encoder is None or image_processor is None:
        raise ModelError("content by picture needs image_encoder and image_processor, which this model lacks")
    device = get_module_execution_device(image_encoder)
    one_size = len({image.shape for image in images}) == 1
    batches = [np.stack(images)] if one_size else [image[None] for image in images]
    pixels = torch.cat([read_pictures(batch, image_processor, device) for batch in batches])
    check_size(image_encoder, pixels)
    embeddings: Tensor = image_encoder(pixels.to(image_encoder.dtype)).image_embeds
    return embeddings


@dataclass(frozen=True)
class ImageSpaceEncoder:
    """Encodes for an inflated model: one token, the CLIP embedding of a picture.

    No content is a token of zeros; the paper does not say what it is.

    Attributes:
        image_encoder: `CLIPVisionModelWithProjection`, or None.
        image_processor: Its processor.
        prior: Makes embeddings of texts, or None.
        dim: Length of an embedding.
    """

    image_encoder: CLIPVisionModelWithProjection | None
    image_processor: BaseImageProcessor | None
    prior: PriorSampler | None
    dim: int

    def encode_text(self, text: str, generator: torch.Generator | None) -> ContentEmbedding:
        """Encode a text by the prior."""
        if self.prior is None:
            raise ModelError("content by text needs a prior, which this model lacks; give a picture")
        return ContentEmbedding(self.prior.sample([text], generator))

    def encode_image(self, image: np.ndarray) -> ContentEmbedding:
        """Encode a picture by CLIP."""
        return ContentEmbedding(embed_images(self.image_encoder, self.image_processor, [image]))

    def encode_nothing(self) -> ContentEmbedding:
        """Return a token of zeros."""
        return ContentEmbedding(torch.zeros(1, self.dim))


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes for Stable Diffusion: the tokens of a prompt, and a picture for the IP-Adapter if one is loaded.

    Attributes:
        tokenizer: Tokenizer of the text encoder.
        text_encoder: `CLIPTextModel`.
        image_encoder: `CLIPVisionModelWithProjection`, or None.
        image_processor: Its processor.
        image_dim: Length of the embedding that the IP-Adapter reads; None without one.
    """

    tokenizer: Tokenizer | None
    text_encoder: PreTrainedModel | None
    image_encoder: CLIPVisionModelWithProjection | None
    image_processor: BaseImageProcessor | None
    image_dim: int | None

    def encode_text(self, text: str, generator: torch.Generator | None) -> ContentEmbedding:
        """Encode a prompt; an IP-Adapter then reads zeros."""
        del generator
        if self.text_encoder is None or self.tokenizer is None:
            raise ModelError("Stable Diffusion needs text_encoder and tokenizer, which this model lacks")
        length = int(self.tokenizer.model_max_length)
        tokens = encode_prompts_padded(self.tokenizer, self.text_encoder, [text], length)[0]
        return ContentEmbedding(tokens, None if self.image_dim is None else tokens.new_zeros(self.image_dim))

    def encode_image(self, image: np.ndarray) -> ContentEmbedding:
        """Encode a picture for the IP-Adapter, with an empty prompt."""
        if self.image_dim is None:
            raise InputError(
                "content by picture needs an IP-Adapter on Stable Diffusion; load one (load_ip_adapter, such as "
                "ip-adapter_sd15.safetensors of h94/IP-Adapter), or give a text"
            )
        empty = self.encode_text("", None)
        return ContentEmbedding(empty.tokens, embed_images(self.image_encoder, self.image_processor, [image])[0])

    def encode_nothing(self) -> ContentEmbedding:
        """Return the empty prompt and no picture."""
        return self.encode_text("", None)


ContentEncoder = ImageSpaceEncoder | PromptEncoder
"""Encodes contents for one kind of model; a generator draws what a prior needs."""


def encode_content(
    encoder: ContentEncoder, content: Any, generator: torch.Generator | None
) -> ContentEmbedding | list[Keyframe]:
    """Encode a text, a picture, or keyframes of them; what is encoded already is taken as it is.

    Raises:
        InputError: There is no content, or it is of another type.
    """
    if isinstance(content, ContentEmbedding):
        return content
    if isinstance(content, str):
        return encoder.encode_text(content, generator)
    if isinstance(content, Sequence) and content and all(isinstance(each, Keyframe) for each in content):
        encoded = [Keyframe(each.seconds, encode_content(encoder, each.content, generator)) for each in content]
        if any(isinstance(each.content, list) for each in encoded):
            raise InputError("expected a text, a picture or an encoded content in each keyframe, got keyframes")
        return encoded
    return encoder.encode_image(_read_picture(content))


def _read_picture(content: Any) -> np.ndarray:
    try:
        return to_picture(content)
    except InputError as error:
        raise InputError(
            "expected content as a text, a picture (PIL, uint8 array (height, width, 3) or a Clip of one frame), what "
            f"encode_content returned, or a list of Keyframe, got {type(content).__name__}"
        ) from error


def blend_contents(
    first: ContentEmbedding | list[Keyframe], second: ContentEmbedding | list[Keyframe], share: float
) -> ContentEmbedding:
    """Mix two contents on the arc between them, so that the length of a mixture lies between theirs.

    Args:
        first: Content at share 0.
        second: Content at share 1.
        share: Share of the second, 0 to 1.

    Raises:
        InputError: The share is out of range, or keyframes are given.
    """
    if not isinstance(first, ContentEmbedding) or not isinstance(second, ContentEmbedding):
        raise InputError(
            "expected two contents that encode_content returned, without keyframes, got "
            f"{type(first).__name__} and {type(second).__name__}"
        )
    if not 0.0 <= share <= 1.0:
        raise InputError(f"expected a share in 0..1, got {share}")
    image = None
    if first.image is not None and second.image is not None:
        image = _interpolate(first.image, second.image, share)
    return ContentEmbedding(_interpolate(first.tokens, second.tokens, share), image)


def _interpolate(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Turn one direction into the other at constant speed, and change the length linearly."""
    if share in (0.0, 1.0):
        return second if share else first
    lengths = [each.norm(dim=-1, keepdim=True) for each in (first, second)]
    units = [each / length.clamp(min=1e-8) for each, length in zip((first, second), lengths, strict=True)]
    angle = (units[0] * units[1]).sum(dim=-1, keepdim=True).clamp(-1.0, 1.0).arccos()
    on_arc = (((1 - share) * angle).sin() * units[0] + (share * angle).sin() * units[1]) / angle.sin()
    # Embeddings with one direction, opposite ones and zeros span no arc.
    has_arc = (angle.sin() > 1e-4) & (lengths[0] > 1e-8) & (lengths[1] > 1e-8)
    length = (1 - share) * lengths[0] + share * lengths[1]
    return torch.where(has_arc, on_arc * length, (1 - share) * first + share * second)


def spread_content(content: ContentEmbedding | list[Keyframe], num_frames: int, fps: float) -> list[ContentEmbedding]:
    """Return the content of each frame: the same, or blended between the keyframes before and after it.

    Raises:
        InputError: Keyframes do not rise in time.
    """
    if isinstance(content, ContentEmbedding):
        return [content] * num_frames
    times = [each.seconds for each in content]
    if not all(earlier < later for earlier, later in itertools.pairwise(times)):
        raise InputError(f"expected keyframes with rising times, got {', '.join(map(str, times))}")
    found = []
    for frame in range(num_frames):
        moment = frame / fps
        after = next((place for place, time in enumerate(times) if time > moment), len(times))
        if after in (0, len(times)):
            found.append(content[min(after, len(times) - 1)].content)
            continue
        share = (moment - times[after - 1]) / (times[after] - times[after - 1])
        found.append(blend_contents(content[after - 1].content, content[after].content, share))
    return found
