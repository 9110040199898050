"""Our own autoencoder: a linear code, and a decoder that refines it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sememe.backbones.autoencoder import frames_to_video, latent_grid
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder, fold, unfold
from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import resolve_model
from sememe.world import EVALUATION_SEED, conditions, random_scene, render
from video_as_prompt.wan_factories import make_linear_vae


def make_video(num_frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(2, 3, num_frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_folds_are_blocks_and_can_be_undone() -> None:
    video = make_video(8)
    folded = fold(video, 4, 8)
    assert folded.shape == (2, 3 * 4 * 8 * 8, 2, 2, 3)
    block = video[1, :, 4:8, 0:8, 16:24]
    assert torch.equal(folded[1, :, 1, 0, 2], block.flatten())
    assert torch.equal(unfold(folded, 4, 8), video)


@torch.no_grad()
def test_without_refinement_it_is_the_linear_map() -> None:
    vae = LinearVideoAutoencoder(6, patch_size=4, hidden_channels=8).eval()
    video = make_video(9)
    latents = vae.encode(video).latent_dist.mode()
    first = torch.cat([video[:, :, :1]] * 4, dim=2)[1, :, :, 4:8, 8:12].flatten()
    torch.testing.assert_close(latents[1, :, 0, 1, 2], vae.encoder(first))
    torch.testing.assert_close(latents[1, :, 2, 1, 2], vae.encoder(video[1, :, 5:9, 4:8, 8:12].flatten()))
    assert torch.equal(vae.decode(latents).sample, vae.decode_linear(latents)[:, :, 3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 4, 4), (5, 8, 20), (21, 12, 4)])
@torch.no_grad()
def test_every_size_and_length(num_frames: int, height: int, width: int, dtype: torch.dtype) -> None:
    vae, video = make_linear_vae().to(dtype), make_video(num_frames, height, width).to(dtype)
    latents = vae.encode(video).latent_dist.mode()
    assert latents.shape == (2, 4, 1 + num_frames // 4, height // 4, width // 4)
    decoded = vae.decode(latents).sample
    assert decoded.shape == video.shape
    assert latents.dtype == decoded.dtype == dtype
    torch.testing.assert_close(decoded[1:], vae.decode(latents[1:]).sample)
    assert torch.equal(vae(video).sample, decoded)


@torch.no_grad()
def test_the_refinement_sees_neighbours_and_the_noise_level() -> None:
    vae = make_linear_vae()
    latents = vae.encode(make_video(13)).latent_dist.mode()
    decoded = vae.decode(latents).sample
    changed = latents.clone()
    changed[:, :, 2] += 1.0
    for frames, block in ((slice(1, 5), 1), (slice(9, 13), 3)):
        residue, before = (vae.decode(each).sample - vae.decode_linear(each)[:, :, 3:] for each in (changed, latents))
        assert not torch.allclose(residue[:, :, frames], before[:, :, frames]), f"block {block} sees its neighbour"
    vae.register_to_config(noise_level=0.6)
    other = vae.decode(latents).sample
    assert not torch.allclose(other[:, :, 1:], decoded[:, :, 1:])
    assert torch.equal(other[:, :, :1], decoded[:, :, :1]), "the first latent frame is assumed exact"


@torch.no_grad()
def test_it_is_the_same_after_saving(tmp_path: Path) -> None:
    vae, video = make_linear_vae(), make_video(5)
    vae.save_pretrained(tmp_path)
    loaded = load_component("vae", tmp_path)
    assert isinstance(loaded, LinearVideoAutoencoder)
    assert loaded.config.noise_level == 0.3
    assert torch.equal(loaded(video).sample, vae(video).sample)


def film(num_clips: int) -> torch.Tensor:
    """Clips of as many conditions, in scenes that nothing was trained on."""
    clips = []
    for seed in range(num_clips):
        scene = random_scene(EVALUATION_SEED + seed)
        names = conditions(scene=scene)
        clips.append(render(scene, names[13 * seed % len(names)], num_frames=17, size=64).clip.frames)
    return frames_to_video(np.stack(clips))


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((-10 * torch.log10((one.clamp(-1, 1) - other).square().mean((1, 2, 3, 4)) / 4)).mean())


@torch.no_grad()
def test_the_shipped_refinement_beats_the_linear_code() -> None:
    vae, video = load_component("vae", resolve_model("video-as-prompt/tiny") / "vae"), film(12)
    latents = vae.encode(video).latent_dist.mode()
    exact = vae.decode(latents, noise_levels=torch.zeros(len(latents), latents.shape[2])).sample
    assert psnr(exact, video) > 21.5
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noise[:, :, 0] = 0.0
    noisy = latents + vae.config.noise_level * noise
    assert psnr(vae.decode(noisy).sample, video) > psnr(vae.decode_linear(noisy)[:, :, 7:], video) + 0.5


@torch.no_grad()
def test_for_images_each_frame_is_coded_alone() -> None:
    vae = LinearVideoAutoencoder(6, patch_size=4, hidden_channels=8, noise_level=0.3, temporal_patch_size=1).eval()
    torch.nn.init.normal_(vae.refiner.conv_out.weight)
    assert latent_grid(vae).latent_shape(7, 16, 24) == (6, 7, 4, 6)
    video = make_video(7)
    latents = vae.encode(video).latent_dist.mode()
    decoded = vae.decode(latents).sample
    frames = [vae(video[:, :, place : place + 1]).sample for place in range(7)]
    torch.testing.assert_close(decoded, torch.cat(frames, dim=2))
    # No frame is given to a generation, so that the error is assumed in the first one too.
    exact = vae.decode(latents, noise_levels=torch.zeros(2, 7)).sample
    assert (decoded - exact).abs().amax(dim=(0, 1, 3, 4)).min() > 0
