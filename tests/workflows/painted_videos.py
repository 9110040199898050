"""Videos of one grey level that gets lighter, and their entries in a list."""

from pathlib import Path
from typing import Any

import numpy as np

from sememe.data.manifest import VideoSample
from sememe.video import Clip, write_clip


def paint(path: Path, level: int, num_frames: int = 4, size: tuple[int, int] = (16, 16)) -> None:
    frames = np.full((num_frames, *size, 3), level, np.uint8)
    frames += np.linspace(0, 30, num_frames, dtype=np.uint8)[:, None, None, None]
    write_clip(Clip(frames, 8.0), path)


def make_sample(name: str, condition: str = "melt", **about: Any) -> VideoSample:
    return VideoSample(path=name, condition=condition, **({"caption": f"caption {name}"} | about))
