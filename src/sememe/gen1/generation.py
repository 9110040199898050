"""Files and texts of a Gen-1 generation, for `workflows.generate`. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sememe.errors import InputError
from sememe.gen1.settings import Settings
from sememe.system import SystemInputs

if TYPE_CHECKING:
    from sememe.video.source import Survey

_LONG = 60.0  # seconds
_ROUNDING = 1e-6  # seconds, of time stamps
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"})


@dataclass(frozen=True, kw_only=True)
class Gen1Inputs(SystemInputs):
    """Files and texts of a generation.

    Attributes:
        source: Video whose geometry and motion are kept.
        content: Text that describes the result's look.
        content_image: Picture with the result's look, in place of a text.
        seconds: Seconds of the source to use, from its beginning; none uses all.
        mask: Picture or video, white where the source is edited; black areas keep the source.
        structure: Video with the structure in grey (white is near), in place of an estimate.
        save_structure: Video of the used structure to write.
    """

    system: ClassVar[str] = "gen1"

    source: Path
    content: str | None = None
    content_image: Path | None = None
    seconds: float | None = None
    mask: Path | None = None
    structure: Path | None = None
    save_structure: Path | None = None

    def images(self) -> Mapping[str, Path]:
        given = {"content_image": self.content_image, "mask": self.mask if self._is_picture(self.mask) else None}
        return {name: path for name, path in given.items() if path is not None}

    def videos(self, settings: Settings) -> Mapping[str, tuple[Path, ...]]:
        mask = None if self._is_picture(self.mask) else self.mask
        given = {"source": self.source, "mask": mask, "structure": self.structure}
        return {name: (path,) for name, path in given.items() if path is not None}

    def section(self, settings: Settings) -> Mapping[str, float | None]:
        # Frames, because what lies over the source may have another rate.
        is_part = self.seconds is not None or settings.size.num_frames is not None
        return {"num_frames": self._count_frames(settings)} if is_part else {}

    def texts(self) -> Mapping[str, Any]:
        return {"content": self.content}

    def replaced_settings(self) -> Mapping[str, str]:
        return {} if self.seconds is None else {"size.num_frames": "seconds"}

    def check(self, settings: Settings) -> None:
        if self.content is None and self.content_image is None:
            raise InputError("expected --content TEXT or --content-image PICTURE, got neither")
        if self.content is not None and self.content_image is not None:
            raise InputError("expected --content or --content-image, got both; leave one out")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise InputError(f"expected seconds above 0, got {self.seconds:g}")
        settings.structure.check_kinds()
        if self.save_structure is not None:
            from sememe.video.writer import check_video_name

            check_video_name(self.save_structure)

    def workload(self, settings: Settings) -> Mapping[str, float]:
        source = {"source_height": self._survey.height, "source_width": self._survey.width}
        return {"num_frames": self._count_frames(settings), **source}

    def fit(self, pipeline: Any, settings: Settings) -> Settings:
        from sememe.video import read_clip

        survey = self._survey
        wanted, count = self._count_frames(settings), len(survey.times)
        if wanted > count:
            raise InputError(
                f"expected a source of at least {wanted} frames, got {count} ({count / survey.fps:.2f} seconds) "
                f"in {self.source}; ask for less"
            )
        if self.seconds is not None and self.seconds > survey.file_duration + 0.5 / survey.fps:
            raise InputError(
                f"expected a source of at least {self.seconds:g} seconds, got {survey.file_duration:.3g} in "
                f"{self.source}; ask for less"
            )
        first = read_clip(self.source, num_frames=1, sampling="first", survey=survey)
        return settings.override(
            height=settings.size.height or pipeline.grid.nearest_size(first.height),
            width=settings.size.width or pipeline.grid.nearest_size(first.width),
            num_frames=wanted,
        )

    def announce(self, pipeline: Any, settings: Settings) -> Iterator[str]:
        size = settings.size
        assert size.num_frames is not None, "the size was fitted"
        seconds = size.num_frames / self._survey.fps
        if seconds < _LONG:
            return
        yield (
            f"{size.num_frames} frames of {size.width}x{size.height} pixels, {seconds / 60:.1f} minutes, are held in "
            "memory and denoised as one clip; --seconds takes the beginning of the source alone"
        )

    def reading(self, settings: Settings, place: int, num_places: int) -> Mapping[str, Any]:
        if self.mask is not None or self.structure is not None:
            # What lies over the source must have its proportions and length, which are compared as they are.
            return {}
        size = settings.size
        shape = None if size.height is None or size.width is None else (size.height, size.width)
        return {"num_frames": size.num_frames, "sampling": "first", "size": shape}

    def arguments(
        self, settings: Settings, images: Mapping[str, Any], videos: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        given: dict[str, Any] = {name: clips[0] for name, clips in videos.items()} | dict(images)
        picture = given.pop("content_image", None)
        return given | {"content": self.content if picture is None else picture, "settings": settings}

    def shown(self, output: Any) -> Mapping[str, Any]:
        return {"structure": output.structure[0]}

    def write_extra(self, name: str, output: Any, path: Path) -> None:
        from sememe.video import write_clip

        write_clip(output.structure[0], path)

    @cached_property
    def _survey(self) -> "Survey":
        from sememe.video import VideoLimits
        from sememe.video.source import survey_video

        # Of any length: what is read of it is held to the limits.
        limits = VideoLimits(max_frames=10**9, max_duration=1e9, max_total_pixels=10**18)
        return survey_video(self.source, limits, end=self.seconds)

    def _count_frames(self, settings: Settings) -> int:
        if settings.size.num_frames is not None:
            return settings.size.num_frames
        times = self._survey.times - self._survey.times[0]
        return len(times) if self.seconds is None else int((times < self.seconds - _ROUNDING).sum())

    @staticmethod
    def _is_picture(path: Path | None) -> bool:
        return path is not None and path.suffix.lower() in PICTURE_SUFFIXES
