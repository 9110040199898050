"""What differs between backbones, behind one interface: texts, conditions, layouts, what is predicted.

In a pipeline latents are (batch, channel, frame, height, width) and normalised, whatever the backbone's own layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from sememe.backbones.cross_attention import KeptText
from sememe.diffusion.objectives import PredictionType
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.settings import Settings

Generators = torch.Generator | list[torch.Generator] | None
Reference = ReferenceCache | ReferenceTokens


@dataclass(frozen=True)
class ForwardInputs:
    """What one forward is given besides a reference.

    Attributes:
        channels: latents and their condition (batch, channel, frame, height, width).
        timestep: (batch,) or (batch, token), in 0..1000.
        text: embeddings (batch, token, dim), or what `cache_text` made of them and of the image embeddings.
        image_embeds: (batch, token, dim), for backbones that read them.
    """

    channels: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor | KeptText
    image_embeds: torch.Tensor | None = None


class BackboneFamily(ABC):
    """One kind of backbone, with the components of a pipeline."""

    name: ClassVar[str]
    prediction: ClassVar[PredictionType]
    lora_loader: ClassVar[Any]
    """Loader of diffusers that reads LoRA weights of the backbone."""
    has_sampled_latents: ClassVar[bool] = False
    """Whether the official pipeline draws its latents from the posterior."""
    spreads_references: ClassVar[bool] = False
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
        """Where the transformer computes."""
        return self.pipeline._execution_device

    @property
    @abstractmethod
    def takes_image(self) -> bool:
        """Whether the backbone is told a first frame; one for text alone is not."""

    @property
    def needs_image(self) -> bool:
        """Whether it cannot do without one."""
        return self.takes_image

    @property
    def can_spread_timesteps(self) -> bool:
        """Whether each token can have a timestep of its own."""
        return False

    @property
    def takes_last_image(self) -> bool:
        """Whether it can be told a last frame too."""
        return False

    @property
    @abstractmethod
    def text_length(self) -> int | None:
        """The number of text tokens that the transformer must be given; None where any will do."""

    @abstractmethod
    def check_shape(self, settings: Settings) -> None:
        """Raises `InputError` for a size that the transformer cannot make, whatever the autoencoder can."""

    @abstractmethod
    def encode_texts(self, prompts: Sequence[str], settings: Settings) -> torch.Tensor:
        """Text embeddings (prompt, token, dim)."""

    def encode_pictures(self, pictures: Sequence[Sequence[np.ndarray]]) -> torch.Tensor | None:
        """Image embeddings (batch, token, dim) of one or two uint8 pictures an entry, where the backbone reads them."""
        return None

    @abstractmethod
    def encode_condition(
        self, images: torch.Tensor, last_images: torch.Tensor | None, num_frames: int, generator: Generators
    ) -> torch.Tensor | None:
        """What stands behind the latents on the channel axis, None for nothing.

        Args:
            images: (batch, 3, height, width) in [-1, 1], the first frames.
            last_images: the same for the last frames, None where they are not given.
            num_frames: of the clip.
            generator: to draw latents from the posterior; None for its mode.
        """

    @abstractmethod
    def join_condition(self, latents: torch.Tensor, first_frames: torch.Tensor) -> torch.Tensor:
        """The transformer's input channels for latents and their cached first frames, as in training.

        Args:
            latents: (batch, channel, frame, height, width), noisy.
            first_frames: of the same shape, as `backbones.first_frame.encode_first_frame` makes them.

        Returns:
            (batch, channel, frame, height, width) with the channels of mask and condition behind the latents.
        """

    def encode_first_latents(self, images: torch.Tensor) -> torch.Tensor | None:
        """First latent frames (batch, channel, 1, height, width), for backbones that are told a picture by them alone.

        Args:
            images: (batch, 3, height, width) in [-1, 1].
        """
        return None

    def spread_timestep(self, timestep: torch.Tensor, latents: torch.Tensor, *, is_first_given: bool) -> torch.Tensor:
        """The transformer's timesteps: (batch,), or (batch, token) for backbones that have one for each.

        Args:
            timestep: a scalar in 0..1000.
            latents: (batch, channel, frame, height, width).
            is_first_given: whether the first latent frame is given, and thus free of noise.
        """
        return timestep.expand(latents.shape[0])

    def draw_noise(self, shape: tuple[int, ...], generator: Generators, *, frames_first: bool) -> torch.Tensor:
        """Noise (batch, channel, frame, height, width) on the CPU or where the generator lives.

        A seed then means the same on every device. With `frames_first` the numbers are laid out as (batch, frame,
        channel, height, width).
        """
        first = generator[0] if isinstance(generator, list) and generator else generator
        device = first.device if isinstance(first, torch.Generator) else torch.device("cpu")
        if not frames_first:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        batch, channels, frames, *grid = shape
        noise = randn_tensor((batch, frames, channels, *grid), generator=generator, device=device, dtype=torch.float32)
        return noise.transpose(1, 2)

    def embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        """References as the transformer carries them through its steps (two-way)."""
        return self.transformer.embed_reference(self.arrange(inputs))

    def encode_reference(self, inputs: ReferenceInputs, *, approximate: bool = False) -> ReferenceCache:
        """References as keys and values (one-way)."""
        return self.transformer.encode_reference(self.arrange(inputs), approximate=approximate)

    @property
    def keeps_texts(self) -> bool:
        """Whether what `text_keys` speaks of can be kept, as the pipeline is set up."""
        return False

    def cache_text(self, text: torch.Tensor, image_embeds: torch.Tensor | None) -> KeptText | None:
        """What is the same of texts at every step, computed once; None where a backbone has nothing of the kind."""
        return None

    def cache_captions(self, reference: ReferenceTokens) -> ReferenceTokens:
        """The same for the captions of a reference that is carried through the steps."""
        return reference

    def arrange(self, inputs: ReferenceInputs) -> ReferenceInputs:
        """References in the transformer's own layout."""
        return inputs

    def predict(
        self, inputs: ForwardInputs, reference: Reference | None, reference_strength: float = 1.0
    ) -> torch.Tensor:
        """One forward: latents with their condition channels in, the prediction in the latents' shape out."""
        arguments, settings = self.forward_arguments(inputs)
        sample = self.transformer(
            *arguments, **settings, reference=reference, reference_strength=reference_strength, return_dict=False
        )[0]
        return self.rearrange(sample)

    def predict_and_cache(
        self, inputs: ForwardInputs, reference: ReferenceTokens, reference_strength: float = 1.0
    ) -> tuple[torch.Tensor, ReferenceCache]:
        """The same two-way, with the reference's keys and values as they were in it."""
        arguments, settings = self.forward_arguments(inputs)
        refreshed = self.transformer.refresh_reference(
            *arguments, **settings, reference=reference, reference_strength=reference_strength
        )
        return self.rearrange(refreshed.sample), refreshed.reference

    @abstractmethod
    def forward_arguments(self, inputs: ForwardInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The transformer's own arguments, by position and by name."""

    def rearrange(self, sample: torch.Tensor) -> torch.Tensor:
        """The transformer's result in the layout of a pipeline."""
        return sample
