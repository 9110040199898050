"""Support CogVideoX backbones: image-to-video and text-to-video."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin

from sememe.backbones.autoencoder import latent_grid
from sememe.backbones.first_frame import leading_frame_condition
from sememe.backbones.text import encode_prompts_padded
from sememe.diffusion.objectives import PredictionType
from sememe.errors import InputError
from sememe.video_as_prompt.backbone_family import BackboneFamily, ForwardInputs, Generators, Images, InputChannels
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.rotary import RotaryTables
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.shapes import FrameFirstLatents, TextEmbeds, VideoLatents

_log = logging.getLogger(__name__)


class CogVideoXFamily(BackboneFamily):
    """v-prediction, a fixed number of text tokens, first-frame channels without a mask, frames before channels."""

    name: ClassVar[str] = "cogvideox"
    prediction: ClassVar[PredictionType] = "v"
    lora_loader: ClassVar[Any] = CogVideoXLoraLoaderMixin
    has_sampled_latents: ClassVar[bool] = True
    reads_padding: ClassVar[bool] = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._rotary: dict[tuple[Any, ...], RotaryTables | None] = {}

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

    def join_condition(self, latents: VideoLatents, first_frames: VideoLatents) -> InputChannels:
        return torch.cat([latents, first_frames], dim=1)

    def arrange(self, inputs: ReferenceInputs) -> ReferenceInputs:
        latents = tuple(tensor.transpose(1, 2) for tensor in inputs.latents)
        return ReferenceInputs(latents, inputs.text_embeds, inputs.image_embeds)

    def forward_arguments(self, inputs: ForwardInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        _, _, frames, height, width = inputs.channels.shape
        key = (frames, height, width, inputs.channels.device)
        if key not in self._rotary:
            self._rotary = {key: self.transformer.rotary_tables(*key)}
        given = (inputs.channels.transpose(1, 2), inputs.text, inputs.timestep)
        return given, {"image_rotary_emb": self._rotary[key]}

    def rearrange(self, sample: FrameFirstLatents) -> VideoLatents:
        return sample.transpose(1, 2)
