"""Check and embed the references of an expert on CogVideoX."""

from typing import Any

from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding
from torch import nn

from sememe.errors import ModelError
from sememe.video_as_prompt.blocks_cogvideox import TextAndVideo
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.shapes import FrameFirstLatents, TextEmbeds


class CogVideoXExpertEmbedder(nn.Module):
    """The expert's patch embedding and time embedding.

    `forward` embeds one reference. `time_embedding` is called separately: at every step if the reference follows the
    target's timestep.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim = config.num_attention_heads * config.attention_head_dim
        self.patch_embed = CogVideoXPatchEmbed(
            patch_size=config.patch_size,
            patch_size_t=config.patch_size_t,
            in_channels=config.in_channels,
            embed_dim=dim,
            text_embed_dim=config.text_embed_dim,
            bias=config.patch_bias,
            sample_width=config.sample_width,
            sample_height=config.sample_height,
            sample_frames=config.sample_frames,
            temporal_compression_ratio=config.temporal_compression_ratio,
            max_text_seq_length=config.max_text_seq_length,
            spatial_interpolation_scale=config.spatial_interpolation_scale,
            temporal_interpolation_scale=config.temporal_interpolation_scale,
            use_positional_embeddings=not config.use_rotary_positional_embeddings,
            use_learned_positional_embeddings=config.use_learned_positional_embeddings,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.time_embedding = TimestepEmbedding(dim, config.time_embed_dim, config.timestep_activation_fn)

    def forward(self, text: TextEmbeds, latents: FrameFirstLatents) -> TextAndVideo:
        """Embed one reference at the same learned or sine positions as a target."""
        # (batch, text token + video token, dim)
        both = self.dropout(self.patch_embed(text, latents))
        return TextAndVideo(*both.tensor_split([text.shape[1]], dim=1))


def check_reference(config: Any, inputs: ReferenceInputs) -> tuple[int, int]:
    """Check references against the model's configuration and return their (height, width) in latents.

    Raises:
        ModelError: If they do not fit.
    """
    if inputs.image_embeds is not None:
        raise ModelError("CogVideoX does not take image embeddings of its references")
    channels = {latents.shape[2] for latents in inputs.latents}
    if channels != {config.in_channels}:
        raise ModelError(
            f"reference latents need {config.in_channels} channels (latents and condition), got {sorted(channels)}"
        )
    sizes = {(latents.shape[3], latents.shape[4]) for latents in inputs.latents}
    if len(sizes) != 1:
        raise ModelError(f"all references must have one size, got {sorted(sizes)} (rows, columns of latents)")
    height, width = sizes.pop()
    if height % config.patch_size or width % config.patch_size:
        raise ModelError(
            f"reference latents must divide into patches of {config.patch_size}x{config.patch_size}, "
            f"got {height}x{width}"
        )
    native = (config.sample_height, config.sample_width)
    if config.use_learned_positional_embeddings and (height, width) != native:
        raise ModelError(
            f"this model has learned positions for {native[0]}x{native[1]} latents, got references of {height}x{width}"
        )
    num_frames = [latents.shape[1] for latents in inputs.latents]
    if any(number % (config.patch_size_t or 1) for number in num_frames):
        raise ModelError(
            f"the latent frames of a reference must be a multiple of {config.patch_size_t}, got {num_frames}"
        )
    lengths = {text.shape[1] for text in inputs.text_embeds}
    has_positions = config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings
    if has_positions and lengths != {config.max_text_seq_length}:
        raise ModelError(f"captions of references need {config.max_text_seq_length} tokens, got {sorted(lengths)}")
    return height, width
