"""Train an expert: batches of references and targets, and the loss towards the true clips."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_part
from sememe.compute.devices import choose_device
from sememe.data.array_cache import ArrayCache
from sememe.data.bucket_pairs import PairItems, make_held_out_pairs, make_pairs
from sememe.data.pairing import draw_captions
from sememe.diffusion.objectives import FLOW, NoisePath, PredictionType
from sememe.errors import RecipeError
from sememe.training.array_encoders import find_text
from sememe.training.held_out import choose_held_out_targets
from sememe.training.networks import AttentionChooser, choose_attention, make_scheduler
from sememe.training.recipes import SchedulerSettings
from sememe.training.samples import NUM_SAMPLES, Sampler, find_sampler
from sememe.training.stage import Announce, Stage, StepLoss, Weights, make_rng
from sememe.training.text_source import TextSource
from sememe.video.sheet import SheetRow
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import BackboneFamily, ForwardInputs, Reference, TransformerAlone, choose_family
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.shapes import TextEmbeds, VideoLatents
from sememe.video_as_prompt.stage_settings import ExpertRecipe, ExpertSettings, PairedRecipe, PairSettings
from sememe.video_as_prompt.stages import (
    Captions,
    LatentSource,
    NoisyLatents,
    add_noise,
    check_channels,
    find_unseen,
    read_items,
    select_conditions,
    sum_losses,
)

References = Float[Tensor, "reference channel frame height width"]
"""Latents of references, of which there may be fewer than targets."""


@dataclass(frozen=True)
class ExpertBatch:
    """Clean latents, first-frame latents and captions of targets and references.

    `owners` holds the index of each target's reference.
    """

    clean: VideoLatents
    first_frames: VideoLatents
    text: Captions
    reference_clean: References
    reference_first_frames: References
    reference_text: Shaped[Tensor, "reference *reference_text"]
    owners: Int[Tensor, " batch"]


@dataclass(frozen=True)
class PairInputs:
    """What a network is given of a batch besides noisy latents: channels of the references, and all captions."""

    reference: References
    text: TextEmbeds
    reference_text: Float[Tensor, "reference reference_token text_dim"]

    def encode(self, family: BackboneFamily, owners: Int[Tensor, " target"]) -> Reference:
        """Encode references, once each in one-way mode, and assign them to the targets that read them."""
        if family.transformer.config.attention_mode == "cached":
            cache = family.encode_reference(ReferenceInputs((self.reference,), (self.reference_text,)))
            return cache.map(lambda tensor: tensor.index_select(0, owners))
        return family.embed_reference(ReferenceInputs((self.reference[owners],), (self.reference_text[owners],)))


class PairedStage(Stage):
    """What all trainings of an expert share; see `training.stage.Stage`.

    Targets drawn without a reference are left out, because only the frozen backbone predicts them.
    """

    def __init__(
        self,
        transformer: ExpertModel,
        text: TextSource,
        latents: LatentSource,
        settings: PairSettings,
    ) -> None:
        transformer.freeze_backbone()
        self.transformer: Any = transformer.train()  # type: ignore[attr-defined]
        self.text = text
        self.latents = latents
        self.pairing = settings
        self.sampler: Sampler | None = None
        """Makes samples to look at; without it there are none."""
        self._family = choose_family(TransformerAlone(transformer))
        self._items = PairItems(
            conditions=latents.conditions,
            scenes=latents.scenes,
            buckets=latents.buckets,
            references=latents.references,
        )
        self._pairs = make_pairs(self._items, same_scene_share=settings.same_scene_share)

    def hold_out(self) -> "PairedStage":
        """Hold out targets; their references are clips that are trained on."""
        held, other = choose_held_out_targets(self._items.scenes, self._items.groups), copy(self)
        self._pairs = make_pairs(self._items, same_scene_share=self.pairing.same_scene_share, left_out=held)
        other._pairs = make_held_out_pairs(self._items, held)
        return other

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ExpertBatch:
        settings, rng = self.pairing, make_rng(generator)
        pairs = self._pairs.draw(rng, settings.num_references, settings.targets_per_reference)
        choice = draw_captions(
            settings.captions, rng, num_targets=len(pairs.targets), num_references=len(pairs.references)
        )
        kept = np.flatnonzero(~choice.dropped_references)
        # A batch needs a target.
        kept = kept if len(kept) else np.arange(1)
        targets = read_items(self.latents, self.text, pairs.targets[kept], choice.targets[kept])
        references = read_items(self.latents, self.text, pairs.references, choice.references)
        owners = torch.from_numpy(kept // settings.targets_per_reference)
        return ExpertBatch(*(part.to(device) for part in (*targets, *references, owners)))

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        family = self._family
        with torch.no_grad():
            text, reference_text = self.text.embed(batch.text), self.text.embed(batch.reference_text)
        reference = family.join_condition(batch.reference_clean, batch.reference_first_frames)
        given = PairInputs(reference, text, reference_text)
        noised = self.add_noise(batch, given, generator)
        channels = family.join_condition(noised.noisy, batch.first_frames)
        inputs = ForwardInputs(channels, noised.timesteps, text)
        predicted = family.predict(inputs, given.encode(family, batch.owners))
        return sum_losses(predicted, noised)

    @abstractmethod
    def add_noise(self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator) -> NoisyLatents:
        """Return the noisy targets of a batch and what is to be predicted for them."""

    def sample(self, generator: torch.Generator, device: torch.device) -> Sequence[SheetRow]:
        """Make the targets of two references."""
        if self.sampler is None:
            return ()
        family, batch = self._family, self.batch(0, generator, device)
        owners = batch.owners.unique()[:NUM_SAMPLES]
        places = torch.stack([(batch.owners == owner).nonzero()[0, 0] for owner in owners])
        clean, first_frames = batch.clean[places], batch.first_frames[places]
        shown = batch.reference_clean[owners]
        given = PairInputs(
            family.join_condition(shown, batch.reference_first_frames[owners]),
            self.text.embed(batch.text[places]),
            self.text.embed(batch.reference_text[owners]),
        )
        reference = given.encode(family, torch.arange(len(owners), device=device))

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            channels = family.join_condition(noisy, first_frames)
            return family.predict(ForwardInputs(channels, timesteps, given.text), reference)

        made = self.sampler.make(predict, clean, generator)
        return self.sampler.show({"reference": shown, "made": made, "true": clean})

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `expert/` alone; it goes beside the backbone's `transformer/`."""
        self.transformer.save_expert(folder / "expert")


class ExpertStage(PairedStage):
    """Training of the expert towards the true clips; see `training.stage.Stage`."""

    name = "expert"

    def __init__(
        self,
        transformer: ExpertModel,
        text: TextSource,
        latents: LatentSource,
        settings: ExpertSettings,
        path: NoisePath = FLOW,
    ) -> None:
        super().__init__(transformer, text, latents, settings)
        self.settings, self._path = settings, path

    def add_noise(self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator) -> NoisyLatents:
        return add_noise(batch.clean, self._path, self.settings, generator)


class PairedPreparation(ABC):
    """Latents and the frozen backbone for the training of an expert; see `training.stage.Preparation`.

    Raises:
        InputError: The latents are not there, or not finished.
        ModelError: The backbone is not whole.
        RecipeError: The latents are of another kind than the backbone's.
    """

    def __init__(self, recipe: PairedRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        self._recipe, self._parts = recipe, parts
        announce("reading latents")
        self._cache = ArrayCache.open(recipe.latents, choose_device(recipe.training.device))
        announce("loading the backbone")
        backbone = load_component("transformer", parts["transformer"])
        self._transformer = self.put_expert(backbone, self.inputs["first_frame_fill"])

    @property
    def inputs(self) -> Mapping[str, str]:
        return self._cache.describe("first_frame")

    def begin(self, folder: Path) -> None:
        self._transformer.save_expert(folder / "expert")

    def build(self, start: Path) -> PairedStage:
        recipe, parts, transformer = self._recipe, self._parts, self._transformer
        check_channels(transformer, self._cache)
        transformer.load_expert(start / "expert")
        choose_attention(cast(AttentionChooser, transformer), recipe.training.device)
        family = choose_family(TransformerAlone(transformer))
        text = find_text(parts, self._cache, family.text_length, reads_padding=family.reads_padding)
        latents = select_conditions(self._cache, find_unseen(self._cache, recipe.unseen), recipe.num_conditions)
        stage = self.make_stage(transformer, text, latents, family.prediction)
        stage.sampler = self.make_sampler(family.prediction)
        return stage

    def make_sampler(self, prediction: PredictionType) -> Sampler | None:
        """Return what makes samples; None where the recipe names no autoencoder."""
        if prediction == "flow":
            return find_sampler(self._parts, make_scheduler(SchedulerSettings()))
        scheduler = load_component("scheduler", find_part(self._recipe.backbone, "scheduler"))
        return find_sampler(self._parts, scheduler)

    @abstractmethod
    def put_expert(self, backbone: Any, fill: str) -> ExpertModel:
        """Return the transformer to train on a backbone, with the expert that it begins with.

        Args:
            backbone: The frozen backbone.
            fill: Kind of the cached first-frame latents.
        """

    @abstractmethod
    def make_stage(
        self, transformer: ExpertModel, text: TextSource, latents: ArrayCache, prediction: PredictionType
    ) -> PairedStage:
        """Return the stage."""


class ExpertPreparation(PairedPreparation):
    """What `PairedPreparation` has, for an expert that begins as a copy of the backbone."""

    _recipe: ExpertRecipe

    def put_expert(self, backbone: Any, fill: str) -> ExpertModel:
        recipe, kind = self._recipe, find_kind(backbone, fill)
        own = {
            "expert_blocks": recipe.expert_blocks,
            "attention_mode": recipe.attention_mode,
            "reference_timestep": recipe.reference_timestep,
            "first_frame_fill": fill,
        }
        model: ExpertModel = kind.from_backbone(backbone, **{name: own[name] for name in kind.own_settings})
        return model

    def make_stage(
        self, transformer: ExpertModel, text: TextSource, latents: ArrayCache, prediction: PredictionType
    ) -> ExpertStage:
        path = find_path(self._recipe.backbone, prediction)
        return ExpertStage(transformer, text, latents, self._recipe.settings, path)


def find_kind(backbone: Any, fill: str) -> Any:
    """Return the class that puts experts on a backbone.

    Raises:
        RecipeError: Cached first-frame latents of this kind do not fit the backbone.
    """
    kinds = (WanVideoAsPromptTransformer, CogVideoXVideoAsPromptTransformer)
    kind = next(each for each in kinds if isinstance(backbone, each.backbone_class))
    if ("first_frame_fill" in kind.own_settings) == (fill == "zeros"):
        raise RecipeError(
            f"latents with first_frame_fill={fill} do not fit a {type(backbone).__name__}; precompute them with "
            "zeros for CogVideoX, grey or repeat for Wan"
        )
    return kind


def find_path(backbone: str, prediction: PredictionType) -> NoisePath:
    """Return the path to noise that a backbone was trained on, where it is a diffusion that of its scheduler.

    Raises:
        RecipeError: Its scheduler is for another kind of prediction.
    """
    if prediction == "flow":
        return FLOW
    path = NoisePath.of_scheduler(load_component("scheduler", find_part(backbone, "scheduler")))
    if path.prediction != prediction:
        raise RecipeError(f"the backbone {backbone} predicts {prediction}, but its scheduler is for {path.prediction}")
    return path
