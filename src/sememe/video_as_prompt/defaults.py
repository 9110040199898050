"""A model's own settings for generation, which hold wherever a caller says None."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from sememe.diffusion.guidance import Batching, check_interval
from sememe.errors import InputError, ModelError

Autocast = Literal["off", "bfloat16"]
TextKeysSetting = Literal["kept", "recomputed"]


@dataclass(frozen=True)
class GenerationDefaults:
    """Settings of a Video-As-Prompt generation, kept in the `generation_defaults` of `model_index.json`.

    Attributes:
        height: pixels.
        width: pixels.
        num_frames: of the result, and of each reference.
        fps: frames per second of the result.
        num_inference_steps: of the scheduler.
        guidance_scale: of the text, 1 for off.
        reference_guidance_scale: of the reference, 1 for off, 0 for no reference at all.
        guidance_interval: timesteps, as parts of 1000, between which both guidances act; outside them there is one
            forward with text and reference. (0, 1) is always.
        negative_prompt: what text guidance leads away from.
        max_sequence_length: tokens per prompt; None for as many as the tokenizer was made for.
        batching: whether variants of the conditions share a forward.
        autocast: precision in which float32 weights compute while denoising.
        text_keys: whether the keys and values of texts are kept over the steps, for backbones with cross-attention;
            the result is the same. Kept they take 2 * dim numbers per block and token of text and picture.
    """

    height: int = 480
    width: int = 832
    num_frames: int = 49
    fps: float = 16.0
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    reference_guidance_scale: float = 1.0
    guidance_interval: Sequence[float] = (0.0, 1.0)
    negative_prompt: str = ""
    max_sequence_length: int | None = None
    batching: str = "sequential"
    autocast: str = "off"
    text_keys: str = "kept"

    def __post_init__(self) -> None:
        choices = {"batching": Batching, "autocast": Autocast, "text_keys": TextKeysSetting}
        for name, allowed in ((name, get_args(choice)) for name, choice in choices.items()):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        # Files have lists for pairs.
        object.__setattr__(self, "guidance_interval", check_interval(self.guidance_interval))
        if self.guidance_interval != (0.0, 1.0) and self.guidance_scale == 0:
            raise InputError(
                "guidance_scale 0 leaves the text out, but outside guidance_interval it is told; use (0, 1)"
            )
        if not self.fps > 0:
            raise InputError(f"fps must be above 0, got {self.fps}")
        if self.max_sequence_length is not None and self.max_sequence_length < 1:
            raise InputError(f"max_sequence_length must be at least 1, got {self.max_sequence_length}")
        if self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> "GenerationDefaults":
        """Reads the settings of a model.

        Raises:
            ModelError: where one is unknown or of the wrong kind.
        """
        given = dict(config or {})
        unknown = sorted(given.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ModelError(f"generation_defaults of this model hold unknown settings: {', '.join(unknown)}")
        try:
            return cls(**given)
        except (InputError, TypeError) as error:
            raise ModelError(f"generation_defaults of this model are not valid: {error}") from error

    def override(self, **settings: Any) -> "GenerationDefaults":
        """The same settings with those replaced that are not None."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})

    def to_config(self) -> dict[str, Any]:
        return asdict(self) | {"guidance_interval": list(self.guidance_interval)}
