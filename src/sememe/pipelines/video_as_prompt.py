"""Video-As-Prompt: do to a picture what happens in a reference clip (arXiv 2510.20888)."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.utils.torch_utils import get_module_execution_device, randn_tensor

from sememe.diffusion.denoise import check_scheduler, denoise
from sememe.diffusion.guidance import Batching, Guidance, Text, Variant, video_as_prompt_guidance
from sememe.errors import InputError
from sememe.models.autoencoder import LatentGrid, decode_latents, encode_video, latent_grid
from sememe.models.condition import first_frame_condition
from sememe.models.pixels import clips_to_video, video_to_clips
from sememe.models.reference import ReferenceCache, ReferenceInputs, ReferenceTokens, join_references
from sememe.models.text import MAX_SEQUENCE_LENGTH, default_sequence_length, encode_prompts
from sememe.pipelines.defaults import GenerationDefaults
from sememe.pipelines.folders import find_folder, load_components, save_components
from sememe.pipelines.inputs import (
    EncodedReference,
    ReferenceClips,
    Request,
    check_references,
    fit_pictures,
    make_request,
)
from sememe.video import Clip, Sampling, resample_clip, resize_clip

OutputType = Literal["np", "pt", "pil", "latent"]
CallbackOnStepEnd = Callable[["VideoAsPromptPipeline", int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class VideoAsPromptOutput:
    """What a generation gave.

    Attributes:
        clips: one per picture; empty for the output type "latent".
        frames: the same as "np": float (batch, frame, height, width, 3) in [0, 1]; "pt": float (batch, frame, 3,
            height, width) in [0, 1]; "pil": a list of PIL images per picture; "latent": normalised latents (batch,
            channel, frame, height, width).
        settings: every setting as it was resolved, and the guidance table; plain values.
        timings: seconds spent to encode, denoise and decode.
    """

    clips: list[Clip]
    frames: Any
    settings: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Conditions:
    """What the transformer is told besides the latents: the same at every step."""

    channels: torch.Tensor
    texts: Mapping[Text, torch.Tensor]
    image_embeds: torch.Tensor | None
    reference: ReferenceCache | ReferenceTokens | None


class VideoAsPromptPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Generates a clip that starts with a picture and in which happens what happens in the reference clips.

    Args:
        tokenizer: of the text encoder.
        text_encoder: `UMT5EncoderModel` or `T5EncoderModel`.
        vae: a causal video autoencoder, see `sememe.models.autoencoder`.
        transformer: `WanVideoAsPromptTransformer`.
        scheduler: for flow matching, such as `FlowMatchEulerDiscreteScheduler` or `UniPCMultistepScheduler`.
        image_encoder: CLIP, for backbones that read image embeddings.
        image_processor: of the image encoder.
        generation_defaults: see `GenerationDefaults`; those not given have its values.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _optional_components = ["image_encoder", "image_processor"]  # noqa: RUF012 (diffusers declares it so)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        transformer: Any,
        scheduler: Any,
        image_encoder: Any = None,
        image_processor: Any = None,
        generation_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
            image_encoder=image_encoder,
            image_processor=image_processor,
        )
        defaults = GenerationDefaults.from_config(generation_defaults)
        self.register_to_config(generation_defaults=defaults.to_config())

    @property
    def defaults(self) -> GenerationDefaults:
        """The model's own settings."""
        return GenerationDefaults.from_config(self.config.generation_defaults)

    @property
    def grid(self) -> LatentGrid:
        """Which numbers of frames and which sizes the model can make."""
        return latent_grid(self.vae, self.transformer.config.patch_size[-1])

    @classmethod
    def from_pretrained(
        cls, name: str | Path, torch_dtype: torch.dtype | None = None, **components: Any
    ) -> "VideoAsPromptPipeline":
        """Loads a model.

        Args:
            name: a name of the zoo, a local folder, or a repository on the Hugging Face hub.
            torch_dtype: precision of the transformer and the text encoder; the autoencoder stays in float32.
            components: already loaded components, to be used instead of those of the model.

        Raises:
            ModelError: where there is no such model, or it is not whole.
            InputError: where something is passed that is no component.
        """
        parts = load_components(find_folder(name), torch_dtype, components, cls.__name__)
        unknown = sorted(components.keys() - parts.keys())
        if unknown:
            raise InputError(f"expected components of the pipeline ({', '.join(sorted(parts))}), got {unknown}")
        return cls(**(parts | components))

    def save_pretrained(
        self, save_directory: str | Path, max_shard_size: int | str | None = None, **_ignored: Any
    ) -> None:
        """Writes the model as a folder that `from_pretrained` reads: stock backbone and expert apart, safetensors only.

        Raises:
            OutputError: where the folder cannot be written.
        """
        save_components(
            Path(save_directory), self.components, self.config.generation_defaults, type(self).__name__, max_shard_size
        )

    @torch.no_grad()
    def encode_reference(
        self,
        clips: Any,
        prompts: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        reference_sampling: str = "even",
        max_sequence_length: int | None = None,
        *,
        approximate: bool = False,
    ) -> EncodedReference:
        """Encodes references once; pass the result as `references` for many pictures and seeds.

        Args:
            clips: references, of at least 2 frames each; the first listed counts as the farthest in time.
            prompts: their captions; None for empty ones, as the model is trained to do without.
            height: pixels, as in the generation to come; None for the model's own, as below.
            width: pixels.
            num_frames: frames taken of each reference.
            reference_sampling: how they are taken: over the whole clip, at the model's rate, or the first ones.
            max_sequence_length: tokens per caption.
            approximate: for a model trained two-way: let the reference see only itself, so that it is encoded once for
                all steps; faster, and not quite what the model would do.

        Raises:
            InputError: where an argument is not what was expected.
        """
        settings = self.defaults.override(
            height=height, width=width, num_frames=num_frames, max_sequence_length=max_sequence_length
        )
        _check_choice("reference_sampling", reference_sampling, Sampling)
        self.grid.latent_shape(settings.num_frames, settings.height, settings.width)
        payload = self._encode_clips(
            [check_references(clips, prompts)], settings, reference_sampling, approximate=approximate
        )
        return EncodedReference(payload, settings.height, settings.width)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        references: Any,
        prompt: Any = "",
        negative_prompt: Any = None,
        reference_prompts: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        reference_guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        reference_sampling: str = "even",
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: CallbackOnStepEnd | None = None,
        fps: float | None = None,
        max_sequence_length: int | None = None,
        batching: str | None = None,
        autocast: str | None = None,
    ) -> VideoAsPromptOutput:
        """Generates. None stands for the model's own setting (`defaults`).

        Args:
            image: the first frame: a PIL image, a uint8 array (height, width, 3) or a one-frame Clip; a list of them
                for a batch. It is made to cover the target size, and what sticks out is cropped.
            references: clips of at least 2 frames, or what `encode_reference` returned; for a batch also a list with
                such an entry per picture. Not needed where `reference_guidance_scale` is 0.
            prompt: what the result shows; one for all pictures or one each.
            negative_prompt: what text guidance leads away from.
            reference_prompts: captions of the references; None for empty ones.
            height: pixels, a multiple of `grid.size_multiple`.
            width: pixels, the same.
            num_frames: of the result; also taken of each reference.
            num_inference_steps: of the scheduler.
            guidance_scale: of the text; 1 is off. It has no effect where prompt and negative prompt are equal.
            reference_guidance_scale: how far the reference leads away from what the backbone does by itself; 1 is
                off, 0 leaves the reference out.
            generator: source of the noise, which is drawn on its own device; one, or one per picture.
            reference_sampling: how frames are taken of a reference.
            latents: the noise to start from (batch, channel, frame, height, width), unit variance.
            output_type: form of `frames`.
            callback_on_step_end: called as diffusers does, with the latents among its last argument.
            fps: frames per second of the result.
            max_sequence_length: tokens per prompt.
            batching: "sequential" or "batched": whether variants of the conditions share a forward.
            autocast: "off" or "bfloat16": precision of a float32 transformer while denoising.

        Raises:
            InputError: where an argument is not what was expected.
        """
        settings = self.defaults.override(
            height=height,
            width=width,
            num_frames=num_frames,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            reference_guidance_scale=reference_guidance_scale,
            max_sequence_length=max_sequence_length,
            batching=batching,
            autocast=autocast,
        )
        _check_choice("output_type", output_type, OutputType)
        _check_choice("reference_sampling", reference_sampling, Sampling)
        check_scheduler(self.scheduler)
        shape = self.grid.latent_shape(settings.num_frames, settings.height, settings.width)
        request = make_request(
            image,
            references,
            prompt,
            settings.negative_prompt if negative_prompt is None else negative_prompt,
            reference_prompts,
            needs_reference=settings.reference_guidance_scale != 0,
        )
        guidance = video_as_prompt_guidance(
            settings.guidance_scale,
            settings.reference_guidance_scale,
            texts_differ=request.prompts != request.negative_prompts,
        )
        noise = self._make_noise((request.batch_size, *shape), generator, latents)

        watch = _Stopwatch()
        conditions = self._encode_conditions(request, guidance, settings, reference_sampling)
        watch.lap("encode")
        with self.progress_bar(total=settings.num_inference_steps) as bar:

            def on_step_end(step: int, timestep: torch.Tensor, current: torch.Tensor) -> torch.Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                return (callback_on_step_end(self, step, timestep, {"latents": current}) or {}).get("latents")

            result = denoise(
                _Predictor(self.transformer, conditions, settings),
                self.scheduler,
                noise,
                guidance,
                settings.num_inference_steps,
                batching=cast(Batching, settings.batching),
                generator=generator,
                on_step_end=on_step_end,
            )
        watch.lap("denoise")
        clips, frames = self._make_frames(result, settings.fps, output_type)
        watch.lap("decode")
        self.maybe_free_model_hooks()
        resolved = settings.to_config() | {
            "negative_prompt": list(request.negative_prompts),
            "reference_sampling": reference_sampling,
            "guidance": guidance.to_table(),
        }
        return VideoAsPromptOutput(clips, frames, resolved, watch.seconds)

    def _make_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None, given: Any
    ) -> torch.Tensor:
        if given is not None:
            if not isinstance(given, torch.Tensor) or tuple(given.shape) != shape:
                got = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
                raise InputError(f"expected latents of shape {shape}, got {got}")
            return given.to(self._execution_device, torch.float32)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise InputError(f"expected one generator per picture, got {len(generator)} for {shape[0]}")
        first = generator[0] if isinstance(generator, list) and generator else generator
        # Drawn where the generator lives (on the CPU by default), so that a seed means the same on every device.
        device = first.device if isinstance(first, torch.Generator) else torch.device("cpu")
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return noise.to(self._execution_device)

    def _encode_conditions(
        self, request: Request, guidance: Guidance, settings: GenerationDefaults, sampling: str
    ) -> _Conditions:
        pictures = fit_pictures(request.images, settings.height, settings.width)
        told = {row.variant.text for row in guidance.rows}
        prompts: dict[Text, tuple[str, ...]] = {"positive": request.prompts, "negative": request.negative_prompts}
        texts = {text: self._encode_texts(prompts[text], settings) for text in prompts if text in told}
        channels = self._condition(clips_to_video(pictures), settings)
        image_embeds = self._encode_pictures([clip.frames[0] for clip in pictures])
        reference = self._encode_references(request, settings, sampling) if guidance.needs_reference else None
        return _Conditions(channels.to(self._execution_device), texts, image_embeds, reference)

    def _condition(self, video: torch.Tensor, settings: GenerationDefaults) -> torch.Tensor:
        """The first frame of a video as the transformer was trained to take it."""
        fill = self.transformer.config.first_frame_fill
        return first_frame_condition(self.vae, video[:, :, 0], settings.num_frames, fill)

    def _encode_texts(self, prompts: Sequence[str], settings: GenerationDefaults) -> torch.Tensor:
        length = settings.max_sequence_length or default_sequence_length(self.tokenizer)
        if self.transformer.config.added_kv_proj_dim is not None and length != MAX_SEQUENCE_LENGTH:
            raise InputError(
                f"this model reads image embeddings beside exactly {MAX_SEQUENCE_LENGTH} text tokens, "
                f"got max_sequence_length {length}"
            )
        distinct = sorted(set(prompts))
        embeds = encode_prompts(self.tokenizer, self.text_encoder, distinct, length)
        rows = embeds[[distinct.index(prompt) for prompt in prompts]]
        return rows.to(self._execution_device, self.transformer.dtype)

    def _encode_pictures(self, pictures: Sequence[np.ndarray]) -> torch.Tensor | None:
        if self.transformer.config.image_dim is None:
            return None
        inputs = self.image_processor(images=list(pictures), return_tensors="pt")
        device = get_module_execution_device(self.image_encoder)
        pixels = inputs["pixel_values"].to(device, self.image_encoder.dtype)
        # Wan reads the last layer but one.
        embeds = self.image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        return embeds.to(self._execution_device, self.transformer.dtype)

    def _encode_references(
        self, request: Request, settings: GenerationDefaults, sampling: str
    ) -> ReferenceCache | ReferenceTokens:
        given = request.references
        for entry in given:
            if isinstance(entry, EncodedReference) and (entry.height, entry.width) != (settings.height, settings.width):
                raise InputError(
                    f"the encoded reference is {entry.height}x{entry.width}, but the result is to be "
                    f"{settings.height}x{settings.width}; encode it at that size"
                )
        clips = [entry for entry in given if isinstance(entry, ReferenceClips)]
        if len(clips) == len(given):
            return self._encode_clips(clips, settings, sampling)
        payloads = [
            entry.payload if isinstance(entry, EncodedReference) else self._encode_clips([entry], settings, sampling)
            for entry in given
        ]
        return join_references(payloads)

    def _encode_clips(
        self,
        entries: Sequence[ReferenceClips],
        settings: GenerationDefaults,
        sampling: str,
        *,
        approximate: bool = False,
    ) -> ReferenceCache | ReferenceTokens:
        """Encodes a batch of references in one pass of the expert; each entry has the same number of clips."""
        latents, texts, images = [], [], []
        rate = settings.fps if sampling == "fps" else None
        for place in range(len(entries[0].clips)):
            clips = [
                resize_clip(
                    resample_clip(entry.clips[place], settings.num_frames, cast(Sampling, sampling), rate),
                    settings.height,
                    settings.width,
                )
                for entry in entries
            ]
            video = clips_to_video(clips)
            condition = self._condition(video, settings)
            channels = torch.cat([encode_video(self.vae, video), condition], dim=1)
            latents.append(channels.to(self._execution_device, self.transformer.dtype))
            texts.append(self._encode_texts([entry.prompts[place] for entry in entries], settings))
            images.append(self._encode_pictures([clip.frames[0] for clip in clips]))
        embeds = tuple(image for image in images if image is not None) or None
        with _precision(self._execution_device, settings, self.transformer.dtype):
            if approximate or self.transformer.config.attention_mode == "cached":
                return self.transformer.encode_reference(tuple(latents), tuple(texts), embeds, approximate=approximate)
            return self.transformer.embed_reference(ReferenceInputs(tuple(latents), tuple(texts), embeds))

    def _make_frames(self, latents: torch.Tensor, fps: float, output_type: str) -> tuple[list[Clip], Any]:
        if output_type == "latent":
            return [], latents
        video = decode_latents(self.vae, latents)
        clips = video_to_clips(video, fps)
        if output_type == "pil":
            from PIL import Image

            return clips, [[Image.fromarray(frame) for frame in clip.frames] for clip in clips]
        scaled = video.float().permute(0, 2, 1, 3, 4).add(1.0).div(2.0)
        return clips, scaled if output_type == "pt" else scaled.permute(0, 1, 3, 4, 2).cpu().numpy()


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"expected {name} to be one of {', '.join(get_args(choices))}, got {value!r}")


class _Predictor:
    """Asks the transformer for velocities under variants of fixed conditions."""

    def __init__(self, transformer: Any, conditions: _Conditions, settings: GenerationDefaults) -> None:
        self.transformer = transformer
        self.conditions = conditions
        self.settings = settings

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        num_variants, batch_size = len(variants), latents.shape[0]
        given, dtype = self.conditions, self.transformer.dtype
        channels = torch.cat([latents.to(dtype), given.channels.to(dtype)], dim=1)
        image_embeds = given.image_embeds
        reference = given.reference if variants[0].reference else None
        assert len({variant.reference for variant in variants}) == 1, "variants of one forward agree in the reference"
        # A reference of batch 1 serves all targets as it is; others are repeated as the targets are.
        if reference is not None and reference.batch_size > 1:
            reference = reference.repeat(num_variants)
        name = "+".join(f"{variant.text}-{variant.reference}" for variant in variants)
        with self.transformer.cache_context(name), _precision(latents.device, self.settings, dtype):
            velocity = self.transformer(
                channels.repeat(num_variants, 1, 1, 1, 1),
                timestep.to(latents.device).expand(num_variants * batch_size),
                torch.cat([given.texts[variant.text] for variant in variants]),
                None if image_embeds is None else image_embeds.repeat(num_variants, 1, 1),
                return_dict=False,
                reference=reference,
            )[0]
        return velocity.float().unflatten(0, (num_variants, batch_size))


class _Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._start
        self._start = now


@contextmanager
def _precision(device: torch.device, settings: GenerationDefaults, dtype: torch.dtype) -> Iterator[None]:
    """Computes float32 weights in bfloat16 where the settings say so."""
    if settings.autocast == "off" or dtype != torch.float32:
        yield
        return
    with warnings.catch_warnings(), torch.autocast(device.type, torch.bfloat16):
        # The stock norms of queries and keys keep float32 weights under autocast, of which torch warns once.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
