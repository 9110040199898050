"""Settings for generation of models whose folders state none."""

from typing import Any

from torch import nn

from sememe.backbones.autoencoder import latent_grid
from sememe.video_as_prompt.settings import RELEASED


def released_defaults(name: str, transformer: nn.Module, vae: nn.Module) -> dict[str, Any]:
    """Return the `generation_defaults` of a released model.

    A transformer with learned positions has only one size, which replaces the usual one, and so does the length of
    text for which it was made.

    Args:
        name: `wan`, `wan-ti2v` (Wan2.2-TI2V) or `cogvideox`.
        transformer: Transformer of the model.
        vae: Autoencoder of the model, which determines how many pixels a latent covers.
    """
    settings = RELEASED[name]
    config: Any = transformer.config
    if name == "cogvideox":
        settings = settings.override(max_sequence_length=config.max_text_seq_length)
        if config.use_learned_positional_embeddings:
            ratio = latent_grid(vae).spatial_ratio
            settings = settings.override(
                height=config.sample_height * ratio,
                width=config.sample_width * ratio,
                num_frames=config.sample_frames,
            )
    return settings.to_config()
