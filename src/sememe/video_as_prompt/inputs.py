"""What people pass to a pipeline, checked and brought to one form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import PIL.Image
import PIL.ImageOps

from sememe.errors import InputError
from sememe.video import Clip
from sememe.video.transparency import over_white
from sememe.video_as_prompt.references import ReferenceCache, ReferenceTokens


@dataclass(frozen=True)
class EncodedReference:
    """References that a pipeline has encoded, to be used for any number of pictures and seeds.

    Attributes:
        payload: what the transformer reads, of batch 1.
        height: pixels of the results for which it was made.
        width: pixels, the same.
        num_frames: the same.
        num_reference_frames: that were taken of each reference, or of each in turn; None for as many.
        reference_positions: at which they lie.
        reference_downscale: by how much they are smaller than the results.
    """

    payload: ReferenceCache | ReferenceTokens
    height: int
    width: int
    num_frames: int
    num_reference_frames: int | tuple[int, ...] | None
    reference_positions: str
    reference_downscale: int

    def to_record(self) -> dict[str, Any]:
        """How it was made, as plain values."""
        counts = self.num_reference_frames
        return {
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "num_reference_frames": list(counts) if isinstance(counts, tuple) else counts,
            "reference_positions": self.reference_positions,
            "reference_downscale": self.reference_downscale,
        }


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
        """The references, negative ones too, that were encoded ahead."""
        entries = (*self.references, *self.negative_references)
        return tuple(entry for entry in entries if isinstance(entry, EncodedReference))


def make_request(
    image: Any,
    prompt: Any,
    negative_prompt: Any,
    last_image: Any = None,
    references: Any = None,
    reference_prompts: Any = None,
    negative_references: Any = None,
    *,
    takes_image: bool = True,
    needs_image: bool = True,
    takes_last_image: bool = False,
    needs_reference: bool = True,
) -> Request:
    """Checks the arguments of a pipeline's call.

    Args:
        image: pictures to start from.
        prompt: one text, or one for each picture.
        negative_prompt: the same.
        last_image: pictures to end with.
        references: clips, or what was made of them.
        reference_prompts: captions of references.
        negative_references: clips to lead away from.
        takes_image: whether the backbone can be told a picture.
        needs_image: whether it must be.
        takes_last_image: whether it can be told a last one.
        needs_reference: whether a reference is read at all.

    Raises:
        InputError: where one is not what was expected, or would have no effect.
    """
    if not takes_image and image is not None:
        raise InputError("this model makes videos from text alone, so that image has no effect; leave it out")
    if last_image is not None and not takes_last_image:
        raise InputError("this model cannot be told a last frame; leave last_image out")
    if needs_reference and _is_nothing(references):
        raise InputError(
            "expected at least one reference clip, got none; to run the backbone without a reference say "
            "reference_guidance_scale=0"
        )
    if not needs_reference and not _is_nothing(negative_references):
        raise InputError("negative_references need a reference_guidance_scale other than 0 and 1, got 0")
    if not needs_reference and _says_something(reference_prompts):
        raise InputError("reference_prompts have no effect with reference_guidance_scale 0; leave them out")
    images = _to_pictures("image", image) if needs_image or image is not None else ()
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
        negative_references=()
        if _is_nothing(negative_references)
        else _make_references(negative_references, None, count),
    )


def match_encoded(
    encoded: Sequence[EncodedReference], height: int, width: int, num_frames: int, said: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a generation's references, those of encoded ones where it does not say otherwise.

    Args:
        encoded: references that were encoded ahead.
        height: pixels of the result.
        width: pixels, the same.
        num_frames: the same.
        said: `reference_positions` and `reference_downscale` of the generation.

    Raises:
        InputError: one was made for another result, or otherwise than the generation says or another one was made.
    """
    for each in encoded:
        if (each.height, each.width) != (height, width):
            raise InputError(
                f"the encoded reference is {each.height}x{each.width}, but the result is to be {height}x{width}; "
                "encode it at that size"
            )
        if each.num_frames != num_frames:
            raise InputError(
                f"the encoded reference was made for {each.num_frames} frames, but the result is to have {num_frames}; "
                f"encode it with num_frames={num_frames}, and with num_reference_frames to keep its own length"
            )
    matched = dict(said)
    for name, usual in (("reference_positions", "dense"), ("reference_downscale", 1)):
        made = sorted({getattr(each, name) for each in encoded})
        if len(made) > 1:
            raise InputError(f"expected references encoded with one {name}, got {' and '.join(map(str, made))}")
        if made and said[name] not in (usual, made[0]):
            raise InputError(
                f"the encoded reference was made with {name} {made[0]}, but the generation says {said[name]}; "
                "leave that out, or encode the reference anew"
            )
        matched[name] = made[0] if made else said[name]
    return matched


def _to_pictures(name: str, image: Any) -> tuple[np.ndarray, ...]:
    pictures = tuple(to_picture(entry) for entry in (image if isinstance(image, (list, tuple)) else [image]))
    if not pictures:
        raise InputError(f"expected at least one picture in {name}, got an empty list")
    return pictures


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


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raises `InputError` for a value that is none of a `Literal`."""
    if value not in get_args(choices):
        raise InputError(f"expected {name} to be one of {', '.join(get_args(choices))}, got {value!r}")


def as_counts(counts: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """One number for all references, or a tuple with one for each."""
    return counts if counts is None or isinstance(counts, int) else tuple(counts)


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
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"expected {name} as a text or a list of texts, got {_describe(texts)}")
    if len(texts) != count:
        raise InputError(f"expected one {name} per {of}, got {len(texts)} for {count}")
    return tuple(texts)


def _is_nothing(references: Any) -> bool:
    """Whether there are none; what is neither a list nor a clip, such as an array, is refused further on."""
    return references is None or (isinstance(references, (list, tuple)) and not references)


def _says_something(texts: Any) -> bool:
    """Whether any of some texts, or lists of them, is not empty."""
    return any(map(_says_something, texts)) if isinstance(texts, (list, tuple)) else bool(texts)


def _describe(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}" if isinstance(value, (list, tuple)) and not value else type(value).__name__
    )
