"""Several conditions in one take, each with its own time and strength.

Every condition is applied to a take of its own, which is then combined with the common take: camera paths add up, poses
are composed, effects are applied in the order of the conditions. A strength between 0 and 1 blends
from the state without the condition to the one with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sememe.world.condition import Condition
from sememe.world.stage import Stage
from sememe.world.take import Camera, Floats, Picture, Pose, Shard, Take, Warp

_NARROWEST = 0.08  # a scale closer to zero has no inverse


@dataclass(frozen=True, slots=True)
class Act:
    """A condition that acts during the frames of a take.

    Attributes:
        entry: The condition.
        progress: Its time, (num_frames,) float32; see `Take`.
        strength: From 0 (off) to 1 (full), (num_frames,) float32.
    """

    entry: Condition
    progress: Floats
    strength: Floats


def perform(stage: Stage, num_frames: int, acts: Sequence[Act]) -> Take:
    """Return the take with all acts applied."""
    take = Take.neutral(stage, num_frames)
    for act in acts:
        own = Take.at(stage, act.progress)
        act.entry.apply(own)
        _join(take, own, None if (act.strength == 1).all() else act.strength)
    return take


def _join(take: Take, own: Take, strength: Floats | None) -> None:
    """Add what happens in `own`, at full strength if that is None."""
    _join_camera(take.camera, own.camera, strength)
    take.later_poses.append(own.pose if strength is None else _ease_pose(own.pose, strength))
    take.subject_warps += [_ease_warp(warp, own, strength) for warp in own.subject_warps]
    take.lenses += [_ease_warp(lens, own, strength) for lens in own.lenses]
    take.behind += [_ease_overlay(overlay, own, strength) for overlay in own.behind]
    take.before += [_ease_overlay(overlay, own, strength) for overlay in own.before]
    for effect in own.subject_effects:
        take.subject_effects.append(_ease_effect(effect, own, strength, lambda subject: subject))
    for change in own.picture_effects:
        take.picture_effects.append(_ease_effect(change, own, strength, lambda picture: picture.frames))
    if own.shards is not None:
        take.shards = _ease_shards(own.shards, own, strength)


def _join_camera(camera: Camera, own: Camera, strength: Floats | None) -> None:
    weight = np.float32(1) if strength is None else strength
    camera.focal *= own.focal if strength is None else own.focal**strength
    camera.roll += own.roll if strength is None else _shortest_turn(own.roll) * weight
    camera.pan += own.pan * weight
    camera.tilt += own.tilt * weight
    camera.x += own.x * weight
    camera.y += own.y * weight
    camera.z += own.z * weight


def _ease_pose(pose: Pose, strength: Floats) -> Pose:
    return Pose(
        x=pose.x * strength,
        y=pose.y * strength,
        scale_x=_ease_scale(pose.scale_x, strength),
        scale_y=_ease_scale(pose.scale_y, strength),
        rotation=_shortest_turn(pose.rotation) * strength,
        shear=pose.shear * strength,
        pivot=pose.pivot,
    )


def _ease_scale(scale: Floats, strength: Floats) -> Floats:
    eased = 1 + (scale - 1) * strength
    limit = np.minimum(np.float32(_NARROWEST), np.abs(scale))
    return np.where(np.abs(eased) < limit, np.copysign(limit, eased), eased).astype(np.float32)


def _shortest_turn(angle: Floats) -> Floats:
    """The same angle in -pi to pi, so that whole turns are not unwound."""
    return np.asarray(angle - 2 * np.pi * np.rint(angle / (2 * np.pi)), np.float32)


def _ease_warp(warp: Warp, own: Take, strength: Floats | None) -> Warp:
    def eased(_: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        new_x, new_y = warp(own, x, y)
        if strength is None:
            return new_x, new_y
        weight = strength[:, None, None]
        return x + (new_x - x) * weight, y + (new_y - y) * weight

    return eased


def _ease_overlay(overlay: Callable[[Take], Floats], own: Take, strength: Floats | None) -> Callable[[Take], Floats]:
    if strength is None:
        return lambda _: overlay(own)
    return lambda _: overlay(own) * strength[:, None, None, None]


def _ease_effect(
    effect: Callable[[Take, Any], Floats], own: Take, strength: Floats | None, before: Callable[[Any], Floats]
) -> Callable[[Take, Any], Floats]:
    def eased(_: Take, filmed: Floats | Picture) -> Floats:
        changed = effect(own, filmed)
        if strength is None:
            return changed
        unchanged = before(filmed)
        return np.asarray(unchanged + (changed - unchanged) * strength[:, None, None, None], np.float32)

    return eased


def _ease_shards(
    shards: Callable[[Take], list[Shard]], own: Take, strength: Floats | None
) -> Callable[[Take], list[Shard]]:
    weight = np.float32(1) if strength is None else strength

    def eased(_: Take) -> list[Shard]:
        return [
            Shard(each.mask, each.x, each.y, each.offset_x * weight, each.offset_y * weight, each.rotation * weight)
            for each in shards(own)
        ]

    return eased
