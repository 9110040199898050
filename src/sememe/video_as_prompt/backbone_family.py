"""Define the interface to a backbone: its texts, conditioning, layout of latents and prediction.

In a pipeline latents are normalised and have the axes of `VideoLatents`, whatever the layout of the backbone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Num
from torch import Tensor

from sememe.backbones.cross_attention import KeptText
from sememe.diffusion.objectives import PredictionType
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.shapes import (
    ImageEmbeds,
    ReferenceLatents,
    TextEmbeds,
    Timesteps,
    TokenTimesteps,
    VideoLatents,
)

Images = Float[Tensor, "batch 3 image_height image_width"]
"""RGB pictures in [-1, 1]."""
InputChannels = Float[Tensor, "batch input_channel frame height width"]
"""Latents followed by the mask and first-frame latents."""
FirstLatents = Float[Tensor, "batch channel 1 height width"]
"""The first latent frame."""
Timestep = Num[Tensor, ""]
"""One timestep in 0..1000 for the whole batch."""
Generators = torch.Generator | list[torch.Generator] | None
Reference = ReferenceCache | ReferenceTokens


@dataclass(frozen=True)
class ForwardInputs:
    """Inputs of one forward besides the reference.

    Attributes:
        channels: Noisy latents, followed on the channel axis by the mask and first-frame latents.
        timestep: Timesteps in 0..1000, per target or per token.
        text: Text embeddings, or the result of `cache_text` for them and the image embeddings.
        image_embeds: Image embeddings, for backbones that read them.
    """

    channels: VideoLatents
    timestep: Timesteps | TokenTimesteps
    text: TextEmbeds | KeptText
    image_embeds: ImageEmbeds | None = None


class BackboneFamily(ABC):
    """A kind of backbone, with access to the components of a pipeline."""

    name: ClassVar[str]
    prediction: ClassVar[PredictionType]
    lora_loader: ClassVar[Any]
    """Loader of diffusers that reads LoRA weights of the backbone."""
    has_sampled_latents: ClassVar[bool] = False
    """Whether the official pipeline draws its latents from the posterior."""
    supports_coarse_references: ClassVar[bool] = False
    """Whether references may have fewer tokens than the target, spread over its positions."""
    reads_padding: ClassVar[bool] = False
    """Whether the text encoder reads padding like any other token."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def transformer(self) -> Any:
        return self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        """Device on which the transformer computes."""
        return self.pipeline._execution_device

    @property
    @abstractmethod
    def takes_image(self) -> bool:
        """Whether the backbone takes a first frame; a text-to-video backbone does not."""

    @property
    def needs_image(self) -> bool:
        """Whether it requires a first frame."""
        return self.takes_image

    @property
    def can_spread_timesteps(self) -> bool:
        """Whether each token can have its own timestep."""
        return False

    @property
    def takes_last_image(self) -> bool:
        """Whether it also takes a last frame."""
        return False

    @property
    @abstractmethod
    def text_length(self) -> int | None:
        """Number of text tokens that the transformer requires; None for any."""

    @abstractmethod
    def check_shape(self, settings: Settings) -> None:
        """Raise `InputError` for a size that the transformer does not support."""

    @abstractmethod
    def encode_texts(self, prompts: Sequence[str], settings: Settings) -> TextEmbeds:
        """Encode prompts, each one entry of the batch."""

    def encode_pictures(self, pictures: Sequence[Sequence[np.ndarray]]) -> ImageEmbeds | None:
        """Encode one or two uint8 pictures per entry; None for backbones that do not read image embeddings."""
        return None

    @abstractmethod
    def encode_condition(
        self, images: Images, last_images: Images | None, num_frames: int, generator: Generators
    ) -> VideoLatents | None:
        """Encode the channels that follow the latents on the channel axis; None if there are none.

        Args:
            images: First frames, in [-1, 1].
            last_images: Last frames, in [-1, 1], if given.
            num_frames: Number of frames of the clip.
            generator: Source of samples of the posterior; None to use its mode.
        """

    @abstractmethod
    def join_condition(self, latents: VideoLatents, first_frames: VideoLatents) -> InputChannels:
        """Concatenate noisy latents, mask and cached first-frame latents on the channel axis, as in training.

        Args:
            latents: Noisy latents.
            first_frames: Result of `backbones.first_frame.encode_first_frame`.
        """

    def encode_first_latents(self, images: Images) -> FirstLatents | None:
        """Encode first latent frames, for backbones whose only input of a picture they are.

        Args:
            images: First frames, in [-1, 1].
        """
        return None

    def spread_timestep(
        self, timestep: Timestep, latents: VideoLatents, *, is_first_given: bool
    ) -> Timesteps | TokenTimesteps:
        """Expand a timestep to the targets, or to their tokens for backbones with one timestep per token.

        Args:
            timestep: Timestep in 0..1000.
            latents: Noisy latents.
            is_first_given: Whether the first latent frame is given and thus clean.
        """
        return timestep.expand(latents.shape[0])

    def draw_noise(self, shape: tuple[int, ...], generator: Generators, *, frames_first: bool) -> VideoLatents:
        """Draw noise on the CPU or the generator's device, so a seed gives the same noise on every device.

        With `frames_first` the numbers fill the layout of `FrameFirstLatents`.
        """
        first = generator[0] if isinstance(generator, list) and generator else generator
        device = first.device if isinstance(first, torch.Generator) else torch.device("cpu")
        if not frames_first:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        batch, channels, frames, *grid = shape
        noise = randn_tensor((batch, frames, channels, *grid), generator=generator, device=device, dtype=torch.float32)
        return noise.transpose(1, 2)  # (batch, channel, frame, height, width)

    def embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        """Embed references for a two-way model."""
        return self.transformer.embed_reference(self.arrange(inputs))

    def encode_reference(self, inputs: ReferenceInputs, *, approximate: bool = False) -> ReferenceCache:
        """Compute the KV cache of references."""
        return self.transformer.encode_reference(self.arrange(inputs), approximate=approximate)

    @property
    def keeps_texts(self) -> bool:
        """Whether the keys and values of texts can be cached with the pipeline's current offload and caches."""
        return False

    def cache_text(self, text: TextEmbeds, image_embeds: ImageEmbeds | None) -> KeptText | None:
        """Compute the keys and values of texts once, for all steps; None if they cannot be cached."""
        return None

    def cache_captions(self, reference: ReferenceTokens) -> ReferenceTokens:
        """Compute the keys and values of captions of a two-way model's references once, for all steps."""
        return reference

    def arrange(self, inputs: ReferenceInputs) -> ReferenceInputs:
        """Convert references from the pipeline's layout to the transformer's."""
        return inputs

    def predict(
        self, inputs: ForwardInputs, reference: Reference | None, reference_strength: float = 1.0
    ) -> VideoLatents:
        """Run the transformer once and return its prediction for the latents."""
        arguments, settings = self.forward_arguments(inputs)
        sample = self.transformer(
            *arguments, **settings, reference=reference, reference_strength=reference_strength, return_dict=False
        )[0]
        return self.rearrange(sample)

    def predict_and_cache(
        self, inputs: ForwardInputs, reference: ReferenceTokens, reference_strength: float = 1.0
    ) -> tuple[VideoLatents, ReferenceCache]:
        """Run a two-way transformer once and also return the reference's KV cache of this step."""
        arguments, settings = self.forward_arguments(inputs)
        refreshed = self.transformer.refresh_reference(
            *arguments, **settings, reference=reference, reference_strength=reference_strength
        )
        return self.rearrange(refreshed.sample), refreshed.reference

    @abstractmethod
    def forward_arguments(self, inputs: ForwardInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the transformer's positional and keyword arguments."""

    def rearrange(self, sample: ReferenceLatents) -> VideoLatents:
        """Convert the transformer's result to the pipeline's layout."""
        return sample
