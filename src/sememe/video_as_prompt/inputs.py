"""Inputs of a generation, checked and brought to one form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import PIL.Image

from sememe.errors import InputError, ModelError
from sememe.video import Clip, Picture, to_picture
from sememe.video_as_prompt.families import BackboneFamily
from sememe.video_as_prompt.reference_files import fingerprint_transformer, load_reference, save_reference
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.settings import (
    OFFICIAL_NEGATIVE_PROMPT,
    ExperimentalSettings,
    ReferenceSettings,
    Settings,
)
from sememe.video_as_prompt.shapes import TextEmbeds

Texts = str | tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class EncodedReference:
    """References that a pipeline has encoded, to be used for any number of pictures and seeds.

    Attributes:
        inputs: What the expert reads, with batch size 1.
        settings: Settings of the generations that it serves.
        fingerprint: Hash of the transformer that encoded it; no other can read it.
        payload: What the expert makes of it; None after `load`, and then computed in each generation.
    """

    inputs: ReferenceInputs
    settings: Settings
    fingerprint: str
    payload: ReferenceCache | ReferenceTokens | None = None

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, which `load` reads on any machine.

        It holds latents and embeddings, 11 MB at the size of the released Wan-14B, not the payload (0.2 GB, and 4 GB
        for a one-way expert).

        Raises:
            InputError: The name does not end in .safetensors.
            OutputError: It cannot be written.
        """
        save_reference(self.inputs, self.settings, self.fingerprint, path)

    @classmethod
    def load(cls, path: str | Path) -> "EncodedReference":
        """Read a file that `save` wrote.

        Raises:
            ModelError: It is no such file, or is damaged.
        """
        return cls(*load_reference(path))


@dataclass(frozen=True)
class EncodedPrompt:
    """Texts that a pipeline has encoded, to be passed as `prompt`.

    Attributes:
        prompt: One text for all pictures, or one each.
        negative_prompt: The same for the text to steer away from.
        reference_prompts: Captions of the references; None for empty ones.
        embeds: Embeddings (1, token, dim) of each of those texts and of the empty one.
        max_sequence_length: Tokens per text with which they were encoded.
    """

    prompt: Texts
    negative_prompt: Texts
    reference_prompts: Texts | None
    embeds: Mapping[str, TextEmbeds]
    max_sequence_length: int | None


# What may be given. `make_request` refuses anything else with a message, before a check of types could.
if TYPE_CHECKING:
    Pictures = Picture | Sequence[Picture]
    GivenTexts = str | Sequence[str]
    Prompts = GivenTexts | EncodedPrompt
    GivenClips = Clip | Sequence[Clip | PIL.Image.Image]
    References = GivenClips | EncodedReference | Sequence[GivenClips | EncodedReference]
    Captions = str | Sequence[str | Sequence[str]]
else:
    Pictures = GivenTexts = Prompts = GivenClips = References = Captions = Any


@dataclass(frozen=True)
class ReferenceClips:
    """The reference clips of one picture, with a caption for each."""

    clips: tuple[Clip, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A batch: as many pictures as prompts; references of each picture, one record for all, or none.

    Attributes:
        settings: Settings of the generation, with what encoded inputs decide.
        prompts: One text per result.
        negative_prompts: One text per result.
        images: Pictures, uint8 (height, width, 3) of any size, one per result; empty for text-to-video.
        last_images: Pictures for the last frames, one per result; or empty.
        references: Nothing, one entry for all results, or one per result.
        negative_references: References to steer away from, in the same number of entries.
        known: Embeddings of texts that were encoded ahead.
    """

    settings: Settings
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    last_images: tuple[np.ndarray, ...]
    references: tuple[ReferenceClips | EncodedReference, ...]
    negative_references: tuple[ReferenceClips | EncodedReference, ...]
    known: Mapping[str, TextEmbeds]

    @property
    def batch_size(self) -> int:
        return len(self.prompts)

    def repeat(self, count: int) -> "Request":
        """Return the request with each result `count` times, one after the other."""

        def each(entries: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(entry for entry in entries for _ in range(count))

        def unless_shared(entries: tuple[T, ...]) -> tuple[T, ...]:
            return entries if len(entries) == 1 else each(entries)

        return replace(
            self,
            prompts=each(self.prompts),
            negative_prompts=each(self.negative_prompts),
            images=each(self.images),
            last_images=each(self.last_images),
            references=unless_shared(self.references),
            negative_references=unless_shared(self.negative_references),
        )


def make_request(
    family: BackboneFamily,
    settings: Settings,
    image: Any = None,
    references: Any = None,
    prompt: Any = "",
    negative_prompt: Any = None,
    reference_prompts: Any = None,
    last_image: Any = None,
) -> Request:
    """Check the inputs of a generation and bring them to one form.

    Args:
        family: Backbone, which decides what pictures it takes.
        settings: Settings of the generation.
        image: Pictures to start from.
        references: Clips, or encoded references.
        prompt: One text, or one per picture; or an `EncodedPrompt`, whose texts serve where others are not given.
        negative_prompt: One text, or one per picture; None for the settings'.
        reference_prompts: Captions of the references.
        last_image: Pictures to end with.

    Raises:
        InputError: An input is not what was expected, or would have no effect.
        ModelError: A reference was encoded by another model.
    """
    known: Mapping[str, TextEmbeds] = {}
    if isinstance(prompt, EncodedPrompt):
        known = find_embeds(prompt, settings)
        negative_prompt = prompt.negative_prompt if negative_prompt is None else negative_prompt
        reference_prompts = _find_captions(prompt, reference_prompts, references)
        prompt = prompt.prompt
    if negative_prompt is None and not settings.guidance.negative_prompt:
        quirks = settings.experimental.official_quirks
        negative_prompt = OFFICIAL_NEGATIVE_PROMPT if "long_negative_prompt" in quirks else None
    settings = settings.override(negative_prompt=negative_prompt)
    needs_reference = settings.guidance.reference_guidance_scale != 0
    negative_references = settings.experimental.negative_references
    _check_given(family, settings, image, last_image, references, reference_prompts)
    images = _to_pictures("image", image) if family.needs_image or image is not None else ()
    count = len(images) or (len(prompt) if isinstance(prompt, (list, tuple)) else 1)
    last_images = () if last_image is None else _to_pictures("last_image", last_image)
    if last_images and len(last_images) != count:
        raise InputError(f"expected one last_image per picture, got {len(last_images)} for {count}")
    negative_prompts = _spread_texts("negative_prompt", settings.guidance.negative_prompt, count)
    fps = settings.size.fps
    entries = _make_references(references, reference_prompts, count, fps) if needs_reference else ()
    negative_entries = _make_references(negative_references, None, count, fps) if negative_references else ()
    encoded = [each for each in (*entries, *negative_entries) if isinstance(each, EncodedReference)]
    _check_encoded(encoded, family)
    return Request(
        settings=_match_encoded(encoded, settings),
        prompts=_spread_texts("prompt", prompt, count),
        negative_prompts=negative_prompts,
        images=images,
        last_images=last_images,
        references=entries,
        negative_references=negative_entries,
        known=known,
    )


def _check_given(
    family: BackboneFamily, settings: Settings, image: Any, last_image: Any, references: Any, reference_prompts: Any
) -> None:
    """Refuse inputs that would have no effect, and missing references."""
    needs_reference = settings.guidance.reference_guidance_scale != 0
    if not family.takes_image and image is not None:
        raise InputError("this model makes videos from text alone, so that image has no effect; leave it out")
    if last_image is not None and not family.takes_last_image:
        raise InputError("this model does not support a last frame; leave last_image out")
    # Anything but a list or a clip is refused below.
    if needs_reference and (references is None or (isinstance(references, (list, tuple)) and not references)):
        raise InputError(
            "expected at least one reference clip, got none; to run the backbone without a reference say "
            "reference_guidance_scale=0"
        )
    if settings.experimental.negative_references and settings.guidance.reference_guidance_scale == 1.0:
        raise InputError("negative_references need a reference_guidance_scale other than 0 and 1, got 1")
    if not needs_reference and _is_any_given(reference_prompts):
        raise InputError("reference_prompts have no effect with reference_guidance_scale 0; leave them out")


def find_embeds(prompt: EncodedPrompt, settings: Settings) -> Mapping[str, TextEmbeds]:
    """Return the embeddings of an encoded prompt, for a generation.

    Raises:
        InputError: The prompt was encoded to another length.
    """
    length = settings.sampling.max_sequence_length
    if prompt.max_sequence_length != length:
        raise InputError(
            f"the prompt was encoded with max_sequence_length {prompt.max_sequence_length}, but the generation has "
            f"{length}; use the same for both"
        )
    return prompt.embeds


def _check_encoded(encoded: Sequence[EncodedReference], family: BackboneFamily) -> None:
    """Raise `ModelError` for references that another transformer has encoded."""
    if encoded and {each.fingerprint for each in encoded} != {fingerprint_transformer(family.transformer)}:
        raise ModelError(
            "expected references encoded by this model, but these were by another one, or with other LoRA weights or "
            "scales, or weights in fewer bits; encode them again with this one"
        )


def _match_encoded(encoded: Sequence[EncodedReference], settings: Settings) -> Settings:
    """Return settings with the reference positions and size of encoded references, where they leave these open."""
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
    for name in ("reference_sampling", "num_reference_frames"):
        given = getattr(settings.reference, name)
        if given != getattr(ReferenceSettings, name):
            for way in (getattr(each.settings.reference, name) for each in encoded):
                _check_way(name, way, given)
    for name in ("reference_positions", "reference_downscale"):
        given = getattr(settings.experimental, name)
        ways = sorted({getattr(each.settings.experimental, name) for each in encoded})
        if len(ways) > 1:
            raise InputError(f"expected references encoded with one {name}, got {' and '.join(map(str, ways))}")
        if ways and given != getattr(ExperimentalSettings, name):
            _check_way(name, ways[0], given)
        settings = settings.override(**{name: ways[0]}) if ways else settings
    return settings


def _check_way(name: str, way: Any, given: Any) -> None:
    if given != way:
        raise InputError(
            f"the encoded reference was made with {name} {way}, but the generation has {given}; leave that out, or "
            "encode the reference again"
        )


def _to_pictures(name: str, image: Any) -> tuple[np.ndarray, ...]:
    pictures = tuple(to_picture(entry) for entry in (image if isinstance(image, (list, tuple)) else [image]))
    if not pictures:
        raise InputError(f"expected at least one picture in {name}, got an empty list")
    return pictures


def check_references(clips: Any, prompts: Any = None, fps: float = 16.0) -> ReferenceClips:
    """Return clips that can serve as references, with their captions.

    Args:
        clips: One Clip or several, of at least two frames each; or the PIL images of one.
        prompts: None for empty captions, one text for all, or one per clip.
        fps: Frames a second of a clip that is given as images.

    Raises:
        InputError: It is anything else.
    """
    listed = (clips,) if isinstance(clips, Clip) else tuple(clips) if isinstance(clips, (list, tuple)) else ()
    if listed and all(isinstance(each, PIL.Image.Image) for each in listed):
        listed = (Clip.from_images(listed, fps),)
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


def _make_references(
    references: Any, prompts: Any, num_images: int, fps: float
) -> tuple[ReferenceClips | EncodedReference, ...]:
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
            made.append(check_references(entry, texts, fps))
    if len({len(entry.clips) for entry in made if isinstance(entry, ReferenceClips)}) > 1:
        raise InputError("expected the same number of references for every picture of a batch; run them one by one")
    return tuple(made)


def check_texts(name: str, texts: Any) -> Texts:
    """Return a text, or several as a tuple.

    Raises:
        InputError: It is anything else.
    """
    if isinstance(texts, str):
        return texts
    if isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts):
        return tuple(texts)
    raise InputError(f"expected {name} as a text or a list of texts, got {_describe(texts)}")


def _spread_texts(name: str, texts: Any, count: int, of: str = "picture") -> tuple[str, ...]:
    found = check_texts(name, texts)
    spread = (found,) * count if isinstance(found, str) else found
    if len(spread) != count:
        raise InputError(f"expected one {name} per {of}, got {len(spread)} for {count}")
    return spread


def _find_captions(prompt: EncodedPrompt, given: Any, references: Any) -> Any:
    """Return the captions that are given, else the prompt's; encoded references have taken theirs already."""
    listed = references if isinstance(references, (list, tuple)) else [references]
    are_encoded = bool(listed) and all(isinstance(each, EncodedReference) for each in listed)
    return prompt.reference_prompts if given is None and not are_encoded else given


def _is_any_given(texts: Any) -> bool:
    """Return whether any of some texts, or lists of them, is not empty."""
    return any(map(_is_any_given, texts)) if isinstance(texts, (list, tuple)) else bool(texts)


def _describe(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}" if isinstance(value, (list, tuple)) and not value else type(value).__name__
    )
