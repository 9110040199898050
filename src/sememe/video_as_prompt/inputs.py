"""Inputs of a generation, checked and brought to one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import PIL.Image
import PIL.ImageOps

from sememe.errors import InputError
from sememe.video import Clip
from sememe.video.colors import over_white
from sememe.video_as_prompt.families import BackboneFamily
from sememe.video_as_prompt.references import ReferenceCache, ReferenceTokens
from sememe.video_as_prompt.settings import ExperimentalSettings, Settings


@dataclass(frozen=True)
class EncodedReference:
    """References that a pipeline has encoded, to be used for any number of pictures and seeds.

    Attributes:
        payload: Input of the transformer, with batch size 1.
        settings: Settings of the generations that it serves.
    """

    payload: ReferenceCache | ReferenceTokens
    settings: Settings


@dataclass(frozen=True)
class ReferenceClips:
    """The reference clips of one picture, with a caption for each."""

    clips: tuple[Clip, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A batch: as many pictures as prompts; references of each picture, one record for all, or none.

    Attributes:
        prompts: one per result.
        negative_prompts: one per result.
        images: uint8 pictures (height, width, 3) of any size, one per result; empty for text-to-video.
        last_images: the same for the last frames, or empty.
        references: none, one, or one per result.
        negative_references: the same.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    images: tuple[np.ndarray, ...] = ()
    last_images: tuple[np.ndarray, ...] = ()
    references: tuple[ReferenceClips | EncodedReference, ...] = ()
    negative_references: tuple[ReferenceClips | EncodedReference, ...] = ()

    @property
    def batch_size(self) -> int:
        return len(self.prompts)

    @property
    def encoded(self) -> tuple[EncodedReference, ...]:
        """References, negative ones too, that were encoded ahead."""
        entries = (*self.references, *self.negative_references)
        return tuple(entry for entry in entries if isinstance(entry, EncodedReference))


def make_request(
    family: BackboneFamily,
    settings: Settings,
    image: Any = None,
    references: Any = None,
    prompt: Any = "",
    negative_prompt: Any = "",
    reference_prompts: Any = None,
    last_image: Any = None,
) -> Request:
    """Check the inputs of a generation and bring them to one form.

    Args:
        family: Backbone, which decides what pictures it takes.
        settings: Settings of the generation.
        image: Pictures to start from.
        references: Clips, or encoded references.
        prompt: One text, or one per picture.
        negative_prompt: The same.
        reference_prompts: Captions of the references.
        last_image: Pictures to end with.

    Raises:
        InputError: an input is not what was expected, or would have no effect.
    """
    needs_reference = settings.guidance.reference_guidance_scale != 0
    negative_references = settings.experimental.negative_references
    if not family.takes_image and image is not None:
        raise InputError("this model makes videos from text alone, so that image has no effect; leave it out")
    if last_image is not None and not family.takes_last_image:
        raise InputError("this model takes no last frame; leave last_image out")
    if needs_reference and _is_nothing(references):
        raise InputError(
            "expected at least one reference clip, got none; to run the backbone without a reference say "
            "reference_guidance_scale=0"
        )
    if negative_references and settings.guidance.reference_guidance_scale == 1.0:
        raise InputError("negative_references need a reference_guidance_scale other than 0 and 1, got 1")
    if not needs_reference and _is_any_given(reference_prompts):
        raise InputError("reference_prompts have no effect with reference_guidance_scale 0; leave them out")
    images = _to_pictures("image", image) if family.needs_image or image is not None else ()
    count = len(images) or (len(prompt) if isinstance(prompt, (list, tuple)) else 1)
    last_images = () if last_image is None else _to_pictures("last_image", last_image)
    if last_images and len(last_images) != count:
        raise InputError(f"expected one last_image per picture, got {len(last_images)} for {count}")
    return Request(
        prompts=_spread_texts("prompt", prompt, count),
        negative_prompts=_spread_texts("negative_prompt", negative_prompt, count),
        images=images,
        last_images=last_images,
        references=_make_references(references, reference_prompts, count) if needs_reference else (),
        negative_references=_make_references(negative_references, None, count) if negative_references else (),
    )


def match_encoded(encoded: Sequence[EncodedReference], settings: Settings) -> Settings:
    """Return settings with the reference positions and size of encoded references, where they leave these open.

    Args:
        encoded: References that were encoded ahead.
        settings: Settings of the generation.

    Raises:
        InputError: a reference was made for another result, or in another way than the settings or another one.
    """
    size = settings.size
    for made in (each.settings.size for each in encoded):
        if (made.height, made.width) != (size.height, size.width):
            raise InputError(
                f"the encoded reference is {made.height}x{made.width}, but the result is to be "
                f"{size.height}x{size.width}; encode it at that size"
            )
        if made.num_frames != size.num_frames:
            raise InputError(
                f"the encoded reference was made for {made.num_frames} frames, but the result is to have "
                f"{size.num_frames}; encode it with num_frames={size.num_frames}, and with num_reference_frames to "
                "keep its own length"
            )
    for name in ("reference_positions", "reference_downscale"):
        given = getattr(settings.experimental, name)
        ways = sorted({getattr(each.settings.experimental, name) for each in encoded})
        if len(ways) > 1:
            raise InputError(f"expected references encoded with one {name}, got {' and '.join(map(str, ways))}")
        if ways and given not in (getattr(ExperimentalSettings, name), ways[0]):
            raise InputError(
                f"the encoded reference was made with {name} {ways[0]}, but the generation has {given}; "
                "leave that out, or encode the reference again"
            )
        settings = settings.override(**{name: ways[0]}) if ways else settings
    return settings


def _to_pictures(name: str, image: Any) -> tuple[np.ndarray, ...]:
    pictures = tuple(to_picture(entry) for entry in (image if isinstance(image, (list, tuple)) else [image]))
    if not pictures:
        raise InputError(f"expected at least one picture in {name}, got an empty list")
    return pictures


def to_picture(image: Any) -> np.ndarray:
    """Return a uint8 picture (height, width, 3) from a PIL image, such an array or a one-frame Clip, on white.

    Raises:
        InputError: for anything else.
    """
    if isinstance(image, Clip):
        if image.num_frames != 1:
            raise InputError(f"expected one picture as image, got a clip of {image.num_frames} frames; give one frame")
        return image.frames[0]
    if isinstance(image, PIL.Image.Image):
        upright = PIL.ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            return over_white(np.asarray(upright.convert("RGBA")))
        return np.asarray(upright.convert("RGB"))
    if isinstance(image, np.ndarray):
        return Clip.from_image(image).frames[0]
    raise InputError(f"expected a PIL image, a uint8 array or a one-frame Clip as image, got {type(image).__name__}")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise `InputError` for a value that is none of a `Literal`."""
    if value not in get_args(choices):
        raise InputError(f"expected {name} to be one of {', '.join(get_args(choices))}, got {value!r}")


def check_references(clips: Any, prompts: Any = None) -> ReferenceClips:
    """Return clips that can serve as references, with their captions.

    Args:
        clips: a Clip or several, of at least two frames each.
        prompts: None for empty captions, one text for all, or one per clip.

    Raises:
        InputError: for anything else.
    """
    listed = (clips,) if isinstance(clips, Clip) else tuple(clips) if isinstance(clips, (list, tuple)) else ()
    if not listed:
        raise InputError(f"expected reference clips (Clip, or a list of them), got {_describe(clips)}")
    for clip in listed:
        if not isinstance(clip, Clip):
            raise InputError(f"expected each reference as a Clip (read_clip makes one), got {type(clip).__name__}")
        if clip.num_frames < 2:
            raise InputError(
                "expected a reference of at least 2 frames, got 1: a still picture shows no motion to copy"
            )
    return ReferenceClips(listed, _spread_texts("reference_prompts", prompts or "", len(listed), of="reference"))


def _make_references(references: Any, prompts: Any, num_images: int) -> tuple[ReferenceClips | EncodedReference, ...]:
    nested = isinstance(references, (list, tuple)) and any(
        isinstance(entry, (list, tuple, EncodedReference)) for entry in references
    )
    entries = list(references) if nested else [references]
    if nested and len(entries) not in (1, num_images):
        raise InputError(f"expected one list of references per picture, got {len(entries)} for {num_images} pictures")
    per_entry = prompts if nested and isinstance(prompts, (list, tuple)) else [prompts] * len(entries)
    if len(per_entry) != len(entries):
        raise InputError(f"expected reference_prompts for {len(entries)} lists of references, got {len(per_entry)}")
    made: list[ReferenceClips | EncodedReference] = []
    for entry, texts in zip(entries, per_entry, strict=True):
        if isinstance(entry, EncodedReference):
            if texts:
                raise InputError(
                    "reference_prompts have no effect on encoded references; pass them to encode_reference"
                )
            made.append(entry)
        else:
            made.append(check_references(entry, texts))
    if len({len(entry.clips) for entry in made if isinstance(entry, ReferenceClips)}) > 1:
        raise InputError("expected the same number of references for every picture of a batch; run them one by one")
    return tuple(made)


def _spread_texts(name: str, texts: Any, count: int, of: str = "picture") -> tuple[str, ...]:
    if isinstance(texts, str):
        return (texts,) * count
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"expected {name} as a text or a list of texts, got {_describe(texts)}")
    if len(texts) != count:
        raise InputError(f"expected one {name} per {of}, got {len(texts)} for {count}")
    return tuple(texts)


def _is_nothing(references: Any) -> bool:
    """Return whether there are none; anything but a list or a clip is refused later."""
    return references is None or (isinstance(references, (list, tuple)) and not references)


def _is_any_given(texts: Any) -> bool:
    """Return whether any of some texts, or lists of them, is not empty."""
    return any(map(_is_any_given, texts)) if isinstance(texts, (list, tuple)) else bool(texts)


def _describe(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}" if isinstance(value, (list, tuple)) and not value else type(value).__name__
    )
