"""Recipes for the parts of a Video-As-Prompt model, and the settings of its stages. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from sememe.data.caption_policy import CaptionPolicy
from sememe.records import Count, Positive, Range, Record, Scale, Share
from sememe.training.config import check_setting
from sememe.training.recipes import ModelRecipe, SchedulerSettings, TextNetwork, TrainingRecipe
from sememe.video_as_prompt.settings import BUILT_IN, GuidanceSettings, Settings

Timestep = Annotated[float, Range(least=0, most=1000)]


class BackboneSettings(Record):
    """How the backbone is trained.

    Noise levels are drawn from a logit-normal distribution with `sigma_mean` and `sigma_std`; `sigma_shift` moves them
    towards the noisy end, which decides what happens. Captions are dropped as `captions` says.
    """

    batch_size: Count = 64
    sigma_mean: float = 0.0
    sigma_std: Positive = 1.5
    sigma_shift: Positive = 2.0
    captions: CaptionPolicy = CaptionPolicy(drop_target_caption=0.4, drop_reference_caption=0.0, full_share=0.75)


class PairSettings(Record):
    """References and targets in a batch of an expert's training.

    All targets of a batch read the same number of references of their condition, drawn from 1 to `max_references`. In
    the one-way mode a reference is encoded once and serves `targets_per_reference` targets, which with four of them
    takes a third off the cost of a pair. `full_share` of `captions` is 0: a caption that names the condition would make
    the reference superfluous (the official recipe names it in nearly every caption; set it to 1 to reproduce that).
    """

    num_references: Count = 16
    targets_per_reference: Count = 4
    max_references: Count = 1
    same_scene_share: Share = 0.5
    captions: CaptionPolicy = CaptionPolicy(drop_target_caption=0.7, drop_reference_caption=0.7)


class NoisedPairSettings(PairSettings):
    """Batches of pairs, and levels of noise as in `BackboneSettings`."""

    sigma_mean: float = 0.0
    sigma_std: Positive = 1.3
    sigma_shift: Positive = 4.0


class ExpertSettings(NoisedPairSettings):
    """How the expert is trained: its batches and levels of noise, and the weights of further losses.

    `mismatch_weight` weighs a second loss: each target is also predicted with the reference of another condition, and
    the errors are trained to classify which reference belongs to it (see `stage_expert.ExpertStage`). It costs a second
    forward for each target. `reference_weight` weighs a third one: the expert alone denoises the references.
    """

    mismatch_weight: Scale = 0.0
    reference_weight: Scale = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(
            not self.mismatch_weight or self.num_references > 1,
            "mismatch_weight needs references of two conditions in a batch; set num_references to 2 or more",
        )


class PreferenceSettings(NoisedPairSettings):
    """How preferences are learned: batches, noise levels, and `strength`.

    `strength` is the factor of the difference of mean squared errors (see `diffusion.objectives`). `num_references`
    times `targets_per_reference` is the number of pairs of outcomes in a batch.
    """

    strength: Positive = 250.0


class FewStepSettings(PairSettings):
    """How a few-step sampler is distilled from a teacher.

    Each of the student's `num_steps` steps learns to end where `teacher_steps` steps of the teacher end, with the
    teacher's `guidance`; the student is used without guidance. `shift` is the flow-matching shift of the steps. The
    teacher is asked for `num_steps` times `teacher_steps` steps of each batch, once if `training.repeat_after` is set.
    """

    num_steps: Count = 4
    teacher_steps: Count = 3
    guidance: GuidanceSettings = BUILT_IN.guidance
    shift: Positive = 3.0


class WanNetwork(Record):
    """A `WanTransformer3DModel`; its other channels follow from the latents.

    A token stands for one latent frame of `patch_size` x `patch_size` latents. There is one mask channel for each frame
    of a latent frame.
    """

    patch_size: Count = 2
    num_mask_channels: Count = 8
    num_layers: Count = 8
    num_attention_heads: Count = 6
    attention_head_dim: Annotated[int, Range(least=2, multiple_of=2)] = 64
    ffn_dim: Count = 1024
    freq_dim: Count = 256
    rope_max_seq_len: Count = 128


class BackboneRecipe(TrainingRecipe):
    """Trains an image-to-video backbone and its text encoder on cached latents.

    It is trained on all conditions, but no caption names those in `unseen`; none means those of splits other than
    "train". `autoencoder` is a run or model whose autoencoder decodes samples to look at; none makes none.
    """

    latents: Path
    autoencoder: str | None = None
    network: WanNetwork = WanNetwork()
    text: TextNetwork = TextNetwork()
    unseen: tuple[str, ...] | None = None
    settings: BackboneSettings = BackboneSettings()


class PairedRecipe(TrainingRecipe):
    """Trains an expert on a frozen backbone, on cached latents of the seen conditions.

    Conditions in `unseen` are left out; none means those of splits other than "train". `num_conditions` limits the
    others to that many, a smaller number being a subset of a larger one; none means all. `autoencoder` is that of
    `BackboneRecipe`.
    """

    latents: Path
    autoencoder: str | None = None
    backbone: str
    unseen: tuple[str, ...] | None = None
    num_conditions: Annotated[int, Range(least=2)] | None = None
    settings: PairSettings


class ExpertRecipe(PairedRecipe):
    """Trains an expert, initialised with the backbone's weights, to predict the true clips.

    `expert_blocks` are the backbone's blocks that carry an expert; none means all. `reference_timestep` none, for
    CogVideoX in the mode "joint", reads the reference at the target's own timestep, as the released model does.
    `reference_embeddings` learns a vector for each of several references (nearest to the target, second nearest, ...),
    added to its tokens and zero at first, so that they differ in more than their positions.
    """

    attention_mode: Literal["cached", "joint"] = "cached"
    expert_blocks: tuple[int, ...] | None = None
    reference_timestep: Timestep | None = 0.0
    reference_embeddings: bool = False
    settings: ExpertSettings = ExpertSettings()


class OneWayRecipe(PairedRecipe):
    """Distils a one-way expert from a two-way one, so that a reference is encoded once for all steps.

    The student begins with the teacher's weights and learns to predict what `teacher` predicts for the same noisy
    latents without guidance. Its target is mixed with the true one in the share `true_share`. `reference_timestep` none
    is the teacher's; it has to be given if the teacher reads references at the target's timestep.
    """

    teacher: str
    reference_timestep: Timestep | None = None
    true_share: Share = 0.25
    settings: ExpertSettings = ExpertSettings()


class FewStepRecipe(PairedRecipe):
    """Distils `teacher` into an expert for few steps without guidance, which reads references like the teacher."""

    teacher: str
    settings: FewStepSettings = FewStepSettings()


class AdaptedRecipe(PairedRecipe):
    """Trains low-rank matrices of `rank` on the attention of a frozen expert.

    LoRA (arXiv 2106.09685): a product of two matrices, zero at first, is added to each weight.
    """

    expert: str
    rank: Count = 16


class LoraRecipe(AdaptedRecipe):
    """Trains an adapter of an expert to predict the true clips."""

    settings: ExpertSettings = ExpertSettings()


class PreferenceRecipe(AdaptedRecipe):
    """Trains an adapter of an expert to prefer the outcome that follows the reference to another one of the same
    picture."""

    settings: PreferenceSettings = PreferenceSettings()


_PairedT = TypeVar("_PairedT", bound=PairedRecipe)


def continue_expert(kind: type[_PairedT], expert: ExpertRecipe, **fields: Any) -> _PairedT:
    """Return a recipe that goes on from the expert of another one; what `fields` do not give it has of that one."""
    source = "expert" if issubclass(kind, AdaptedRecipe) else "teacher"
    shared = {name: getattr(expert, name) for name in ("latents", "backbone", "settings", "training")}
    return kind(**(shared | {source: f"runs/{expert.name}"} | fields))


class VideoAsPromptModelRecipe(ModelRecipe):
    """Assembles a Video-As-Prompt model from the runs of its parts.

    `expert_share` interpolates from the backbone's weights (0), with which training began, to the trained expert's (1).
    Less than 1 follows unseen conditions better.
    """

    autoencoder: str
    backbone: str
    expert: str
    expert_share: Share = 1.0
    scheduler: SchedulerSettings = SchedulerSettings()
    generation: Settings = BUILT_IN
