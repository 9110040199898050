"""From videos of several sizes and lengths, some of which name their references, to the batches of an expert."""

from pathlib import Path

import pytest
import torch

from sememe.data.manifest import write_vap_data
from sememe.events import ignore_progress
from sememe.training.stage import step_generator
from sememe.video_as_prompt.stage_expert import ExpertBatch, ExpertStage
from sememe.workflows.beginnings import prepare_stage
from sememe.workflows.precompute import precompute_latents
from sememe.workflows.train import resolve_training_recipe
from workflows.painted_videos import make_sample, paint
from workflows.smoke_runs import latents_recipe, settings, smoke_runs

CPU = torch.device("cpu")


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke_runs(tmp_path_factory.getbasetemp())


def test_batches_are_of_one_size_and_show_listed_references(runs: Path, tmp_path: Path) -> None:
    samples = []
    for number in range(8):
        is_wide, condition = number >= 4, f"kind {number % 2}"
        paint(tmp_path / f"{number}.mp4", 25 * number, num_frames=9, size=(16, 32) if is_wide else (16, 16))
        # Each lists the other one of its condition and size, and one of another size, which is never shown with it.
        references = (f"{number ^ 2}.mp4", f"{number ^ 4}.mp4")
        samples.append(make_sample(f"{number}.mp4", condition, references=references))
    write_vap_data(samples, tmp_path)
    clips = ["clips.buckets=9x16x16,5x16x32", "clips.sampling=first", f"dataset={tmp_path}"]
    precompute_latents(latents_recipe(runs, *clips), tmp_path / "latents")
    given = [each for each in settings(runs, "expert") if not each.startswith("latents=")]
    given += [f"latents={tmp_path / 'latents'}", "settings.same_scene_share=0", "settings.captions.drop_reference=0"]
    recipe = resolve_training_recipe("smoke-expert", given)
    stage = prepare_stage(recipe, tmp_path / "run", None, ignore_progress).stage
    assert isinstance(stage, ExpertStage)
    shapes: dict[tuple[int, ...], ExpertBatch] = {}
    for step in range(12):
        batch, again = (stage.batch(step, step_generator(0, step, 0, "batch"), CPU) for _ in range(2))
        assert torch.equal(batch.targets.clean, again.targets.clean), "a batch depends on its number alone"
        shapes[tuple(batch.targets.clean.shape[2:])] = batch
        assert batch.references.clean.shape[1:] == batch.targets.clean.shape[1:]
    assert set(shapes) == {(3, 4, 4), (2, 4, 8)}
    for shape, batch in shapes.items():
        loss = stage.loss(batch, step_generator(0, 0, 0, "loss"))
        assert torch.isfinite(loss.total), shape
    targets = stage.latents.select("clean", torch.arange(4)).float()
    batch = shapes[3, 4, 4]
    for clean, owner in zip(batch.targets.clean, batch.owners.tolist(), strict=True):
        number = next(index for index in range(4) if torch.equal(targets[index], clean))
        assert torch.equal(batch.references.clean[owner], targets[number ^ 2])
