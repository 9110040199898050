"""What generation asks of the inputs of a system; a room implements it without importing it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sememe.video import Clip


@runtime_checkable
class SystemInputs(Protocol):
    """Files and texts of one generation."""

    @property
    def system(self) -> str:
        """Name of the system."""
        ...

    @property
    def baseline_name(self) -> str:
        """What the baseline of influence lacks, in words."""
        ...

    def images(self) -> Mapping[str, Path]:
        """Return the picture files by name."""
        ...

    def videos(self, settings: Any) -> Mapping[str, tuple[Path, ...]]:
        """Return the video files by name."""
        ...

    def texts(self) -> Mapping[str, Any]:
        """Return the texts by name."""
        ...

    def check(self, settings: Any) -> None:
        """Raise `InputError` for inputs that do not go with each other or with the settings."""
        ...

    def workload(self, settings: Any) -> Mapping[str, int]:
        """Return what a memory plan counts besides the settings."""
        ...

    def reading(self, settings: Any, place: int, num_places: int) -> Mapping[str, Any]:
        """Return the arguments with which `read_clip` reads a video among those of its name."""
        ...

    def arguments(
        self, settings: Any, images: Mapping[str, np.ndarray], videos: Mapping[str, Sequence[Clip]]
    ) -> dict[str, Any]:
        """Return the arguments of the pipeline but for generator and callback."""
        ...

    def baseline(self, settings: Any) -> tuple["SystemInputs", Any]:
        """Return inputs and settings of the generation with which influence compares."""
        ...
