"""Settings for generation of models whose folders state none: those with which the official code shows the models."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from sememe.backbones.autoencoder import latent_grid

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "wan": {
        "height": 480,
        "width": 832,
        "num_frames": 49,
        "fps": 16.0,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "max_sequence_length": 512,
    },
    "wan-ti2v": {
        "height": 704,
        "width": 1280,
        "num_frames": 121,
        "fps": 24.0,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "max_sequence_length": 512,
    },
    "cogvideox": {
        "height": 480,
        "width": 720,
        "num_frames": 49,
        # The stock pipeline's videos are shown at 8 frames a second; the experts were trained on clips of 16.
        "fps": 16.0,
        "num_inference_steps": 50,
        "guidance_scale": 6.0,
        "max_sequence_length": 226,
    },
}


def released_defaults(name: str, transformer: nn.Module, vae: nn.Module) -> dict[str, Any]:
    """Settings of a released model of a family.

    A transformer with learned positions has but one size, which replaces the usual one, and so does the length of
    text for which it was made.

    Args:
        name: `wan`, `wan-ti2v` (Wan2.2-TI2V) or `cogvideox`.
        transformer: of the model.
        vae: of the model, which says how many pixels a latent covers.
    """
    settings: dict[str, Any] = dict(_DEFAULTS[name])
    config: Any = transformer.config
    if name == "cogvideox":
        settings["max_sequence_length"] = config.max_text_seq_length
        if config.use_learned_positional_embeddings:
            ratio = latent_grid(vae).spatial_ratio
            settings |= {"height": config.sample_height * ratio, "width": config.sample_width * ratio}
            settings["num_frames"] = config.sample_frames
    return settings
