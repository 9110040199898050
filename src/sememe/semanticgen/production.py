"""One generation: texts, sources and plans to what the networks are given, and back to plans and latents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from sememe.backbones.autoencoder import clips_to_video, encode_video
from sememe.backbones.first_frame import ConditionChannels
from sememe.backbones.text import encode_prompts
from sememe.diffusion.guidance import Guidance
from sememe.errors import InputError
from sememe.pipeline import SystemPipeline
from sememe.semanticgen.clocks import LatentClock
from sememe.semanticgen.guidance import Text, Variant, planning_guidance, rendering_guidance
from sememe.semanticgen.inputs import Request, check_plan, check_sources
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.noise import add_semantic_noise
from sememe.semanticgen.plan import Plan
from sememe.semanticgen.rendering import Known, Retake, make_condition
from sememe.semanticgen.settings import Settings
from sememe.semanticgen.shapes import PlanFeatures, PredictedLatents, TextEmbeds, VideoLatents
from sememe.semanticgen.windows import SliceShape, WindowLayout, find_segments, make_layout
from sememe.video import Clip, resize_clip

Texts = Mapping[Text, tuple[TextEmbeds, ...]]
"""Embedded text of each segment, by choice of text."""
Predictions = Float[Tensor, "variant batch channel frame height width"]


@dataclass(frozen=True, eq=False)
class Predictor:
    """Calls a transformer on latents; for a planner these are plans, whose slices stand in the place of frames.

    Texts are embedded, one for each segment, by choice of text; layouts are those with a plan (True) and without one
    (False), where a variant needs it. `channels` are mask and latents of a first picture, which follow the noisy
    latents; None for a transformer that takes none.
    """

    transformer: SemanticGenTransformer
    texts: Texts
    layouts: Mapping[bool, WindowLayout]
    plan: PlanFeatures | None = None
    channels: ConditionChannels | None = None

    def __call__(self, latents: VideoLatents, timestep: Num[Tensor, ""], variants: tuple[Variant, ...]) -> Predictions:
        """Predict the velocity of all latents under each variant, in windows one by one where there are several."""
        inputs = latents if self.channels is None else torch.cat([latents, self.channels.to(latents)], dim=1)
        steps = timestep.to(latents.device).expand(len(latents))
        return torch.stack([self._predict(inputs, steps, variant) for variant in variants])

    def _predict(self, inputs: VideoLatents, steps: Float[Tensor, " batch"], variant: Variant) -> PredictedLatents:
        layout, dtype = self.layouts[variant.has_plan], self.transformer.dtype
        predicted = self.transformer(
            inputs.to(dtype),
            steps,
            tuple(text.to(inputs.device, dtype) for text in self.texts[variant.text]),
            semantic=self.plan if variant.has_plan else None,
            layout=layout,
            one_by_one=len(layout.windows(0)) > 1,
        )
        return predicted.sample.float()


@dataclass(frozen=True, eq=False)
class Steps:
    """Inputs of the denoising loop.

    Attributes:
        predict: Calls planner or renderer.
        guidance: Table of its variants.
        noise: Where the steps begin.
        known: Frames that are known already; None for none.
        retake: How a span of a source is rendered again; None for all of a new video.
    """

    predict: Predictor
    guidance: Guidance[Variant]
    noise: VideoLatents
    known: Known | None = None
    retake: Retake | None = None


@dataclass(frozen=True)
class Production:
    """One generation of a `SemanticGenPipeline`, part by part; the settings have the number of frames as it will be."""

    pipeline: SystemPipeline
    request: Request
    settings: Settings
    generators: list[torch.Generator]
    callback: Callable[..., dict[str, Any] | None] | None = None

    @property
    def _texts_differ(self) -> bool:
        negative = self.settings.guidance.negative_prompt
        return any(text != negative for texts in self.request.texts for text in texts)

    @property
    def guidance(self) -> Guidance[Variant]:
        """Table of the renderer."""
        scales = self.settings.guidance
        return rendering_guidance(scales.guidance_scale, scales.plan_guidance_scale, texts_differ=self._texts_differ)

    @property
    def makes_plans(self) -> bool:
        """Whether the planner has something to do."""
        is_given = bool(self.request.plans or self.request.sources)
        return not is_given and any(row.variant.has_plan for row in self.guidance.rows)

    @property
    def _latent_shape(self) -> tuple[int, int, int, int]:
        size = self.settings.size
        return self.pipeline.grid.latent_shape(size.num_frames, size.height, size.width)

    @property
    def _plan_shape(self) -> tuple[int, int, int]:
        size, pipeline = self.settings.size, self.pipeline
        rows, columns = pipeline.encoder.choose_grid(size.height, size.width)
        return pipeline.clock.count_slices(size.num_frames / size.fps), rows, columns

    def check(self) -> None:
        """Check what needs no network.

        Raises:
            InputError: An input does not go with the model or the settings.
        """
        request, config = self.request, self.pipeline.transformer.config
        _ = self._latent_shape
        check_sources(request.sources, self.settings, request.span)
        if request.images and config.in_channels == config.out_channels:
            raise InputError("this model makes videos from text alone, so that image has no effect; leave it out")
        planned = "plan" if request.plans else "source" if request.sources and request.span is None else None
        if planned is not None and self.settings.guidance.plan_guidance_scale == 0:
            raise InputError(
                f"plan_guidance_scale 0 leaves the plan out, so that {planned} has no effect; leave one out"
            )
        if len({plan.num_slices for plan in request.plans}) > 1:
            raise InputError("expected plans of one length for a batch; render them one by one")

    def make_plans(self, texts: Texts) -> list[Plan]:
        """Return the plans that are given, those of the sources, or new ones."""
        request, pipeline, (_, rows, columns) = self.request, self.pipeline, self._plan_shape
        if request.plans:
            blank = torch.zeros(1, 1, rows, columns, pipeline.compressor.config.semantic_dim)
            (model,) = wrap_plans(pipeline, blank)
            return [check_plan(plan, model) for plan in request.plans]
        if request.sources:
            return encode_sources(pipeline, request.sources, self.settings)
        step = replace(self.prepare_planning(texts), known=self._read_pictures())
        result = self._denoise(step, self.settings.sampling.num_planning_steps, "plan")
        places = find_segments(request.segment_ends, pipeline.clock.times(result.shape[2]))
        captions = [tuple(each[place] for place in places) for each in request.texts]
        # (batch, number, slice, row, column) -> (batch, slice, row, column, number)
        return wrap_plans(pipeline, result.permute(0, 2, 3, 4, 1), captions)

    def prepare_planning(self, texts: Texts) -> Steps:
        """Return the inputs of the planner's steps."""
        pipeline = self.pipeline
        return Steps(
            Predictor(pipeline.planner, texts, {False: self.lay_out_plan()}),
            planning_guidance(self.settings.guidance.planning_guidance_scale, texts_differ=self._texts_differ),
            self._draw((pipeline.compressor.config.semantic_dim, *self._plan_shape)),
        )

    def lay_out_plan(self) -> WindowLayout:
        """Return the layout of the planner's tokens."""
        clock = LatentClock.of_slices(self.pipeline.clock)
        return make_layout(clock, self._plan_shape, segment_ends=self.request.segment_ends)

    def lay_out_video(self) -> dict[bool, WindowLayout]:
        """Return the layouts of the renderer's tokens with a plan of the video's length (True) and without (False)."""
        return {True: self._lay_out(self._plan_shape), False: self._lay_out(None)}

    def make_blank_plan(self) -> PlanFeatures:
        """Return features of the video's length, all zero."""
        return torch.zeros(1, *self._plan_shape, self.pipeline.compressor.config.semantic_dim)

    def render(self, texts: Texts, plans: Sequence[Plan]) -> tuple[VideoLatents, Retake | None]:
        """Return the latents, and how they were joined with those of a source."""
        features = None
        if plans:
            features = torch.from_numpy(np.stack([plan.features for plan in plans]))
        step = self.prepare_rendering(texts, features)
        result = self._denoise(step, self.settings.sampling.num_inference_steps, "latents")
        return (result if step.retake is None else step.retake.put_back(result)), step.retake

    def prepare_rendering(self, texts: Texts, features: PlanFeatures | None) -> Steps:
        """Return the inputs of the renderer's steps, with the features of the plans that it follows; None for none."""
        request, settings, pipeline, guidance = self.request, self.settings, self.pipeline, self.guidance
        shape, device = self._latent_shape, pipeline._execution_device
        if features is not None:
            features = self._add_noise(features.to(device), settings.plan.plan_noise)
        noise, channels = self._draw(shape), self._make_channels()
        plan_shape = None if features is None else (features.shape[1], *features.shape[2:4])
        needed = {row.variant.has_plan for row in guidance.rows}
        laid_out = {has_plan: self._lay_out(plan_shape if has_plan else None) for has_plan in needed}
        retake = known = None
        if request.span is not None:
            start, stop = np.searchsorted(self._clock.times(shape[1]), request.span)
            if start == stop:
                raise InputError(f"expected a span that holds the centre of a latent frame, got {request.span}")
            clean = encode_video(pipeline.vae, clips_to_video(request.sources)).to(device)
            retake = Retake.of(clean, self._lay_out(None), (int(start), int(stop)))
            if features is not None:
                features = features[:, slice(*laid_out[True].join(*retake.half_windows).slices)]
            laid_out = {has_plan: layout.cut(*retake.half_windows) for has_plan, layout in laid_out.items()}
            noise, channels = retake.cut(noise), None if channels is None else retake.cut(channels)
            known = retake.kept
        predict = Predictor(pipeline.transformer, texts, laid_out, features, channels)
        return Steps(predict, guidance, noise, known, retake)

    @property
    def _clock(self) -> LatentClock:
        return LatentClock(self.pipeline.grid.temporal_ratio, self.settings.size.fps)

    def _lay_out(self, plan_shape: tuple[int, int, int] | None) -> WindowLayout:
        """Return the layout of the renderer's tokens with a plan of slices, rows and columns, or without one."""
        patch = self.pipeline.transformer.config.patch_size
        _, frames, height, width = self._latent_shape
        slices = None
        if plan_shape is not None:
            slices = SliceShape(self.pipeline.clock.times(plan_shape[0]), *plan_shape[1:])
        return make_layout(
            self._clock,
            (frames, height // patch[1], width // patch[2]),
            slices,
            window_seconds=self.settings.plan.window_seconds,
            segment_ends=self.request.segment_ends,
        )

    def _read_pictures(self) -> Known | None:
        """Return plans whose first slice is that of a still of the first picture; None without pictures."""
        pipeline, request = self.pipeline, self.request
        if not request.images:
            return None
        slices, *grid = self._plan_shape
        clean = torch.zeros(request.batch_size, pipeline.compressor.config.semantic_dim, slices, *grid)
        stills = [Clip.from_image(image) for image in request.images]
        for place, plan in enumerate(encode_sources(pipeline, stills, self.settings)):
            clean[place, :, 0] = torch.from_numpy(plan.features[0]).permute(2, 0, 1)
        return Known(clean, torch.arange(slices) == 0)

    def _make_channels(self) -> VideoLatents | None:
        """Return mask and latents of first pictures, zeros without one; None for a renderer that takes none."""
        pipeline, size, images = self.pipeline, self.settings.size, self.request.images
        transformer: SemanticGenTransformer = pipeline.transformer
        num_channels = transformer.config.in_channels - transformer.config.out_channels
        if num_channels == 0:
            return None
        if not images:
            _, *grid = self._latent_shape
            return torch.zeros(self.request.batch_size, num_channels, *grid, device=pipeline._execution_device)
        fill = transformer.config.first_frame_fill
        made = make_condition(pipeline.vae, list(images), size.num_frames, (size.height, size.width), fill)
        return made.float().to(pipeline._execution_device)

    def _denoise(self, given: Steps, num_steps: int, name: Literal["plan", "latents"]) -> VideoLatents:
        known, scheduler = given.known, self.pipeline.scheduler
        return self.pipeline.run_steps(
            given.predict,
            given.noise,
            given.guidance,
            num_steps,
            callback=self.callback,
            name=name,
            hold=None if known is None else lambda latents, step: known.hold(latents, given.noise, scheduler, step),
            generator=self.generators if len(self.generators) > 1 else self.generators[0],
        )

    def _draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw noise, that of each result from its own generator."""
        drawn = [torch.randn(shape, generator=source, device=source.device) for source in self.generators]
        return torch.stack([each.to(self.pipeline._execution_device) for each in drawn])

    def _add_noise(self, features: PlanFeatures, level: float) -> PlanFeatures:
        if level == 0:
            return features
        pairs = zip(features.split(1), self.generators, strict=True)
        return torch.cat([add_semantic_noise(each, torch.full((1,), level), source) for each, source in pairs])


def encode_sources(pipeline: SystemPipeline, sources: Sequence[Clip], settings: Settings) -> list[Plan]:
    """Return the plans of clips of one length; they are resized to cover the result, and cropped."""
    size, source = settings.size, sources[0]
    picks = pipeline.clock.pick_frames(source.num_frames, source.fps)
    sampled = [resize_clip(Clip(clip.frames[picks], pipeline.clock.fps), size.height, size.width) for clip in sources]
    features = pipeline.encoder.encode(sampled)
    pipeline.compressor.check_encoder(pipeline.encoder.fingerprint)
    return wrap_plans(pipeline, pipeline.compressor.encode(features.to(pipeline._execution_device)))


def wrap_plans(
    pipeline: SystemPipeline, features: PlanFeatures, captions: Sequence[tuple[str, ...]] = ()
) -> list[Plan]:
    """Return features as plans of a pipeline's encoder and compressor."""
    compressor, spread = pipeline.compressor, captions or [()] * len(features)
    return [
        Plan(each, pipeline.clock.slice_seconds, compressor.config.encoder, compressor.fingerprint, texts)
        for each, texts in zip(features.float().cpu().numpy(), spread, strict=True)
    ]


def encode_texts(pipeline: SystemPipeline, request: Request, settings: Settings) -> Texts:
    """Encode each distinct text once: for each segment (batch, token, text_dim)."""
    by_segment = list(zip(*request.texts, strict=True))
    negative = settings.guidance.negative_prompt
    distinct = sorted({negative, *(text for texts in by_segment for text in texts)})
    found = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, distinct, settings.sampling.max_sequence_length)
    embeds = dict(zip(distinct, found.split(1), strict=True))
    return {
        "positive": tuple(torch.cat([embeds[text] for text in texts]) for texts in by_segment),
        "negative": tuple(torch.cat([embeds[negative]] * request.batch_size) for _ in by_segment),
    }
