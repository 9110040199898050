"""CogVideoX backbones: image-to-video and text-to-video."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from sememe.backbones.autoencoder import latent_grid
from sememe.backbones.first_frame import leading_frame_condition
from sememe.backbones.text import encode_prompts_padded
from sememe.diffusion.objectives import PredictionType
from sememe.errors import InputError
from sememe.video_as_prompt.backbone_family import BackboneFamily, ForwardInputs, Generators
from sememe.video_as_prompt.defaults import GenerationDefaults
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.rotary import RotaryTables

_log = logging.getLogger(__name__)


class CogVideoXFamily(BackboneFamily):
    """v-prediction; a fixed number of text tokens; the first frame's latents as condition; frames before channels."""

    name: ClassVar[str] = "cogvideox"
    prediction: ClassVar[PredictionType] = "v"
    has_sampled_latents: ClassVar[bool] = True
    reads_padding: ClassVar[bool] = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._rotary: dict[tuple[int, int, int], RotaryTables | None] = {}

    @property
    def takes_image(self) -> bool:
        return self.transformer.config.in_channels != self.transformer.config.out_channels

    @property
    def text_length(self) -> int | None:
        return self.transformer.config.max_text_seq_length

    def check_shape(self, settings: GenerationDefaults) -> None:
        config = self.transformer.config
        if not config.use_learned_positional_embeddings:
            return
        ratio = latent_grid(self.pipeline.vae).spatial_ratio
        native = (config.sample_height * ratio, config.sample_width * ratio)
        if (settings.height, settings.width) != native:
            raise InputError(
                f"this model has learned positions for {native[0]}x{native[1]} pixels only, "
                f"got {settings.height}x{settings.width}"
            )
        if settings.num_frames != config.sample_frames:
            _log.warning(
                "this model has learned positions for %d frames; for %d it falls back to computed ones, for which it "
                "was not trained",
                config.sample_frames,
                settings.num_frames,
            )

    def encode_texts(self, prompts: Sequence[str], settings: GenerationDefaults) -> torch.Tensor:
        length = settings.max_sequence_length or self.transformer.config.max_text_seq_length
        embeds = encode_prompts_padded(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts, length)
        return embeds.to(self.device, self.transformer.dtype)

    def encode_condition(
        self, images: torch.Tensor, last_images: torch.Tensor | None, num_frames: int, generator: Generators
    ) -> torch.Tensor | None:
        if not self.takes_image:
            return None
        return leading_frame_condition(self.pipeline.vae, images, num_frames, generator).to(self.device)

    def join_condition(self, latents: torch.Tensor, first_frames: torch.Tensor) -> torch.Tensor:
        return torch.cat([latents, first_frames], dim=1)

    def arrange(self, inputs: ReferenceInputs) -> ReferenceInputs:
        latents = tuple(tensor.transpose(1, 2) for tensor in inputs.latents)
        return ReferenceInputs(latents, inputs.text_embeds, inputs.image_embeds)

    def forward_arguments(self, inputs: ForwardInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        _, _, frames, height, width = inputs.channels.shape
        size = (frames, height, width)
        if size not in self._rotary:
            self._rotary[size] = self.transformer.rotary_tables(*size, inputs.channels.device)
        rotary = self._rotary[size]
        return (inputs.channels.transpose(1, 2), inputs.text, inputs.timestep), {"image_rotary_emb": rotary}

    def rearrange(self, sample: torch.Tensor) -> torch.Tensor:
        return sample.transpose(1, 2)
