"""Train an expert: batches of references and targets, and the loss towards the true clips."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_part
from sememe.compute.lora import save_expert_adapter
from sememe.data.array_cache import ArrayCache
from sememe.data.pair_sources import PairItems, make_held_out_pairs, make_pairs
from sememe.data.pairing import draw_captions
from sememe.diffusion.objectives import (
    FLOW,
    NoisePath,
    NoisySamples,
    PredictionType,
    preference_losses,
    sample_losses,
)
from sememe.errors import RecipeError
from sememe.training.array_encoders import check_images, find_text
from sememe.training.held_out import choose_held_out_targets
from sememe.training.networks import choose_attention, make_scheduler
from sememe.training.preparation import CachedPreparation
from sememe.training.recipes import SchedulerSettings
from sememe.training.samples import NUM_SAMPLES, Sampler, find_sampler
from sememe.training.stage import Announce, Stage, StepLoss, make_rng
from sememe.training.text_source import TextSource
from sememe.video.sheet import SheetRow
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import BackboneFamily, ForwardInputs, Reference, TransformerAlone, choose_family
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.shapes import ImageEmbeds, TextEmbeds, Timesteps, VideoLatents
from sememe.video_as_prompt.stage_settings import ExpertRecipe, ExpertSettings, PairedRecipe, PairSettings
from sememe.video_as_prompt.stages import (
    ClipBatch,
    LatentSource,
    add_noise,
    check_channels,
    find_unseen,
    read_items,
    select_conditions,
)


@dataclass(frozen=True)
class ExpertBatch:
    """Targets, and the references of groups of targets.

    Attributes:
        targets: The clips that are predicted.
        references: The clips that they read, as many of each group, one group after the other.
        owners: The group of each target.
        references_per_target: How many references a group has.
    """

    targets: ClipBatch
    references: ClipBatch
    owners: Int[Tensor, " batch"]
    references_per_target: int = 1


@dataclass(frozen=True)
class PairInputs:
    """What networks are given of a batch besides noisy latents.

    Attributes:
        text: Captions of the targets.
        first_frames: First frames of the targets, as in `ClipBatch`.
        image_embeds: Image embeddings of the targets' first frames, as in `ClipBatch`.
        references: References, an entry of the batch for each group.
    """

    text: TextEmbeds
    first_frames: VideoLatents | None
    image_embeds: ImageEmbeds | None
    references: ReferenceInputs

    def encode(self, family: BackboneFamily) -> Reference:
        """Encode the references of all groups in the mode of a network."""
        if family.transformer.config.attention_mode == "cached":
            return family.encode_reference(self.references)
        return family.embed_reference(self.references)

    def predict(
        self,
        family: BackboneFamily,
        noisy: VideoLatents,
        timesteps: Timesteps,
        reference: Reference,
        owners: Int[Tensor, " batch"],
    ) -> VideoLatents:
        """Predict for all targets, each with the references of a group.

        Args:
            family: The network.
            noisy: Noisy targets.
            timesteps: Their timesteps in 0..1000.
            reference: Result of `encode` of the same network.
            owners: The group that each target reads.
        """
        channels = family.join_condition(noisy, self.first_frames)
        inputs = ForwardInputs(channels, timesteps, self.text, self.image_embeds)
        return family.predict(inputs, assign(reference, owners))


def assign(reference: Reference, owners: Int[Tensor, " target"]) -> Reference:
    """Return the reference of each target, from those of all groups."""
    return reference.map(lambda tensor: tensor.index_select(0, owners))


class PairedStage(Stage[ExpertBatch]):
    """What all trainings of an expert share; see `training.stage.Stage`.

    Of an expert with an adapter, the adapter alone is trained and written. Targets drawn without a reference are left
    out, because only the frozen backbone predicts them.
    """

    def __init__(
        self,
        transformer: ExpertModel,
        text: TextSource,
        latents: LatentSource,
        settings: PairSettings,
    ) -> None:
        transformer.freeze_backbone()
        self.transformer: ExpertModel = transformer.train()
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
            max_references=settings.max_references,
        )
        self._pairs = make_pairs(self._items, same_scene_share=settings.same_scene_share)

    def hold_out(self) -> "PairedStage":
        """Hold out targets; their references are clips that are trained on."""
        items, other = self._items, copy(self)
        held = choose_held_out_targets(items.scenes, items.groups, items.max_references)
        self._pairs = make_pairs(items, same_scene_share=self.pairing.same_scene_share, left_out=held)
        other._pairs = make_held_out_pairs(items, held)
        return other

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer}

    def split_by_tokens(self) -> Collection[str]:
        return self.modules().keys()

    def only_computed(self) -> Collection[str]:
        """The backbone, of which a run exports nothing."""
        is_expert_key = self.transformer.key_map.is_expert_key
        names = [name for name, _ in self.transformer.named_parameters()]
        return [f"transformer.{name}" for name in names if not is_expert_key(name)]

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ExpertBatch:
        settings, rng = self.pairing, make_rng(generator)
        count = 1 if settings.max_references == 1 else int(rng.integers(1, settings.max_references + 1))
        pairs = self._pairs.draw(rng, settings.num_references, settings.targets_per_reference, count)
        choice = draw_captions(
            settings.captions, rng, num_targets=len(pairs.targets), num_references=len(pairs.references)
        )
        kept = np.flatnonzero(~choice.dropped_references)
        # A batch needs a target.
        kept = kept if len(kept) else np.arange(1)
        targets, owners = self.list_targets(pairs.targets[kept], rng), kept // settings.targets_per_reference
        return ExpertBatch(
            targets=self._read(targets.ravel(), np.tile(choice.targets[kept], len(targets))).to(device),
            references=self._read(pairs.references, choice.references).to(device),
            owners=torch.from_numpy(np.tile(owners, len(targets))).to(device),
            references_per_target=count,
        )

    def list_targets(self, picked: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.integer]:
        """Return the items that are predicted for each target, (outcome, target); one outcome here."""
        return picked[None]

    def loss(self, batch: ExpertBatch, generator: torch.Generator) -> StepLoss:
        given = self.embed(batch)
        noised = self.add_noise(batch, given, generator)
        errors = self.measure(given, noised, given.encode(self._family), batch.owners)
        return StepLoss.of_samples(errors, noised.levels)

    def measure(
        self, given: PairInputs, noised: NoisySamples, reference: Reference, owners: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the mean squared error for each target, as it reads the references of the group in `owners`."""
        predicted = given.predict(self._family, noised.noisy, noised.timesteps, reference, owners)
        return sample_losses(predicted, noised.target)

    def embed(self, batch: ExpertBatch) -> PairInputs:
        """Embed the captions of a batch, and join what networks are given of its references."""
        targets, references, count = batch.targets, batch.references, batch.references_per_target
        with torch.no_grad():
            text, reference_text = self.text.embed(targets.text), self.text.embed(references.text)
        channels = self._family.join_condition(references.clean, references.first_frames)
        images = references.image_embeds
        # (group * reference, ...) -> one (group, ...) for each reference
        inputs = ReferenceInputs(
            tuple(channels[place::count] for place in range(count)),
            tuple(reference_text[place::count] for place in range(count)),
            None if images is None else tuple(images[place::count] for place in range(count)),
        )
        return PairInputs(text, targets.first_frames, targets.image_embeds, inputs)

    @abstractmethod
    def add_noise(self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator) -> NoisySamples:
        """Return the noisy targets of a batch and what is to be predicted for them."""

    def sample(self, generator: torch.Generator, device: torch.device) -> Sequence[SheetRow]:
        """Make the targets of two references."""
        if self.sampler is None:
            return ()
        family, batch = self._family, self.batch(0, generator, device)
        owners = batch.owners.unique()[:NUM_SAMPLES]
        places = torch.stack([(batch.owners == owner).nonzero()[0, 0] for owner in owners])
        targets = batch.targets.map(lambda tensor: tensor[places])
        given = self.embed(replace(batch, targets=targets))
        reference = given.encode(family)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return given.predict(family, noisy, timesteps, reference, owners)

        # The last reference of each group is the nearest to the target.
        shown = batch.references.clean[(owners + 1) * batch.references_per_target - 1]
        made = self.sampler.make(predict, targets.clean, generator)
        return self.sampler.show({"reference": shown, "made": made, "true": targets.clean})

    def export(self, folder: Path) -> None:
        """Write `lora/` where the expert has an adapter, else `expert/`, which goes beside the backbone's folder."""
        if getattr(self.transformer, "peft_config", None):
            save_expert_adapter(self.transformer, folder / "lora")
        else:
            self.transformer.save_expert(folder / "expert")

    def _read(self, picked: NDArray[np.integer], kinds: NDArray[Any]) -> ClipBatch:
        return read_items(self.latents, self.text, picked, kinds, self._family)


MISMATCH_STRENGTH = 250.0
"""Factor of the differences of mean squared errors by which references are distinguished."""


class ExpertStage(PairedStage):
    """Training of the expert towards the true clips; see `training.stage.Stage`.

    Two losses may join that of the prediction, each with a weight in the settings.

    - Mismatched references: as a denoiser classifies by its errors (arXiv 2303.16203), the error with a target's own
      reference is to be below that with another condition's, for the same noise. The loss is a logistic one,
      `diffusion.objectives.preference_losses` of the difference.
    - The references themselves: noise is added to them in a pass of their own, in which the expert reads no target and
      predicts by the backbone's frozen output head. What targets read stays clean, as in generation.

    Raises:
        RecipeError: Mismatched references are asked for, and a batch has more references than there are conditions.
    """

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
        num_conditions = len(set(latents.conditions))
        if settings.mismatch_weight and settings.num_references > num_conditions:
            raise RecipeError(
                f"mismatch_weight needs references of different conditions, but a batch has {settings.num_references} "
                f"of {num_conditions} conditions; set settings.num_references to at most that"
            )

    def add_noise(self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator) -> NoisySamples:
        return add_noise(batch.targets.clean, self._path, self.settings, generator)

    def loss(self, batch: ExpertBatch, generator: torch.Generator) -> StepLoss:
        settings, given = self.settings, self.embed(batch)
        noised = self.add_noise(batch, given, generator)
        reference = given.encode(self._family)
        errors = self.measure(given, noised, reference, batch.owners)
        total, metrics = errors.sum(), dict[str, Tensor | float]()
        if settings.mismatch_weight:
            others = self.measure(given, noised, reference, (batch.owners + 1) % settings.num_references)
            total = total + settings.mismatch_weight * preference_losses(others - errors, MISMATCH_STRENGTH).sum()
            metrics["matched"] = (others > errors).float().mean()
        if settings.reference_weight:
            alone = self._measure_references(batch, given, generator).mean()
            total = total + settings.reference_weight * alone * len(errors)
            metrics["reference_loss"] = alone.detach()
        return StepLoss.of_samples(errors, noised.levels, total=total, metrics=metrics)

    def _measure_references(
        self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator
    ) -> Float[Tensor, " noised"]:
        """Return the mean squared error of the expert alone for each reference, at random levels of noise."""
        references, count, found = batch.references, batch.references_per_target, []
        for place, inputs in enumerate(given.references.split()):
            noised = add_noise(references.clean[place::count], self._path, self.settings, generator)
            first = references.first_frames
            channels = self._family.join_condition(noised.noisy, None if first is None else first[place::count])
            predicted = self._family.denoise_reference(replace(inputs, latents=(channels,)), noised.timesteps)
            found.append(sample_losses(predicted, noised.target))
        return torch.cat(found)


class PairedPreparation(CachedPreparation, ABC):
    """Latents and the frozen backbone for the training of an expert.

    Raises:
        ModelError: The backbone is not whole.
        RecipeError: The latents are of another kind than the backbone's.
    """

    _recipe: PairedRecipe

    def __init__(self, recipe: PairedRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        announce("loading the backbone")
        backbone = load_component("transformer", parts["transformer"])
        self._transformer = self.put_expert(backbone, self.inputs.get("first_frame_fill"))

    @property
    def inputs(self) -> Mapping[str, str]:
        names = [name for name in ("clean", "first_frame", "image") if name in self._cache.arrays]
        return {key: value for name in names for key, value in self._cache.describe(name).items()}

    def begin(self, folder: Path) -> None:
        self._transformer.save_expert(folder / "expert")

    def take_up(self, folder: Path) -> None:
        """Read the weights that a run begins with, which `begin` or another run has written."""
        self._transformer.load_expert(folder / "expert", for_any_use=True)

    def build(self, start: Path) -> PairedStage:
        recipe, parts, transformer = self._recipe, self._parts, self._transformer
        check_channels(transformer, self._cache)
        self.take_up(start)
        choose_attention(transformer, recipe.training.device)
        family = choose_family(TransformerAlone(transformer))
        for name in family.list_arrays():
            self._cache.describe(name)
        if "image" in family.list_arrays():
            images = (find_part(recipe.backbone, part) for part in ("image_encoder", "image_processor"))
            check_images(self._cache, *images)
        text = find_text(parts, self._cache, family.text_length, reads_padding=family.reads_padding)
        unseen, max_references = find_unseen(self._cache, recipe.unseen), recipe.settings.max_references
        latents = select_conditions(self._cache, unseen, recipe.num_conditions, max_references)
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
    def put_expert(self, backbone: ModelMixin, fill: str | None) -> ExpertModel:
        """Return the transformer to train on a backbone, with the expert that it begins with.

        Args:
            backbone: The frozen backbone.
            fill: Kind of the cached first-frame latents; None where there are none.
        """

    @abstractmethod
    def make_stage(
        self, transformer: ExpertModel, text: TextSource, latents: ArrayCache, prediction: PredictionType
    ) -> PairedStage:
        """Return the stage."""


class ExpertPreparation(PairedPreparation):
    """What `PairedPreparation` has, for an expert that begins as a copy of the backbone."""

    _recipe: ExpertRecipe

    def put_expert(self, backbone: ModelMixin, fill: str | None) -> ExpertModel:
        recipe, kind = self._recipe, find_kind(backbone, fill)
        own = {
            "expert_blocks": recipe.expert_blocks,
            "attention_mode": recipe.attention_mode,
            "reference_timestep": recipe.reference_timestep,
            "num_reference_embeddings": recipe.settings.max_references if recipe.reference_embeddings else 0,
        } | ({"first_frame_fill": fill} if fill in ("grey", "repeat") else {})
        return kind.from_backbone(backbone, **own)

    def make_stage(
        self, transformer: ExpertModel, text: TextSource, latents: ArrayCache, prediction: PredictionType
    ) -> ExpertStage:
        path = find_path(self._recipe.backbone, prediction)
        return ExpertStage(transformer, text, latents, self._recipe.settings, path)


def load_expert(backbone: ModelMixin, folder: Path, fill: str | None) -> ExpertModel:
    """Return a backbone with the expert of a folder; the backbone's modules are shared, not copied.

    Raises:
        ModelError: The expert is not whole, or is of another backbone.
        RecipeError: Cached first-frame latents of this kind do not fit the backbone.
    """
    kind = find_kind(backbone, fill)
    config = kind.read_expert_config(folder)
    model = kind.from_backbone(backbone, **{name: config[name] for name in kind.own_settings})
    model.load_expert(folder)
    return model


def find_kind(backbone: ModelMixin, fill: str | None) -> type[ExpertModel]:
    """Return the class that puts experts on a backbone.

    Raises:
        RecipeError: Cached first-frame latents of this kind do not fit the backbone.
    """
    kinds = (WanVideoAsPromptTransformer, CogVideoXVideoAsPromptTransformer)
    kind = next(each for each in kinds if isinstance(backbone, each.backbone_class))
    if fill is not None and ("first_frame_fill" in kind.own_settings) == (fill == "zeros"):
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
