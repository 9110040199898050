"""Latents: normalised in one place, the same way for every autoencoder, and only for shapes that exist."""

from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderTiny

from model_folders import make_cogvideox_vae
from sememe.backbones.autoencoder import LatentGrid, decode_latents, encode_video, latent_grid
from sememe.backbones.first_frame import (
    encode_first_frame,
    frame_condition,
    leading_frame_condition,
    mark_first_frame,
)
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.compute.rehearsal import measure_peak
from sememe.errors import InputError, ModelError
from video_as_prompt.wan_factories import make_linear_vae, make_wan_vae


def make_video(num_frames: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, num_frames, 32, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def test_wan_latents_are_normalised_per_channel() -> None:
    vae = make_wan_vae()
    raw = vae.encode(make_video()).latent_dist.mode()
    latents = encode_video(vae, make_video())
    assert latents.shape == (2, *latent_grid(vae).latent_shape(5, 32, 16))
    for channel, (mean, std) in enumerate(zip(vae.config.latents_mean, vae.config.latents_std, strict=True)):
        torch.testing.assert_close(latents[:, channel], (raw[:, channel] - mean) / std)
    video = decode_latents(vae, latents)
    assert video.shape == make_video().shape
    torch.testing.assert_close(video, vae.decode(raw).sample.clamp(-1, 1), atol=1e-5, rtol=1e-4)
    assert torch.equal(latents, encode_video(vae, make_video()))


@torch.no_grad()
def test_a_video_that_is_not_finite_is_refused() -> None:
    vae = make_wan_vae()
    vae.register_to_config(latents_std=[float("nan")] * len(vae.config.latents_std))
    with pytest.raises(InputError, match="decoded video is not finite"):
        decode_latents(vae, torch.zeros(1, *latent_grid(vae).latent_shape(5, 32, 16)))


@torch.no_grad()
def test_cogvideox_latents_use_the_scaling_factor() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    ).eval()
    grid = latent_grid(vae)
    assert grid == LatentGrid(4, 8, 4, frame_multiple=8)
    assert grid.latent_shape(5, 8, 8, is_decoded=False) == (4, 2, 1, 1)
    with pytest.raises(InputError, match="the nearest is 9"):
        grid.latent_shape(5, 8, 8)
    with pytest.raises(InputError, match="got 6"):
        grid.latent_shape(6, 8, 8, is_decoded=False)
    raw = vae.encode(make_video()).latent_dist.mode()
    torch.testing.assert_close(encode_video(vae, make_video()), raw * 0.7)


def test_shapes_that_do_not_exist_are_refused_with_the_nearest() -> None:
    grid = LatentGrid(temporal_ratio=4, spatial_ratio=8, num_channels=16, patch_size=2)
    assert grid.latent_shape(17, 64, 96) == (16, 5, 8, 12)
    assert [grid.nearest_num_frames(count) for count in (-3, 0, 1, 2, 3, 15, 16, 17, 18, 19)] == [
        1, 1, 1, 1, 5, 17, 17, 17, 17, 21
    ]  # fmt: skip
    assert [grid.nearest_size(pixels) for pixels in (0, 7, 16, 23, 24, 65)] == [16, 16, 16, 16, 32, 64]
    assert all(grid.count_frames(grid.count_latent_frames(n)) == n for n in (1, 5, 81))
    with pytest.raises(InputError, match=r"num_frames .* got 16; the nearest is 17"):
        grid.latent_shape(16, 64, 64)
    with pytest.raises(InputError, match=r"height must be a multiple of 16 .* got 65; the nearest is 64"):
        grid.latent_shape(17, 65, 64)
    with pytest.raises(InputError, match=r"width .* got 0; the nearest is 16"):
        grid.latent_shape(17, 64, 0)


def test_other_autoencoders_are_refused() -> None:
    with pytest.raises(ModelError, match="got AutoencoderTiny"):
        latent_grid(AutoencoderTiny())


@torch.no_grad()
def test_an_autoencoder_for_images_works_frame_by_frame() -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5, **blocks).eval()
    video = make_video(3)
    grid = latent_grid(vae)
    assert (grid.temporal_ratio, grid.spatial_ratio, grid.latent_shape(3, 32, 16)) == (1, 2, (4, 3, 16, 8))
    latents = encode_video(vae, video)
    frame = vae.encode(video[:, :, 1]).latent_dist
    assert torch.equal(latents[:, :, 1], frame.mode() * 0.5)
    decoded = decode_latents(vae, latents)
    assert torch.equal(decoded[:, :, 1], vae.decode(frame.mode()).sample.clamp(-1, 1))
    drawn = encode_video(vae, video, torch.Generator().manual_seed(0))
    assert drawn.shape == latents.shape
    assert not torch.equal(drawn, latents)


@torch.no_grad()
def test_the_linear_autoencoder_for_images_decodes_in_the_memory_of_one_frame() -> None:
    torch.manual_seed(0)
    vae = LinearVideoAutoencoder(latent_channels=4, patch_size=4, temporal_patch_size=1, hidden_channels=16).eval()
    vae.refiner.conv_out.reset_parameters()
    latents = encode_video(vae, make_video(9))
    whole = vae.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(decode_latents(vae, latents), whole, atol=1e-6, rtol=1e-5)
    peaks = [measure_peak(partial(decode_latents, vae, latents[:, :, :count])) for count in (3, 9)]
    assert peaks[1] - peaks[0] < 3 * whole[:, :, :6].nbytes, "more frames add themselves alone"


@pytest.mark.parametrize("make_vae", [make_wan_vae, make_linear_vae])
@torch.no_grad()
def test_the_condition_holds_the_first_frame_and_says_so(make_vae) -> None:  # type: ignore[no-untyped-def]
    vae, images = make_vae(), make_video(1)[:, :, 0]
    condition = frame_condition(vae, images, 9)
    ratio = latent_grid(vae).spatial_ratio
    assert condition.shape == (2, 4 + 4, 3, 32 // ratio, 16 // ratio)
    mask = condition[:, :4]
    assert mask[:, :, 0].eq(1).all()
    assert mask[:, :, 1:].eq(0).all()
    # Causal: the first latent frame is that of the picture alone.
    torch.testing.assert_close(condition[:, 4:, :1], encode_video(vae, images.unsqueeze(2)), atol=1e-5, rtol=1e-4)
    assert torch.equal(mark_first_frame(encode_first_frame(vae, images, 9), 4), condition)


@torch.no_grad()
def test_the_condition_of_cogvideox_is_the_first_frame_and_then_nothing() -> None:
    vae, images = make_cogvideox_vae(), make_video(1)[:, :, 0]
    condition = leading_frame_condition(vae, images, 9)
    assert torch.equal(condition[:, :, :1], encode_video(vae, images.unsqueeze(2)))
    assert condition.shape[2] == 3
    assert condition[:, :, 1:].eq(0).all()


def test_a_repeated_first_frame_is_the_encoding_of_a_still_video() -> None:
    vae = make_wan_vae()
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
    still = encode_video(vae, images.unsqueeze(2).repeat(1, 1, 9, 1, 1))
    assert torch.equal(encode_first_frame(vae, images, 9, "repeat"), still)
    assert not torch.allclose(encode_first_frame(vae, images, 9, "grey"), still)
    # Autoencoder and padding are causal: the first latent frame does not depend on what follows.
    assert torch.allclose(encode_first_frame(vae, images, 9, "grey")[:, :, 0], still[:, :, 0], atol=1e-5)
