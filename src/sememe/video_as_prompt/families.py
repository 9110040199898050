"""Differences between backbones in texts, conditioning, layout of latents and prediction.

In a pipeline latents are normalised and have the axes of `VideoLatents`, whatever the layout of the backbone.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.loaders import CogVideoXLoraLoaderMixin, WanLoraLoaderMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Num
from torch import Tensor

from sememe.backbones.autoencoder import encode_video, latent_grid
from sememe.backbones.cross_attention import KeptText
from sememe.backbones.first_frame import frame_condition, leading_frame_condition, mark_first_frame
from sememe.backbones.pictures import encode_pictures
from sememe.backbones.text import MAX_SEQUENCE_LENGTH, default_sequence_length, encode_prompts, encode_prompts_padded
from sememe.diffusion.objectives import PredictionType
from sememe.errors import InputError, ModelError
from sememe.video_as_prompt.context_parallel import count_ranks
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.rotary import RotaryTables
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.shapes import (
    FrameFirstLatents,
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
    lora_loader: ClassVar[type[LoraBaseMixin]]
    """Loader of diffusers that reads LoRA weights of the backbone."""
    has_sampled_latents: ClassVar[bool] = False
    """Whether the official pipeline draws its latents from the posterior."""
    supports_coarse_references: ClassVar[bool] = False
    """Whether references may have fewer tokens than the target, spread over its positions."""
    reads_padding: ClassVar[bool] = False
    """Whether the text encoder reads padding like any other token."""

    def __init__(self, pipeline: "DiffusionPipeline | TransformerAlone") -> None:
        self.pipeline: DiffusionPipeline = pipeline
        self._rotary: dict[tuple[Any, ...], RotaryTables | None] = {}

    @property
    def transformer(self) -> ModelMixin:
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
        """Encode the channels that follow the latents of `num_frames` frames; None if there are none.

        Samples of the posterior come from `generator`; without one its mode is used.
        """

    @abstractmethod
    def join_condition(self, latents: VideoLatents, first_frames: VideoLatents | None) -> InputChannels:
        """Concatenate noisy latents, mask and cached first-frame latents on the channel axis, as in training.

        `first_frames` is what `backbones.first_frame.encode_first_frame` returned; None leaves the latents as they are,
        for a text-to-video backbone.
        """

    def list_arrays(self) -> tuple[str, ...]:
        """Return the names of cached arrays that a training reads of each clip beside its latents and text."""
        embeds = ("image",) if self.transformer.config.get("image_dim") is not None else ()
        return ("first_frame", *embeds) if self.takes_image else embeds

    def encode_first_latents(self, images: Images) -> FirstLatents | None:
        """Encode first latent frames, for backbones whose only input of a picture they are."""
        return None

    def spread_timestep(
        self, timestep: Timestep, latents: VideoLatents, *, is_first_given: bool
    ) -> Timesteps | TokenTimesteps:
        """Expand a timestep to the targets, or to their tokens for backbones with one timestep per token.

        The tokens of a given first latent frame are clean.
        """
        return timestep.expand(latents.shape[0])

    def draw_noise(self, shape: tuple[int, ...], generator: Generators, *, frames_first: bool) -> VideoLatents:
        """Draw noise on the CPU or the generator's device, so a seed gives the same noise on every device.

        With `frames_first` the numbers fill the layout of `FrameFirstLatents`.
        """
        first = generator[0] if isinstance(generator, list) and generator else generator
        device = first.device if isinstance(first, torch.Generator) else torch.device("cpu")
        batch, channels, frames, *grid = shape
        filled = (batch, frames, channels, *grid) if frames_first else shape
        noise = randn_tensor(filled, generator=generator, device=device, dtype=torch.float32)
        return noise.transpose(1, 2) if frames_first else noise

    def embed_reference(self, inputs: ReferenceInputs) -> ReferenceTokens:
        """Embed references for a two-way model."""
        return self.transformer.embed_reference(self.arrange(inputs))

    def encode_reference(self, inputs: ReferenceInputs, *, approximate: bool = False) -> ReferenceCache:
        """Compute the KV cache of references."""
        return self.transformer.encode_reference(self.arrange(inputs), approximate=approximate)

    def denoise_reference(self, inputs: ReferenceInputs, timesteps: Timesteps) -> VideoLatents:
        """Run the expert alone on one noisy reference, and return its prediction for the latents."""
        return self.rearrange(self.transformer.denoise_reference(self.arrange(inputs), timesteps))

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

    def _find_rotary(self, key: tuple[Any, ...], make: Callable[[], RotaryTables | None]) -> RotaryTables | None:
        """Return the rotary tables for a size of the target; those of the last size are kept."""
        if key not in self._rotary:
            self._rotary = {key: make()}
        return self._rotary[key]

    @abstractmethod
    def forward_arguments(self, inputs: ForwardInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the transformer's positional and keyword arguments."""

    def rearrange(self, sample: ReferenceLatents) -> VideoLatents:
        """Convert the transformer's result to the pipeline's layout."""
        return sample


class WanFamily(BackboneFamily):
    """Flow matching, zeros after the end of a text, mask and first-frame channels, and CLIP if the model has it."""

    name: ClassVar[str] = "wan"
    prediction: ClassVar[PredictionType] = "flow"
    lora_loader: ClassVar[type[LoraBaseMixin]] = WanLoraLoaderMixin
    supports_coarse_references: ClassVar[bool] = True

    @property
    def takes_image(self) -> bool:
        return self.needs_image or self._has_token_timesteps

    @property
    def needs_image(self) -> bool:
        return self.transformer.config.in_channels != self.transformer.config.out_channels

    @property
    def can_spread_timesteps(self) -> bool:
        return not self.needs_image

    @property
    def takes_last_image(self) -> bool:
        return self.needs_image

    @property
    def _has_token_timesteps(self) -> bool:
        return bool(self.pipeline.config.expand_timesteps)

    @property
    def text_length(self) -> int | None:
        # The stock attention tells image tokens from text tokens by counting 512 from the end.
        return None if self.transformer.config.added_kv_proj_dim is None else MAX_SEQUENCE_LENGTH

    def check_shape(self, settings: Settings) -> None:
        """Accept any size: positions are computed, not learned."""

    def encode_texts(self, prompts: Sequence[str], settings: Settings) -> TextEmbeds:
        length = (
            settings.sampling.max_sequence_length
            or self.text_length
            or default_sequence_length(self.pipeline.tokenizer)
        )
        embeds = encode_prompts(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts, length)
        return embeds.to(self.device, self.transformer.dtype)

    def encode_pictures(self, pictures: Sequence[Sequence[np.ndarray]]) -> ImageEmbeds | None:
        if self.transformer.config.image_dim is None:
            return None
        encoder, processor = self.pipeline.image_encoder, self.pipeline.image_processor
        if encoder is None or processor is None:
            raise ModelError("this backbone reads image embeddings: the model needs image_encoder and image_processor")
        flat = [picture for entry in pictures for picture in entry]
        embeds = encode_pictures(encoder, processor, flat)
        # The tokens of a last frame follow those of the first.
        # (entry * picture, token, dim) -> (entry, picture * token, dim)
        embeds = embeds.unflatten(0, (len(pictures), -1)).flatten(1, 2)
        return embeds.to(self.device, self.transformer.dtype)

    def encode_condition(
        self, images: Images, last_images: Images | None, num_frames: int, generator: Generators
    ) -> VideoLatents | None:
        if not self.needs_image:
            return None
        fill = self.transformer.config.first_frame_fill
        condition = frame_condition(self.pipeline.vae, images, num_frames, fill, last_images)
        return condition.to(self.device)

    def join_condition(self, latents: VideoLatents, first_frames: VideoLatents | None) -> InputChannels:
        if first_frames is None:
            return latents
        num_mask_channels = self.transformer.config.in_channels - 2 * latents.shape[1]
        return torch.cat([latents, mark_first_frame(first_frames, num_mask_channels)], dim=1)

    def encode_first_latents(self, images: Images) -> FirstLatents | None:
        if not self._has_token_timesteps:
            return None
        return encode_video(self.pipeline.vae, images.unsqueeze(2)).to(self.device)

    def spread_timestep(
        self, timestep: Timestep, latents: VideoLatents, *, is_first_given: bool
    ) -> Timesteps | TokenTimesteps:
        if not self._has_token_timesteps:
            return super().spread_timestep(timestep, latents, is_first_given=is_first_given)
        sizes = zip(latents.shape[-3:], self.transformer.config.patch_size, strict=True)
        # (frame, row, column) of tokens -> (batch, token)
        steps = timestep.repeat(*(size // patch for size, patch in sizes))
        if is_first_given:
            steps[0] = 0
        return steps.flatten().expand(latents.shape[0], -1)

    def cache_text(self, text: TextEmbeds, image_embeds: ImageEmbeds | None) -> KeptText | None:
        return self.transformer.cache_text(text, image_embeds) if self.keeps_texts else None

    def cache_captions(self, reference: ReferenceTokens) -> ReferenceTokens:
        return self.transformer.cache_captions(reference) if self.keeps_texts else reference

    @property
    def keeps_texts(self) -> bool:
        # Under group offload a block has its weights only during its own forward, and feature caches do not support
        # projected texts.
        transformer = self.transformer
        return not (transformer.is_cache_enabled or _is_group_offload_enabled(transformer))

    def forward_arguments(self, inputs: ForwardInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        channels, transformer = inputs.channels, self.transformer
        given = (channels, inputs.timestep, inputs.text, inputs.image_embeds)
        if not self.keeps_texts:
            return given, {}
        key = (channels.shape[2:], channels.device, count_ranks(transformer._parallel_config))
        return given, {"image_rotary_emb": self._find_rotary(key, lambda: transformer.rotary_tables(channels))}


_log = logging.getLogger(__name__)


class CogVideoXFamily(BackboneFamily):
    """v-prediction, a fixed number of text tokens, first-frame channels without a mask, frames before channels."""

    name: ClassVar[str] = "cogvideox"
    prediction: ClassVar[PredictionType] = "v"
    lora_loader: ClassVar[type[LoraBaseMixin]] = CogVideoXLoraLoaderMixin
    has_sampled_latents: ClassVar[bool] = True
    reads_padding: ClassVar[bool] = True

    @property
    def takes_image(self) -> bool:
        return self.transformer.config.in_channels != self.transformer.config.out_channels

    @property
    def text_length(self) -> int | None:
        return self.transformer.config.max_text_seq_length

    def check_shape(self, settings: Settings) -> None:
        config = self.transformer.config
        if not config.use_learned_positional_embeddings:
            return
        ratio = latent_grid(self.pipeline.vae).spatial_ratio
        native = (config.sample_height * ratio, config.sample_width * ratio)
        size = settings.size
        if (size.height, size.width) != native:
            raise InputError(
                f"this model has learned positions for {native[0]}x{native[1]} pixels only, "
                f"got {size.height}x{size.width}"
            )
        if size.num_frames != config.sample_frames:
            _log.warning(
                "this model has learned positions for %d frames; for %d it falls back to computed ones, for which it "
                "was not trained",
                config.sample_frames,
                size.num_frames,
            )

    def encode_texts(self, prompts: Sequence[str], settings: Settings) -> TextEmbeds:
        length = settings.sampling.max_sequence_length or self.transformer.config.max_text_seq_length
        embeds = encode_prompts_padded(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts, length)
        return embeds.to(self.device, self.transformer.dtype)

    def encode_condition(
        self, images: Images, last_images: Images | None, num_frames: int, generator: Generators
    ) -> VideoLatents | None:
        if not self.takes_image:
            return None
        return leading_frame_condition(self.pipeline.vae, images, num_frames, generator).to(self.device)

    def join_condition(self, latents: VideoLatents, first_frames: VideoLatents | None) -> InputChannels:
        return latents if first_frames is None else torch.cat([latents, first_frames], dim=1)

    def arrange(self, inputs: ReferenceInputs) -> ReferenceInputs:
        latents = tuple(tensor.transpose(1, 2) for tensor in inputs.latents)
        return ReferenceInputs(latents, inputs.text_embeds, inputs.image_embeds)

    def forward_arguments(self, inputs: ForwardInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        _, _, frames, height, width = inputs.channels.shape
        key = (frames, height, width, inputs.channels.device)
        given = (inputs.channels.transpose(1, 2), inputs.text, inputs.timestep)
        return given, {"image_rotary_emb": self._find_rotary(key, lambda: self.transformer.rotary_tables(*key))}

    def rearrange(self, sample: FrameFirstLatents) -> VideoLatents:
        return sample.transpose(1, 2)


_BY_TRANSFORMER: dict[str, type[BackboneFamily]] = {
    "WanVideoAsPromptTransformer": WanFamily,
    "CogVideoXVideoAsPromptTransformer": CogVideoXFamily,
}


@dataclass(frozen=True)
class TransformerAlone:
    """What a family needs in training, where latents and text embeddings come from elsewhere than a pipeline."""

    transformer: ModelMixin
    config: FrozenDict = field(default_factory=lambda: FrozenDict(expand_timesteps=False))


def choose_family(pipeline: DiffusionPipeline | TransformerAlone) -> BackboneFamily:
    """Return the family of the transformer of a pipeline, or of a `TransformerAlone`.

    Raises:
        ModelError: It is a transformer of another class.
    """
    name = type(pipeline.transformer).__name__
    if name not in _BY_TRANSFORMER:
        raise ModelError(f"expected one of {', '.join(_BY_TRANSFORMER)} as the transformer, got {name}")
    config = pipeline.transformer.config
    later = [key for key in ("patch_size_t", "ofs_embed_dim") if config.get(key) is not None]
    if later and not isinstance(pipeline, TransformerAlone):
        raise ModelError(
            f"expected a transformer of CogVideoX, but one with {' and '.join(later)} is of CogVideoX 1.5, with which "
            "no videos can be made here; use CogVideoX-5b-I2V"
        )
    return _BY_TRANSFORMER[name](pipeline)
