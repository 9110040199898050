"""Plans: compressed semantic features of a video, which can be saved, drawn and edited. Imports no torch."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sememe.checkpoints.headers import read_header
from sememe.errors import ModelError, PlanError
from sememe.files import atomic_path
from sememe.semanticgen.clocks import Times
from sememe.video import Clip, SheetRow, contact_sheet

PlanArray = Float[np.ndarray, "slice row column semantic_dim"]

_FORMAT = "sememe-plan-1"
_MOST_COLUMNS = 16
_SPREAD = 2.5  # standard deviations from the middle to the end of a colour's range


@dataclass(frozen=True, eq=False)
class Plan:
    """What happens in a video, slice by slice.

    Attributes:
        features: Compressed features of unit variance, float32 or float16, finite, at least one slice.
        slice_seconds: Seconds per slice, above 0.
        encoder: Fingerprint of the encoder of such features.
        compressor: Fingerprint of their compressor.
        captions: A text for each slice, those of one span repeated; empty for none.

    Raises:
        PlanError: A value is not as said above.
    """

    features: np.ndarray  # checked below in every run, so that wrong arrays get a message for people
    slice_seconds: float
    encoder: str
    compressor: str
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        features = np.asarray(self.features)
        if features.ndim != 4 or 0 in features.shape:
            raise PlanError(
                f"expected features of shape (slice, row, column, number), none of them 0, got {features.shape}"
            )
        if features.dtype not in (np.float32, np.float16):
            raise PlanError(f"expected features of dtype float32 or float16, got {features.dtype}")
        if not np.isfinite(features).all():
            raise PlanError("expected finite features, got some that are infinite or not a number")
        if not 0 < self.slice_seconds < math.inf:
            raise PlanError(f"expected slice_seconds above 0, got {self.slice_seconds}")
        if self.captions and len(self.captions) != len(features):
            raise PlanError(f"expected a caption for each of {len(features)} slices, got {len(self.captions)}")
        object.__setattr__(self, "features", features)

    @property
    def num_slices(self) -> int:
        return len(self.features)

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.num_slices * self.slice_seconds

    @property
    def times(self) -> Times:
        """Centres of the slices in seconds."""
        return (np.arange(self.num_slices) + 0.5) * self.slice_seconds

    def with_slices(self, features: PlanArray, captions: Sequence[str] = ()) -> "Plan":
        """Return a plan of other features and captions of the same kind."""
        return replace(self, features=np.ascontiguousarray(features), captions=tuple(captions))

    def check(self, encoder: str, compressor: str) -> None:
        """Refuse to use the plan with a model that it was not made for.

        Raises:
            PlanError: A fingerprint is another.
        """
        for name, found, expected in (
            ("encoder", self.encoder, encoder),
            ("compressor", self.compressor, compressor),
        ):
            if found != expected:
                raise PlanError(
                    f"expected a plan of this model's {name} ({expected[:12]}), got one of another ({found[:12]}); use "
                    "the model that made it, or plan again with this one"
                )

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, which appears whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        metadata = {
            "format": _FORMAT,
            "slice_seconds": repr(float(self.slice_seconds)),
            "encoder": self.encoder,
            "compressor": self.compressor,
            "captions": json.dumps(list(self.captions)),
        }
        tensors = {"features": np.ascontiguousarray(self.features), "times": self.times}
        with atomic_path(path) as part:
            save_file(tensors, part, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan from a file.

        Raises:
            PlanError: It cannot be read, is damaged or cut short, or its parts do not fit together.
        """
        path = Path(path)
        if not path.is_file():
            raise PlanError(f"expected a plan file, but there is no file {path}")
        try:
            read_header(path)
            with safe_open(path, "np") as file:
                metadata: Mapping[str, str] = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        except (ModelError, SafetensorError, OSError, TypeError) as error:
            raise PlanError(f"{path} is no plan, or is damaged or cut short; write it again") from error
        if metadata.get("format") != _FORMAT or tensors.keys() != {"features", "times"}:
            raise PlanError(f"expected a plan ({_FORMAT} with features and times) in {path}, got another kind of file")
        try:
            captions = json.loads(metadata["captions"])
            plan = cls(
                tensors["features"],
                float(metadata["slice_seconds"]),
                metadata["encoder"],
                metadata["compressor"],
                _check_captions(captions),
            )
        except (KeyError, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, PlanError) else f"its metadata are not valid ({error})"
            raise PlanError(f"the plan {path} cannot be used: {reason}") from error
        if tensors["times"].shape != plan.times.shape or not np.allclose(tensors["times"], plan.times):
            raise PlanError(
                f"the plan {path} cannot be used: it has features of {plan.num_slices} slices, but times that are not "
                "theirs; edit plans with the functions for it"
            )
        return plan


def _check_captions(captions: Any) -> tuple[str, ...]:
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise PlanError("expected captions as a list of texts")
    return tuple(captions)


def colour_plan(plan: Plan) -> UInt8[np.ndarray, "slice row column 3"]:
    """Return a colour for each token: red, green and blue are the first three principal components.

    Tokens of equal features have equal colours; colours of different plans cannot be compared.
    """
    rows = plan.features.reshape(-1, plan.features.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions[:3]
    # Singular vectors have no sign of their own: the largest entry of each is made positive.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    values = rows @ (directions * np.sign(largest)).T
    values = values / np.maximum(values.std(axis=0), 1e-9 * max(float(np.abs(rows).max()), 1e-30))
    colours = np.full((len(rows), 3), 127.5)
    colours[:, : values.shape[1]] += values * (127.5 / _SPREAD)
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8).reshape(*plan.features.shape[:3], 3)


def draw_plan(plan: Plan, clip: Clip | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the slices of a plan in a row, at most 16 of them, above the frames at their centres.

    Args:
        plan: Plan to draw.
        clip: Video of the plan, or one made from it; None for the plan alone.
    """
    columns = min(plan.num_slices, _MOST_COLUMNS)
    size = f"{plan.num_slices} slices of {plan.slice_seconds:g} s"
    rows = [SheetRow(f"plan: {size}", Clip(colour_plan(plan), 1.0 / plan.slice_seconds))]
    if clip is not None:
        frames = np.minimum((plan.times * clip.fps).astype(int), clip.num_frames - 1)
        rows.append(SheetRow("frames", Clip(clip.frames[frames], 1.0 / plan.slice_seconds)))
    return contact_sheet(rows, columns=columns)
