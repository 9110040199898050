"""Where things fall on the picture: matrices of the camera, of layers, of the subject and of its pieces.

All run over the frames: (num_frames, 2, 3) float32, from a layer's own coordinates to the picture's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sememe.world.stage import Layer, Stage, ground_closeness
from sememe.world.take import Floats, Pose, Take


def _camera_matrices(take: Take, distance: float, shear: float = 0.0, shear_origin: float = 0.0) -> Floats:
    """Scene coordinates of a layer at `distance` to picture coordinates, (num_frames, 2, 3)."""
    camera = take.camera
    near = np.maximum(distance - camera.z, 0.15)
    scale = camera.focal * distance / near
    shift_x = -camera.focal * (camera.x / near) + camera.pan
    shift_y = -camera.focal * (camera.y / near) + camera.tilt
    slope = -camera.focal * camera.x * shear
    flat = np.zeros((take.num_frames, 2, 3), np.float32)
    flat[:, 0, 0] = scale
    flat[:, 0, 1] = slope
    flat[:, 0, 2] = shift_x - slope * shear_origin
    flat[:, 1, 1] = scale
    flat[:, 1, 2] = shift_y
    cos, sin = np.cos(camera.roll), np.sin(camera.roll)
    turn = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)
    return np.asarray(turn @ flat, np.float32)


def layer_matrices(take: Take, layer: Layer) -> Floats:
    """A layer's pixels to the picture's; the ground plane shears where the camera moves sideways."""
    if layer.horizon is None:
        camera = _camera_matrices(take, layer.distance)
    else:
        slope = float(ground_closeness(layer.horizon, np.ones(1, np.float32))[0]) - 1 / layer.distance
        camera = _camera_matrices(take, layer.distance, slope / (1 - layer.horizon), layer.horizon)
    return to_pixels(camera, layer, take.stage)


def to_pixels(matrices: Floats, layer: Layer, stage: Stage) -> Floats:
    """From scene-to-picture matrices to layer-pixel-to-picture-pixel matrices."""
    layer_density = layer.pixels.shape[0] / (2 * layer.reach_y)
    into = np.array(
        [
            [1 / layer_density, 0, 0.5 / layer_density - layer.reach_x],
            [0, 1 / layer_density, 0.5 / layer_density - layer.reach_y],
            [0, 0, 1],
        ],
        np.float32,
    )
    result = matrices @ into
    result[:, 0, 2] += stage.aspect
    result[:, 1, 2] += 1
    result *= stage.density
    result[:, :, 2] -= 0.5
    return np.asarray(result, np.float32)


def drop_repeats(matrices: Floats) -> Floats:
    """The first matrix alone if all are equal, so that a layer at rest is filmed once."""
    return matrices[:1] if (matrices == matrices[:1]).all() else matrices


def pose_matrices(
    take: Take, offset: tuple[Floats, Floats, Floats] | None = None, centre: tuple[float, float] = (0, 0)
) -> Floats:
    """The subject's own coordinates (half heights) to picture coordinates, (num_frames, 2, 3)."""
    stage, pose = take.stage, take.pose
    piece = None if offset is None else _turn_about(offset[2], *centre, offset[0], offset[1])
    turned = _bend(pose, piece)
    for later in take.later_poses:
        turned = _bend(later, turned)
    turned[:, :2] *= stage.subject_size
    # Translations add up independently of scale and turn, so that the subject turns and scales about its own position.
    turned[:, 0, 2] += stage.subject_x + sum((later.x for later in take.later_poses), pose.x)
    turned[:, 1, 2] += stage.subject_y + sum((later.y for later in take.later_poses), pose.y)
    camera = _camera_matrices(take, stage.subject.distance)
    return np.asarray(camera @ turned, np.float32)


def _bend(pose: Pose, matrices: Floats | None) -> Floats:
    """Scale, shear and turn about the pivot of `pose`, after `matrices`; (num_frames, 3, 3)."""
    local: Floats = np.zeros((len(pose.x), 3, 3), np.float32)
    local[:, 0, 0], local[:, 1, 1], local[:, 2, 2] = pose.scale_x, pose.scale_y, 1
    local[:, 0, 1] = -pose.shear * pose.scale_y
    local[:, 0, 2] = pose.shear * pose.scale_y * pose.pivot
    local[:, 1, 2] = pose.pivot * (1 - pose.scale_y)
    if matrices is not None:
        local = local @ matrices
    zeros = np.zeros_like(pose.x)
    return np.asarray(_turn_about(pose.rotation, 0.0, pose.pivot, zeros, zeros) @ local, np.float32)


def _turn_about(angle: Floats, x: float, y: float, offset_x: Floats, offset_y: Floats) -> Floats:
    cos, sin = np.cos(angle), np.sin(angle)
    result = np.zeros((len(angle), 3, 3), np.float32)
    result[:, 0, 0], result[:, 0, 1], result[:, 1, 0], result[:, 1, 1], result[:, 2, 2] = cos, -sin, sin, cos, 1
    result[:, 0, 2] = x - cos * x + sin * y + offset_x
    result[:, 1, 2] = y - sin * x - cos * y + offset_y
    return result


def covered_rectangles(mask: Floats, matrices: Floats, stage: Stage) -> NDArray[np.int_]:
    """The rectangles of the picture that a piece of a layer falls on: left, top, right and bottom, one row a frame."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.zeros((len(matrices), 4), int)
    low_x, high_x, low_y, high_y = columns[0] - 1, columns[-1] + 1, rows[0] - 1, rows[-1] + 1
    corners = np.array([(low_x, low_y, 1), (high_x, low_y, 1), (low_x, high_y, 1), (high_x, high_y, 1)], np.float32)
    places = corners @ np.swapaxes(matrices, 1, 2)
    limits = (stage.width, stage.height)
    first = np.clip(np.floor(places.min(axis=1)) - 1, 0, limits).astype(int)
    last = np.clip(np.ceil(places.max(axis=1)) + 2, 0, limits).astype(int)
    return np.concatenate([first, last], axis=1)
