"""Clips and pictures as tensors in [-1, 1], and back."""

from collections.abc import Sequence

import numpy as np
import torch

from sememe.backbones.autoencoder import Video
from sememe.video import Clip


def clips_to_video(clips: Sequence[Clip]) -> Video:
    """Stacks clips of one shape to (batch, 3, frame, height, width), values in [-1, 1], float32."""
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def video_to_clips(video: Video, fps: float) -> list[Clip]:
    """Makes one clip per entry of the batch; values beyond [-1, 1] are cut off."""
    levels = video.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    frames = levels.to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()
    return [Clip(np.ascontiguousarray(entry), fps) for entry in frames]
