"""Video-As-Prompt: do to a picture what happens in a reference clip (arXiv 2510.20888)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import WanLoraLoaderMixin
from transformers import BaseImageProcessor, CLIPVisionModel, PreTrainedModel

from sememe.backbones.autoencoder import (
    Autoencoder,
    LatentGrid,
    decode_latents,
    format_video,
    latent_grid,
    video_to_clips,
)
from sememe.backbones.text import Tokenizer
from sememe.compute.lora import AdapterMixin, check_unadapted
from sememe.compute.offload import sends_modules_back
from sememe.compute.placement import check_tiling, without_offload
from sememe.compute.speed import begin_generation, check_generation, check_mask_support
from sememe.compute.stopwatch import Stopwatch
from sememe.compute.storage import check_savable
from sememe.compute.strategy import MemoryPlan
from sememe.diffusion.denoise import check_scheduler
from sememe.errors import InputError, ModelError
from sememe.pipeline import CallbackOnStepEnd, GenerationOutput, SystemPipeline
from sememe.video import Clip
from sememe.video_as_prompt.conditioning import ConditionEncoder, Conditions, Predictor
from sememe.video_as_prompt.families import BackboneFamily, Generators, choose_family
from sememe.video_as_prompt.guidance import VideoAsPromptSchedule
from sememe.video_as_prompt.inputs import (
    Captions,
    EncodedPrompt,
    EncodedReference,
    GivenClips,
    GivenTexts,
    Pictures,
    Prompts,
    References,
    Request,
    check_references,
    check_texts,
    find_embeds,
    make_request,
)
from sememe.video_as_prompt.model_folders import COMPONENTS, load_components, save_components
from sememe.video_as_prompt.quirks import set_truncated_timesteps
from sememe.video_as_prompt.reference_files import fingerprint_transformer
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.shapes import VideoLatents
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT


class VideoAsPromptOutput(GenerationOutput):
    """The result of a generation."""

    settings: Settings


class VideoAsPromptPipeline(SystemPipeline, AdapterMixin, WanLoraLoaderMixin):
    """Generate clips that start with a picture and do what happens in reference clips.

    `from_pretrained` also reads models in the layout of the released ones, and stock Wan and CogVideoX models. For
    these its option `expert` is a folder with an expert, or with a model that has one.

    Args:
        tokenizer: Tokenizer of the text encoder.
        text_encoder: `UMT5EncoderModel` or `T5EncoderModel`.
        vae: Causal video autoencoder, see `sememe.backbones.autoencoder`.
        transformer: `WanVideoAsPromptTransformer` or `CogVideoXVideoAsPromptTransformer`.
        scheduler: For Wan, a scheduler for flow matching such as `FlowMatchEulerDiscreteScheduler` or
            `UniPCMultistepScheduler`; for CogVideoX, one for v-prediction such as `CogVideoXDDIMScheduler`.
        image_encoder: CLIP, for backbones that read image embeddings.
        image_processor: Image processor of the image encoder.
        generation_defaults: Fields of `Settings` by name; other fields have its defaults.
        expand_timesteps: Whether each token has its own timestep and a picture replaces the first latent frame, as in
            Wan2.2-TI2V, for which a picture is optional.
    """

    system = VIDEO_AS_PROMPT
    known_parts = (*COMPONENTS, "generation_defaults", "expand_timesteps")
    loading_options = ("expert",)
    load_components = staticmethod(load_components)
    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _optional_components = ["image_encoder", "image_processor"]  # noqa: RUF012 (diffusers declares it so)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: PreTrainedModel | None,
        vae: Autoencoder,
        transformer: ModelMixin,
        scheduler: SchedulerMixin | None,
        image_encoder: CLIPVisionModel | None = None,
        image_processor: BaseImageProcessor | None = None,
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
        defaults = Settings.from_config(generation_defaults)
        self.register_to_config(generation_defaults=defaults.to_config(), expand_timesteps=expand_timesteps)
        family = choose_family(self)
        self.lora_loader = family.lora_loader
        if not family.can_spread_timesteps and expand_timesteps:
            raise ModelError("expand_timesteps goes with Wan backbones that have no condition channels")

    @property
    def defaults(self) -> Settings:
        """Default settings of the model."""
        return Settings.from_config(self.config.generation_defaults)

    @property
    def grid(self) -> LatentGrid:
        """The numbers of frames and the sizes that the model supports."""
        patch = self.transformer.config.patch_size
        return latent_grid(self.vae, patch if isinstance(patch, int) else patch[-1])

    @cached_property
    def family(self) -> BackboneFamily:
        """Adapter of the backbone; it caches the target's rotary tables over generations."""
        return choose_family(self)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision in which the transformer computes: that of its weights, or of autocast."""
        is_cast = self.defaults.execution.autocast == "bfloat16" and self.transformer.dtype == torch.float32
        return torch.bfloat16 if is_cast else super().compute_dtype

    def apply_plan(self, plan: MemoryPlan, device: torch.device | str) -> None:
        """Apply a plan; the weights have to be on the CPU, in the planned precision."""
        if not plan.strategy.keeps_text_keys:
            defaults = self.defaults.override(text_keys="recomputed")
            self.register_to_config(generation_defaults=defaults.to_config())
        super().apply_plan(plan, device)

    def describe(self) -> dict[str, Any]:
        """Return what sidecars record of the model besides its files."""
        return {"attention_mode": self.transformer.config.attention_mode}

    @property
    def num_timesteps(self) -> int:
        """Return the number of steps of the current generation, which callbacks of diffusers ask for."""
        return len(self.scheduler.timesteps)

    def save_pretrained(
        self, save_directory: str | Path, max_shard_size: int | str | None = None, **_ignored: Any
    ) -> None:
        """Write a folder for `from_pretrained`, with stock backbone and expert as separate safetensors files.

        Raises:
            InputError: The text encoder was unloaded, adapters are loaded, or the transformer's weights are quantised.
            OutputError: The folder cannot be written.
        """
        if self.text_encoder is None:
            raise InputError(
                "the text encoder was unloaded, and a saved model needs it; load the model again to save it"
            )
        check_unadapted(self.transformer)
        check_savable(self.transformer.parameters())
        settings = {"generation_defaults": self.config.generation_defaults}
        if self.config.expand_timesteps:  # else the folders of other models stay as they were
            settings["expand_timesteps"] = True
        with without_offload(self):
            save_components(Path(save_directory), self.components, settings, type(self).__name__, max_shard_size)

    @torch.no_grad()
    @sends_modules_back
    def encode_reference(
        self, clips: GivenClips, prompts: Prompts | None = None, settings: Settings | None = None, **overrides: Any
    ) -> EncodedReference:
        """Encode references once; pass the result as `references` for many pictures and seeds.

        Args:
            clips: References of at least 2 frames each; the first one is placed farthest in time from the target.
            prompts: Their captions, or the result of `encode_prompt`; None for empty ones, as in training.
            settings: Settings of the later generations; None for the model's own.
            overrides: Fields of the settings, by name.

        Raises:
            InputError: An argument is not what was expected.
        """
        settings = (settings or self.defaults).override(**overrides)
        self._latent_shape(settings, is_decoded=False)
        known = find_embeds(prompts, settings) if isinstance(prompts, EncodedPrompt) else {}
        captions = prompts.reference_prompts if isinstance(prompts, EncodedPrompt) else prompts
        encoder = ConditionEncoder(self.family, settings, known)
        inputs = encoder.encode_clips([check_references(clips, captions, settings.size.fps)])
        payload = encoder.run_expert(inputs, once=settings.experimental.encodes_once)
        return EncodedReference(inputs, settings, fingerprint_transformer(self.transformer), payload)

    @torch.no_grad()
    @sends_modules_back
    def encode_prompt(
        self,
        prompt: GivenTexts = "",
        negative_prompt: GivenTexts | None = None,
        reference_prompts: GivenTexts | None = None,
        max_sequence_length: int | None = None,
    ) -> EncodedPrompt:
        """Encode texts once; pass the result as `prompt`, and as `prompts` to `encode_reference`.

        Args:
            prompt: What results show; one text for all pictures, or one each.
            negative_prompt: Text to steer away from; None for the model's own.
            reference_prompts: Captions of the references; None for empty ones.
            max_sequence_length: Tokens per text, as in the later generation.

        Raises:
            InputError: An argument is not a text, or the text encoder was unloaded.
        """
        settings = self.defaults.override(max_sequence_length=max_sequence_length)
        negative_prompt = settings.guidance.negative_prompt if negative_prompt is None else negative_prompt
        given = {"prompt": prompt, "negative_prompt": negative_prompt, "reference_prompts": reference_prompts}
        texts: dict[str, Any] = {
            name: None if value is None else check_texts(name, value) for name, value in given.items()
        }
        listed = [(value,) if isinstance(value, str) else value or () for value in texts.values()]
        encoder = ConditionEncoder(self.family, settings)
        embeds = {text: encoder.encode_texts([text]) for text in sorted({"", *chain(*listed)})}
        return EncodedPrompt(**texts, embeds=embeds, max_sequence_length=settings.sampling.max_sequence_length)

    def unload_text_encoders(self) -> None:
        """Drop the text encoder: afterwards a prompt has to be a result of `encode_prompt`.

        The tokenizer stays, and so does the image encoder, which reads each new picture.
        """
        self.register_modules(text_encoder=None)
        # The hooks of offload 'model' would keep it alive.
        self.maybe_free_model_hooks()

    @torch.no_grad()
    @sends_modules_back
    def __call__(
        self,
        image: Pictures | None = None,
        references: References | None = None,
        prompt: Prompts = "",
        negative_prompt: GivenTexts | None = None,
        reference_prompts: Captions | None = None,
        last_image: Pictures | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: CallbackOnStepEnd | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        num_videos_per_prompt: int = 1,
        return_dict: bool = True,  # noqa: FBT001, FBT002 (as diffusers has it)
        settings: Settings | None = None,
        **overrides: Any,
    ) -> VideoAsPromptOutput | Any:
        """Generate.

        Args:
            image: The first frame: a PIL image, a uint8 array (height, width, 3) or a one-frame Clip; a list of them
                for a batch. It is resized to cover the target size and cropped. None for text-to-video models.
            references: Clips of at least 2 frames, or a result of `encode_reference`; for a batch also a list with one
                of these per picture. Not needed if `reference_guidance_scale` is 0.
            prompt: What the result shows; one text, or one per picture; or the result of `encode_prompt`.
            negative_prompt: Text to steer away from.
            reference_prompts: Captions of the references; None for empty ones.
            last_image: The last frame, for Wan; a list of them for a batch.
            generator: Source of the noise, drawn on the generator's device; one, or one per picture.
            latents: Initial noise (batch, channel, frame, height, width) with unit variance, for any backbone.
            output_type: Form of `frames` in the result: "np", "pt", "pil" or "latent".
            callback_on_step_end: Called after each step, as diffusers does; it may set `interrupt`.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback receives; only "latents".
            num_videos_per_prompt: Results for each picture, consecutive, each with its own noise.
            return_dict: Whether to return a record; otherwise a tuple with only its `frames`.
            settings: Settings of the generation; None for the model's own (`defaults`).
            overrides: Fields of the settings, by name (see `sememe.video_as_prompt.settings`), such as `height`,
                `num_frames` and `guidance_scale` with diffusers' names; None leaves a field as it is.

        Raises:
            InputError: An argument is not what was expected.
        """
        if num_videos_per_prompt < 1:
            raise InputError(f"expected num_videos_per_prompt of at least 1, got {num_videos_per_prompt}")
        settings = (settings or self.defaults).override(**overrides)
        texts = (prompt, negative_prompt, reference_prompts)
        request = make_request(self.family, settings, image, references, *texts, last_image)
        callback = self._wrap_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        request = request.repeat(num_videos_per_prompt)
        self.check_call(output_type, generator, request.batch_size, "picture")
        output = self._generate(request, generator, latents, output_type, callback)
        return output if return_dict else (output.frames,)

    def _generate(
        self,
        request: Request,
        generator: Generators,
        latents: Any,
        output_type: str,
        callback: CallbackOnStepEnd | None,
    ) -> VideoAsPromptOutput:
        settings = request.settings
        shape = self._latent_shape(settings, is_decoded=output_type != "latent")
        schedule = VideoAsPromptSchedule(settings=settings, texts_differ=request.prompts != request.negative_prompts)
        self._check_generation(settings, schedule)
        watch = Stopwatch(self._execution_device)
        self._interrupt = False
        encoder = ConditionEncoder(self.family, settings, request.known)
        # The official pipelines draw from the generator in this order: picture, noise, references.
        targets = encoder.encode_targets(request, schedule.needed, generator)
        noise = self._make_noise((request.batch_size, *shape), generator, latents, settings)
        found = encoder.encode_references(request, schedule.needed, generator)
        conditions = replace(targets, references=found)
        conditions.check_reading(settings.experimental)
        watch.lap("encode")
        result = self._denoise(conditions, schedule, noise, generator, callback)
        watch.lap("denoise")
        clips, frames = self._make_frames(result, settings.size.fps, output_type)
        watch.lap("decode")
        resolved = settings.override(
            text_keys=None if self.family.keeps_texts else "recomputed",
            approximate=conditions.are_approximate(self.transformer.config.attention_mode) or None,
        )
        return VideoAsPromptOutput(clips, frames, resolved, schedule.base.to_table(), watch.seconds)

    def _check_generation(self, settings: Settings, schedule: VideoAsPromptSchedule) -> None:
        check_scheduler(self.scheduler, self.family.prediction)
        num_forwards = len(schedule.needed.groups(settings.execution.batching))
        num_steps, is_limited = settings.sampling.num_inference_steps, settings.guidance.is_limited
        check_generation(self.transformer, num_forwards, num_steps, is_limited=is_limited)
        if settings.experimental.approximate and self.transformer.config.attention_mode == "cached":
            raise InputError("approximate has no effect on a model that was trained one-way; leave it out")
        check_mask_support(self, settings.reference.reference_strength)

    def _wrap_callback(self, callback: Any, tensor_inputs: Sequence[str]) -> CallbackOnStepEnd | None:
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            tensor_inputs = callback.tensor_inputs
        unknown = sorted(set(tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            known = ", ".join(self._callback_tensor_inputs)
            raise InputError(f"expected callback_on_step_end_tensor_inputs of {known}, got {unknown[0]!r}")
        if callback is None or tensor_inputs:
            return callback
        return lambda pipeline, step, timestep, _: callback(pipeline, step, timestep, {})

    def _denoise(
        self,
        conditions: Conditions,
        schedule: VideoAsPromptSchedule,
        noise: VideoLatents,
        generator: Generators,
        callback: CallbackOnStepEnd | None,
    ) -> VideoLatents:
        settings = schedule.settings
        is_truncated = "truncated_timesteps" in settings.experimental.official_quirks
        result = self.run_steps(
            begin_generation(self, Predictor(self.family, conditions, settings)),
            noise,
            schedule.by_timestep,
            settings.sampling.num_inference_steps,
            callback=callback,
            batching=settings.execution.batching,
            prediction=self.family.prediction,
            generator=generator,
            set_timesteps=set_truncated_timesteps if is_truncated else None,
        )
        return conditions.replace_first_frame(result)

    def _latent_shape(self, settings: Settings, *, is_decoded: bool) -> tuple[int, int, int, int]:
        size = settings.size
        shape = self.grid.latent_shape(size.num_frames, size.height, size.width, is_decoded=is_decoded)
        self.family.check_shape(settings)
        check_tiling(self.vae)
        return shape

    def _make_noise(
        self, shape: tuple[int, ...], generator: Generators, given: Any, settings: Settings
    ) -> VideoLatents:
        if given is not None:
            return self.place_noise(given, shape)
        is_sampled = "sampled_latents" in settings.experimental.official_quirks
        frames_first = is_sampled and self.family.has_sampled_latents
        return self.family.draw_noise(shape, generator, frames_first=frames_first).to(self._execution_device)

    def _make_frames(self, latents: VideoLatents, fps: float, output_type: str) -> tuple[list[Clip], Any]:
        if output_type == "latent":
            return [], latents
        video = decode_latents(self.vae, latents)
        clips = video_to_clips(video, fps)
        return clips, format_video(video, clips, output_type)
