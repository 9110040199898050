"""What an expert is trained on beside the prediction: mismatched references, references alone, several references."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sememe.diffusion.objectives import sample_losses
from sememe.errors import ModelError, RecipeError
from sememe.video_as_prompt.families import TransformerAlone, choose_family
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.stage_expert import MISMATCH_STRENGTH, ExpertStage
from sememe.video_as_prompt.stage_settings import ExpertSettings
from sememe.video_as_prompt.stages import add_noise
from sememe.video_as_prompt.transformer_files import save_merged
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.stage_data import PAIRS, Latents, Texts, generator, gradients

CPU = torch.device("cpu")
each_mode = pytest.mark.parametrize("mode", ["cached", "joint"])
each_family = pytest.mark.parametrize("family", ["wan", "cogvideox"])


def make_stage(mode: str, **weights: Any) -> ExpertStage:
    model = wan_factories.make_transformer(attention_mode=mode)
    return ExpertStage(model, Texts(), Latents(), ExpertSettings(**PAIRS, **weights))


@each_mode
def test_mismatched_references_are_told_apart_by_errors(mode: str) -> None:
    """The loss is the prediction's and, weighed, the logistic one of both errors for the same noise."""
    stage = make_stage(mode, mismatch_weight=0.5)
    batch, family = stage.batch(0, generator(), CPU), stage._family
    given = stage.embed(batch)
    noised = stage.add_noise(batch, given, generator())
    own, other = (
        stage.measure(given, noised, given.encode(family), owners) for owners in (batch.owners, 1 - batch.owners)
    )
    expected = own.sum() + 0.5 * torch.log1p(torch.exp(-MISMATCH_STRENGTH * (other - own))).sum()
    found = stage.loss(batch, generator())
    torch.testing.assert_close(found.total, expected, rtol=1e-4, atol=1e-4)
    assert float(found.metrics["matched"]) == float((other > own).float().mean())
    assert found.by_noise is not None
    torch.testing.assert_close(found.by_noise.losses, own, rtol=1e-5, atol=1e-5)


def test_mismatched_references_need_different_conditions() -> None:
    latents: Any = Latents()
    latents.conditions = ("one",) * 6
    with pytest.raises(RecipeError, match="2 of 1 conditions"):
        ExpertStage(wan_factories.make_transformer(), Texts(), latents, ExpertSettings(**PAIRS, mismatch_weight=1.0))
    with pytest.raises(RecipeError, match="num_references to 2 or more"):
        ExpertSettings(num_references=1, mismatch_weight=1.0)


@each_mode
def test_an_untrained_expert_denoises_references_as_the_backbone_does(mode: str) -> None:
    """It is a copy of the backbone, and all positions are shifted alike."""
    backbone = wan_factories.make_backbone()
    inputs = wan_factories.make_reference()
    timestep = torch.tensor([700.0, 20.0])
    with torch.no_grad():
        expected = backbone(inputs.latents[0], timestep, inputs.text_embeds[0]).sample
        model = WanVideoAsPromptTransformer.from_backbone(backbone, None, mode, 0.0)
        torch.testing.assert_close(model.denoise_reference(inputs, timestep), expected, atol=1e-4, rtol=1e-4)


def test_the_same_on_cogvideox() -> None:
    """Without rotation; with it, captions and video are at another distance."""
    backbone = cogvideox_factories.make_backbone(use_rotary_positional_embeddings=False)
    inputs = cogvideox_factories.make_reference()
    timestep = torch.tensor([700.0, 20.0])
    with torch.no_grad():
        expected = backbone(inputs.latents[0], inputs.text_embeds[0], timestep).sample
        model = CogVideoXVideoAsPromptTransformer.from_backbone(backbone, None, "joint", None)
        torch.testing.assert_close(model.denoise_reference(inputs, timestep), expected, atol=1e-4, rtol=1e-4)


@each_mode
def test_the_loss_of_references_reads_no_target(mode: str) -> None:
    """It adds the mean error of noised references; targets go on to read clean ones."""
    stage, plain = make_stage(mode, reference_weight=0.5), make_stage(mode)
    batch = stage.batch(0, generator(), CPU)
    random = generator()
    base = plain.loss(batch, random)
    # The noise of references is drawn after that of targets.
    given, references = stage.embed(batch), batch.references
    noised = add_noise(references.clean, stage._path, stage.settings, random)
    family = choose_family(TransformerAlone(stage.transformer))
    channels = family.join_condition(noised.noisy, references.first_frames)
    inputs = ReferenceInputs((channels,), given.references.text_embeds)
    alone = sample_losses(family.denoise_reference(inputs, noised.timesteps), noised.target).mean()
    found = stage.loss(batch, generator())
    torch.testing.assert_close(found.total, base.total + 0.5 * 4 * alone, rtol=1e-5, atol=1e-5)
    assert float(found.metrics["reference_loss"]) == pytest.approx(float(alone.detach()), rel=1e-5)
    assert any(bool(each.abs().max() > 0) for each in gradients(found.total - base.total.detach(), stage.transformer))


@each_mode
def test_a_target_reads_one_to_all_of_its_references(mode: str) -> None:
    """The number is drawn for a batch; the references of a group are of its condition, one entry of the batch each."""
    model = wan_factories.make_transformer(attention_mode=mode)
    settings = ExpertSettings(num_references=2, targets_per_reference=1, same_scene_share=0.0, max_references=2)
    stage = ExpertStage(model, Texts(), Latents(), settings)
    batches = {}
    for step in range(8):
        batch = stage.batch(step, torch.Generator().manual_seed(step), CPU)
        batches[batch.references_per_target] = batch
    assert sorted(batches) == [1, 2]
    batch = batches[2]
    given, clean = stage.embed(batch), Latents().select("clean", torch.arange(6))
    shown = [int((clean - each).flatten(1).abs().sum(dim=1).argmin()) for each in batch.references.clean]
    targets = [int((clean - each).flatten(1).abs().sum(dim=1).argmin()) for each in batch.targets.clean]
    for group in range(2):
        items = (*shown[2 * group : 2 * group + 2], targets[group])
        assert len({Latents.conditions[each] for each in items}) == 1
        assert len({Latents.scenes[each] for each in items}) == 3
    for place, latents in enumerate(given.references.latents):
        assert torch.equal(latents[:, :4], clean[[shown[place], shown[2 + place]]])
    assert torch.isfinite(stage.loss(batch, generator()).total)


@each_family
def test_embeddings_of_references_begin_as_nothing_and_tell_them_apart(family: str, tmp_path: Path) -> None:
    factory: Any = wan_factories if family == "wan" else cogvideox_factories
    kind: Any = WanVideoAsPromptTransformer if family == "wan" else CogVideoXVideoAsPromptTransformer
    plain, model = (
        kind.from_backbone(factory.make_backbone(), attention_mode="joint", num_reference_embeddings=each)
        for each in (0, 2)
    )
    inputs = factory.make_reference(num_frames=(3, 3))
    first = plain.embed_reference(inputs)
    assert torch.equal(model.embed_reference(inputs).hidden_states, first.hidden_states)
    embeddings = torch.randn(2, first.hidden_states.shape[2])
    with torch.no_grad():
        model.expert_embedder.reference_embeddings.copy_(embeddings)
    far, near = (model.embed_reference(inputs).hidden_states - first.hidden_states).chunk(2, dim=1)
    torch.testing.assert_close(near, embeddings[0].expand_as(near), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(far, embeddings[1].expand_as(far), atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="at most 2 references"):
        model.embed_reference(factory.make_reference(num_frames=(3, 3, 3)))

    model.save_expert(tmp_path / "expert")
    model.save_backbone(tmp_path / "transformer")
    loaded = kind.from_folders(tmp_path / "transformer", tmp_path / "expert")
    assert torch.equal(loaded.expert_embedder.reference_embeddings, embeddings)
    loaded.blend_expert_with_backbone(0.5)
    torch.testing.assert_close(loaded.expert_embedder.reference_embeddings, 0.5 * embeddings)
    with pytest.raises(ModelError, match="num_reference_embeddings = 0"):
        save_merged(model, tmp_path / "merged")


def test_an_expert_that_was_saved_before_there_were_embeddings(tmp_path: Path) -> None:
    model = wan_factories.make_transformer()
    model.save_expert(tmp_path / "expert")
    model.save_backbone(tmp_path / "transformer")
    config = tmp_path / "expert" / "config.json"
    known = json.loads(config.read_text())
    del known["num_reference_embeddings"]
    config.write_text(json.dumps(known))
    loaded = WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")
    assert loaded.config.num_reference_embeddings == 0
