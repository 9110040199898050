"""Official habits that change pictures: see `Quirk` in `sememe.video_as_prompt.settings`."""

from collections.abc import Sequence

import numpy as np
import PIL.Image

from sememe.video import Clip


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
    """Return the clip with every frame stretched."""
    return Clip(stretch_pictures(list(clip.frames), height, width), clip.fps)
