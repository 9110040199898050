"""Gen-1: keep the structure of a clip, and give it new content (arXiv 2302.03011)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel, ModelMixin, PriorTransformer, SchedulerMixin, UNetMotionModel
from diffusers.loaders import IPAdapterMixin, StableDiffusionLoraLoaderMixin
from diffusers.utils.torch_utils import randn_tensor
from transformers import BaseImageProcessor, CLIPVisionModelWithProjection, PreTrainedModel

from sememe.backbones.autoencoder import (
    Autoencoder,
    Generators,
    LatentGrid,
    clips_to_video,
    decode_latents,
    encode_video,
    format_video,
    latent_grid,
    video_to_clips,
)
from sememe.backbones.text import Tokenizer
from sememe.checkpoints.saving import save_components
from sememe.compute.lora import AdapterMixin, check_unadapted
from sememe.compute.offload import sends_modules_back
from sememe.compute.stopwatch import Stopwatch
from sememe.diffusion.objectives import prediction_of
from sememe.errors import InputError, ModelError
from sememe.gen1.content import (
    ContentEmbedding,
    ContentEncoder,
    ImageSpaceEncoder,
    Keyframe,
    PromptEncoder,
    encode_content,
    spread_content,
)
from sememe.gen1.guidance import Content, Detail, make_table
from sememe.gen1.inputs import Clips, GivenContent, GivenContents, Masks, Request, find_structure, make_request
from sememe.gen1.mask import MaskedLatents, put_over
from sememe.gen1.model_folders import COMPONENTS, load_components
from sememe.gen1.models import Conditions, FrameContents, InflatedModel, Model, MotionModel, make_model
from sememe.gen1.predictor import Predictor, stack_contents
from sememe.gen1.prior import PriorSampler, check_pair
from sememe.gen1.settings import MAX_LEVEL, Settings
from sememe.gen1.shapes import StructureVideo
from sememe.gen1.structure import DepthEstimator, StructureEstimator, find_edges, find_motion, show_structure
from sememe.gen1.system import GEN1
from sememe.gen1.windows import make_windows
from sememe.pipeline import CallbackOnStepEnd, GenerationOutput, SystemPipeline
from sememe.video import Clip

Contents = Mapping[Content, FrameContents]


@dataclass(frozen=True)
class Gen1Output(GenerationOutput):
    """The result of a generation.

    Attributes:
        structure: Structure of each source as a grey clip, before it is blurred to the level. Passed as `structure=`,
            it saves the estimation.
    """

    settings: Settings
    structure: list[Clip] = field(default_factory=list)


class Gen1Pipeline(SystemPipeline, AdapterMixin, StableDiffusionLoraLoaderMixin, IPAdapterMixin):
    """Restyle clips: geometry and motion of a source, appearance from a text or a picture.

    Args:
        vae: `AutoencoderKL`, which encodes frame by frame.
        unet: `Gen1UNet`, or `UNetMotionModel` together with `controlnet`.
        scheduler: For v-prediction, such as `DDIMScheduler`; for Stable Diffusion 1.5, for prediction of the noise.
        tokenizer: `CLIPTokenizer`, for content by text.
        text_encoder: `CLIPTextModelWithProjection` with a prior, `CLIPTextModel` with a `UNetMotionModel`.
        prior: `PriorTransformer` from texts to image embeddings, for a `Gen1UNet`.
        prior_scheduler: Its noise schedule, as `sememe.gen1.prior.make_prior_scheduler` returns it.
        image_encoder: `CLIPVisionModelWithProjection`, for content by picture.
        image_processor: Its processor.
        depth_estimator: `DPTForDepthEstimation` or `DepthAnythingForDepthEstimation`.
        depth_processor: Its processor.
        controlnet: `ControlNetModel` for the kind of structure in use.
        generation_defaults: Fields of `Settings` by name; other fields have its defaults.
        content_space: Space of the prior's embeddings, as `sememe.gen1.prior.identify_space` names it.

    Raises:
        ModelError: Components do not fit together.
    """

    system = GEN1
    known_parts = COMPONENTS
    load_components = staticmethod(load_components)
    lora_loader = StableDiffusionLoraLoaderMixin
    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]
    exact_components: ClassVar[tuple[str, ...]] = ("image_encoder", "depth_estimator")
    """Components whose weights are not rounded in files: `content_space` identifies the image encoder by them."""
    model_cpu_offload_seq = "text_encoder->prior->image_encoder->depth_estimator->unet->vae"
    # All but vae, unet and scheduler.
    _optional_components = list(COMPONENTS[3:])  # noqa: RUF012 (diffusers declares it so)
    # Its statistics are read outside of its forward, where sequential offload has taken them away.
    _exclude_from_cpu_offload = ["prior"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        vae: Autoencoder,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        tokenizer: Tokenizer | None = None,
        text_encoder: PreTrainedModel | None = None,
        prior: PriorTransformer | None = None,
        prior_scheduler: SchedulerMixin | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        image_processor: BaseImageProcessor | None = None,
        depth_estimator: PreTrainedModel | None = None,
        depth_processor: BaseImageProcessor | None = None,
        controlnet: ControlNetModel | None = None,
        generation_defaults: Mapping[str, Any] | None = None,
        content_space: str | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            prior=prior,
            prior_scheduler=prior_scheduler,
            image_encoder=image_encoder,
            image_processor=image_processor,
            depth_estimator=depth_estimator,
            depth_processor=depth_processor,
            controlnet=controlnet,
        )
        defaults = Settings.from_config(generation_defaults)
        self.register_to_config(generation_defaults=defaults.to_dict(), content_space=content_space)
        make_model(unet, controlnet)
        if prior is not None:
            if tokenizer is None or text_encoder is None or prior_scheduler is None:
                raise ModelError("a prior needs tokenizer, text_encoder and prior_scheduler")
            check_pair(prior, text_encoder, image_encoder, content_space)
        self.estimators: dict[str, StructureEstimator] = {"edges": find_edges, "motion": find_motion}
        """Estimators of structure by kind; further ones may be added."""
        if depth_estimator is not None:
            self.estimators["depth"] = DepthEstimator(depth_estimator, depth_processor)

    @property
    def defaults(self) -> Settings:
        """Default settings of the model."""
        return Settings.from_config(self.config.generation_defaults)

    @property
    def transformer(self) -> ModelMixin:
        """The denoising network, by its common name in all systems."""
        return self.unet

    def describe(self) -> dict[str, Any]:
        """Return what sidecars record of the model besides its files: the image encoder of its content."""
        return {"content_space": self.config.content_space}

    @property
    def grid(self) -> LatentGrid:
        """The sizes that the model supports, which are those of its autoencoder."""
        return latent_grid(self.vae)

    def save_pretrained(
        self, save_directory: str | Path, max_shard_size: int | str | None = None, **_ignored: Any
    ) -> None:
        """Write a folder for `from_pretrained`.

        Raises:
            InputError: An IP-Adapter or a customisation is loaded.
            OutputError: The folder cannot be written.
        """
        if getattr(self.unet, "encoder_hid_proj", None) is not None and isinstance(self.unet, UNetMotionModel):
            raise InputError("an IP-Adapter is loaded; call unload_ip_adapter, save, and load it again")
        check_unadapted(self.unet)
        settings = {name: self.config[name] for name in ("generation_defaults", "content_space")}
        save_components(Path(save_directory), self.components, settings, type(self).__name__, max_shard_size)

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        subfolder: str = "",
        weight_name: str = "ip-adapter_sd15.safetensors",
        **_ignored: Any,
    ) -> None:
        """Load an IP-Adapter, for content by picture on Stable Diffusion.

        Args:
            pretrained_model_name_or_path_or_dict: Local folder.
            subfolder: Its subfolder, such as "models".
            weight_name: Name of a safetensors file.

        Raises:
            ModelError: The file is not an IP-Adapter in safetensors, or the model does not support one.
        """
        if not isinstance(self.unet, UNetMotionModel) or self.image_encoder is None:
            raise ModelError("an IP-Adapter needs a UNetMotionModel and an image_encoder")
        path = Path(pretrained_model_name_or_path_or_dict) / subfolder / weight_name
        if path.suffix != ".safetensors" or not path.is_file():
            raise ModelError(f"expected an IP-Adapter in safetensors, but {path} is no such file")
        super().load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None)

    @torch.no_grad()
    @sends_modules_back
    def encode_content(
        self, content: GivenContent, generator: torch.Generator | None = None, settings: Settings | None = None
    ) -> ContentEmbedding | list[Keyframe]:
        """Encode a content once, to reuse it or to blend it (`blend_contents`).

        Args:
            content: Text, picture or keyframes.
            generator: Source of the noise that a prior starts from.
            settings: Settings of the prior; None for the model's own.

        Raises:
            InputError: The content is of another type.
            ModelError: The model lacks a component to encode it.
        """
        return encode_content(self.make_encoder(settings or self.defaults), content, generator)

    @torch.no_grad()
    @sends_modules_back
    def __call__(
        self,
        source: Clips | None = None,
        content: GivenContents | None = None,
        structure: Clips | None = None,
        mask: Masks | None = None,
        structure_level: int | None = None,
        guidance_scale: float | None = None,
        temporal_guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: CallbackOnStepEnd | None = None,
        settings: Settings | None = None,
        **overrides: Any,
    ) -> Gen1Output:
        """Generate.

        Args:
            source: Clip whose structure is kept, or a list of clips of one shape for a batch.
            content: Text; picture (PIL, uint8 array (height, width, 3) or a Clip of one frame); a result of
                `encode_content`; or a list of `Keyframe`. For a batch also a list with one per source.
            structure: Clip with the structure in grey (white is near), instead of an estimate. At least as long as what
                is used of the source.
            mask: Clip or picture, white where the source is edited; outside, the frames are the source's, bit for bit.
                A clip is at least as long as what is used of the source.
            structure_level: Rounds of blur of the structure, 0 to 7. For None here and in the next three, the settings'
                value is used.
            guidance_scale: Strength of the content; 1 is off.
            temporal_guidance_scale: Above 1 frames resemble each other more, below 1 less; 1 is off.
            num_inference_steps: Denoising steps.
            generator: Source of the noise; one, or one per source.
            latents: Initial noise (batch, channel, frame, height, width) with unit variance.
            output_type: Form of `frames`: "np", float (batch, frame, height, width, 3) in [0, 1]; "pt", float (batch,
                frame, 3, height, width) in [0, 1]; "pil", a list of PIL images per source; "latent", normalised
                latents.
            callback_on_step_end: Called after each step, as diffusers does, with the latents; it may set `interrupt`.
            settings: Settings of the generation; None for the model's own (`defaults`).
            overrides: Further fields of the settings, by name (see `sememe.gen1.settings`); None leaves a field.

        Raises:
            InputError: An argument is not what was expected.
            ModelError: The model lacks a component for a content or a kind of structure.
        """
        named = {
            "structure_level": structure_level,
            "guidance_scale": guidance_scale,
            "temporal_guidance_scale": temporal_guidance_scale,
            "num_inference_steps": num_inference_steps,
        }
        settings = (settings or self.defaults).override(**named, **overrides)
        request = make_request(self.grid, settings, source, content, structure, mask)
        return self._generate(request, settings, generator, latents, output_type, callback_on_step_end)

    def _generate(
        self,
        request: Request,
        settings: Settings,
        generator: Generators,
        latents: torch.Tensor | None,
        output_type: str,
        callback: CallbackOnStepEnd | None,
    ) -> Gen1Output:
        self.check_call(output_type, generator, len(request.sources), "source")
        guidance = make_table(settings)
        watch = Stopwatch(self._execution_device)
        self._interrupt = False
        prediction = prediction_of(self.scheduler)
        if prediction is None:
            raise InputError(
                "expected a scheduler that says what is predicted (prediction_type), such as DDIMScheduler, got "
                f"{type(self.scheduler).__name__}"
            )
        model = make_model(self.unet, self.controlnet, settings.structure.controlnet_scale)
        if isinstance(model, InflatedModel) and settings.structure.controlnet_scale != 1.0:
            raise InputError("controlnet_scale has an effect only on models with a ControlNet; leave it out")
        maps = find_structure(request, settings.structure, self.estimators)
        watch.lap("structure")
        contents = self._encode_contents(request, settings, generator)
        predictor = self.prepare(model, request.num_frames, settings, maps, contents)
        watch.lap("content")
        noise = self._make_noise(request, generator, latents)
        hold = None
        if request.masks is not None:
            encoded = encode_video(self.vae, clips_to_video(request.sources)).to(noise)
            masked = MaskedLatents.from_masks(request.masks, encoded, noise)
            hold = partial(masked.hold, self.scheduler)
        result = self.run_steps(
            predictor,
            noise,
            guidance,
            settings.sampling.num_inference_steps,
            callback=callback,
            hold=hold,
            batching=settings.execution.batching,
            prediction=prediction,
            generator=generator,
        )
        watch.lap("denoise")
        clips, frames = self._make_frames(result, request, settings.mask.mask_feather, output_type)
        watch.lap("decode")
        shown = [show_structure(each, request.sources[0].fps) for each in maps]
        return Gen1Output(clips, frames, settings, guidance.to_table(), watch.seconds, shown)

    def make_encoder(self, settings: Settings) -> ContentEncoder:
        """Return the encoder of contents for the model.

        Raises:
            ModelError: An IP-Adapter is loaded without an image encoder.
        """
        if isinstance(make_model(self.unet, self.controlnet), MotionModel):
            image_dim = None
            if self.unet.encoder_hid_proj is not None:
                if self.image_encoder is None:
                    raise ModelError("an IP-Adapter needs image_encoder and image_processor, which this model lacks")
                image_dim = int(self.image_encoder.config.projection_dim)
            return PromptEncoder(self.tokenizer, self.text_encoder, self.image_encoder, self.image_processor, image_dim)
        config = self.unet.config
        sampler = None
        if self.prior is not None:
            scale, steps = settings.guidance.prior_guidance_scale, settings.sampling.prior_num_inference_steps
            sampler = PriorSampler(self.prior, self.prior_scheduler, self.tokenizer, self.text_encoder, scale, steps)
        dim = config.encoder_hid_dim or config.cross_attention_dim
        return ImageSpaceEncoder(self.image_encoder, self.image_processor, sampler, dim)

    def _encode_contents(self, request: Request, settings: Settings, generator: Generators) -> Contents:
        encoder = self.make_encoder(settings)
        generators = generator if isinstance(generator, list) else [generator] * len(request.sources)
        given = [
            encode_content(encoder, each, source) for each, source in zip(request.contents, generators, strict=True)
        ]
        negative, none = settings.guidance.negative_prompt, [encoder.encode_nothing()] * len(given)
        if negative:  # with draws of its own for each, so that a batch gives what its entries give alone
            none = [encoder.encode_text(negative, source) for source in generators]
        length, fps = request.num_frames, request.sources[0].fps
        return {
            "given": stack_contents([spread_content(each, length, fps) for each in given], self._execution_device),
            "none": stack_contents([[each] * length for each in none], self._execution_device),
        }

    def prepare(
        self, model: Model, length: int, settings: Settings, maps: StructureVideo, contents: Contents
    ) -> Predictor:
        """Return the predictor for `length` frames: structure and content in overlapping windows.

        Raises:
            InputError: The windows are longer than the model supports, or their overlap is too large.
        """
        window = settings.windows.window_frames or model.max_frames
        if window > model.max_frames:
            raise InputError(f"expected window_frames of at most {model.max_frames} for this model, got {window}")
        overlap = settings.windows.window_overlap
        windows = make_windows(length, window, window // 2 if overlap is None else overlap)
        maps = maps.to(self._execution_device)
        structures: dict[Detail, Conditions] = {
            "given": model.condition(self.vae, maps, settings.structure.structure_level)
        }
        if settings.guidance.structure_guidance_scale != 1.0:
            structures["least"] = model.condition(self.vae, maps, MAX_LEVEL)
        return Predictor(model, structures, contents, windows, window)

    def _make_noise(self, request: Request, generator: Generators, given: torch.Tensor | None) -> torch.Tensor:
        source = request.sources[0]
        shape = (len(request.sources), *self.grid.latent_shape(source.num_frames, *source.size))
        if given is not None:
            return self.place_noise(given, shape)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

    def _make_frames(
        self, latents: torch.Tensor, request: Request, feather: int, output_type: str
    ) -> tuple[list[Clip], Any]:
        if output_type == "latent":
            return [], latents
        video = decode_latents(self.vae, latents)
        clips = video_to_clips(video, request.sources[0].fps)
        if request.masks is not None:
            edits = zip(request.sources, clips, request.masks, strict=True)
            clips = [put_over(source, clip, mask, feather) for source, clip, mask in edits]
            video = clips_to_video(clips)
        return clips, format_video(video, clips, output_type)
