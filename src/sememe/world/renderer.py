"""Renders a scene: layers through the camera, the subject in its pose, effects on top."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from sememe.errors import InputError
from sememe.video.clip import Clip
from sememe.world.captions import full_caption, neutral_caption
from sememe.world.catalogue import parts_of
from sememe.world.condition import Condition
from sememe.world.geometry import covered_rectangles, drop_repeats, layer_matrices, pose_matrices, to_pixels
from sememe.world.scene import Scene
from sememe.world.stage import Layer, Stage, build_stage, ground_closeness, row_heights
from sememe.world.take import Floats, Picture, Shard, Take, Warp

MIN_SIDE = 16
MAX_SIDE = 1024
SHADOW = np.float32(0.42)  # how dark the subject's shadow is


@dataclass(frozen=True, slots=True)
class RenderedClip:
    """A filmed scene.

    Attributes:
        clip: RGB frames as uint8, and their rate.
        depth: Distance from the camera in scene units (the subject rests at 1), (num_frames, height, width) float32.
        mask: Coverage of each pixel by the subject, 0..1, (num_frames, height, width) float32.
        caption: Who and where.
        full_caption: Who, where, and what happens.
    """

    clip: Clip
    depth: Floats
    mask: Floats
    caption: str
    full_caption: str


class Shot(NamedTuple):
    """What a take looks like: uint8 frames (num_frames, height, width, 3), depth and mask as in `RenderedClip`."""

    frames: NDArray[np.uint8]
    depth: Floats
    mask: Floats


def render(
    scene: Scene,
    condition: str | None,
    *,
    num_frames: int = 17,
    size: int | tuple[int, int] = 64,
    fps: float = 8,
) -> RenderedClip:
    """Film `scene` under `condition`.

    The first frame equals that of the neutral take (`condition=None`), byte for byte.

    Args:
        scene: What stands before the camera.
        condition: A name from `conditions()`, two names joined by "+", or None for the neutral take.
        num_frames: 1 or more; the condition unfolds over all of them.
        size: The side of a square picture, or (height, width), each 16 to 1024 pixels.
        fps: Frame rate of the clip, which does not change its frames.

    Raises:
        InputError: For an unknown condition or one that the scene cannot show, a size or number of frames out of range.
    """
    height, width = check_size(size)
    if num_frames < 1:
        raise InputError(f"expected num_frames of 1 or more, got {num_frames}")
    parts = check_condition(scene, condition)
    opening = film_opening(scene, height, width)
    take = Take.neutral(build_stage(scene, height, width), num_frames)
    for part in parts:
        part.apply(take)
    if parts:
        shot = film(take)
        for rendered, first in zip(shot, opening, strict=True):
            rendered[0] = first[0]
    else:
        shot = Shot._make(np.repeat(part, num_frames, axis=0) for part in opening)
    return RenderedClip(
        clip=Clip(shot.frames, float(fps)),
        depth=shot.depth,
        mask=shot.mask,
        caption=neutral_caption(scene),
        full_caption=full_caption(scene, parts),
    )


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of the picture.

    Raises:
        InputError: If a side is out of range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise InputError(
            f"expected sides of {MIN_SIDE} to {MAX_SIDE} pixels, got {height}x{width}; choose another size"
        )
    return height, width


def check_condition(scene: Scene, name: str | None) -> tuple[Condition, ...]:
    """The conditions that a name joins, all of which the scene can show.

    Raises:
        InputError: For an unknown condition, or one that the scene cannot show.
    """
    parts = parts_of(name)
    for part in parts:
        if not part.applies_to(scene):
            raise InputError(
                f"expected a condition without a subject for a whole photograph, got {part.name!r}; "
                "conditions(scene=scene) lists those that apply"
            )
    return parts


@lru_cache(maxsize=64)
def film_opening(scene: Scene, height: int, width: int) -> Shot:
    """The frame with which every take of the scene begins."""
    return film(Take.neutral(build_stage(scene, height, width), 1))


def film(take: Take) -> Shot:
    """Take the pictures of a take."""
    picture = _compose(take)
    for lens in take.lenses:
        picture = _through_lens(take, picture, lens)
    for effect in take.picture_effects:
        picture = Picture(effect(take, picture), picture.depth, picture.mask)
    frames = (picture.frames * np.float32(255) + np.float32(0.5)).clip(0, 255).astype(np.uint8)
    return Shot(frames, picture.depth, picture.mask)


def _compose(take: Take) -> Picture:
    stage = take.stage
    shape = (take.num_frames, stage.height, stage.width)
    frames, depth = _film_backdrop(take)
    for overlay in take.behind:
        _lay_over(frames, overlay(take))
    subject = _subject_pixels(take)
    for effect in take.subject_effects:
        subject = effect(take, subject)
    if stage.has_shadow:
        _lay_over(frames, _shadow_of(subject, stage))
    _lay_over(frames, subject)
    mask = np.ascontiguousarray(subject[..., 3])
    np.copyto(depth, (1 - take.camera.z)[:, None, None], where=mask > 0.5)
    if stage.foreground is not None:
        matrices = drop_repeats(layer_matrices(take, stage.foreground))
        pixels = _warp(stage.foreground.pixels, matrices, stage, cv2.BORDER_CONSTANT)
        _lay_over(frames, pixels)
        mask *= 1 - pixels[..., 3]
        distance = _layer_distance(take, stage.foreground, matrices)
        np.copyto(depth, np.broadcast_to(distance, shape), where=pixels[..., 3] > 0.5)
    for overlay in take.before:
        _lay_over(frames, overlay(take))
    return Picture(frames, depth, mask)


def _film_backdrop(take: Take) -> tuple[Floats, Floats]:
    """Colours and distances behind the subject; a single frame if the camera is static."""
    stage = take.stage
    matrices = [layer_matrices(take, layer) for layer in stage.backdrop]
    at_rest = all(len(drop_repeats(each)) == 1 for each in matrices) and bool((take.camera.z == take.camera.z[0]).all())
    count = 1 if at_rest else take.num_frames
    shape = (count, stage.height, stage.width)
    frames = np.empty((*shape, 3), np.float32)
    depth = np.empty(shape, np.float32)
    for index, (layer, path) in enumerate(zip(stage.backdrop, matrices, strict=True)):
        border = cv2.BORDER_REFLECT_101 if index == 0 else cv2.BORDER_REPLICATE
        pixels = _warp(layer.pixels, path[:count], stage, border)
        distance = _layer_distance(take, layer, path[:count])[:count]
        if index == 0:
            frames[:], depth[:] = pixels[..., :3], distance
        else:
            _lay_over(frames, pixels)
            np.copyto(depth, np.broadcast_to(distance, shape), where=pixels[..., 3] > 0.5)
    repeats = take.num_frames // count
    return np.repeat(frames, repeats, axis=0), np.repeat(depth, repeats, axis=0)


def _shadow_of(subject: Floats, stage: Stage) -> Floats:
    """Return a soft shadow below the subject, from its filmed pixels, so that it follows every effect."""
    reach = stage.subject_size * stage.density
    shift = np.array([[1, 0, 0.06 * reach], [0, 1, 0.14 * reach]], np.float32)
    out = np.zeros_like(subject)
    for frame, alpha in zip(out, subject[..., 3], strict=True):
        moved = cv2.warpAffine(np.ascontiguousarray(alpha), shift, (stage.width, stage.height))
        cv2.GaussianBlur(moved, (0, 0), 0.14 * reach, dst=moved)
        frame[..., 3] = SHADOW * moved
    return out


def _lay_over(frames: Floats, pixels: Floats) -> None:
    frames *= 1 - pixels[..., 3:]
    frames += pixels[..., :3]


def _warp(pixels: Floats, matrices: Floats, stage: Stage, border: int) -> Floats:
    size = (stage.width, stage.height)
    out = np.empty((len(matrices), stage.height, stage.width, *pixels.shape[2:]), np.float32)
    for index, matrix in enumerate(matrices):
        if index and np.array_equal(matrix, matrices[index - 1]):
            out[index] = out[index - 1]
        else:
            cv2.warpAffine(pixels, matrix, size, dst=out[index], flags=cv2.INTER_LINEAR, borderMode=border)
    return out


def _layer_distance(take: Take, layer: Layer, matrices: Floats) -> Floats:
    near = np.maximum(layer.distance - take.camera.z, 0.15)[:, None, None]
    if layer.horizon is None:
        return near
    closeness = ground_closeness(layer.horizon, row_heights(layer.pixels, layer.reach_y))
    closeness = np.repeat(closeness[:, None], layer.pixels.shape[1], axis=1)
    plane = _warp(closeness, matrices, take.stage, cv2.BORDER_REPLICATE)
    return np.maximum(1 / plane - take.camera.z[:, None, None], 0.15)


def _subject_pixels(take: Take) -> Floats:
    layer, stage = take.stage.subject, take.stage
    if take.shards is not None:
        return _shard_pixels(take, take.shards(take))
    matrices = to_pixels(pose_matrices(take), layer, stage)
    if not take.subject_warps:
        return _warp(layer.pixels, matrices, stage, cv2.BORDER_CONSTANT)
    columns = np.arange(stage.width, dtype=np.float32)
    rows = np.arange(stage.height, dtype=np.float32)[:, None]
    full = np.concatenate([matrices, np.broadcast_to(np.array([0, 0, 1], np.float32), (take.num_frames, 1, 3))], axis=1)
    back = np.linalg.inv(full + np.eye(3, dtype=np.float32) * 1e-6).astype(np.float32)[:, :, :, None, None]
    x = back[:, 0, 0] * columns + back[:, 0, 1] * rows + back[:, 0, 2]
    y = back[:, 1, 0] * columns + back[:, 1, 1] * rows + back[:, 1, 2]
    density = layer.pixels.shape[0] / (2 * layer.reach_y)
    x, y = (x + 0.5) / density - layer.reach_x, (y + 0.5) / density - layer.reach_y
    for warp in take.subject_warps:
        x, y = warp(take, x, y)
    x, y = (x + layer.reach_x) * density - 0.5, (y + layer.reach_y) * density - 0.5
    return _sample(np.broadcast_to(layer.pixels, (take.num_frames, *layer.pixels.shape)), x, y, cv2.BORDER_CONSTANT)


def _shard_pixels(take: Take, shards: list[Shard]) -> Floats:
    layer, stage = take.stage.subject, take.stage
    out = np.zeros((take.num_frames, stage.height, stage.width, 4), np.float32)
    for shard in shards:
        poses = pose_matrices(take, (shard.offset_x, shard.offset_y, shard.rotation), (shard.x, shard.y))
        matrices = to_pixels(poses, layer, stage)
        source = layer.pixels * shard.mask[..., None]
        # Most pieces are small, so only their bounding rectangles are composited.
        for frame, matrix, (left, top, right, bottom) in zip(
            out, matrices, covered_rectangles(shard.mask, matrices, stage), strict=True
        ):
            if left < right and top < bottom:
                piece = cv2.warpAffine(source, matrix, (stage.width, stage.height))[top:bottom, left:right]
                patch = frame[top:bottom, left:right]
                patch *= 1 - piece[..., 3:]
                patch += piece
    return out


def _sample(frames: Floats, x: Floats, y: Floats, border: int) -> Floats:
    """Read `frames` at pixel coordinates, frame by frame."""
    x, y = np.broadcast_to(x, (len(frames), *x.shape[-2:])), np.broadcast_to(y, (len(frames), *y.shape[-2:]))
    out = np.empty((len(frames), *x.shape[-2:], *frames.shape[3:]), np.float32)
    for index, frame in enumerate(frames):
        map_x, map_y = np.ascontiguousarray(x[index], np.float32), np.ascontiguousarray(y[index], np.float32)
        cv2.remap(frame, map_x, map_y, cv2.INTER_LINEAR, dst=out[index], borderMode=border)
    return out


def _through_lens(take: Take, picture: Picture, lens: Warp) -> Picture:
    stage = take.stage
    x, y = take.grid()
    shape = (take.num_frames, stage.height, stage.width)
    x, y = lens(take, np.broadcast_to(x, shape), np.broadcast_to(y, shape))
    x, y = (x + stage.aspect) * stage.density - 0.5, (y + 1) * stage.density - 0.5
    border = cv2.BORDER_REFLECT_101
    return Picture(*(_sample(part, x, y, border) for part in (picture.frames, picture.depth, picture.mask)))
