"""Settings of a Gen-1 generation, from which arguments, flags, sidecars and memory plans derive. Imports no torch."""

from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Annotated

from sememe.errors import InputError
from sememe.records import Batching, Count, Positive, Range, Record, Scale, Whole

KINDS = ("depth", "edges", "motion")
"""Kinds of structure that there are estimators of; a pipeline may be given further ones."""
MAX_LEVEL = 7
"""Largest number of rounds of blur, which leaves least of the structure."""
Level = Annotated[int, Range(least=0, most=MAX_LEVEL)]


class SizeSettings(Record):
    """The shape of the result.

    Attributes:
        height: Height of the result in pixels; none is the source's, to the nearest that the model supports.
        width: Width of the result in pixels, the same. The source is resized to cover the size, and cropped.
        num_frames: Frames of the source that are used, from its first; none uses all.
    """

    height: Count | None = None
    width: Count | None = None
    num_frames: Count | None = None


class SamplingSettings(Record):
    """How the result is denoised.

    Attributes:
        num_inference_steps: Denoising steps.
        prior_num_inference_steps: Denoising steps of the prior, which turns a text into content.
    """

    num_inference_steps: Count = 50
    prior_num_inference_steps: Count = 25


class GuidanceSettings(Record):
    """Strength of content and structure, and consistency of frames.

    Attributes:
        guidance_scale: Strength of the content; 1 is off. The paper does not state its value.
        temporal_guidance_scale: Above 1 frames resemble each other more, below 1 less; 1 is off and saves a prediction.
        structure_guidance_scale: Above 1 geometry follows the source more closely than without it; 1 is off and saves a
            prediction. The paper has no such guidance.
        negative_prompt: Text to steer away from; empty is the embedding of no content.
        prior_guidance_scale: Strength of the text in the prior; 1 is off.
    """

    guidance_scale: Scale = 7.5
    temporal_guidance_scale: Scale = 1.0
    structure_guidance_scale: Scale = 1.0
    negative_prompt: str = ""
    prior_guidance_scale: Scale = 4.0


class StructureSettings(Record):
    """What is kept of the source.

    Attributes:
        structure_level: Rounds of blur that structure goes through, 0 to 7: at 0 geometry follows the source closely,
            at 7 hardly.
        structure_kinds: Kinds of structure, at least one of depth, edges and motion, and their weights above 0, which
            need not add up to 1. A model is trained for one kind, in the paper for depth.
        controlnet_scale: Strength of structure on models that read it through a ControlNet; 1 is as trained.
    """

    structure_level: Level = 0
    structure_kinds: Mapping[str, Positive] = field(default_factory=lambda: {"depth": 1.0})
    controlnet_scale: Scale = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.structure_kinds:
            raise InputError(f"expected structure_kinds with at least one of {', '.join(KINDS)}, got none")

    def check_kinds(self, known: Collection[str] = KINDS) -> None:
        """Raise `InputError` for a kind of structure that is not one of the known ones."""
        for kind in self.structure_kinds:
            if kind not in known:
                raise InputError(f"expected structure_kinds out of {', '.join(sorted(known))}, got {kind!r}")


class WindowSettings(Record):
    """How long clips are predicted.

    Attributes:
        window_frames: Frames that are predicted at once; none is as many as the model supports.
        window_overlap: Frames that neighbouring windows share; none is half a window.
    """

    window_frames: Count | None = None
    window_overlap: Whole | None = None


class MaskSettings(Record):
    """Transition between a masked edit and the source.

    Attributes:
        mask_feather: Width in pixels of the transition from source to edit, inside the mask; 0 is a hard edge.
    """

    mask_feather: Whole = 0


class ExecutionSettings(Record):
    """How a generation computes; the result is the same up to rounding.

    Attributes:
        batching: Whether guidance variants of the video model run one after the other or share a forward pass.
    """

    batching: Batching = "sequential"


class Settings(Record):
    """Settings of a generation, in groups; no two fields of all groups have the same name.

    Attributes:
        size: Shape of the result.
        sampling: Denoising.
        guidance: Strength of content and of time.
        structure: What is kept of the source.
        windows: Long clips.
        mask: Masked edits.
        execution: Ways to compute.
    """

    size: SizeSettings = SizeSettings()
    sampling: SamplingSettings = SamplingSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    structure: StructureSettings = StructureSettings()
    windows: WindowSettings = WindowSettings()
    mask: MaskSettings = MaskSettings()
    execution: ExecutionSettings = ExecutionSettings()

    def list_shortcuts(self) -> list[str]:
        """Return settings that depart from training: structure of other kinds than depth alone."""
        kinds = set(self.structure.structure_kinds)
        return [] if kinds == {"depth"} else [f"structure of {', '.join(sorted(kinds))}"]


BUILT_IN = Settings().override(
    height=64,
    width=64,
    num_inference_steps=6,
    prior_num_inference_steps=20,
    guidance_scale=2.0,
    structure_guidance_scale=1.5,
    prior_guidance_scale=2.0,
)
"""Settings of the built-in model, chosen by measurement (`docs/evidence.md`)."""
