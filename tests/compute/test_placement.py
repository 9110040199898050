"""Autoencoders that work in tiles, or say that they cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock
from torch.nn.functional import interpolate

from sememe.backbones.autoencoder import decode_latents, encode_video
from sememe.compute.placement import check_tiling, enable_tiling
from sememe.errors import InputError
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline
from video_as_prompt.wan_factories import make_linear_vae, make_wan_vae


def make_vae(name: str) -> Any:
    if name == "wan":
        return make_wan_vae()
    if name == "wan-patches":
        settings: dict[str, Any] = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "dim_mult": [1, 1, 1]}
        return make_wan_vae(**settings, temperal_downsample=[True, True], scale_factor_spatial=8)
    return make_linear_vae() if name == "linear" else make_cogvideox_pipeline().vae


def make_video(num_frames: int = 5) -> torch.Tensor:
    coarse = torch.rand(2, 3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    return interpolate(coarse, size=(num_frames, 64, 96), mode="trilinear") * 2 - 1


NAMES = ["wan", "wan-patches", "cogvideox"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_tiles_give_the_whole_size_and_one_tile_the_same(name: str) -> None:
    video = make_video(9 if name == "cogvideox" else 5)
    latents = encode_video(make_vae(name), video)
    decoded = decode_latents(make_vae(name), latents)
    vae = make_vae(name)
    enable_tiling(vae, 128)  # one tile holds all
    check_tiling(vae)
    assert torch.equal(encode_video(vae, video), latents)
    assert torch.equal(decode_latents(vae, latents), decoded)
    enable_tiling(vae, 32)
    check_tiling(vae)
    tiled, shown = encode_video(vae, video), decode_latents(vae, latents)
    assert tiled.shape == latents.shape
    assert shown.shape == decoded.shape
    assert not torch.equal(tiled, latents)
    assert not torch.equal(shown, decoded)


def make_local(vae: Any) -> Any:
    """Takes out of a model what looks at a whole picture at once, so that only convolutions look around."""
    for module in vae.modules():
        if isinstance(module, WanAttentionBlock):
            module.proj.weight.data.zero_()
            module.proj.bias.data.zero_()
        elif isinstance(module, torch.nn.GroupNorm):
            module.register_forward_hook(lambda _, inputs, __: inputs[0].tanh())
    return vae


def find_changed(found: torch.Tensor, expected: torch.Tensor, axis: int, tolerance: float) -> torch.Tensor:
    """The rows or columns in which two videos differ."""
    others = [each for each in range(found.ndim) if each != axis % found.ndim]
    return ((found - expected).abs().amax(others) > tolerance).nonzero().flatten()


@pytest.mark.parametrize(
    ("name", "way", "axis"),
    [
        ("wan", "encode", -1),
        ("wan", "decode", -2),
        ("wan-patches", "encode", -2),
        ("wan-patches", "decode", -1),
        ("cogvideox", "encode", -2),
        ("cogvideox", "decode", -1),
    ],
)
@torch.no_grad()
def test_what_no_tile_edge_reaches_is_as_without_tiles(name: str, way: str, axis: int) -> None:
    # In double precision, in which it can be seen how far a change reaches, however faint.
    vae, tile = make_local(make_vae(name)).double(), 320
    # The stock class with patches counts tiles of what it encodes in patches, so that they are twice as large.
    tile *= 2 if name == "wan-patches" and way == "encode" else 1
    # Two tiles: the first ends at `tile`, the second begins at three quarters of it; in between they are blended.
    size = [32, 32]
    size[axis] = tile * 3 // 2
    random = torch.Generator().manual_seed(0)
    if way == "decode":
        inputs, unit = torch.randn(1, vae_channels(vae), 1, size[0] // 8, size[1] // 8, generator=random).double(), 8
        run: Callable[[torch.Tensor], torch.Tensor] = lambda latents: decode_latents(vae, latents)  # noqa: E731
    else:
        inputs, unit = torch.rand(1, 3, 1, *size, generator=random).double() * 2 - 1, 1
        run = lambda video: encode_video(vae, video)  # noqa: E731
    expected = run(inputs)
    step = size[axis] // 8 // 2  # in latents
    touched, width = inputs.clone(), 8 // unit
    touched.narrow(axis, step * width, width).add_(0.5)
    changed = find_changed(run(touched), expected, axis, 1e-14)
    assert len(changed) > 1
    reach = max(step * unit - int(changed[0]), int(changed[-1]) + 1 - (step + 1) * unit)
    enable_tiling(vae, 320)
    differing = find_changed(run(inputs), expected, axis, 1e-9)
    end, start = tile * unit // 8, tile * 3 // 4 * unit // 8
    assert len(differing) > 0
    assert min(start, end - reach) <= int(differing[0])
    assert int(differing[-1]) < max(end, start + reach)
    assert reach < end // 2, "there is much on both sides that must not differ"


def vae_channels(vae: Any) -> int:
    return getattr(vae.config, "z_dim", None) or vae.config.latent_channels


class Numbering(torch.nn.Module):
    """A decoder that paints every tile with its number, in the order in which tiles are decoded."""

    def __init__(self, ratio: int, channels: int) -> None:
        super().__init__()
        self.ratio, self.channels, self.number = ratio, channels, -1

    def forward(self, tile: torch.Tensor, **settings: Any) -> Any:
        is_first = settings["first_chunk"] if "first_chunk" in settings else settings["conv_cache"] is None
        self.number += is_first
        height, width = (size * self.ratio for size in tile.shape[3:])
        painted = torch.full((1, self.channels, 1, height, width), 0.1 * self.number)
        return painted if "first_chunk" in settings else (painted, {})


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_overlaps_of_a_quarter_are_blended_linearly(name: str, axis: int) -> None:
    vae = make_vae(name)
    patch = 2 if name == "wan-patches" else 1
    vae.decoder = Numbering(8 // patch, 3 * patch**2)
    size = [48, 48]
    size[axis] = 144
    enable_tiling(vae, 64)
    shown = decode_latents(vae, torch.zeros(1, vae_channels(vae), 1, size[0] // 8, size[1] // 8))
    # Tiles begin at 0, 48 and 96 pixels; the first sixteen of the second and third are blended with what ends there.
    expected = torch.arange(3.0).repeat_interleave(48) * 0.1
    for start in (48, 96):
        for pixel in range(16):
            weight = pixel // patch / (16 // patch)
            expected[start + pixel] -= 0.1 * (1.0 - weight)
    assert shown.shape[3:] == tuple(size)
    line = shown.movedim(axis, -1)
    torch.testing.assert_close(line, expected.expand_as(line))


@pytest.mark.parametrize("name", ["wan", "cogvideox", "linear"])
@torch.no_grad()
def test_slices_give_the_same_result(name: str) -> None:
    video, vae = make_video(9), make_vae(name)
    latents = encode_video(vae, video)
    decoded = decode_latents(vae, latents)
    vae.enable_slicing()
    torch.testing.assert_close(encode_video(vae, video), latents, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(decode_latents(vae, latents), decoded, atol=1e-4, rtol=1e-3)


def test_what_cannot_be_tiled_is_refused() -> None:
    with pytest.raises(InputError, match="LinearVideoAutoencoder cannot work in tiles"):
        enable_tiling(make_linear_vae())
    with pytest.raises(InputError, match="tile_size must be a multiple of 32 pixels for this autoencoder, got 48"):
        enable_tiling(make_wan_vae(), 48)
    pipe = make_cogvideox_pipeline()
    pipe.vae.enable_tiling(24, 24)
    with pytest.raises(InputError, match=r"tiles of 24 pixels in height .* do not fit together"):
        pipe(make_picture(), [make_clip()])


def test_a_pipeline_generates_in_tiles() -> None:
    pipe = make_pipeline(vae="wan", height=64, width=64)
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()]}
    shapes = []
    for _ in range(2):
        clip = pipe(**arguments, generator=torch.Generator().manual_seed(1)).clips[0]
        shapes.append(clip.frames.shape)
        enable_tiling(pipe.vae, 32)
    assert shapes[0] == shapes[1]
