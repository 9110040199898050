"""Autoencoders that work in tiles, or say that they cannot."""

from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from models.factories import make_cosmos_vae, make_wan_vae
from pipelines.factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline
from sememe.errors import InputError
from sememe.models.autoencoder import decode_latents, encode_video
from sememe.pipelines.tiling import check_tiling, enable_slicing, enable_tiling


def make_vae(name: str) -> Any:
    if name == "wan":
        return make_wan_vae()
    if name == "wan-patches":
        settings: dict[str, Any] = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "dim_mult": [1, 1, 1]}
        return make_wan_vae(**settings, temperal_downsample=[True, True], scale_factor_spatial=8)
    return make_cosmos_vae() if name == "cosmos" else make_cogvideox_pipeline().vae


def make_video(num_frames: int = 5) -> torch.Tensor:
    coarse = torch.rand(2, 3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    return interpolate(coarse, size=(num_frames, 64, 96), mode="trilinear") * 2 - 1


def measure_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# How far tiles of 64 and of 32 pixels may be off. Random weights look everywhere, so that tiles miss more than those of
# a trained autoencoder do; CogVideoX's group norms see one tile at a time, and go astray in small ones.
BOUNDS = {"wan": {64: 0.5, 32: 0.7}, "wan-patches": {64: 0.5, 32: 0.7}, "cogvideox": {64: 0.5}}


@pytest.mark.parametrize("name", BOUNDS)
@torch.no_grad()
def test_tiles_fit_together_and_are_close(name: str) -> None:
    video = make_video(9 if name == "cogvideox" else 5)
    latents = encode_video(make_vae(name), video)
    decoded = decode_latents(make_vae(name), latents)
    vae = make_vae(name)
    enable_tiling(vae, 128)  # one tile holds all
    check_tiling(vae)
    assert torch.equal(encode_video(vae, video), latents)
    assert torch.equal(decode_latents(vae, latents), decoded)
    for tile_size, bound in BOUNDS[name].items():
        enable_tiling(vae, tile_size)
        check_tiling(vae)
        tiled, shown = encode_video(vae, video), decode_latents(vae, latents)
        assert tiled.shape == latents.shape
        assert shown.shape == decoded.shape
        assert 0.0 < measure_distance(shown, decoded) < bound
        # The stock class with patches counts tiles of what it encodes in patches, so that they are twice as large.
        smallest = -1.0 if name == "wan-patches" and tile_size == 64 else 0.0
        assert smallest < measure_distance(tiled, latents) < bound


@pytest.mark.parametrize("name", ["wan", "cogvideox", "cosmos"])
@torch.no_grad()
def test_slices_give_the_same_result(name: str) -> None:
    video, vae = make_video(9), make_vae(name)
    latents = encode_video(vae, video)
    decoded = decode_latents(vae, latents)
    enable_slicing(vae)
    torch.testing.assert_close(encode_video(vae, video), latents, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(decode_latents(vae, latents), decoded, atol=1e-4, rtol=1e-3)


def test_what_cannot_be_tiled_is_refused() -> None:
    with pytest.raises(InputError, match="tiling has no effect on AutoencoderKLCosmos"):
        enable_tiling(make_cosmos_vae())
    with pytest.raises(InputError, match="tile_size must be a multiple of 32 pixels for this autoencoder, got 48"):
        enable_tiling(make_wan_vae(), 48)
    pipe = make_pipeline("cached", "cosmos")
    pipe.vae.enable_tiling()
    with pytest.raises(InputError, match="tiling has no effect on AutoencoderKLCosmos"):
        pipe(make_picture(), [make_clip()])
    pipe = make_cogvideox_pipeline()
    pipe.vae.enable_tiling(24, 24)
    with pytest.raises(InputError, match=r"tiles of 24 pixels in height .* do not fit together"):
        pipe(make_picture(), [make_clip()])


def test_a_pipeline_generates_in_tiles() -> None:
    pipe = make_pipeline(height=64, width=64)
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()]}
    shapes = []
    for _ in range(2):
        clip = pipe(**arguments, generator=torch.Generator().manual_seed(1)).clips[0]
        shapes.append(clip.frames.shape)
        enable_tiling(pipe.vae, 32)
    assert shapes[0] == shapes[1]
