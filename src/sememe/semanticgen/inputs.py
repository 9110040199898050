"""Inputs of a generation, checked and brought to one form."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sememe.backbones.autoencoder import LatentGrid
from sememe.errors import InputError, PlanError
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.plan import Plan
from sememe.semanticgen.segments import Segment, join_texts, to_segments
from sememe.semanticgen.settings import Settings
from sememe.video import Clip, Picture, to_picture

# What may be given. `make_request` refuses anything else with a message, before a check of types could.
if TYPE_CHECKING:
    GivenTexts = str | Sequence[str]
    Pictures = Picture | Sequence[Picture]
    Clips = Clip | Sequence[Clip]
    Plans = Plan | Sequence[Plan]
    GivenSegments = Sequence[Segment | tuple[float, str]]
    Span = tuple[float, float]
else:
    GivenTexts = Pictures = Clips = Plans = GivenSegments = Span = Any


@dataclass(frozen=True)
class Request:
    """Inputs of a batch: as many prompts as results, and of all else none, or as many.

    Attributes:
        prompts: What each result shows from beginning to end.
        segments: Texts for parts of the results; empty for none.
        plans: Plans that the results follow.
        sources: Clips whose plans the results follow.
        images: First pictures, uint8 (height, width, 3) of any size.
        span: Seconds within the source that are rendered again; None for a new video.
    """

    prompts: tuple[str, ...]
    segments: tuple[Segment, ...] = ()
    plans: tuple[Plan, ...] = ()
    sources: tuple[Clip, ...] = ()
    images: tuple[np.ndarray, ...] = ()
    span: tuple[float, float] | None = None

    @property
    def batch_size(self) -> int:
        return len(self.prompts)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """Texts of the segments of each result, at least one."""
        return tuple(join_texts(prompt, self.segments) for prompt in self.prompts)

    @property
    def segment_ends(self) -> tuple[float, ...]:
        """Seconds at which one text ends and the next begins."""
        return tuple(segment.stop for segment in self.segments[:-1])


def make_request(
    prompt: Any = "", plan: Any = None, source: Any = None, image: Any = None, segments: Any = None, span: Any = None
) -> Request:
    """Check inputs on their own.

    Args:
        prompt: Text, or a list of one for each result.
        plan: `Plan`, or a list.
        source: Clip, or a list.
        image: Picture, or a list.
        segments: Texts for parts of the results, as `to_segments` takes them.
        span: Start and stop in seconds.

    Raises:
        InputError: An input is not what was expected, or two do not go together.
    """
    prompts = _list("prompt", prompt, str, "a text")
    plans, sources = _list("plan", plan, Plan, "a Plan (Plan.load reads one)"), _list("source", source, Clip, "a Clip")
    images = tuple(map(to_picture, image if isinstance(image, (list, tuple)) else [] if image is None else [image]))
    given = {"plan": plans, "source": sources, "image": images}
    count = max(len(each) for each in (prompts, *given.values()))
    prompts = prompts * count if len(prompts) == 1 else prompts
    for name, each in {"prompt": prompts, **given}.items():
        if len(each) not in (count, 0 if name != "prompt" else count):
            raise InputError(f"expected one {name} per result, got {len(each)} for {count}")
    if plans and sources and span is None:
        raise InputError("expected a plan or a source to plan from, got both; leave one out")
    if span is not None and not sources:
        raise InputError("expected a source with span, the clip of which a part is rendered again; give it as source")
    return Request(prompts, to_segments(segments or ()), plans, sources, images, None if span is None else _span(span))


def _list(name: str, value: Any, kind: type, what: str) -> tuple[Any, ...]:
    listed = () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if (name == "prompt" and not listed) or not all(isinstance(each, kind) for each in listed):
        got = "an empty list" if not listed else next(type(e).__name__ for e in listed if not isinstance(e, kind))
        raise InputError(f"expected {what} or a list of them as {name}, got {got}")
    return listed


def _span(span: Any) -> tuple[float, float]:
    match span:
        case (int() | float() as start, int() | float() as stop) if 0 <= start < stop:
            return float(start), float(stop)
    raise InputError(f"expected span as two rising seconds of at least 0, such as (2, 4), got {span!r}")


def resolve_length(
    request: Request,
    settings: Settings,
    grid: LatentGrid,
    clock: SliceClock,
    num_frames: int | None = None,
    seconds: float | None = None,
) -> Settings:
    """Return settings with the number of frames that will be made.

    What is asked for, in frames or seconds, is brought to the nearest number of frames that the autoencoder can make.
    A plan, a source and segments have a length of their own: without another, the video lasts as long as they do, and
    another one may differ by no more than a slice or a latent frame, whichever is longer. A plan that is one of a video
    of the settings' own length is rendered at that.

    Args:
        request: Inputs.
        settings: Settings of the generation.
        grid: Numbers of frames that can be made.
        clock: Times of the slices.
        num_frames: Frames, as the call names them; None for those of the settings.
        seconds: Seconds, as the call names them.

    Raises:
        InputError: The length is not above 0, is given twice, or is not that of plan, source or segments.
    """
    if num_frames is not None and seconds is not None:
        raise InputError("expected num_frames or seconds, got both; leave one out")
    fps = settings.size.fps
    if seconds is not None:
        if not 0 < seconds < float("inf"):
            raise InputError(f"expected seconds above 0, got {seconds}")
        num_frames = max(1, round(seconds * fps))
    settings = settings.override(num_frames=num_frames)
    usual, wanted = settings.size.num_frames, num_frames
    tolerance = max(clock.slice_seconds, grid.frame_multiple / fps) + 1e-6
    for what, length in _list_lengths(request, clock).items():
        if wanted is None:
            is_usual = what == "plan" and clock.count_slices(usual / fps) == request.plans[0].num_slices
            wanted = usual if is_usual else max(1, round(length * fps))
        elif abs(wanted / fps - length) > tolerance:
            raise InputError(
                f"expected a video of about {length:g} s, which the {what} last{'' if what == 'segments' else 's'}, "
                f"got {wanted} frames ({wanted / fps:g} s); "
                f"{'' if num_frames is None else 'leave the length out, or '}change the {what}"
            )
    if request.span is not None:
        wanted = request.sources[0].num_frames
    return settings.override(num_frames=grid.nearest_num_frames(usual if wanted is None else wanted))


def _list_lengths(request: Request, clock: SliceClock) -> dict[str, float]:
    """Return the seconds that source, plan and segments last, as far as they are given."""
    lengths = {}
    if request.sources:
        # A plan has at least one slice.
        lengths["source"] = max(request.sources[0].duration, 0.0 if request.span else clock.slice_seconds)
    if request.plans:
        lengths["plan"] = request.plans[0].seconds
    if request.segments:
        lengths["segments"] = request.segments[-1].stop
    return lengths


def check_plan(plan: Plan, model: Plan) -> Plan:
    """Return a plan as a model can follow it, in float32.

    Raises:
        PlanError: It is one of another encoder or compressor, or has another grid or rate.
    """
    plan.check(model.encoder, model.compressor)
    found, expected = ((*each.features.shape[1:], each.slice_seconds) for each in (plan, model))
    if found != expected:
        raise PlanError(
            f"expected a plan of {expected} rows, columns, numbers and seconds per slice for this model and size, "
            f"got {found}; plan at this size"
        )
    return replace(plan, features=plan.features.astype(np.float32))


def check_sources(sources: Sequence[Clip], settings: Settings, span: tuple[float, float] | None) -> None:
    """Check clips that are planned from.

    Raises:
        InputError: They differ in shape or rate; or, where a span of them is rendered again, they have not the shape
            and rate of the result, or do not last as long.
    """
    shapes = {(clip.num_frames, *clip.size, clip.fps) for clip in sources}
    if len(shapes) > 1:
        raise InputError(f"expected sources of one length, size and rate, got {sorted(shapes)}")
    size = settings.size
    expected = (size.num_frames, size.height, size.width, size.fps)
    if span is not None and shapes != {expected}:
        raise InputError(
            f"expected a source of {expected} frames, height, width and frames per second, because its frames are kept "
            f"outside the span, got {shapes.pop()}; resize and resample it, and bring it to that length, first"
        )
    if span is not None and span[0] >= sources[0].duration:
        raise InputError(f"expected a span within the source's {sources[0].duration:g} s, got {span}")
