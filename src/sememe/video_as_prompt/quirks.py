"""Defects and habits of the official pipelines that can be had back, to reproduce what they generate.

Each is off by default, where the right thing is done instead (see docs/official-code.md).
"""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import PIL.Image

from sememe.errors import InputError
from sememe.video import Clip

Quirk = Literal[
    "stretched_frames",
    "uncropped_image_embeds",
    "negative_reference_prompt",
    "sampled_latents",
    "truncated_timesteps",
]
"""What the official pipelines do.

- `stretched_frames`: pictures and references are stretched to the target's shape, not covered and cropped.
- `uncropped_image_embeds`: CLIP sees the picture and the reference's first frame as they were passed, not what the
  backbone is shown.
- `negative_reference_prompt`: under the negative prompt the reference has the negative prompt too, not its own caption.
- `sampled_latents`: CogVideoX's references and first frames are drawn from the autoencoder's posterior with the
  generation's generator (whose noise is laid out with frames before channels), instead of being its mode.
- `truncated_timesteps`: Wan's UniPC takes slightly other steps, those of the diffusers that the official code holds.
"""

Quirks = frozenset[str]


def choose_quirks(asked: bool | Iterable[str]) -> Quirks:  # noqa: FBT001 (all, none, or by name)
    """All quirks, none, or those named.

    Raises:
        InputError: for a name that there is not.
    """
    if isinstance(asked, bool):
        return frozenset(get_args(Quirk)) if asked else frozenset()
    names = frozenset([asked] if isinstance(asked, str) else asked)
    unknown = sorted(names - set(get_args(Quirk)))
    if unknown:
        raise InputError(f"expected official_quirks to be among {', '.join(get_args(Quirk))}, got {unknown[0]!r}")
    return names


def stretch_pictures(images: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """uint8 pictures (picture, height, width, 3), stretched with Lanczos' filter as diffusers' image processor does."""
    resampling = PIL.Image.Resampling.LANCZOS
    return np.stack(
        [
            image
            if image.shape[:2] == (height, width)
            else np.asarray(PIL.Image.fromarray(image).resize((width, height), resampling))
            for image in images
        ]
    )


def stretch_clip(clip: Clip, height: int, width: int) -> Clip:
    """The clip stretched likewise."""
    return Clip(stretch_pictures(list(clip.frames), height, width), clip.fps)
