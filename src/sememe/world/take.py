"""A take: everything that a condition may change between the scene and the picture.

A condition is a function of a `Take`. It bends the camera's path, the subject's pose, or adds an effect to one of the
lists. All arrays run over the frames; a take that nobody touched is the neutral one, in which nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from sememe.world.stage import Stage

Floats = NDArray[np.floating]  # float32 between the parts of a take; effects may compute with more


@dataclass(slots=True)
class Camera:
    """The camera's path, one value a frame.

    `focal` multiplies the picture's scale (lens), `pan` and `tilt` shift every layer equally (turning the camera),
    `roll` is in radians, `x`, `y`, `z` move the camera itself in scene units, so that near layers move more.
    """

    focal: Floats
    pan: Floats
    tilt: Floats
    roll: Floats
    x: Floats
    y: Floats
    z: Floats

    @classmethod
    def still(cls, num_frames: int) -> Camera:
        """A camera that does not move."""
        zeros = [np.zeros(num_frames, np.float32) for _ in range(6)]
        return cls(np.ones(num_frames, np.float32), *zeros)


@dataclass(slots=True)
class Pose:
    """The subject's path, one value a frame: offset in scene units, scales, rotation and shear about a pivot.

    `pivot` is the height of the fixed point in half heights of the subject: 0 its middle, 1 its feet.
    """

    x: Floats
    y: Floats
    scale_x: Floats
    scale_y: Floats
    rotation: Floats
    shear: Floats
    pivot: float = 0.0

    @classmethod
    def still(cls, num_frames: int) -> Pose:
        """A subject that does not move."""
        zero, one = np.zeros(num_frames, np.float32), np.ones(num_frames, np.float32)
        return cls(zero, zero.copy(), one, one.copy(), zero.copy(), zero.copy())


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of the subject with a path of its own.

    `mask` selects the piece from the subject's layer as (height, width) float32; offsets are in half heights of the
    subject, `rotation` in radians, all one value a frame; `x`, `y` is the centre about which it turns.
    """

    mask: Floats
    x: float
    y: float
    offset_x: Floats
    offset_y: Floats
    rotation: Floats


@dataclass(frozen=True, slots=True)
class Picture:
    """What was filmed, for effects on the whole picture.

    `frames` (num_frames, height, width, 3) float32 in 0..1, `depth` (num_frames, height, width) float32 distances in
    scene units, `mask` of the same shape in 0..1.
    """

    frames: Floats
    depth: Floats
    mask: Floats


Warp = Callable[["Take", Floats, Floats], tuple[Floats, Floats]]
SubjectEffect = Callable[["Take", Floats], Floats]
Overlay = Callable[["Take"], Floats]
PictureEffect = Callable[["Take", Picture], Floats]


@dataclass(slots=True)
class Take:
    """One take of a scene; see the module's first lines."""

    stage: Stage
    progress: Floats  # time, (num_frames,): 0 at a condition's first frame, 1 at its last, more where it lasts
    camera: Camera
    pose: Pose
    later_poses: list[Pose] = field(default_factory=list)  # what bends the subject after `pose`
    subject_warps: list[Warp] = field(default_factory=list)  # local target coordinates to local source coordinates
    subject_effects: list[SubjectEffect] = field(default_factory=list)  # (frames, height, width, 4) to the same
    shards: Callable[[Take], list[Shard]] | None = None
    behind: list[Overlay] = field(default_factory=list)  # premultiplied layers behind the subject
    before: list[Overlay] = field(default_factory=list)  # premultiplied layers before everything
    lenses: list[Warp] = field(default_factory=list)  # picture coordinates to picture coordinates
    picture_effects: list[PictureEffect] = field(default_factory=list)

    @classmethod
    def neutral(cls, stage: Stage, num_frames: int) -> Take:
        """The take in which nothing happens; its time runs from 0 (first frame) to 1 (last frame)."""
        return cls.at(stage, np.linspace(0.0, 1.0, num_frames, dtype=np.float32))

    @classmethod
    def at(cls, stage: Stage, progress: Floats) -> Take:
        """The take in which nothing happens, at the given times."""
        return cls(stage, progress, Camera.still(len(progress)), Pose.still(len(progress)))

    @property
    def num_frames(self) -> int:
        return len(self.progress)

    def ramp(self, start: float = 0.0, end: float = 0.65) -> Floats:
        """A smooth rise from 0 at `start` to 1 at `end` of the take, (num_frames,)."""
        position = np.clip((self.progress - start) / (end - start), 0, 1)
        return position * position * (3 - 2 * position)

    def wave(self, cycles: float, fade_in: float = 0.15) -> Floats:
        """A sine of so many cycles over the take that starts at 0 and swells within `fade_in`."""
        return np.sin(2 * np.pi * cycles * self.progress).astype(np.float32) * self.ramp(0, fade_in)

    def grid(self) -> tuple[Floats, Floats]:
        """Scene coordinates of the picture's pixels, two arrays (height, width)."""
        stage = self.stage
        x = (np.arange(stage.width, dtype=np.float32) + 0.5) / stage.density - stage.aspect
        y = (np.arange(stage.height, dtype=np.float32) + 0.5) / stage.density - 1
        return np.broadcast_to(x, (stage.height, stage.width)), np.broadcast_to(y[:, None], (stage.height, stage.width))

    def subject_grid(self) -> tuple[Floats, Floats]:
        """The picture's pixels relative to the subject's resting place, in its half heights."""
        x, y = self.grid()
        stage = self.stage
        return (x - stage.subject_x) / stage.subject_size, (y - stage.subject_y) / stage.subject_size


def smooth_noise(height: int, width: int, cells: int, seed: int) -> Floats:
    """A fixed field of smooth noise in 0..1, (height, width), the same for every scene."""
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = rng.random((cells, max(cells, round(cells * width / height))), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
