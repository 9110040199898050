"""Files and texts of a Video-As-Prompt generation, for `workflows.generate`. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sememe.errors import InputError
from sememe.files import hash_file
from sememe.system import SystemInputs
from sememe.video_as_prompt.settings import Settings

if TYPE_CHECKING:
    from sememe.video_as_prompt.inputs import EncodedReference


def list_reading(settings: Settings, place: int, num_places: int) -> dict[str, Any]:
    """Return the arguments with which `read_clip` reads one of several references; `place` counts from 0.

    Raises:
        InputError: `num_reference_frames` is not one number per reference.
    """
    reading = settings.read_reference(place, num_places)._asdict()
    # Stretching, and showing CLIP the whole frame, need the whole frame.
    whole = {"size": None} if settings.experimental.official_quirks else {}
    return reading | whole


@dataclass(frozen=True, kw_only=True)
class VideoAsPromptInputs(SystemInputs):
    """Files and texts of a generation.

    Attributes:
        image: Picture for the first frame (png, jpeg, webp ...); repeatable, with a result for each.
        references: Reference video, whose effect the picture gets; repeatable. None with reference_guidance_scale 0.
        prompt: What the result shows.
        reference_prompts: Caption of the references: one for all, or one each.
        last_image: Picture for the last frame, if the model supports one.
        reference_start: Start of the used section of references, in seconds.
        reference_end: End of the used section of references, in seconds.
        encoded_reference: File that `sememe encode-reference` wrote, in place of videos.
    """

    system: ClassVar[str] = "video-as-prompt"
    baseline_name: ClassVar[str] = "without reference"
    least_frames: ClassVar[int] = 2

    image: Path
    references: tuple[Path, ...] = ()
    prompt: str = ""
    reference_prompts: tuple[str, ...] = ()
    last_image: Path | None = None
    reference_start: float | None = None
    reference_end: float | None = None
    encoded_reference: Path | None = None

    def images(self) -> Mapping[str, Path]:
        return {"image": self.image} | ({} if self.last_image is None else {"last_image": self.last_image})

    def videos(self, settings: Settings) -> Mapping[str, tuple[Path, ...]]:
        negative = tuple(map(Path, settings.experimental.negative_references))
        return {"references": self.references} | ({"negative_references": negative} if negative else {})

    def section(self, settings: Settings) -> Mapping[str, float | None]:
        """Return where references begin and end, in seconds."""
        return {"start": self.reference_start, "end": self.reference_end}

    def texts(self) -> Mapping[str, Any]:
        """Return the texts by name, with a caption for each reference."""
        captions = self.reference_prompts or ("",)
        spread = captions * len(self.references) if len(captions) == 1 else captions
        texts = {"prompt": self.prompt, "reference_prompts": list(spread)}
        if self.encoded_reference is not None:
            texts["encoded_reference_sha256"] = hash_file(self.encoded_reference)
        return texts

    def check(self, settings: Settings) -> None:
        is_read = settings.guidance.reference_guidance_scale != 0
        start, end = self.reference_start or 0.0, self.reference_end
        if start < 0 or (end is not None and end <= start):
            raise InputError(f"expected reference_start of at least 0 and a later reference_end, got {start} and {end}")
        if self.encoded_reference is not None and (self.references or self.reference_prompts or not is_read):
            raise InputError("expected references as videos or encoded, got both, or reference_guidance_scale 0")
        if self.encoded_reference is not None and (self.reference_start, self.reference_end) != (None, None):
            raise InputError(
                "reference_start and reference_end have no effect on an encoded reference; encode the section"
            )
        self._load_reference()
        if is_read and not self.references and self.encoded_reference is None:
            raise InputError("expected at least one reference video, got none; give one, or reference_guidance_scale 0")
        if not is_read and any(self.reference_prompts):
            raise InputError("reference_guidance_scale 0 leaves the reference out, so reference_prompts has no effect")
        if len(self.reference_prompts) not in {0, 1, len(self.references)}:
            raise InputError(
                f"expected one reference prompt per reference, or one for all, got {len(self.reference_prompts)} for "
                f"{len(self.references)}"
            )

    def workload(self, settings: Settings) -> Mapping[str, float]:
        numbers = {f"num_{name}": len(paths) for name, paths in self.videos(settings).items()}
        if (encoded := self._load_reference()) is not None:
            numbers["num_references"] = len(encoded.inputs.latents)
        return {"num_references": 0, "num_negative_references": 0} | numbers

    def reading(self, settings: Settings, place: int, num_places: int) -> Mapping[str, Any]:
        return list_reading(settings, place, num_places)

    def arguments(
        self, settings: Settings, images: Mapping[str, Any], videos: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        if videos.get("negative_references"):
            settings = settings.override(negative_references=videos["negative_references"])
        captions = self.texts()["reference_prompts"]
        references = self._load_reference() or list(videos["references"])
        given = {"prompt": self.prompt, "references": references, "settings": settings}
        return {**given, **images, **({"reference_prompts": captions} if self.references else {})}

    def _load_reference(self) -> "EncodedReference | None":
        if self.encoded_reference is None:
            return None
        from sememe.video_as_prompt.inputs import EncodedReference

        return EncodedReference.load(self.encoded_reference)

    def baseline(self, settings: Settings) -> tuple["VideoAsPromptInputs", Settings]:
        """Return inputs and settings of the same generation without its reference.

        Raises:
            InputError: There is no reference to leave out.
        """
        if settings.guidance.reference_guidance_scale == 0:
            raise InputError("influence has no meaning with reference_guidance_scale 0: the reference is left out")
        return replace(self, references=(), reference_prompts=(), encoded_reference=None), settings.without_reference()
