"""Files and texts of a SemanticGen generation, for `workflows.generate`. Imports no torch, and numpy only when it is
used."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sememe.errors import InputError
from sememe.events import tell_duration
from sememe.files import hash_file
from sememe.semanticgen.segments import Segment, parse_segment, to_segments
from sememe.semanticgen.settings import Settings
from sememe.system import SystemInputs

_LONG = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class SemanticGenInputs(SystemInputs):
    """Files and texts of a generation.

    Attributes:
        prompt: What the video shows; empty for none.
        seconds: Length of the video in seconds; none is that of plan, source or segments, or else the model's.
        segments: Text for a part of the video, such as "0-4: it jumps", in seconds; repeatable, without gaps, from 0
            on.
        source: Video whose plan is rendered with the prompt.
        span: Part of the source to render again, in seconds, such as 2-4; other frames are kept.
        plan: Plan file to render.
        image: Picture for the first frame, if the model supports one.
        save_plan: Plan file to write.
    """

    system: ClassVar[str] = "semanticgen"
    is_written_in_pieces: ClassVar[bool] = True

    prompt: str = ""
    seconds: float | None = None
    segments: tuple[str, ...] = ()
    source: Path | None = None
    span: str | None = None
    plan: Path | None = None
    image: Path | None = None
    save_plan: Path | None = None

    def images(self) -> Mapping[str, Path]:
        return {} if self.image is None else {"image": self.image}

    def videos(self, settings: Settings) -> Mapping[str, tuple[Path, ...]]:
        return {} if self.source is None else {"source": (self.source,)}

    def texts(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {"prompt": self.prompt, "segments": list(self.segments)}
        return found | ({} if self.plan is None else {"plan_sha256": hash_file(self.plan)})

    def replaced_settings(self) -> Mapping[str, str]:
        given = [name for name in ("seconds", "segments", "source", "plan") if getattr(self, name)]
        replaced = {"size.num_frames": given[0]} if given else {}
        if self.span is None and (self.source or self.plan):
            planned = "source" if self.source else "plan"
            replaced |= {"sampling.num_planning_steps": planned, "guidance.planning_guidance_scale": planned}
        return replaced

    def check(self, settings: Settings) -> None:
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise InputError(f"expected seconds above 0, got {self.seconds:g}")
        self._read_plan()
        if self.plan is not None and self.source is not None and self.span is None:
            raise InputError(
                "expected --plan or --source, got both; leave one out, or say which --span is rendered again"
            )
        if self.span is not None and self.source is None:
            raise InputError("expected --source with --span, the video of which a part is rendered again")
        if self.save_plan is not None and settings.guidance.plan_guidance_scale == 0:
            raise InputError("plan_guidance_scale 0 leaves the plan out, so that there is none to save")
        self._read_segments()
        self._read_span()
        if self.save_plan is not None:
            from sememe.semanticgen.plan_files import check_plan_name

            check_plan_name(self.save_plan)

    def workload(self, settings: Settings) -> Mapping[str, float]:
        found: dict[str, float] = {"num_images": len(self.images())}
        segments, plan, seconds = self._read_segments(), self._read_plan(), self.seconds
        if self.source is not None:
            from sememe.video.source import survey_video

            survey = survey_video(self.source)
            seconds = len(survey.times) / survey.fps
        elif plan is not None:
            seconds = plan.seconds
        elif seconds is None and segments:
            seconds = segments[-1].stop
        return found if seconds is None else found | {"seconds": seconds}

    def reading(self, settings: Settings, place: int, num_places: int) -> Mapping[str, Any]:
        size = {"size": (settings.size.height, settings.size.width)}
        return size if self.span is None else size | {"sampling": "fps", "fps": settings.size.fps}

    def fit(self, pipeline: Any, settings: Settings) -> Settings:
        if self.source is not None:
            num_frames = max(1, round(self.workload(settings)["seconds"] * settings.size.fps))
            return settings.override(num_frames=pipeline.grid.nearest_num_frames(num_frames))
        from sememe.semanticgen.inputs import resolve_length

        return resolve_length(self._request, settings, pipeline.grid, pipeline.clock, seconds=self.seconds)

    def announce(self, pipeline: Any, settings: Settings) -> Iterator[str]:
        if self.span is not None:
            return
        size = settings.size
        seconds = size.num_frames / size.fps
        if seconds < _LONG:
            return
        gigabytes = 3 * size.num_frames * size.height * size.width / 1e9
        does = []
        if any(name == "plan" for name in self.list_steps(settings)):
            does.append("planned as a whole, which takes up to four times as long for twice the length")
        window = settings.plan.window_seconds
        does.append("rendered as a whole" if window is None else f"rendered in {math.ceil(seconds / window)} windows")
        yield (
            f"{size.num_frames} frames of {size.width}x{size.height} pixels, {seconds / 60:.1f} minutes, "
            f"{gigabytes:.2f} GB before they are compressed, {', and '.join(does)}"
        )
        took = pipeline.estimate_seconds(self._request, settings)
        steps = self.list_steps(settings).items()
        times = " and ".join(f"{name} about {tell_duration(took[key])}" for key, (name, _) in steps)
        yield f"{times}, by shorter steps that were timed; the time left is known after two steps of each"

    def arguments(
        self, settings: Settings, images: Mapping[str, Any], videos: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompt": self.prompt,
            "settings": settings,
            "seconds": self.seconds,
            "segments": self._read_segments(),
            **images,
        }
        if self.source is not None:
            given |= {"source": videos["source"][0], "span": self._read_span()}
        if self.plan is not None:
            given["plan"] = self._read_plan()
        return given | {"output_type": "np" if self.span else "latent"}

    def list_steps(self, settings: Settings) -> Mapping[str, tuple[str, int]]:
        sampling = settings.sampling
        rendering = {"latents": ("rendering", sampling.num_inference_steps)}
        is_planned = self.plan is None and self.source is None and settings.guidance.plan_guidance_scale != 0
        return {"plan": ("planning", sampling.num_planning_steps), **rendering} if is_planned else rendering

    def pieces(self, pipeline: Any, output: Any) -> Iterator[Any]:
        if output.clips:
            return iter(output.clips[:1])
        return iter(pipeline.decode(output.frames, output.settings.size.fps))

    def write_extra(self, name: str, output: Any, path: Path) -> None:
        output.plan.save(path)

    @property
    def _request(self) -> Any:
        """What is asked for without pictures; a black frame stands for a source."""
        import numpy as np

        from sememe.semanticgen.inputs import make_request
        from sememe.video import Clip

        source = None if self.source is None else Clip.from_image(np.zeros((8, 8, 3), np.uint8))
        return make_request(self.prompt, self._read_plan(), source, segments=self._read_segments())

    def _read_plan(self) -> Any:
        if self.plan is None:
            return None
        from sememe.semanticgen.plan import Plan

        return Plan.load(self.plan)

    def _read_segments(self) -> tuple[Segment, ...]:
        return to_segments([parse_segment(text) for text in self.segments])

    def _read_span(self) -> tuple[float, float] | None:
        if self.span is None:
            return None
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*-\s*(\d+(?:\.\d*)?)\s*", self.span)
        if found is None or not float(found[1]) < float(found[2]):
            raise InputError(f"expected a span of rising seconds such as 2-4, got {self.span!r}")
        return float(found[1]), float(found[2])
