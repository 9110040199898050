"""Train an expert towards another one: to read references one-way, or to need few steps and no guidance."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor, nn

from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache
from sememe.diffusion.few_steps import FewSteps
from sememe.diffusion.objectives import NUM_TRAIN_TIMESTEPS, NoisePath, NoisySamples, PredictionType
from sememe.training.networks import make_scheduler
from sememe.training.recipes import SchedulerSettings
from sememe.training.samples import Sampler
from sememe.training.text_source import TextSource
from sememe.video_as_prompt.conditioning import Conditions, Predictor
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import BackboneFamily, Reference, TransformerAlone, choose_family
from sememe.video_as_prompt.guidance import ReferenceChoice, Text, VideoAsPromptSchedule
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.shapes import VideoLatents
from sememe.video_as_prompt.stage_expert import (
    ExpertBatch,
    ExpertStage,
    PairedPreparation,
    PairedStage,
    PairInputs,
    assign,
    find_path,
    load_expert,
)
from sememe.video_as_prompt.stage_settings import ExpertSettings, FewStepRecipe, FewStepSettings, OneWayRecipe
from sememe.video_as_prompt.stages import LatentSource


class TaughtStage(PairedStage):
    """What trainings towards a `teacher` share; see `training.stage.Stage`.

    The teacher is whole on every process, because those that read shares of a step may ask it more often than others.
    """

    teacher: ExpertModel

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "teacher": self.teacher}

    def always_run(self) -> Collection[str]:
        return super().modules().keys()

    def only_computed(self) -> Collection[str]:
        """The backbone, and all of the teacher."""
        return [*super().only_computed(), *(f"teacher.{name}" for name, _ in self.teacher.named_parameters())]


class OneWayStage(TaughtStage, ExpertStage):
    """Training of a one-way expert towards a two-way one; see `training.stage.Stage`.

    The loss is the squared distance from the mean of the two targets. Up to a term that does not depend on the student
    that is (1 - `true_share`) |student - teacher|^2 + `true_share` |student - true|^2.
    """

    name = "one_way"

    def __init__(
        self,
        transformer: ExpertModel,
        teacher: ExpertModel,
        text: TextSource,
        latents: LatentSource,
        settings: ExpertSettings,
        true_share: float,
        path: NoisePath,
    ) -> None:
        super().__init__(transformer, text, latents, settings, path)
        self.teacher = freeze(teacher)
        self._true_share = true_share

    @torch.no_grad()
    def add_noise(self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator) -> NoisySamples:
        noised = super().add_noise(batch, given, generator)
        family = choose_family(TransformerAlone(self.teacher))
        predicted = given.predict(family, noised.noisy, noised.timesteps, given.encode(family), batch.owners)
        return replace(noised, target=torch.lerp(predicted.float(), noised.target, self._true_share))


@dataclass(frozen=True, kw_only=True)
class FewStepBatch(ExpertBatch):
    """Targets, of which only the conditioning is used, and the noise that generation begins with.

    Attributes:
        noise: Noise of each target.
        seed: What the batch was drawn by, the same whenever it comes again.
    """

    noise: VideoLatents
    seed: int


class FewStepStage(TaughtStage):
    """Training of an expert for few steps; see `training.stage.Stage`.

    The teacher goes from noise to a clip in many steps under its guidance. The student goes from the same noise by its
    own steps up to one of them, and learns the prediction that leads from there to where the teacher was at the end of
    that step. Each step learns to stand for several of the teacher's (arXiv 2202.00512, section 3), with the guidance
    folded in (arXiv 2210.03142, section 3), and starts from latents as generation has them there, so that it also
    corrects the errors of the steps before (arXiv 2405.05224, section 3.1).

    A teacher is asked once for a batch that comes again (`training.repeat_after`), and its path is kept in memory.
    """

    name = "few_step"

    def __init__(
        self,
        transformer: ExpertModel,
        teacher: ExpertModel,
        text: TextSource,
        latents: LatentSource,
        settings: FewStepSettings,
        scheduler: SchedulerMixin,
        *,
        keeps_paths: bool = False,
    ) -> None:
        super().__init__(transformer, text, latents, settings)
        self.teacher = freeze(teacher)
        self._paths: dict[int, list[VideoLatents]] | None = {} if keeps_paths else None
        # Keeping the texts' keys would pay for a generation of many steps.
        self._settings = Settings(guidance=settings.guidance).override(text_keys="recomputed")
        self._schedule = VideoAsPromptSchedule(settings=self._settings, texts_differ=True)
        self._steps = FewSteps(scheduler, settings.num_steps, settings.teacher_steps)

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> FewStepBatch:
        drawn, seed = super().batch(step, generator, device), generator.initial_seed()
        noise = torch.randn(drawn.targets.clean.shape, generator=generator).to(device)
        return FewStepBatch(**{each.name: getattr(drawn, each.name) for each in fields(drawn)}, noise=noise, seed=seed)

    @torch.no_grad()
    def add_noise(self, batch: ExpertBatch, given: PairInputs, generator: torch.Generator) -> NoisySamples:
        assert isinstance(batch, FewStepBatch), f"a {type(batch).__name__} has no noise"
        steps, device, path = self._steps, batch.noise.device, self._find_path(batch, given)
        first = torch.randint(steps.num_steps, (1,), generator=generator, device=device)
        places = (torch.arange(len(batch.noise), device=device) + first) % steps.num_steps
        noisy, target = torch.empty_like(batch.noise), torch.empty_like(batch.noise)
        reached, reference = batch.noise, given.encode(self._family)
        for place in range(steps.num_steps):
            begins = (places == place).nonzero().flatten()
            noisy[begins] = reached[begins]
            target[begins] = steps.find_prediction(reached[begins], path[place][begins], place)
            if place + 1 < steps.num_steps:
                timesteps = steps.timesteps[place].to(device).expand(len(reached))
                predicted = given.predict(self._family, reached, timesteps, reference, batch.owners)
                reached = steps.move(predicted.float(), reached, place)
        timesteps = steps.timesteps.to(device)[places]
        return NoisySamples(noisy, timesteps.float() / NUM_TRAIN_TIMESTEPS, timesteps, target)

    def _find_path(self, batch: FewStepBatch, given: PairInputs) -> list[VideoLatents]:
        """The latents that the teacher reaches at the end of each of the student's steps."""
        if self._paths is not None and batch.seed in self._paths:
            return [reached.to(batch.noise.device) for reached in self._paths[batch.seed]]
        family = choose_family(TransformerAlone(self.teacher))
        predictor = Predictor(family, self._find_conditions(batch, given, family), self._settings)
        reached, path = batch.noise, []
        for place in range(self._steps.num_steps):
            reached = self._steps.follow(predictor, self._schedule.by_timestep, reached, place)
            path.append(reached)
        if self._paths is not None:
            self._paths[batch.seed] = [reached.cpu() for reached in path]
        return path

    def _find_conditions(self, batch: FewStepBatch, given: PairInputs, family: BackboneFamily) -> Conditions:
        noise, first = batch.noise, given.first_frames
        # What a network is given of the first frame follows the latents.
        channels = None if first is None else family.join_condition(noise, first)[:, noise.shape[1] :]
        texts: dict[Text, Tensor] = {"positive": given.text}
        if self._settings.guidance.guidance_scale != 1.0:
            negative = self.text.pick([str(self._settings.guidance.negative_prompt)]).to(noise.device)
            texts["negative"] = self.text.embed(negative).expand_as(given.text)
        seen = assign(given.encode(family), batch.owners)
        read: dict[tuple[ReferenceChoice, Text], Reference] = {("given", text): seen for text in texts}
        return Conditions(channels, texts, given.image_embeds, read)


class DistillationPreparation(PairedPreparation):
    """What `PairedPreparation` has, and an expert that the trained one begins as and learns from.

    Raises:
        ModelError: The teacher is not whole, or is of another backbone.
    """

    _recipe: OneWayRecipe | FewStepRecipe

    def put_expert(self, backbone: ModelMixin, fill: str | None) -> ExpertModel:
        # Both share the modules of the backbone, which stay as they are.
        self._teacher = load_expert(backbone, self._parts["expert"], fill)
        own = {name: self._teacher.config[name] for name in self._teacher.own_settings}
        student = self._teacher.from_backbone(backbone, **{**own, **self.find_changes()})
        student.copy_expert(self._teacher)
        return student

    def find_changes(self) -> Mapping[str, Any]:
        """Return the settings in which the student differs from the teacher."""
        return {}


class OneWayPreparation(DistillationPreparation):
    """What `DistillationPreparation` has, for a one-way student."""

    _recipe: OneWayRecipe

    def find_changes(self) -> Mapping[str, Any]:
        timestep = self._recipe.reference_timestep
        return {"attention_mode": "cached"} | ({} if timestep is None else {"reference_timestep": timestep})

    def make_stage(
        self, transformer: ExpertModel, text: TextSource, latents: ArrayCache, prediction: PredictionType
    ) -> OneWayStage:
        recipe, path = self._recipe, find_path(self._recipe.backbone, prediction)
        return OneWayStage(transformer, self._teacher, text, latents, recipe.settings, recipe.true_share, path)


class FewStepPreparation(DistillationPreparation):
    """What `DistillationPreparation` has, for a student of few steps."""

    _recipe: FewStepRecipe

    def make_sampler(self, prediction: PredictionType) -> Sampler | None:
        found, settings = super().make_sampler(prediction), self._recipe.settings
        if found is None:
            return None
        is_flow = prediction == "flow"
        scheduler = _make_flow_scheduler(settings) if is_flow else found.scheduler
        return replace(found, scheduler=scheduler, num_steps=settings.num_steps)

    def make_stage(
        self, transformer: ExpertModel, text: TextSource, latents: ArrayCache, prediction: PredictionType
    ) -> FewStepStage:
        recipe = self._recipe
        if prediction == "flow":
            scheduler: SchedulerMixin = _make_flow_scheduler(recipe.settings)
        else:
            find_path(recipe.backbone, prediction)
            scheduler = load_component("scheduler", find_part(recipe.backbone, "scheduler"))
        return FewStepStage(
            transformer,
            self._teacher,
            text,
            latents,
            recipe.settings,
            scheduler,
            keeps_paths=recipe.training.repeat_after is not None,
        )


def _make_flow_scheduler(settings: FewStepSettings) -> SchedulerMixin:
    return make_scheduler(SchedulerSettings(kind="euler_trailing", shift=settings.shift))


def freeze(model: ModelMixin) -> ModelMixin:
    """Return a model that is not trained, in evaluation mode."""
    return model.requires_grad_(False).eval()
