"""Settings of a Video-As-Prompt generation, from which arguments, flags, sidecars and memory plans derive. Imports no
torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

from sememe.errors import InputError
from sememe.records import Batching, Count, Record, Scale, Share, SizeSettings, flatten, to_plain

# Written out here, because the modules that act on them import torch or PyAV.
Sampling = Literal["even", "fps", "first"]
Quirk = Literal[
    "stretched_frames",
    "uncropped_image_embeds",
    "negative_reference_prompt",
    "long_negative_prompt",
    "sampled_latents",
    "truncated_timesteps",
]
"""Defects and habits of the official pipelines (see docs/official-code.md).

- `stretched_frames`: pictures and references are stretched to the target's shape instead of cropped.
- `uncropped_image_embeds`: CLIP sees pictures and references as they were passed, not as the backbone sees them.
- `negative_reference_prompt`: under the negative prompt the reference's caption is the negative prompt too.
- `long_negative_prompt`: without a negative prompt from the call or the model, the official one is used, which released
models have by default.
- `sampled_latents`: CogVideoX's references and first frames are drawn from the autoencoder's posterior with the
  generation's generator (whose noise is laid out with frames before channels), instead of being its mode.
- `truncated_timesteps`: Wan's UniPC takes slightly different steps, those of an older diffusers.
"""


_SIZE = SizeSettings(num_frames=49)


class SamplingSettings(Record):
    """How the result is denoised.

    Attributes:
        num_inference_steps: Denoising steps.
        max_sequence_length: Tokens per prompt; none uses the tokenizer's own length.
    """

    num_inference_steps: Count = 50
    max_sequence_length: Count | None = None


class GuidanceSettings(Record):
    """Strength of text and reference.

    Attributes:
        guidance_scale: Strength of the prompt against the negative prompt. 0 and 1 both mean off, without the negative
            prompt, as in diffusers. No effect if the two are equal.
        reference_guidance_scale: Strength of the reference; 1 is off, 0 leaves the reference out.
        guidance_interval: Interval of timesteps / 1000 in which guidance acts; outside it there is one forward pass
            with text and reference. 0,1 is always.
        negative_prompt: Text to steer away from; in Python one text, or one per picture.
    """

    guidance_scale: Scale = 5.0
    reference_guidance_scale: Scale = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    negative_prompt: str | tuple[str, ...] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_interval
        if not 0.0 <= low < high <= 1.0:
            raise InputError(
                "expected guidance_interval as two rising numbers within 0..1 (0 is clean, 1 is noise), "
                f"got {low}, {high}"
            )
        if self.guidance_scale == 0:
            object.__setattr__(self, "guidance_scale", 1.0)

    @property
    def is_limited(self) -> bool:
        """Whether guidance acts at some timesteps only."""
        return self.guidance_interval != (0.0, 1.0)


class ReferenceSettings(Record):
    """How references are read.

    Attributes:
        reference_sampling: Which frames of a reference are read: evenly spread (even), at the result's frame rate
            (fps), or the first ones (first).
        num_reference_frames: Frames read of each reference, or one number per reference; none reads as many as the
            result has.
        reference_strength: Weight of the reference's tokens in attention, 0 to 1; lower it if the result copies too
            much. 1 is what the model was trained for, 0 the backbone alone.
    """

    reference_sampling: Sampling = "even"
    num_reference_frames: Count | tuple[Count, ...] | None = None
    reference_strength: Share = 1.0


class ExecutionSettings(Record):
    """How a generation computes; the result is the same up to rounding.

    Attributes:
        batching: Whether guidance variants run one after the other or share a forward pass.
        autocast: Precision in which float32 weights compute while denoising; bfloat16 is approximate.
        text_keys: Whether cross-attention keys and values of texts are kept over the steps, which takes memory.
    """

    batching: Batching = "sequential"
    autocast: Literal["off", "bfloat16"] = "off"
    text_keys: Literal["kept", "recomputed"] = "kept"


class ExperimentalSettings(Record):
    """Controls that lowered quality where they were measured (docs/evidence.md), and defects of the official code.

    Attributes:
        approximate: For a two-way model: do not compute the reference at every step. Faster, approximate.
        reference_refresh: With approximate: the reference is computed every so many steps, and its keys and values are
            kept in between; none computes it once.
        reference_downscale: Height and width of references are those of the result divided by this. Not on CogVideoX.
        reference_positions: "dense" places a reference's frames directly before the result's, as in training; "spread"
            spreads fewer frames over the length of the result.
        negative_references: Videos to steer away from, in place of the backbone's prediction.
        use_dynamic_cfg: Change the text guidance over the steps as the official CogVideoX demonstration does.
        official_quirks: Defects of the official pipelines to reproduce, by name, or all.
    """

    approximate: bool = False
    reference_refresh: Count | None = None
    reference_downscale: Count = 1
    reference_positions: Literal["dense", "spread"] = "dense"
    negative_references: tuple[Any, ...] = ()
    use_dynamic_cfg: bool = False
    official_quirks: tuple[Quirk | Literal["all"], ...] = ()

    def __post_init__(self) -> None:
        given: Any = self.negative_references
        if not isinstance(given, (list, tuple, str)):
            object.__setattr__(self, "negative_references", (given,))
        super().__post_init__()
        if "all" in self.official_quirks:
            object.__setattr__(self, "official_quirks", get_args(Quirk))
        if self.reference_refresh is not None and not self.approximate:
            raise InputError("reference_refresh has an effect only with approximate=True; set both or neither")

    @property
    def encodes_once(self) -> bool:
        """Whether the reference of a two-way model is encoded once for all steps."""
        return self.approximate and self.reference_refresh is None

    @property
    def moves_references(self) -> bool:
        """Whether references have other positions than in training."""
        return self.reference_positions == "spread" or self.reference_downscale > 1


# What a model's folder states about itself; other groups are stated only where they differ from the defaults here.
_MODEL_GROUPS = ("size", "sampling", "guidance", "execution")


class ReferenceReading(NamedTuple):
    """How one reference is read: arguments of `sememe.video.read_clip`."""

    num_frames: int
    sampling: Sampling
    fps: float | None
    size: tuple[int, int]


class Settings(Record):
    """Settings of a generation, in groups; no two fields of all groups have the same name.

    Attributes:
        size: Shape of the result.
        sampling: Denoising.
        guidance: Strength of prompt and reference.
        reference: Reading of references.
        execution: Ways to compute.
        experimental: Controls with negative evidence, and official quirks.
    """

    size: SizeSettings = _SIZE
    sampling: SamplingSettings = SamplingSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    reference: ReferenceSettings = ReferenceSettings()
    execution: ExecutionSettings = ExecutionSettings()
    experimental: ExperimentalSettings = ExperimentalSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance.reference_guidance_scale == 0:
            self._check_left_out()

    def _check_left_out(self) -> None:
        wanted = {
            "reference_strength": self.reference.reference_strength != 1.0,
            "approximate": self.experimental.approximate,
            "negative_references": bool(self.experimental.negative_references),
        }
        idle = ", ".join(name for name, is_wanted in wanted.items() if is_wanted)
        if idle:
            raise InputError(f"reference_guidance_scale 0 leaves the reference out, so {idle} has no effect")

    def read_reference(self, place: int, num_places: int) -> ReferenceReading:
        """Return how one of several references is read; `place` counts from 0.

        Raises:
            InputError: `num_reference_frames` is not one number per reference.
        """
        counts, sampling = self.reference.num_reference_frames, self.reference.reference_sampling
        if isinstance(counts, tuple) and len(counts) != num_places:
            raise InputError(f"expected num_reference_frames for {num_places} references, got {len(counts)}")
        downscale = self.experimental.reference_downscale
        return ReferenceReading(
            num_frames=counts[place] if isinstance(counts, tuple) else counts or self.size.num_frames,
            sampling=sampling,
            fps=self.size.fps if sampling == "fps" else None,
            size=(self.size.height // downscale, self.size.width // downscale),
        )

    def list_shortcuts(self) -> list[str]:
        """Return what departs from how models are trained to be used; empty where the result is exact."""
        strength, experimental = self.reference.reference_strength, self.experimental
        refresh = experimental.reference_refresh
        found = {
            f"autocast {self.execution.autocast}": self.execution.autocast != "off",
            "reference encoded once": experimental.encodes_once,
            f"reference refreshed every {refresh} steps": refresh is not None,
            f"reference strength {strength:g}": strength not in (0.0, 1.0),
            f"references smaller by {experimental.reference_downscale}": experimental.reference_downscale > 1,
            f"reference positions {experimental.reference_positions}": experimental.reference_positions != "dense",
        }
        return [name for name, is_found in found.items() if is_found]

    def without_reference(self) -> "Settings":
        """Return the settings of the same generation by the backbone alone."""
        unread = replace(self.experimental, approximate=False, reference_refresh=None, negative_references=())
        return replace(
            self,
            guidance=replace(self.guidance, reference_guidance_scale=0.0),
            reference=replace(self.reference, reference_strength=1.0),
            experimental=unread,
        )

    def to_config(self) -> dict[str, Any]:
        """Return the `generation_defaults` of a model with these settings."""
        usual = flatten(type(self)())
        return {
            key.rpartition(".")[2]: to_plain(value)
            for key, value in flatten(self).items()
            if key.partition(".")[0] in _MODEL_GROUPS or value != usual[key]
        }


BUILT_IN = Settings().override(
    height=64,
    width=64,
    num_frames=17,
    fps=8.0,
    num_inference_steps=12,
    guidance_scale=1.0,
    reference_guidance_scale=6.0,
    guidance_interval=(0.5, 1.0),
)
"""Settings of the built-in model, on which the other trained ones are based."""

OFFICIAL_NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
"""What the official pipelines of both families steer away from unless another text is given."""
_RELEASED = Settings(
    sampling=SamplingSettings(max_sequence_length=512),
    guidance=GuidanceSettings(negative_prompt=OFFICIAL_NEGATIVE_PROMPT),
)
RELEASED: Mapping[str, Settings] = {
    "wan": _RELEASED,
    "wan-ti2v": _RELEASED.override(height=704, width=1280, num_frames=121, fps=24.0),
    # The stock pipeline's videos are shown at 8 frames per second; the experts were trained on clips of 16.
    "cogvideox": _RELEASED.override(width=720, guidance_scale=6.0, max_sequence_length=226),
}
"""Settings of released models whose folders state none: those with which the official code shows the models."""
