"""From an expert to students and adapters of it, by the seconds-long recipes."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.lora import LORA_NAME
from sememe.errors import ModelError
from sememe.training.progress import read_log
from sememe.training.recipes import ModelRecipe
from sememe.training.run_record import read_run
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
from sememe.workflows.assemble import assemble_recipe
from sememe.workflows.loading import load_model
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.train import resolve_training_recipe, train_recipe
from video_as_prompt.pipeline_factories import make_clip, make_picture
from workflows.smoke_runs import CPU, smoke_runs


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke_runs(tmp_path_factory.getbasetemp())


def train(name: str, runs: Path, folder: Path, *more: str, init_from: str | None = None) -> Path:
    given = [CPU, f"latents={runs / 'latents'}", f"backbone={runs / 'backbone'}", *more]
    train_recipe(resolve_training_recipe(name, given), folder / name, init_from=init_from)
    return folder / name


def test_a_two_way_expert_begins_with_a_one_way_one(runs: Path, tmp_path: Path) -> None:
    settings = ["training.num_steps=1", "training.learning_rate=1e-12"]
    trained = train("smoke-expert-joint", runs, tmp_path, *settings, init_from=str(runs / "expert"))
    ours, theirs = (
        WanVideoAsPromptTransformer.from_folders(runs / "backbone/model/transformer", run / "model/expert")
        for run in (trained, runs / "expert")
    )
    assert (ours.config.attention_mode, theirs.config.attention_mode) == ("joint", "cached")
    for (name, one), (_, other) in zip(ours.expert_named_parameters(), theirs.expert_named_parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    with pytest.raises(ModelError, match=r"made for expert_blocks = \[0, 1\], but the model at hand has \[1\]"):
        train("smoke-expert", runs, tmp_path, "expert_blocks=[1]", init_from=str(runs / "expert"))


def test_a_two_way_expert_becomes_one_way(runs: Path, tmp_path: Path) -> None:
    teacher = train("smoke-expert-joint", runs, tmp_path, "training.num_steps=1")
    student = train("smoke-one-way", runs, tmp_path, "training.num_steps=1", f"teacher={teacher}")
    record = read_run(student)
    assert record is not None
    assert "teacher" in record.inputs
    model = WanVideoAsPromptTransformer.from_folders(
        runs / "backbone" / "model" / "transformer", student / "model" / "expert"
    )
    assert model.config.attention_mode == "cached"


def test_an_expert_of_few_steps_generates(runs: Path, tmp_path: Path) -> None:
    student = train("smoke-few-step", runs, tmp_path, "training.num_steps=1", f"teacher={runs / 'expert'}")
    parts = [f"{name}={runs / name}" for name in ("autoencoder", "backbone")]
    # The same as tiny-few-step-model, at the size of the smoke recipes.
    given = [*parts, f"expert={student}", "scheduler.kind=euler_trailing", "generation.sampling.num_inference_steps=2"]
    given += ["generation.guidance.reference_guidance_scale=1"]
    assemble_recipe(resolve_recipe("smoke-model", given, ModelRecipe, "assemble"), tmp_path / "model")
    pipeline = VideoAsPromptPipeline.from_pretrained(tmp_path / "model")
    forwards: list[float] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, arguments: forwards.append(float(arguments[1][0])), prepend=True
    )
    output = pipeline(make_picture(), references=[make_clip()], generator=torch.Generator().manual_seed(0))
    assert output.clips[0].frames.shape == (9, 16, 16, 3)
    assert forwards == [999.0, 750.0]


def test_an_adapter_of_an_expert_is_loaded_by_its_file(runs: Path, tmp_path: Path) -> None:
    trained = train("smoke-lora", runs, tmp_path, f"expert={runs / 'expert'}")
    file = trained / "model" / "lora" / LORA_NAME
    loading = LoadingSettings(lora=(f"{file}:0.5",), device="cpu")
    adapted, plain = (
        load_model(VIDEO_AS_PROMPT, str(runs / "model"), each).pipeline.transformer
        for each in (loading, LoadingSettings(device="cpu"))
    )
    tensors = {name.replace(".base_layer", ""): each for name, each in adapted.state_dict().items()}
    adapters = {name.replace(".weight", ""): each for name, each in load_file(file).items()}
    assert len(adapters) > 10
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensors[name], tensor)
    for name, tensor in adapters.items():
        assert any(each.startswith(name) and torch.equal(tensors[each], tensor) for each in tensors), name
    layer = adapted.blocks[0].expert.projection.to_q
    features = torch.randn(1, 48)
    name = "blocks.0.expert.projection.to_q.lora_"
    change = features @ adapters[name + "A"].T @ adapters[name + "B"].T
    assert bool(change.abs().max() > 0)
    expected = plain.blocks[0].expert.projection.to_q(features) + 0.5 * change
    torch.testing.assert_close(layer(features), expected)


def test_preferences_are_learned_from_scenes_under_several_conditions(runs: Path, tmp_path: Path) -> None:
    trained = train("smoke-preference", runs, tmp_path, "training.num_steps=1", f"expert={runs / 'expert'}")
    (line,) = read_log(trained)
    assert line["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert (trained / "model" / "lora" / LORA_NAME).is_file()


def test_a_teacher_without_an_expert(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="with the expert"):
        train("smoke-few-step", runs, tmp_path, f"teacher={runs / 'backbone'}")
