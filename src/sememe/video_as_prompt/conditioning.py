"""Encode the conditioning inputs once, and call the transformer for each guidance variant."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sememe.backbones.autoencoder import Latents, Video, clips_to_video, encode_video
from sememe.backbones.cross_attention import KeptText
from sememe.diffusion.guidance import Guidance
from sememe.errors import InputError
from sememe.video import Clip, resample_clip, resize_clip
from sememe.video_as_prompt.families import (
    BackboneFamily,
    FirstLatents,
    ForwardInputs,
    Generators,
    Reference,
    Timestep,
)
from sememe.video_as_prompt.guidance import ReferenceChoice, Text, Variant
from sememe.video_as_prompt.inputs import EncodedReference, ReferenceClips, Request
from sememe.video_as_prompt.quirks import stretch_clip
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens, join_references
from sememe.video_as_prompt.rotary import TokenExtent
from sememe.video_as_prompt.settings import ExperimentalSettings, ReferenceReading, Settings
from sememe.video_as_prompt.shapes import ImageEmbeds, TextEmbeds, VideoLatents

Predictions = Float[Tensor, "variant batch channel frame height width"]
"""One prediction per variant and target."""


@dataclass(frozen=True)
class Conditions:
    """Conditioning of the transformer, the same at every step.

    Attributes:
        channels: Mask and first-frame latents to append to the latents, if any.
        texts: Embeddings of the texts that guidance needs.
        image_embeds: Image embeddings, for backbones that read them.
        references: References by their choice and the text with which they are read.
        first_latents: Latents that replace the first latent frame, if any.
    """

    channels: VideoLatents | None
    texts: Mapping[Text, TextEmbeds]
    image_embeds: ImageEmbeds | None
    references: Mapping[tuple[ReferenceChoice, Text], Reference]
    first_latents: FirstLatents | None = None

    def are_approximate(self, attention_mode: str) -> bool:
        """Return whether a two-way model reads a reference that was encoded once."""
        return attention_mode == "joint" and any(isinstance(each, ReferenceCache) for each in self.references.values())

    def check_reading(self, settings: ExperimentalSettings) -> None:
        """Raise `InputError` for references that were encoded ahead in another way than the generation reads them."""
        are_carried = any(isinstance(each, ReferenceTokens) for each in self.references.values())
        if settings.reference_refresh is not None and self.references and not are_carried:
            raise InputError("reference_refresh has no effect on references encoded with approximate; leave it out")
        if settings.encodes_once and are_carried:
            raise InputError("approximate has no effect on references encoded without it; pass it to encode_reference")

    def replace_first_frame(self, latents: VideoLatents) -> VideoLatents:
        """Return latents with the given first frame, if there is one."""
        if self.first_latents is None:
            return latents
        return torch.cat([self.first_latents.to(latents), latents[:, :, 1:]], dim=2)


class ConditionEncoder:
    """Encoder of a request into conditioning."""

    def __init__(
        self, family: BackboneFamily, settings: Settings, known: Mapping[str, TextEmbeds] | None = None
    ) -> None:
        self.family, self.settings, self.known = family, settings, known or {}
        self._encoded: dict[tuple[int, ...], torch.Tensor] = {}
        self._check_positions()

    def encode_targets(self, request: Request, guidance: Guidance[Variant], generator: Generators) -> Conditions:
        """Encode everything but the references."""
        firsts = self._fit(request.images)
        lasts = self._fit(request.last_images)
        needed = {row.variant.text for row in guidance.rows}
        prompts: dict[Text, tuple[str, ...]] = {"positive": request.prompts, "negative": request.negative_prompts}
        texts = {text: self.encode_texts(prompts[text]) for text in prompts if text in needed}
        if not firsts:
            return Conditions(None, texts, None, {})
        images = clips_to_video(firsts)[:, :, 0]
        last_images = clips_to_video(lasts)[:, :, 0] if lasts else None
        channels = self.family.encode_condition(
            images, last_images, self.settings.size.num_frames, self._posterior_source(generator)
        )
        seen = [request.images, request.last_images] if self._has_quirk("uncropped_image_embeds") else [firsts, lasts]
        embeds = self.family.encode_pictures(_pair_up(seen))
        return Conditions(channels, texts, embeds, {}, self.family.encode_first_latents(images))

    def encode_references(
        self, request: Request, guidance: Guidance[Variant], generator: Generators
    ) -> dict[tuple[ReferenceChoice, Text], Reference]:
        """Encode the references of every variant that guidance needs; variants with the same reference share it."""
        found: dict[tuple[ReferenceChoice, Text], Reference] = {}
        by_choice: dict[ReferenceChoice, tuple[ReferenceClips | EncodedReference, ...]] = {
            "given": request.references,
            "negative": request.negative_references,
        }
        for choice, entries in by_choice.items():
            texts = {row.variant.text for row in guidance.rows if row.variant.reference == choice}
            if not texts:
                continue
            if not self._has_quirk("negative_reference_prompt"):
                shared = self._encode_entries(entries, generator)
                found |= {(choice, text): shared for text in texts}
                continue
            for text in sorted(texts, reverse=True):
                captioned = entries if text == "positive" else _recaption(entries, request.negative_prompts)
                found[choice, text] = self._encode_entries(captioned, generator)
        self._encoded.clear()
        return found

    def encode_clips(self, entries: Sequence[ReferenceClips], generator: Generators = None) -> ReferenceInputs:
        """Encode a batch of references for the expert; each entry has the same number of clips."""
        if self.settings.experimental.encodes_once and self.family.transformer.config.reference_timestep is None:
            raise InputError(
                "this model reads its reference at the target's timestep, which changes from step to step, so it "
                "cannot be encoded once; give reference_refresh with approximate"
            )
        source = self._posterior_source(generator)
        # A reference that all pictures share uses the generator of the first picture.
        return self._make_inputs(entries, source[: len(entries)] if isinstance(source, list) else source)

    def run_expert(self, inputs: ReferenceInputs, *, once: bool) -> Reference:
        """Run the expert on a batch of references in one pass.

        Args:
            inputs: References.
            once: Whether that of a two-way model serves all steps, which is approximate.
        """
        with precision(self.family.device, self.settings, self.family.transformer.dtype):
            if once or self.family.transformer.config.attention_mode == "cached":
                return self.family.encode_reference(inputs, approximate=once)
            return self.family.embed_reference(inputs)

    def encode_texts(self, prompts: Sequence[str]) -> TextEmbeds:
        """Encode prompts, each one entry of the batch; each distinct prompt is encoded once, unless it is known.

        Raises:
            InputError: The model reads another number of tokens, or the text encoder was unloaded.
        """
        distinct = sorted(set(prompts) - self.known.keys())
        embeds = {text: self.known[text] for text in prompts if text in self.known}
        if distinct:
            if self.family.pipeline.text_encoder is None:
                raise InputError(
                    f"the text encoder was unloaded, so {distinct[0]!r} cannot be encoded; "
                    "name it in encode_prompt before unload_text_encoders"
                )
            length, needed = self.settings.sampling.max_sequence_length, self.family.text_length
            if length is not None and needed is not None and length != needed:
                raise InputError(f"this model reads exactly {needed} text tokens, got max_sequence_length {length}")
            encoded = self.family.encode_texts(distinct, self.settings).split(1)
            embeds |= dict(zip(distinct, encoded, strict=True))
        return torch.cat([embeds[text].to(self.family.device, self.family.transformer.dtype) for text in prompts])

    def _encode_entries(self, entries: Sequence[ReferenceClips | EncodedReference], generator: Generators) -> Reference:
        clips = [entry for entry in entries if isinstance(entry, ReferenceClips)]
        if len(clips) == len(entries):
            return self._read_clips(clips, generator)
        return join_references(
            [
                self._read_encoded(entry)
                if isinstance(entry, EncodedReference)
                else self._read_clips([entry], generator)
                for entry in entries
            ]
        )

    def _read_clips(self, clips: Sequence[ReferenceClips], generator: Generators) -> Reference:
        inputs = self.encode_clips(clips, generator)
        return self.run_expert(inputs, once=self.settings.experimental.encodes_once)

    def _read_encoded(self, entry: EncodedReference) -> Reference:
        place = (self.family.device, self.family.transformer.dtype)
        if entry.payload is not None:
            return entry.payload.to(*place)
        return self.run_expert(entry.inputs.to(*place), once=entry.settings.experimental.encodes_once)

    def _make_inputs(self, entries: Sequence[ReferenceClips], generator: Generators) -> ReferenceInputs:
        dtype = self.family.transformer.dtype
        latents, texts, images = [], [], []
        num_places = len(entries[0].clips)
        for place in range(num_places):
            reading = self.settings.read_reference(place, num_places)
            clips = [self._fit_clip(entry.clips[place], reading) for entry in entries]
            # The same clips with another caption are encoded once.
            known = (place, *(id(entry.clips) for entry in entries))
            if known not in self._encoded:
                self._encoded[known] = self._encode_channels(clips_to_video(clips), generator)
            latents.append(self._encoded[known].to(dtype=dtype))
            texts.append(self.encode_texts([entry.prompts[place] for entry in entries]))
            uncropped = self._has_quirk("uncropped_image_embeds")
            seen = [entry.clips[place] for entry in entries] if uncropped else clips
            images.append(self.family.encode_pictures([[clip.frames[0]] for clip in seen]))
        embeds = tuple(image for image in images if image is not None) or None
        return ReferenceInputs(tuple(latents), tuple(texts), embeds, self._find_extent())

    def _encode_channels(self, video: Video, generator: Generators) -> Latents:
        """Return the latents of a reference, followed by the channels of its first frame if the backbone has them."""
        encoded = encode_video(self.family.pipeline.vae, video, generator).to(self.family.device)
        condition = self.family.encode_condition(video[:, :, 0], None, video.shape[2], generator)
        return encoded if condition is None else torch.cat([encoded, condition.to(encoded)], dim=1)

    def _find_extent(self) -> TokenExtent | None:
        if not self.settings.experimental.moves_references:
            return None
        patch, size = self.family.transformer.config.patch_size, self.settings.size
        _, num_frames, height, width = self.family.pipeline.grid.latent_shape(
            size.num_frames, size.height, size.width, is_decoded=False
        )
        is_spread = self.settings.experimental.reference_positions == "spread"
        return TokenExtent(height // patch[1], width // patch[2], num_frames // patch[0] if is_spread else None)

    def _check_positions(self) -> None:
        size, experimental = self.settings.size, self.settings.experimental
        downscale = experimental.reference_downscale
        if experimental.moves_references and not self.family.supports_coarse_references:
            raise InputError(
                f"references on a coarser grid are not supported on {self.family.name} backbones; "
                "leave out reference_downscale and reference_positions"
            )
        for name, pixels in (("height", size.height), ("width", size.width)):
            if pixels % (downscale * self.family.pipeline.grid.size_multiple):
                raise InputError(
                    f"reference_downscale {downscale} needs a {name} that is a multiple of "
                    f"{downscale * self.family.pipeline.grid.size_multiple}, got {pixels}"
                )

    def _fit(self, pictures: Sequence[np.ndarray]) -> list[Clip]:
        """Return one-frame clips of the target's size."""
        height, width = self.settings.size.height, self.settings.size.width
        return [self._resize(Clip.from_image(picture), height, width) for picture in pictures]

    def _fit_clip(self, clip: Clip, reading: ReferenceReading) -> Clip:
        size = self.settings.size
        self.family.pipeline.grid.latent_shape(
            reading.num_frames, size.height, size.width, is_decoded=False, what="num_reference_frames"
        )
        resampled = resample_clip(clip, reading.num_frames, reading.sampling, reading.fps)
        return self._resize(resampled, *reading.size)

    def _resize(self, clip: Clip, height: int, width: int) -> Clip:
        resize = stretch_clip if self._has_quirk("stretched_frames") else resize_clip
        return resize(clip, height, width)

    def _has_quirk(self, name: str) -> bool:
        return name in self.settings.experimental.official_quirks

    def _posterior_source(self, generator: Generators) -> Generators:
        return generator if self.family.has_sampled_latents and self._has_quirk("sampled_latents") else None


class Predictor:
    """Predictor that calls the transformer under guidance variants of fixed conditioning."""

    def __init__(self, family: BackboneFamily, conditions: Conditions, settings: Settings) -> None:
        self.family, self.conditions, self.settings = family, conditions, settings
        self._num_calls: dict[tuple[Variant, ...], int] = {}
        self._caches: dict[tuple[Variant, ...], ReferenceCache] = {}
        self._texts: dict[tuple[Text, ...], torch.Tensor | KeptText] = {}
        self._references: dict[tuple[int, ...], Reference | None] = {}

    def __call__(self, latents: VideoLatents, timestep: Timestep, variants: tuple[Variant, ...]) -> Predictions:
        """Predict for all targets under each variant."""
        num_variants, batch_size = len(variants), latents.shape[0]
        given, transformer = self.conditions, self.family.transformer
        dtype = transformer.dtype  # of which diffusers asks all modules
        channels = given.replace_first_frame(latents).to(dtype)
        steps = self.family.spread_timestep(
            timestep.to(latents.device), latents, is_first_given=given.first_latents is not None
        )
        if given.channels is not None:
            channels = torch.cat([channels, given.channels.to(channels)], dim=1)
        name = "+".join(f"{variant.text}-{variant.reference}" for variant in variants)
        with transformer.cache_context(name), precision(latents.device, self.settings, dtype):
            text, image_embeds = self._find_text(variants)
            inputs = ForwardInputs(
                channels.repeat(num_variants, 1, 1, 1, 1),
                torch.cat([steps] * num_variants),
                text,
                image_embeds,
            )
            predicted = self._predict(inputs, variants, self._find_reference(variants, batch_size))
        # (variant * batch, channel, frame, height, width) -> (variant, batch, channel, frame, height, width)
        return predicted.float().unflatten(0, (num_variants, batch_size))

    def _predict(
        self, inputs: ForwardInputs, variants: tuple[Variant, ...], reference: Reference | None
    ) -> VideoLatents:
        strength = self.settings.reference.reference_strength
        refresh = self.settings.experimental.reference_refresh
        if refresh is None or not isinstance(reference, ReferenceTokens) or strength == 0.0:
            return self.family.predict(inputs, reference, strength)
        count = self._num_calls.get(variants, 0)
        self._num_calls[variants] = count + 1
        if count % refresh:
            return self.family.predict(inputs, self._caches[variants], strength)
        predicted, self._caches[variants] = self.family.predict_and_cache(inputs, reference, strength)
        return predicted

    def _find_text(self, variants: tuple[Variant, ...]) -> tuple[TextEmbeds | KeptText, ImageEmbeds | None]:
        given = self.conditions
        embeds, images = given.texts, given.image_embeds
        images = None if images is None else images.repeat(len(variants), 1, 1)
        key = tuple(variant.text for variant in variants)
        if key not in self._texts:
            joined = torch.cat([embeds[text] for text in key])
            kept = self.family.cache_text(joined, images) if self.settings.execution.text_keys == "kept" else None
            self._texts[key] = joined if kept is None else kept
        text = self._texts[key]
        return text, None if isinstance(text, KeptText) else images

    def _find_reference(self, variants: tuple[Variant, ...], batch_size: int) -> Reference | None:
        # Variants with the same reference share the result. The conditions keep references alive, so ids stay unique.
        given = self.conditions.references
        seen = tuple(id(given.get((variant.reference, variant.text))) for variant in variants)
        if seen not in self._references:
            reference = self._join_references(variants, batch_size)
            if isinstance(reference, ReferenceTokens) and self.settings.execution.text_keys == "kept":
                reference = self.family.cache_captions(reference)
            self._references[seen] = reference
        return self._references[seen]

    def _join_references(self, variants: tuple[Variant, ...], batch_size: int) -> Reference | None:
        choices = {variant.reference for variant in variants}
        assert len(choices) == 1, "variants of one forward agree in the reference"
        if choices == {"none"}:
            return None
        references = [self.conditions.references[variant.reference, variant.text] for variant in variants]
        if all(reference is references[0] for reference in references):
            # A reference of batch size 1 is used for all targets; others are repeated as the targets are.
            return references[0] if references[0].batch_size == 1 else references[0].repeat(len(variants))
        return join_references([reference.expand(batch_size) for reference in references])


@contextmanager
def precision(device: torch.device, settings: Settings, dtype: torch.dtype) -> Iterator[None]:
    """Compute float32 weights in bfloat16 if the settings ask for it."""
    if settings.execution.autocast == "off" or dtype != torch.float32:
        yield
        return
    with warnings.catch_warnings(), torch.autocast(device.type, torch.bfloat16):
        # The stock norms of queries and keys keep float32 weights under autocast; torch warns about it once.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield


def _pair_up(groups: Sequence[Sequence[Any]]) -> list[list[np.ndarray]]:
    """Return the first and, where there are any, last pictures of each entry."""
    pictures = [[entry.frames[0] if isinstance(entry, Clip) else entry for entry in group] for group in groups if group]
    return [list(entry) for entry in zip(*pictures, strict=True)]


def _recaption(
    entries: Sequence[ReferenceClips | EncodedReference], prompts: Sequence[str]
) -> tuple[ReferenceClips, ...]:
    """Return the same references, each captioned with its picture's prompt."""
    if any(isinstance(entry, EncodedReference) for entry in entries):
        raise InputError("the quirk negative_reference_prompt needs reference clips, not encoded references")
    if len(entries) == 1 and len(set(prompts)) > 1:
        entries = list(entries) * len(prompts)
    clips = cast(Sequence[ReferenceClips], entries)
    return tuple(
        ReferenceClips(entry.clips, (prompt,) * len(entry.clips))
        for entry, prompt in zip(clips, prompts[: len(clips)], strict=True)
    )
