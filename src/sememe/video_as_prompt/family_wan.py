"""Support Wan backbones: image-to-video with or without CLIP, text-to-video, and both in one (Wan2.2-TI2V).

Wan2.2-TI2V has no channels for a first frame. The encoded picture replaces the first latent frame before every forward,
and its tokens have timestep 0.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.utils.torch_utils import get_module_execution_device

from sememe.backbones.autoencoder import encode_video
from sememe.backbones.cross_attention import KeptText
from sememe.backbones.first_frame import frame_condition, mark_first_frame
from sememe.backbones.text import MAX_SEQUENCE_LENGTH, default_sequence_length, encode_prompts
from sememe.diffusion.objectives import PredictionType
from sememe.errors import ModelError
from sememe.video_as_prompt.backbone_family import (
    BackboneFamily,
    FirstLatents,
    ForwardInputs,
    Generators,
    Images,
    InputChannels,
    Timestep,
)
from sememe.video_as_prompt.context_parallel import count_ranks
from sememe.video_as_prompt.references import ReferenceTokens
from sememe.video_as_prompt.rotary import RotaryTables
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.shapes import ImageEmbeds, TextEmbeds, Timesteps, TokenTimesteps, VideoLatents


class WanFamily(BackboneFamily):
    """Flow matching, zeros after the end of a text, mask and first-frame channels, and CLIP if the model has it."""

    name: ClassVar[str] = "wan"
    prediction: ClassVar[PredictionType] = "flow"
    lora_loader: ClassVar[Any] = WanLoraLoaderMixin
    supports_coarse_references: ClassVar[bool] = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._rotary: dict[tuple[Any, ...], RotaryTables] = {}

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
        pixels = processor(images=flat, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(get_module_execution_device(encoder), encoder.dtype)
        # Wan reads the last layer but one; the tokens of a last frame follow those of the first.
        embeds = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
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

    def join_condition(self, latents: VideoLatents, first_frames: VideoLatents) -> InputChannels:
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
        given = (inputs.channels, inputs.timestep, inputs.text, inputs.image_embeds)
        return given, {"image_rotary_emb": self._find_rotary(inputs.channels)} if self.keeps_texts else {}

    def _find_rotary(self, channels: VideoLatents) -> RotaryTables:
        key = (channels.shape[2:], channels.device, count_ranks(self.transformer._parallel_config))
        if key not in self._rotary:
            self._rotary = {key: self.transformer.rotary_tables(channels)}
        return self._rotary[key]
