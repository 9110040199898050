"""Video-As-Prompt: do to a picture what happens in a reference clip (arXiv 2510.20888)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import DiffusionPipeline

from sememe.backbones.autoencoder import LatentGrid, decode_latents, latent_grid
from sememe.backbones.pixels import video_to_clips
from sememe.checkpoints.model_folders import find_folder, load_components, save_components
from sememe.compute.feature_caches import check_generation
from sememe.compute.lora import BackboneAdapterMixin, check_unadapted
from sememe.compute.offload import sends_modules_back
from sememe.compute.placement import without_offload
from sememe.compute.speed import begin_generation, check_weaker_reference
from sememe.compute.stopwatch import Stopwatch
from sememe.compute.tiling import check_tiling
from sememe.compute.weight_storage import check_savable
from sememe.diffusion.denoise import check_scheduler, denoise, set_truncated_timesteps
from sememe.diffusion.guidance import Batching
from sememe.errors import InputError, ModelError
from sememe.video import Clip, Sampling
from sememe.video_as_prompt.backbone_family import BackboneFamily, Generators
from sememe.video_as_prompt.conditioning import EncodingOptions, Predictor, ReadingOptions, ReferencePositions
from sememe.video_as_prompt.defaults import GenerationDefaults
from sememe.video_as_prompt.encoders import KnowingEncoder, PromptEncoding, resolve_captions, resolve_texts
from sememe.video_as_prompt.families import choose_family
from sememe.video_as_prompt.guidance_schedule import VideoAsPromptSchedule
from sememe.video_as_prompt.inputs import (
    EncodedReference,
    as_counts,
    check_choice,
    check_references,
    make_request,
    match_encoded,
)
from sememe.video_as_prompt.quirks import choose_quirks

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


class VideoAsPromptPipeline(PromptEncoding, DiffusionPipeline, BackboneAdapterMixin):
    """Generates a clip that starts with a picture and in which happens what happens in the reference clips.

    Args:
        tokenizer: of the text encoder.
        text_encoder: `UMT5EncoderModel` or `T5EncoderModel`.
        vae: a causal video autoencoder, see `sememe.backbones.autoencoder`.
        transformer: `WanVideoAsPromptTransformer` or `CogVideoXVideoAsPromptTransformer`.
        scheduler: for Wan one for flow matching, such as `FlowMatchEulerDiscreteScheduler` or
            `UniPCMultistepScheduler`; for CogVideoX one for v-prediction, such as `CogVideoXDDIMScheduler`.
        image_encoder: CLIP, for backbones that read image embeddings.
        image_processor: of the image encoder.
        generation_defaults: see `GenerationDefaults`; those not given have its values.
        expand_timesteps: for Wan backbones that make videos from a picture or from text alone (Wan2.2-TI2V): each token
            has a timestep of its own, and a picture is told by standing in place of the first latent frame.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _optional_components = ["image_encoder", "image_processor"]  # noqa: RUF012 (diffusers declares it so)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012
    current_timestep: float | None = None
    """Of the step at hand, in 0..1000, which some feature caches ask for."""

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
        expand_timesteps: bool = False,  # noqa: FBT001, FBT002 (the stock signature)
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
        self.register_to_config(generation_defaults=defaults.to_config(), expand_timesteps=expand_timesteps)
        if expand_timesteps and (self.family.name != "wan" or self.family.needs_image):
            raise ModelError("expand_timesteps goes with Wan backbones that have no condition channels")
        self._interrupt = False

    @property
    def defaults(self) -> GenerationDefaults:
        """The model's own settings."""
        return GenerationDefaults.from_config(self.config.generation_defaults)

    @property
    def grid(self) -> LatentGrid:
        """Which numbers of frames and which sizes the model can make."""
        patch = self.transformer.config.patch_size
        return latent_grid(self.vae, patch if isinstance(patch, int) else patch[-1])

    @property
    def family(self) -> BackboneFamily:
        """What is particular to the kind of backbone."""
        return choose_family(self)

    @property
    def interrupt(self) -> bool:
        """Set to True, in a callback or from another thread: the generation ends before its next step."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        torch_dtype: torch.dtype | None = None,
        expert: str | Path | None = None,
        revision: str | None = None,
        **components: Any,
    ) -> "VideoAsPromptPipeline":
        """Loads a model.

        Args:
            name: a name of the zoo, a local folder, or a repository on the Hugging Face hub: in the layout of
                `save_pretrained`, in that of the released Video-As-Prompt models, or a stock Wan or CogVideoX model.
            torch_dtype: precision of the transformer and the text encoder; the autoencoder stays in float32.
            expert: for a stock model, the folder of an expert, or of a model that has one.
            revision: of a repository on the hub.
            components: already loaded components, to be used instead of those of the model.

        Raises:
            ModelError: where there is no such model, or it is not whole.
            InputError: where something is passed that is no component.
        """
        parts = load_components(find_folder(name, revision), torch_dtype, components, cls.__name__, expert)
        unknown = sorted(components.keys() - parts.keys())
        if unknown:
            raise InputError(f"expected components of the pipeline ({', '.join(sorted(parts))}), got {unknown}")
        return cls(**(parts | components))

    def save_pretrained(
        self, save_directory: str | Path, max_shard_size: int | str | None = None, **_ignored: Any
    ) -> None:
        """Writes the model as a folder that `from_pretrained` reads: stock backbone and expert apart, safetensors only.

        Raises:
            InputError: where the text encoder was unloaded, adapters are loaded, or the transformer's weights are
                stored in fewer bits.
            OutputError: where the folder cannot be written.
        """
        if self.text_encoder is None:
            raise InputError("the text encoder was unloaded, and a model without it is not whole; load it anew to save")
        check_unadapted(self.transformer)
        check_savable(self.transformer.parameters())
        with without_offload(self):
            save_components(
                Path(save_directory), self.components, self._own_settings(), type(self).__name__, max_shard_size
            )

    def _own_settings(self) -> dict[str, Any]:
        # What a model does not do is not written, so that folders of models without it stay as they were.
        expanded = {"expand_timesteps": True} if self.config.expand_timesteps else {}
        return {"generation_defaults": self.config.generation_defaults} | expanded

    @torch.no_grad()
    @sends_modules_back
    def encode_reference(
        self,
        clips: Any,
        prompts: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        reference_sampling: str = "even",
        max_sequence_length: int | None = None,
        num_reference_frames: int | Sequence[int] | None = None,
        reference_positions: str = "dense",
        reference_downscale: int = 1,
        *,
        approximate: bool = False,
    ) -> EncodedReference:
        """Encodes references once; pass the result as `references` for many pictures and seeds.

        Args:
            clips: references, of at least 2 frames each; the first listed counts as the farthest in time.
            prompts: their captions, or what `encode_prompt` returned; None for empty ones, as the model is trained to
                do without.
            height: pixels, as in the generation to come; None for the model's own, as below.
            width: pixels.
            num_frames: of the generation to come; as many are taken of each reference.
            reference_sampling: how they are taken: over the whole clip, at the model's rate, or the first ones.
            max_sequence_length: tokens per caption.
            num_reference_frames: frames taken of each reference, where that is another number; or one number for each.
            reference_positions: as in a generation, as is the next.
            reference_downscale: by how much references are smaller than the result.
            approximate: for a model trained two-way: let the reference see only itself, so that it is encoded once for
                all steps; faster, and not quite what the model would do.

        Raises:
            InputError: where an argument is not what was expected.
        """
        settings = self.defaults.override(
            height=height, width=width, num_frames=num_frames, max_sequence_length=max_sequence_length
        )
        check_choice("reference_sampling", reference_sampling, Sampling)
        check_choice("reference_positions", reference_positions, ReferencePositions)
        self._latent_shape(settings, is_decoded=False)
        options = EncodingOptions(
            reference_sampling=cast(Sampling, reference_sampling),
            num_reference_frames=as_counts(num_reference_frames),
            reference_positions=cast(ReferencePositions, reference_positions),
            reference_downscale=reference_downscale,
            approximate=approximate,
        )
        told = resolve_captions(prompts, settings)
        encoder = KnowingEncoder(self.family, settings, options, told.known)
        payload = encoder.encode_clips([check_references(clips, told.reference_prompts)])
        return EncodedReference(
            payload,
            settings.height,
            settings.width,
            settings.num_frames,
            options.num_reference_frames,
            reference_positions,
            reference_downscale,
        )

    @torch.no_grad()
    @sends_modules_back
    def __call__(
        self,
        image: Any = None,
        references: Any = None,
        prompt: Any = "",
        negative_prompt: Any = None,
        reference_prompts: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        reference_guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        generator: Generators = None,
        reference_sampling: str = "even",
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: CallbackOnStepEnd | None = None,
        fps: float | None = None,
        max_sequence_length: int | None = None,
        batching: str | None = None,
        autocast: str | None = None,
        last_image: Any = None,
        num_reference_frames: int | Sequence[int] | None = None,
        negative_references: Any = None,
        reference_strength: float = 1.0,
        approximate: bool = False,  # noqa: FBT001, FBT002 (as in encode_reference)
        reference_refresh: int | None = None,
        reference_positions: str = "dense",
        reference_downscale: int = 1,
        text_keys: str | None = None,
        use_dynamic_cfg: bool = False,  # noqa: FBT001, FBT002 (diffusers' name and form)
        official_quirks: bool | Iterable[str] = False,  # noqa: FBT001, FBT002 (all, none, or by name)
    ) -> VideoAsPromptOutput:
        """Generates. None stands for the model's own setting (`defaults`).

        Args:
            image: the first frame: a PIL image, a uint8 array (height, width, 3) or a one-frame Clip; a list of them
                for a batch. It is made to cover the target size, and what sticks out is cropped. None for models that
                make videos from text alone.
            references: clips of at least 2 frames, or what `encode_reference` returned, which keeps the positions and
                the size that it was made with; for a batch also a list with such an entry per picture. Not needed where
                `reference_guidance_scale` is 0, which leaves no effect to what else is said of references.
            prompt: what the result shows; one for all pictures or one each; or what `encode_prompt` returned.
            negative_prompt: what text guidance leads away from.
            reference_prompts: captions of the references; None for empty ones.
            height: pixels, a multiple of `grid.size_multiple`.
            width: pixels, the same.
            num_frames: of the result; as many are taken of each reference.
            num_inference_steps: of the scheduler.
            guidance_scale: of the text; 1 is off. It has no effect where prompt and negative prompt are equal.
            reference_guidance_scale: how far the reference leads away from what the backbone does by itself; 1 is
                off, 0 leaves the reference out.
            guidance_interval: timesteps, as parts of 1000, between which guidance acts, such as (0.7, 1); outside them
                there is one forward with text and reference.
            generator: source of the noise, which is drawn on its own device; one, or one per picture.
            reference_sampling: how frames are taken of a reference.
            latents: the noise to start from (batch, channel, frame, height, width), unit variance, for any backbone.
            output_type: form of `frames`.
            callback_on_step_end: called as diffusers does, with the latents among its last argument; it may set
                `interrupt`.
            fps: frames per second of the result.
            max_sequence_length: tokens per prompt.
            batching: "sequential" or "batched": whether variants of the conditions share a forward.
            autocast: "off" or "bfloat16": precision of a float32 transformer while denoising.
            last_image: the last frame too, for Wan; a list of them for a batch.
            num_reference_frames: frames taken of each reference, where that is another number; or one number for each.
            negative_references: what reference guidance leads away from, instead of from what the backbone does by
                itself; in the same forms as `references`. It needs a `reference_guidance_scale` other than 0 and 1.
            reference_strength: 0..1, a factor on the weight of the reference's tokens in the target's attention, before
                it is normalised: 0 is the backbone alone, 1 exactly what the model was trained for; in between the
                result is approximate in the sense that no model was trained for it.
            approximate: for a model trained two-way: do not carry the reference through every step. Faster, and not
                quite what the model would do.
            reference_refresh: with `approximate`: after so many steps the reference is carried along once, and its keys
                and values are kept until then; None lets it see only itself, once for all steps.
            reference_positions: "dense": a reference ends where the result begins, one frame after the other, as models
                are trained; "spread": one of fewer frames than the result is spread over as much time.
            reference_downscale: height and width of references are those of the result, divided by this; their
                positions are spread over the result's. Faster, and approximate unless the model was trained so. Not
                on CogVideoX.
            text_keys: "kept" or "recomputed": whether keys and values of texts are kept over the steps, which takes
                memory and changes nothing else.
            use_dynamic_cfg: scales the text guidance anew at each step as the official CogVideoX demonstration does.
            official_quirks: defects of the official pipelines to have back: True for all, or their names (see
                `sememe.video_as_prompt.quirks`).

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
            guidance_interval=guidance_interval,
            max_sequence_length=max_sequence_length,
            batching=batching,
            autocast=autocast,
            text_keys=text_keys,
        )
        check_choice("output_type", output_type, OutputType)
        check_choice("reference_sampling", reference_sampling, Sampling)
        check_choice("reference_positions", reference_positions, ReferencePositions)
        family, quirks = self.family, choose_quirks(official_quirks)
        check_scheduler(self.scheduler, family.prediction)
        shape = self._latent_shape(settings, is_decoded=output_type != "latent")
        told = resolve_texts(prompt, negative_prompt, reference_prompts, settings)
        request = make_request(
            image,
            told.prompt,
            told.negative_prompt,
            last_image,
            references,
            told.reference_prompts,
            negative_references,
            takes_image=family.takes_image,
            needs_image=family.needs_image,
            takes_last_image=family.takes_last_image,
            needs_reference=settings.reference_guidance_scale != 0,
        )
        if request.negative_references and settings.reference_guidance_scale == 1.0:
            raise InputError("negative_references need a reference_guidance_scale other than 0 and 1, got 1")
        if isinstance(generator, list) and len(generator) != request.batch_size:
            raise InputError(f"expected one generator per picture, got {len(generator)} for {request.batch_size}")
        schedule = VideoAsPromptSchedule(
            settings=settings,
            texts_differ=request.prompts != request.negative_prompts,
            null_reference="negative" if request.negative_references else "none",
            is_dynamic=use_dynamic_cfg,
        )
        needed = schedule.needed
        num_forwards = len(needed.groups(cast(Batching, settings.batching)))
        check_generation(self.transformer, num_forwards, settings.num_inference_steps, is_limited=schedule.is_limited)
        reading = ReadingOptions(strength=reference_strength, refresh=reference_refresh)
        reading.check(
            self.transformer.config.attention_mode,
            approximate=approximate,
            is_read=settings.reference_guidance_scale != 0,
        )
        check_weaker_reference(self, reference_strength)
        said = {"reference_positions": reference_positions, "reference_downscale": reference_downscale}
        matched = match_encoded(request.encoded, settings.height, settings.width, settings.num_frames, said)
        watch = Stopwatch(self._execution_device)
        self._interrupt = False
        options = EncodingOptions(
            reference_sampling=cast(Sampling, reference_sampling),
            num_reference_frames=as_counts(num_reference_frames),
            quirks=quirks,
            approximate=approximate and reference_refresh is None,
            **matched,
        )
        encoder = KnowingEncoder(family, settings, options, told.known)
        # In this order the official pipelines draw from the generator: picture, noise, references.
        targets = encoder.encode_targets(request, needed, generator)
        noise = self._make_noise(
            (request.batch_size, *shape), generator, latents, frames_first="sampled_latents" in quirks
        )
        conditions = replace(targets, references=encoder.encode_references(request, needed, generator))
        conditions.check_reading(approximate=approximate, refresh=reference_refresh)
        watch.lap("encode")
        with self.progress_bar(total=settings.num_inference_steps) as bar:

            def on_step_end(step: int, timestep: torch.Tensor, current: torch.Tensor) -> torch.Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                return (callback_on_step_end(self, step, timestep, {"latents": current}) or {}).get("latents")

            result = denoise(
                begin_generation(self, Predictor(family, conditions, settings, reading)),
                self.scheduler,
                noise,
                schedule.by_timestep,
                settings.num_inference_steps,
                batching=cast(Batching, settings.batching),
                prediction=family.prediction,
                generator=generator,
                on_step_end=on_step_end,
                is_interrupted=lambda: self._interrupt,
                set_timesteps=set_truncated_timesteps if "truncated_timesteps" in quirks else None,
            )
        result = conditions.put_first(result)
        watch.lap("denoise")
        clips, frames = self._make_frames(result, settings.fps, output_type)
        watch.lap("decode")
        resolved = settings.to_config() | {
            "text_keys": settings.text_keys if family.keeps_texts else "recomputed",
            "negative_prompt": list(request.negative_prompts),
            "reference_sampling": reference_sampling,
            "num_reference_frames": options.num_reference_frames,
            **matched,
            "encoded_references": [each.to_record() for each in request.encoded],
            "reference_strength": reference_strength,
            "approximate": approximate or conditions.are_approximate(self.transformer.config.attention_mode),
            "reference_refresh": reference_refresh,
            "use_dynamic_cfg": use_dynamic_cfg,
            "official_quirks": sorted(quirks),
            "guidance": schedule.base.to_table(),
        }
        return VideoAsPromptOutput(clips, frames, resolved, watch.seconds)

    def _latent_shape(self, settings: GenerationDefaults, *, is_decoded: bool) -> tuple[int, int, int, int]:
        shape = self.grid.latent_shape(settings.num_frames, settings.height, settings.width, is_decoded=is_decoded)
        self.family.check_shape(settings)
        check_tiling(self.vae)
        return shape

    def _make_noise(
        self, shape: tuple[int, ...], generator: Generators, given: Any, *, frames_first: bool
    ) -> torch.Tensor:
        if given is not None:
            if not isinstance(given, torch.Tensor) or tuple(given.shape) != shape:
                got = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
                raise InputError(f"expected latents of shape {shape}, got {got}")
            return given.to(self._execution_device, torch.float32)
        frames_first = frames_first and self.family.has_sampled_latents
        return self.family.draw_noise(shape, generator, frames_first=frames_first).to(self._execution_device)

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
