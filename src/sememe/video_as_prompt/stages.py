"""Networks of Video-As-Prompt as recipes describe them, before any training."""

from diffusers import WanTransformer3DModel

from sememe.video_as_prompt.stage_settings import WanNetwork


def make_transformer(network: WanNetwork, latent_channels: int, text_dim: int) -> WanTransformer3DModel:
    """Return an image-to-video transformer with random weights; it reads latents, mask and conditioning latents."""
    return WanTransformer3DModel(
        patch_size=(1, network.patch_size, network.patch_size),
        num_attention_heads=network.num_attention_heads,
        attention_head_dim=network.attention_head_dim,
        in_channels=2 * latent_channels + network.num_mask_channels,
        out_channels=latent_channels,
        text_dim=text_dim,
        freq_dim=network.freq_dim,
        ffn_dim=network.ffn_dim,
        num_layers=network.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=network.rope_max_seq_len,
    )
