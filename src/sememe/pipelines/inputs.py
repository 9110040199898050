"""What people pass to a pipeline, checked and brought to one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from sememe.errors import InputError
from sememe.models.reference import ReferenceCache, ReferenceTokens
from sememe.video import Clip, resize_image
from sememe.video.transparency import over_white


@dataclass(frozen=True)
class EncodedReference:
    """References that a pipeline has encoded, to be used for any number of pictures and seeds.

    Attributes:
        payload: what the transformer reads, of batch 1.
        height: pixels.
        width: pixels.
    """

    payload: ReferenceCache | ReferenceTokens
    height: int
    width: int


@dataclass(frozen=True)
class ReferenceClips:
    """The reference clips of one picture, with a caption for each."""

    clips: tuple[Clip, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A batch: as many pictures as prompts; references of each picture, one record for all, or none.

    Attributes:
        images: uint8 pictures (height, width, 3) of any size.
        prompts: one per picture.
        negative_prompts: one per picture.
        references: none, one, or one per picture.
    """

    images: tuple[np.ndarray, ...]
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    references: tuple[ReferenceClips | EncodedReference, ...]

    @property
    def batch_size(self) -> int:
        return len(self.images)


def make_request(
    image: Any, references: Any, prompt: Any, negative_prompt: Any, reference_prompts: Any, *, needs_reference: bool
) -> Request:
    """Checks the arguments of a pipeline's call.

    Raises:
        InputError: where one is not what was expected.
    """
    images = tuple(to_picture(entry) for entry in (image if isinstance(image, (list, tuple)) else [image]))
    if not images:
        raise InputError("expected at least one picture in image, got an empty list")
    if not references and needs_reference:
        raise InputError(
            "expected at least one reference clip, got none; to run the backbone without a reference say "
            "reference_guidance_scale=0"
        )
    return Request(
        images=images,
        prompts=_spread_texts("prompt", prompt, len(images)),
        negative_prompts=_spread_texts("negative_prompt", negative_prompt, len(images)),
        references=_make_references(references, reference_prompts, len(images)) if needs_reference else (),
    )


def to_picture(image: Any) -> np.ndarray:
    """A uint8 picture (height, width, 3) from a PIL image, such an array or a one-frame Clip; white shines through.

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


def fit_pictures(images: Sequence[np.ndarray], height: int, width: int) -> list[Clip]:
    """One-frame clips that cover the target size; what sticks out is cropped."""
    return [Clip.from_image(resize_image(image, height, width)) for image in images]


def check_references(clips: Any, prompts: Any = None) -> ReferenceClips:
    """Clips that can serve as references, with their captions.

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
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"expected {name} as a text or a list of texts, got {_describe(texts)}")
    if len(texts) != count:
        raise InputError(f"expected one {name} per {of}, got {len(texts)} for {count}")
    return tuple(texts)


def _describe(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}" if isinstance(value, (list, tuple)) and not value else type(value).__name__
    )
