"""Who takes part: the same generation computed in different ways, each as something that predicts for the one loop."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.geometry import AttentionMode, Geometry, StepInputs, make_inputs, make_stock, make_transformer
from benchmarks.official import OfficialForward
from sememe.diffusion.denoise import Predict, denoise
from sememe.diffusion.guidance import Guidance
from sememe.video_as_prompt.conditioning import Conditions, Predictor
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import BackboneFamily, CogVideoXFamily, Reference, TransformerAlone, WanFamily
from sememe.video_as_prompt.guidance import ReferenceChoice, Text, Variant, video_as_prompt_guidance
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.settings import Settings

TEXT_SCALE = 5.0


@dataclass(frozen=True)
class Contestant:
    """One way of computing a generation.

    Attributes:
        name: for tables and results.
        exactness: what the result is compared with the released model's.
        model: whose weights are used.
        guidance: which predictions a step sums.
        prepare: makes what is the same at every step, and returns what predicts.
    """

    name: str
    exactness: str
    model: Any
    guidance: Guidance
    prepare: Callable[[], Predict]


@dataclass(frozen=True)
class Models:
    """Random weights of one geometry and precision, and inputs for them.

    Attributes:
        stock: the backbone alone.
        joint: with experts that read two-way; None leaves out who needs it.
        cached: with experts that read one-way; None likewise.
        inputs: what all are given.
    """

    stock: Any
    joint: Any
    cached: Any
    inputs: StepInputs


def make_models(geometry: Geometry, expert_blocks: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Models:
    """The backbone alone, and with experts in some of its blocks that read two-way or one-way."""
    modes: tuple[AttentionMode, AttentionMode] = ("joint", "cached")
    joint, cached = (make_transformer(geometry, expert_blocks, mode, dtype, device) for mode in modes)
    return Models(make_stock(geometry, dtype, device), joint, cached, make_inputs(geometry, dtype, device))


def make_contestants(models: Models, text_scale: float = TEXT_SCALE) -> dict[str, Contestant]:
    """All ways of computing, by name; with a text scale of 1 a step is one forward.

    Official guidance is of the text only: both passes carry the reference. With the stock backbone as null, the pass
    without the positive text does not.
    """
    official = video_as_prompt_guidance(text_scale, 1.0)
    alone, stock_null = (video_as_prompt_guidance(text_scale, scale) for scale in (0.0, text_scale))
    entries = []
    given, nothing = models.inputs, "exact: no reference"
    if isinstance(models.stock, ExpertModel):
        # Without a reference it is the stock backbone, bit for bit.
        entries.append(_make_ours("stock", nothing, models.stock, given, alone, text_keys="recomputed"))
    elif models.stock is not None:
        entries.append(Contestant("stock", nothing, models.stock, alone, partial(_StockPredict, models)))
    if isinstance(models.joint, WanVideoAsPromptTransformer):
        entries.append(Contestant("official", "exact", models.joint, official, partial(_OfficialPredict, models)))
    if models.joint is not None:
        nulled = "exact forwards; guidance with the stock backbone as null"
        entries.append(_make_ours("ours, exact", "exact", models.joint, given, official))
        entries.append(_make_ours("ours, stock null", nulled, models.joint, given, stock_null))
    if models.cached is not None:
        trained = "exact for an expert that was trained one-way; guidance with the stock backbone as null"
        entries.append(_make_ours("ours, one-way", trained, models.cached, given, stock_null))
    return {entry.name: entry for entry in entries}


def run_steps(contestant: Contestant, predict: Predict, latents: torch.Tensor, num_steps: int = 1) -> torch.Tensor:
    """Guided steps in the loop that generations run in."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return denoise(predict, scheduler, latents, contestant.guidance, num_steps)


def encode_reference(model: Any, given: StepInputs) -> Reference:
    """A reference as a generation keeps it: keys and values one-way, embedded tokens two-way."""
    family = make_family(model, given.latents.device)
    encode = family.encode_reference if model.config.attention_mode == "cached" else family.embed_reference
    with torch.no_grad():
        return encode(given.reference)


@dataclass(frozen=True, kw_only=True)
class _TransformerOn(TransformerAlone):
    """A transformer that computes on a device, where its weights may be for a moment only."""

    _execution_device: torch.device


def make_family(model: Any, device: torch.device) -> BackboneFamily:
    """What a pipeline knows of a transformer, with nothing around it."""
    family = CogVideoXFamily if isinstance(model, CogVideoXVideoAsPromptTransformer) else WanFamily
    return family(_TransformerOn(transformer=model, _execution_device=device))


def _make_ours(
    name: str, exactness: str, model: Any, given: StepInputs, guidance: Guidance, text_keys: str = "kept"
) -> Contestant:
    def prepare() -> Predict:
        seen = [row.variant for row in guidance.rows if row.variant.reference != "none"]
        references: dict[tuple[ReferenceChoice, Text], Reference] = {}
        if seen:
            reference = encode_reference(model, given)
            references = {(variant.reference, variant.text): reference for variant in seen}
        conditions = Conditions(
            channels=given.condition,
            texts={"positive": given.positive, "negative": given.negative},
            image_embeds=given.image_embeds,
            references=references,
        )
        family = make_family(model, given.latents.device)
        return Predictor(family, conditions, Settings().override(text_keys=text_keys))

    return Contestant(name, exactness, model, guidance, prepare)


class _StockPredict:
    """The stock transformer, asked as its own pipeline asks it."""

    def __init__(self, models: Models) -> None:
        self.model, self.given = models.stock, models.inputs

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        (variant,) = variants
        channels, times, text = _arrange(self.given, latents, timestep, variant)
        return self.model(channels, times, text, self.given.image_embeds, return_dict=False)[0].float()[None]


class _OfficialPredict:
    """One pass for each text, both with the reference; everything computed anew in each."""

    def __init__(self, models: Models) -> None:
        self.forward, self.given = OfficialForward(models.joint), models.inputs

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        (variant,) = variants
        channels, times, text = _arrange(self.given, latents, timestep, variant)
        return self.forward(channels, times, text, self.given.image_embeds, self.given.reference).float()[None]


def _arrange(
    given: StepInputs, latents: torch.Tensor, timestep: torch.Tensor, variant: Variant
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    channels = torch.cat([latents.to(given.condition.dtype), given.condition], dim=1)
    return channels, timestep.expand(1), given.positive if variant.text == "positive" else given.negative
