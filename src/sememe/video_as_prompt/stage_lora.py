"""Train a LoRA on an expert: towards true clips, or towards the outcome that a reference shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ModelMixin
from numpy.typing import NDArray
from peft import LoraConfig

from sememe.compute.lora import add_expert_adapter, load_expert_adapter, save_expert_adapter, without_adapters
from sememe.data.array_cache import ArrayCache
from sememe.diffusion.objectives import FLOW, NoisePath, NoisySamples, PredictionType, preference_losses
from sememe.errors import RecipeError
from sememe.training.stage import StepLoss
from sememe.training.text_source import TextSource
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.stage_expert import (
    ExpertBatch,
    ExpertStage,
    PairedPreparation,
    PairedStage,
    PairInputs,
    find_path,
    load_expert,
)
from sememe.video_as_prompt.stage_settings import LoraRecipe, PreferenceRecipe, PreferenceSettings
from sememe.video_as_prompt.stages import LatentSource, add_noise

_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class PreferenceStage(PairedStage):
    """Training of an expert's adapter by preferences; see `training.stage.Stage`.

    A pair of outcomes are two clips of one scene, with the same picture, caption, noise and level of noise: the chosen
    one shows the condition of the reference, the rejected one another condition. The loss is that of Diffusion-DPO
    (arXiv 2311.12908, equation 14; for flow matching arXiv 2501.13918, section 4), and its frozen network is the expert
    without the adapter. Where a scene shows no other condition, both outcomes are the same, which has no gradient.

    Raises:
        RecipeError: No scene was seen under two conditions.
    """

    name = "preference"

    def __init__(
        self,
        transformer: ExpertModel,
        text: TextSource,
        latents: LatentSource,
        settings: PreferenceSettings,
        path: NoisePath = FLOW,
    ) -> None:
        super().__init__(transformer, text, latents, settings)
        self._settings, self._path = settings, path
        # Outcomes of a pair have one length and size.
        self._keys = list(zip(latents.scenes, latents.buckets, strict=True))
        self._in_scene: dict[tuple[str, str], list[int]] = {}
        for index, key in enumerate(self._keys):
            self._in_scene.setdefault(key, []).append(index)
        if all(len({latents.conditions[each] for each in items}) < 2 for items in self._in_scene.values()):
            raise RecipeError("preferences need a scene under two conditions, and the clips have none; train an expert")

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ExpertBatch:
        batch = super().batch(step, generator, device)
        # Both outcomes are given what the chosen one is.
        shared = batch.targets.map(lambda tensor: torch.cat([tensor.chunk(2)[0]] * 2))
        return replace(batch, targets=replace(shared, clean=batch.targets.clean))

    def list_targets(self, picked: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.integer]:
        conditions, others = self.latents.conditions, []
        for index in picked.tolist():
            found = [each for each in self._in_scene[self._keys[index]] if conditions[each] != conditions[index]]
            others.append(found[int(rng.integers(len(found)))] if found else index)
        return np.stack([picked, np.array(others)])

    def add_noise(self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator) -> NoisySamples:
        return add_noise(batch.targets.clean, self._path, self._settings, generator, num_outcomes=2)

    def loss(self, batch: ExpertBatch, generator: torch.Generator) -> StepLoss:
        given = self.embed(batch)
        noised = self.add_noise(batch, given, generator)
        with torch.no_grad(), without_adapters(self.transformer):
            frozen = self.measure(given, noised, given.encode(self._family), batch.owners)
        trained = self.measure(given, noised, given.encode(self._family), batch.owners)
        chosen, rejected = (frozen - trained).chunk(2)
        losses = preference_losses(chosen - rejected, self._settings.strength)
        metrics = {"preferred": (chosen > rejected).float().mean(), "gain": chosen.detach().mean()}
        return StepLoss.of_samples(losses, noised.levels[: len(losses)], metrics=metrics)


class AdapterPreparation(PairedPreparation):
    """What `PairedPreparation` has, and the expert that the adapter is for.

    Raises:
        ModelError: The expert is not whole, or is of another backbone.
    """

    _recipe: LoraRecipe | PreferenceRecipe

    def put_expert(self, backbone: ModelMixin, fill: str | None) -> ExpertModel:
        return load_expert(backbone, self._parts["expert"], fill)

    def begin(self, folder: Path) -> None:
        model = self._transformer
        torch.manual_seed(self._recipe.training.seed)
        add_expert_adapter(model, make_lora(self._recipe.rank))
        save_expert_adapter(model, folder / "lora")
        model.unload_lora()

    def take_up(self, folder: Path) -> None:
        model = self._transformer
        load_expert_adapter(model, folder / "lora")

    def make_stage(
        self, transformer: ExpertModel, text: TextSource, latents: ArrayCache, prediction: PredictionType
    ) -> PairedStage:
        recipe = self._recipe
        path = find_path(recipe.backbone, prediction)
        if isinstance(recipe, PreferenceRecipe):
            return PreferenceStage(transformer, text, latents, recipe.settings, path)
        return ExpertStage(transformer, text, latents, recipe.settings, path)


def make_lora(rank: int) -> LoraConfig:
    """Return what is added to the projections of an expert's attention."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS)
