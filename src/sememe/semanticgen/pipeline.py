"""SemanticGen: plan a video in a semantic space, then render it, at any length (arXiv 2512.20619)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.loaders import WanLoraLoaderMixin
from torch import nn
from transformers import PreTrainedModel

from sememe.backbones.autoencoder import Autoencoder, Generators, LatentGrid, latent_grid, video_to_clips
from sememe.backbones.decoding import decode_in_chunks
from sememe.backbones.text import Tokenizer
from sememe.checkpoints.components import load_component, load_strictly
from sememe.compute.lora import AdapterMixin, check_unadapted
from sememe.compute.offload import sends_modules_back
from sememe.compute.stopwatch import Stopwatch
from sememe.diffusion.denoise import check_scheduler
from sememe.errors import InputError
from sememe.pipeline import CallbackOnStepEnd, GenerationOutput, SystemPipeline
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.durations import estimate_seconds
from sememe.semanticgen.encoders import Colours, TowerEncoder, load_encoder, wrap_tower
from sememe.semanticgen.inputs import (
    Clips,
    GivenSegments,
    GivenTexts,
    Pictures,
    Plans,
    Request,
    Span,
    check_sources,
    make_request,
    resolve_length,
)
from sememe.semanticgen.model_folders import COMPONENTS, load_components, save_components
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.plan import Plan
from sememe.semanticgen.production import Production, encode_sources, encode_texts
from sememe.semanticgen.rendering import Retake
from sememe.semanticgen.settings import Settings
from sememe.semanticgen.shapes import VideoLatents
from sememe.semanticgen.stage_settings import SemanticGenModelRecipe
from sememe.semanticgen.system import SEMANTICGEN
from sememe.training.networks import make_scheduler
from sememe.video import Clip


@dataclass(frozen=True)
class SemanticGenOutput(GenerationOutput):
    """The result of a generation; `SemanticGenPipeline.decode` reads its latents.

    Attributes:
        plans: The plan of each clip; empty if `plan_guidance_scale` is 0.
    """

    settings: Settings
    plans: list[Plan] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """The plan of the first clip.

        Raises:
            InputError: The generation had no plan.
        """
        if not self.plans:
            raise InputError("expected a generation with a plan, but plan_guidance_scale 0 left it out")
        return self.plans[0]


class SemanticGenPipeline(SystemPipeline, AdapterMixin, WanLoraLoaderMixin):
    """Generate clips of any length from a text, through a plan that can be saved, edited and reused.

    Args:
        tokenizer: Tokenizer of the text encoder.
        text_encoder: `UMT5EncoderModel` or `T5EncoderModel`, which planner and renderer share.
        semantic_encoder: Vision tower, see `sememe.semanticgen.encoders`.
        compressor: `SemanticCompressor` of its features.
        planner: `SemanticGenTransformer` over plans.
        transformer: `SemanticGenTransformer` over latents, the renderer.
        vae: Causal video autoencoder.
        scheduler: Scheduler for flow matching, of both.
        generation_defaults: Fields of `Settings` by name; other fields have its defaults.
        encoder_colours: Mean and standard deviation of RGB colours in 0..1 for normalising the tower's input; None for
            those of released towers of its class.
    """

    system = SEMANTICGEN
    known_parts = COMPONENTS
    load_components = staticmethod(load_components)
    lora_loader = WanLoraLoaderMixin
    exact_components: ClassVar[tuple[str, ...]] = ("semantic_encoder", "compressor")
    """Components whose weights are not rounded in files, because plans record their fingerprints."""
    # Their fingerprints are read outside of a forward, where offload by layers has taken the weights away.
    _exclude_from_cpu_offload = ["semantic_encoder", "compressor"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->semantic_encoder->compressor->planner->transformer->vae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 (diffusers declares it so)

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: PreTrainedModel,
        semantic_encoder: nn.Module,
        compressor: SemanticCompressor,
        planner: SemanticGenTransformer,
        transformer: SemanticGenTransformer,
        vae: Autoencoder,
        scheduler: SchedulerMixin,
        generation_defaults: Mapping[str, Any] | None = None,
        encoder_colours: tuple[Colours, Colours] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            semantic_encoder=semantic_encoder,
            compressor=compressor,
            planner=planner,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
        )
        defaults = Settings.from_config(generation_defaults)
        self.register_to_config(generation_defaults=defaults.to_dict(), encoder_colours=encoder_colours)

    @property
    def defaults(self) -> Settings:
        """Default settings of the model."""
        return Settings.from_config(self.config.generation_defaults)

    @property
    def grid(self) -> LatentGrid:
        """The numbers of frames and the sizes that the model supports."""
        return latent_grid(self.vae, self.transformer.config.patch_size[-1])

    @property
    def clock(self) -> SliceClock:
        """The division of time into the slices of plans."""
        return self.compressor.clock

    @cached_property
    def encoder(self) -> TowerEncoder:
        """The semantic encoder, with its rate and resizing."""
        return wrap_tower(self.semantic_encoder, self.clock.fps, self.config.encoder_colours)

    def save_pretrained(
        self, save_directory: str | Path, max_shard_size: int | str | None = None, **_ignored: Any
    ) -> None:
        """Write a folder for `from_pretrained`.

        Raises:
            InputError: LoRA weights are loaded.
            OutputError: The folder cannot be written.
        """
        check_unadapted(self.transformer)
        settings = {"generation_defaults": self.config.generation_defaults}
        colours = self.encoder.colours
        save_components(Path(save_directory), self.components, settings, type(self).__name__, colours, max_shard_size)

    def describe(self) -> dict[str, Any]:
        """Return what sidecars record of the model besides its files: the encoder and compressor of its plans."""
        return {"encoder": self.compressor.config.encoder, "compressor": self.compressor.fingerprint}

    @torch.no_grad()
    @sends_modules_back
    def encode_plan(self, source: Clips, settings: Settings | None = None) -> list[Plan]:
        """Return the plans of clips.

        Args:
            source: Clip of any size and rate, or a list of clips of one length; each is resized to cover the result's
                size, and cropped. A clip shorter than a slice gives one slice.
            settings: Settings with the results' size; None for the model's own.

        Raises:
            InputError: `source` is not a clip or a list of clips.
        """
        request, settings = make_request(source=source), settings or self.defaults
        check_sources(request.sources, settings, None)
        return encode_sources(self, request.sources, settings)

    @torch.no_grad()
    @sends_modules_back
    def __call__(
        self,
        prompt: GivenTexts = "",
        num_frames: int | None = None,
        seconds: float | None = None,
        plan: Plans | None = None,
        source: Clips | None = None,
        image: Pictures | None = None,
        segments: GivenSegments | None = None,
        span: Span | None = None,
        negative_prompt: str | None = None,
        generator: Generators = None,
        output_type: str = "np",
        callback_on_step_end: CallbackOnStepEnd | None = None,
        settings: Settings | None = None,
        **overrides: Any,
    ) -> SemanticGenOutput:
        """Generate.

        Args:
            prompt: What the result shows, or a list of texts for a batch. With an empty text planner and renderer are
                unconditional.
            num_frames: Frames of the result, brought to the nearest number that the autoencoder supports.
            seconds: Length of the result, in place of `num_frames`.
            plan: `Plan` to render, or one per prompt; it sets the result's length.
            source: Clip whose plan is rendered with another prompt, or one per prompt; it sets the result's length.
            image: First frame, for renderers that support one: PIL image, uint8 array (height, width, 3) or one-frame
                Clip, or one per prompt. A new plan begins with it.
            segments: Consecutive pairs of seconds and text, which together have the result's length. Each part reads
                `prompt` followed by its own text.
            span: Seconds (start, stop) of `source` to render again, rounded to latent frames; other frames are
                unchanged, bit for bit. May be combined with a plan.
            negative_prompt: Text to steer away from; None for the setting.
            generator: Source of the noise, drawn on the generator's device; one, or one per prompt.
            output_type: Form of `frames`: "np", "pt", "pil" or "latent".
            callback_on_step_end: Called after each step, as diffusers does: with "plan" in the steps of planning, and
                then, from step 0 on, with "latents" in those of rendering. It may set `interrupt`.
            settings: Settings of the generation; None for the model's own (`defaults`).
            overrides: Further fields of the settings, by name (see `sememe.semanticgen.settings`).

        Raises:
            InputError: An argument is not what was expected.
            PlanError: A plan belongs to another model or size.
        """
        settings = (settings or self.defaults).override(negative_prompt=negative_prompt, **overrides)
        request = make_request(prompt, plan, source, image, segments, span)
        self.check_call(output_type, generator, request.batch_size, "prompt")
        settings = resolve_length(request, settings, self.grid, self.clock, num_frames, seconds)
        generators = _spread_generator(generator, request.batch_size)
        return self._generate(Production(self, request, settings, generators, callback_on_step_end), output_type)

    @torch.no_grad()
    @sends_modules_back
    def estimate_seconds(self, request: Request, settings: Settings) -> dict[str, float]:
        """Estimate how long the steps of planning (`plan`) and rendering (`latents`) will take.

        It times shorter steps, which for videos of a minute or more takes a small part of the estimate.

        Args:
            request: Inputs of one result (`sememe.semanticgen.inputs.make_request`); with a source no planning is
                counted.
            settings: Settings with the final number of frames.
        """
        return estimate_seconds(self, request, settings)

    def _generate(self, work: Production, output_type: str) -> SemanticGenOutput:
        check_scheduler(self.scheduler)
        work.check()
        request, settings, guidance = work.request, work.settings, work.guidance
        watch, self._interrupt = Stopwatch(self._execution_device), False
        texts = encode_texts(self, request, settings)
        watch.lap("encode")
        plans = work.make_plans(texts) if any(row.variant.has_plan for row in guidance.rows) else []
        watch.lap("plan")
        latents, retake = work.render(texts, plans)
        watch.lap("denoise")
        clips = [] if output_type == "latent" else self._decode_clips(latents, request, retake, settings.size.fps)
        frames = latents if output_type == "latent" else _format_frames(clips, output_type)
        watch.lap("decode")
        return SemanticGenOutput(clips, frames, settings, guidance.to_table(), watch.seconds, plans)

    def decode(self, latents: VideoLatents, fps: float, chunk: int = 8) -> Iterator[Clip]:
        """Decode one video piece by piece, so that it is never in memory as a whole; `write_clips` takes the pieces.

        Args:
            latents: `frames` of a result of output type "latent", of one prompt.
            fps: Frames per second of the result.
            chunk: Latent frames per piece, at least 1.

        Raises:
            InputError: The latents are of several videos, or the number is below 1.
        """
        if chunk < 1:
            raise InputError(f"expected a chunk of at least 1 latent frame, got {chunk}")
        if len(latents) != 1:
            raise InputError(
                f"expected latents of one video, got those of {len(latents)}; decode one after the other (latents[:1], "
                "latents[1:2], ...)"
            )
        return (video_to_clips(video, fps)[0] for video in decode_in_chunks(self.vae, latents, chunk))

    def _decode_clips(self, latents: VideoLatents, request: Request, retake: Retake | None, fps: float) -> list[Clip]:
        span = None if retake is None else retake.span
        pieces = [video_to_clips(video, fps) for video in decode_in_chunks(self.vae, latents, span=span)]
        made = [np.concatenate([clip.frames for clip in clips]) for clips in zip(*pieces, strict=True)]
        if span is None:
            return [Clip(frames, fps) for frames in made]
        start, stop = (max(0, self.grid.count_frames(place)) for place in span)
        kept = [clip.frames.copy() for clip in request.sources]
        for frames, new in zip(kept, made, strict=True):
            frames[start:stop] = new
        return [Clip(frames, fps) for frames in kept]


def build_pipeline(recipe: SemanticGenModelRecipe, parts: Mapping[str, Path]) -> SemanticGenPipeline:
    """Return the pipeline of a model, in float32.

    Raises:
        ModelError: A part is not whole, or does not fit the others.
    """
    compressor = load_strictly(SemanticCompressor, parts["compressor"], torch.float32)
    encoder = load_encoder(parts["semantic_encoder"], compressor.config.fps)
    compressor.check_encoder(encoder.fingerprint)
    return SemanticGenPipeline(
        tokenizer=load_component("tokenizer", parts["tokenizer"]),
        text_encoder=load_component("text_encoder", parts["text_encoder"]),
        semantic_encoder=encoder.tower,
        compressor=compressor,
        planner=load_strictly(SemanticGenTransformer, parts["planner"], torch.float32),
        transformer=load_strictly(SemanticGenTransformer, parts["transformer"], torch.float32),
        vae=load_component("vae", parts["vae"]),
        scheduler=make_scheduler(recipe.scheduler),
        generation_defaults=recipe.generation.to_dict(),
        encoder_colours=encoder.colours,
    )


def _spread_generator(generator: Generators, count: int) -> list[torch.Generator]:
    """Return a generator for each result; one that is given for several draws for one after the other."""
    if isinstance(generator, list):
        return generator
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 62, (1,))))
    return [generator] * count


def _format_frames(clips: Sequence[Clip], output_type: str) -> Any:
    if output_type == "pil":
        from PIL import Image

        return [[Image.fromarray(frame) for frame in clip.frames] for clip in clips]
    frames = np.stack([clip.frames for clip in clips]).astype(np.float32) / 255.0
    return frames if output_type == "np" else torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
