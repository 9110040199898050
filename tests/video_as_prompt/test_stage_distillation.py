"""What students learn from teachers: exact targets, at sizes of a few thousand weights."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor

from sememe.diffusion.objectives import FLOW
from sememe.training.config import TrainingConfig
from sememe.training.frozen_weights import list_rounded, round_weights
from sememe.training.networks import make_scheduler
from sememe.training.recipes import SchedulerSettings
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.settings import GuidanceSettings
from sememe.video_as_prompt.stage_distillation import FewStepStage, OneWayStage
from sememe.video_as_prompt.stage_expert import ExpertStage, PairedStage, PairInputs, assign
from sememe.video_as_prompt.stage_settings import ExpertSettings, FewStepSettings
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.stage_data import PAIRS, Latents, Texts, generator, gradients

CPU = torch.device("cpu")


def make_pair(mode: str) -> tuple[Any, Any]:
    """A teacher of a mode, and a one-way student with its weights."""
    backbone = wan_factories.make_backbone()
    teacher = WanVideoAsPromptTransformer.from_backbone(backbone, None, mode, 1.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in teacher.expert_named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    student = WanVideoAsPromptTransformer.from_backbone(backbone, None, "cached", 1.0)
    student.copy_expert(teacher)
    return teacher, student


def make_few_step(guidance: GuidanceSettings, teacher_steps: int, *, keeps_paths: bool = False) -> FewStepStage:
    settings = FewStepSettings(num_steps=2, teacher_steps=teacher_steps, guidance=guidance, **PAIRS)
    scheduler = make_scheduler(SchedulerSettings(kind="euler_trailing"))
    teacher, student = make_pair("cached")
    return FewStepStage(student, teacher, Texts(), Latents(), settings, scheduler, keeps_paths=keeps_paths)


def draw(stage: PairedStage) -> tuple[Any, PairInputs]:
    """A batch, and what networks are given of it."""
    batch = stage.batch(0, generator(), CPU)
    return batch, stage.embed(batch)


def test_the_backbone_is_there_once() -> None:
    teacher, student = make_pair("joint")
    assert student.blocks[0].attn1 is teacher.blocks[0].attn1
    ours, theirs = dict(student.expert_named_parameters()), dict(teacher.expert_named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) and ours[name] is not theirs[name] for name in theirs)


def test_one_way_learns_from_both_targets() -> None:
    """The gradient is that of 0.75 |student - teacher|^2 + 0.25 |student - true|^2, summed over the batch."""
    teacher, student = make_pair("joint")
    stage = OneWayStage(student, teacher, Texts(), Latents(), ExpertSettings(**PAIRS), 0.25, FLOW)
    batch, given = draw(stage)
    true = ExpertStage.add_noise(stage, batch, given, generator())
    channels = stage._family.join_condition(true.noisy, given.first_frames)
    arguments = (channels, true.timesteps, given.text)
    # Each target with its own reference, in the teacher's two-way mode and in the student's.
    latents, text = given.references.latents[0][batch.owners], given.references.text_embeds[0][batch.owners]
    seen = [model.embed_reference(ReferenceInputs((latents,), (text,))) for model in (teacher, student)]
    with torch.no_grad():
        taught = teacher(*arguments, reference=seen[0]).sample
    predicted = student(*arguments, reference=seen[1]).sample
    sums = [(predicted - target).square().flatten(1).mean(dim=1).sum() for target in (taught, true.target)]
    expected = gradients(0.75 * sums[0] + 0.25 * sums[1], student)
    found = gradients(stage.loss(batch, generator()).total, student)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Said once of norms that autocast leaves in float32, rounded weights or not.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_frozen_weights_in_bfloat16_change_nothing_under_autocast() -> None:
    results = []
    for is_rounded in (False, True):
        teacher, student = make_pair("joint")
        stage = OneWayStage(student, teacher, Texts(), Latents(), ExpertSettings(**PAIRS), 0.25, FLOW)
        batch, _ = draw(stage)
        rounded = list_rounded(stage, TrainingConfig(num_steps=1, precision="bf16"))
        assert not list_rounded(stage, TrainingConfig(num_steps=1, precision="fp32"))
        if is_rounded:
            round_weights(rounded)
        with torch.autocast("cpu", torch.bfloat16):
            loss = stage.loss(batch, generator()).total
        results.append([loss.detach(), *gradients(loss, student)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    names = {name for name, each in student.named_parameters() if each.dtype == torch.bfloat16}
    assert {"patch_embedding.weight", "blocks.0.attn1.to_q.weight", "proj_out.bias"} <= names
    assert not any("norm" in name or student.key_map.is_expert_key(name) for name in names)
    assert any(each.dtype == torch.bfloat16 for _, each in teacher.expert_named_parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    stage = make_few_step(GuidanceSettings(guidance_scale=1.0), 1)
    batch = stage.batch(0, generator(), CPU)
    assert float(stage.loss(batch, generator()).total.detach()) == pytest.approx(0.0, abs=1e-8)


def test_few_steps_fold_in_guidance_and_many_steps() -> None:
    """Targets lead from where the student is to where four of Euler's steps under guidance are."""
    guidance = GuidanceSettings(guidance_scale=2.0, reference_guidance_scale=4.0)
    stage = make_few_step(guidance, 2)
    batch, given = draw(stage)
    noised = stage.add_noise(batch, given, generator())
    levels = [3 * share / (1 + 2 * share) for share in (1 - 1e-6, 0.75025, 0.5005, 0.25075)] + [0.0]
    cache = assign(given.encode(stage._family), batch.owners)
    empty = stage.text.embed(stage.text.pick([""])).expand_as(given.text)

    @torch.no_grad()
    def predict(model: Any, noisy: Tensor, level: float, text: Tensor, reference: Any = cache) -> Tensor:
        channels = stage._family.join_condition(noisy, given.first_frames)
        timestep = torch.full((4,), float(int(1000 * level)))
        found: Tensor = model(channels, timestep, text, reference=reference).sample
        return found

    def guide(noisy: Tensor, level: float) -> Tensor:
        named, read = (predict(stage.teacher, noisy, level, text) for text in (given.text, empty))
        alone = predict(stage.teacher, noisy, level, empty, None)
        return alone + 4.0 * (read - alone) + 2.0 * (named - read)

    path = [batch.noise]
    for level, lower in pairwise(levels):
        path.append(path[-1] + (lower - level) * guide(path[-1], level))
    own = batch.noise + (levels[2] - levels[0]) * predict(stage.transformer, batch.noise, levels[0], given.text)
    assert sorted(noised.timesteps.tolist()) == [750, 750, 999, 999]
    for place, timestep, begin in ((0, 999, batch.noise), (1, 750, own)):
        ours = noised.timesteps == timestep
        torch.testing.assert_close(noised.noisy[ours], begin[ours], rtol=1e-4, atol=1e-4)
        end = noised.noisy + (levels[2 * place + 2] - levels[2 * place]) * noised.target
        torch.testing.assert_close(end[ours], path[2 * place + 2][ours], rtol=1e-4, atol=1e-4)


def test_the_teacher_is_asked_once_for_a_batch_that_comes_again() -> None:
    stage = make_few_step(GuidanceSettings(guidance_scale=1.0), 1, keeps_paths=True)
    asked: list[int] = []
    stage.teacher.register_forward_pre_hook(lambda *_: asked.append(1))
    losses, counts = [], []
    for number, seed in enumerate((0, 0, 1)):
        batch = stage.batch(0, torch.Generator().manual_seed(seed), CPU)
        with torch.no_grad():
            losses.append(float(stage.loss(batch, generator()).total))
        counts.append(len(asked))
        if not number:
            shifted = next(parameter for _, parameter in stage.transformer.expert_named_parameters())
            shifted.data += 1.0
    assert counts[0] == counts[1] < counts[2]
    assert losses[0] == pytest.approx(0.0, abs=1e-8)
    assert losses[1] > 1e-6, "the student is asked again"


def test_few_steps_of_v_prediction() -> None:
    teacher = cogvideox_factories.make_transformer(reference_timestep=None)
    student = CogVideoXVideoAsPromptTransformer.from_backbone(cogvideox_factories.make_backbone(), None, "joint", None)
    student.copy_expert(teacher)
    settings = FewStepSettings(num_steps=2, teacher_steps=1, guidance=GuidanceSettings(guidance_scale=1.0), **PAIRS)
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    stage = FewStepStage(student, teacher, Texts(), Latents(), settings, scheduler)
    batch = stage.batch(0, generator(), CPU)
    assert float(stage.loss(batch, generator()).total.detach()) == pytest.approx(0.0, abs=1e-6)
