"""Decoding in chunks: together they are what decoding at once gives."""

from typing import Any

import pytest
import torch

from sememe.backbones.autoencoder import decode_latents
from sememe.backbones.decoding import decode_in_chunks
from video_as_prompt.wan_factories import LATENT_CHANNELS, make_linear_vae, make_wan_vae

VAES = {"linear": make_linear_vae, "wan": make_wan_vae}


def make_latents(num_frames: int) -> torch.Tensor:
    return torch.randn(1, LATENT_CHANNELS, num_frames, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", VAES)
@pytest.mark.parametrize(("num_frames", "chunk"), [(1, 4), (5, 1), (6, 2), (7, 4)])
def test_chunks_are_the_whole(kind: str, num_frames: int, chunk: int) -> None:
    vae, latents = VAES[kind](), make_latents(num_frames)
    with torch.no_grad():
        whole = decode_latents(vae, latents)
    chunks = list(decode_in_chunks(vae, latents, chunk))
    assert [part.shape[2] for part in chunks[1:-1]] == [4 * chunk] * (len(chunks) - 2)
    torch.testing.assert_close(torch.cat(chunks, dim=2), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", VAES)
@pytest.mark.parametrize("span", [(0, 2), (1, 3), (4, 6)])
def test_a_span_is_that_part_of_the_whole(kind: str, span: tuple[int, int]) -> None:
    vae, latents = VAES[kind](), make_latents(6)
    with torch.no_grad():
        whole = decode_latents(vae, latents)
    part = torch.cat(list(decode_in_chunks(vae, latents, 1, span=span)), dim=2)
    first, last = (max(0, 4 * count - 3) for count in span)
    torch.testing.assert_close(part, whole[:, :, first:last], rtol=0, atol=1e-6)


def test_tiles_come_in_one_chunk() -> None:
    vae: Any = make_wan_vae()
    vae.enable_tiling(32, 32, 24, 24)
    latents = torch.randn(1, LATENT_CHANNELS, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = decode_latents(vae, latents)
    (chunk,) = decode_in_chunks(vae, latents, 1, span=(1, 3))
    assert torch.equal(chunk, whole[:, :, 1:])
