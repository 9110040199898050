"""Masks: what is outside stays, bit for bit."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler

from sememe.errors import InputError
from sememe.gen1.mask import MaskedLatents, put_over, read_mask
from sememe.video import Clip, read_image


def make_clip(value: int, num_frames: int = 2) -> Clip:
    return Clip(np.full((num_frames, 16, 24, 3), value, np.uint8), 8.0)


def make_mask() -> np.ndarray:
    mask = np.zeros((2, 16, 24), bool)
    mask[0, :, 12:] = True
    mask[1, 4:12, 4:20] = True
    return mask


def show(mask: np.ndarray) -> Clip:
    return Clip(np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=3), 8.0)


def test_masks_are_read() -> None:
    mask = make_mask()
    assert np.array_equal(read_mask(show(mask), 2, (16, 24), (16, 24)), mask)
    assert np.array_equal(read_mask(show(mask).frames[0], 2, (16, 24), (16, 24)), mask[[0, 0]])
    longer = Clip(np.concatenate([show(mask).frames, make_clip(255).frames]), 24.0)
    assert np.array_equal(read_mask(longer, 2, (16, 24), (16, 24)), mask)
    larger = show(mask.repeat(2, axis=1).repeat(2, axis=2))
    assert np.array_equal(read_mask(larger, 2, (16, 24), (16, 24)), mask)


def test_a_picture_is_read_as_its_file_is(tmp_path: Path) -> None:
    grey = PIL.Image.fromarray(np.where(make_mask()[0], 40_000, 20_000).astype(np.uint16))
    half = np.zeros((16, 24, 4), np.uint8)
    half[:, :12, 3] = 255  # the rest is transparent
    for picture, expected in ((grey, make_mask()[0]), (PIL.Image.fromarray(half), half[..., 3] == 0)):
        picture.save(tmp_path / "mask.png")
        for given in (picture, read_image(tmp_path / "mask.png")):
            assert np.array_equal(read_mask(given, 1, (16, 24), (16, 24))[0], expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (make_clip(255, num_frames=2), "1 frame or of at least the source's 3, got 2"),
        (Clip(np.full((3, 16, 16, 3), 255, np.uint8), 8.0), "proportions of the source"),
        (make_clip(127, num_frames=3), "without any white"),
    ],
)
def test_masks_that_do_not_fit_are_refused(given: Clip, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_mask(given, 3, (16, 24), (16, 24))


@pytest.mark.parametrize("feather", [0, 3])
def test_outside_is_the_source_bit_for_bit(feather: int) -> None:
    mask, source, result = make_mask(), make_clip(40), make_clip(200)
    found = put_over(source, result, mask, feather).frames
    assert np.array_equal(found[~mask], source.frames[~mask])
    inside = found[mask]
    assert (inside == 200).all() if feather == 0 else (len(np.unique(inside)) > 2 and inside.max() == 200)
    # The middle of the second frame is 4 pixels from the border, beyond a seam of 3.
    assert found[1, 8, 12, 0] == 200


def test_a_mask_of_everything_has_no_seam() -> None:
    everything = np.ones((2, 16, 24), bool)
    assert put_over(make_clip(40), make_clip(200), everything, feather=3) == make_clip(200)


def test_latents_outside_are_held_at_the_noise_of_the_step() -> None:
    random = torch.Generator().manual_seed(0)
    source, noise, latents = (torch.randn(1, 4, 2, 2, 3, generator=random) for _ in range(3))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    masked = MaskedLatents.from_masks([make_mask()], source, noise)
    # Pixels 8 by 8 to a latent: one with any edited pixel is free.
    assert masked.edited[0, 0].tolist() == [[[0, 1, 1], [0, 1, 1]], [[1, 1, 1], [1, 1, 1]]]
    held = masked.hold(scheduler, latents, step=0)
    free = masked.edited.bool().expand_as(held)
    assert torch.equal(held[free], latents[free])
    expected = scheduler.add_noise(source, noise, scheduler.timesteps[1:2])
    assert torch.equal(held[~free], expected[~free])
    assert torch.equal(masked.hold(scheduler, latents, step=3)[~free], source[~free])
