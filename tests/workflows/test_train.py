import json
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache
from sememe.errors import InputError, ModelError, OutputError, RecipeError
from sememe.events import Progress, ignore_progress
from sememe.files import lock_folder
from sememe.system import System
from sememe.training.loop import train
from sememe.training.progress import CheckpointSaved, TrainingEvent, TrainingProgress, TrainingSummary, read_log
from sememe.training.recipes import ModelRecipe
from sememe.training.run_record import read_run, read_summary
from sememe.training.stage import Stage
from sememe.video import Clip
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.video_as_prompt.stage_settings import WanNetwork
from sememe.video_as_prompt.stages import BackboneStage, find_unseen, make_transformer, select_conditions
from sememe.workflows.assemble import assemble_recipe
from sememe.workflows.beginnings import find_initial, prepare_stage, prepare_start
from sememe.workflows.dry_run import rehearse
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.systems import SYSTEMS
from sememe.workflows.train import resolve_training_recipe, train_recipe
from sememe.world import conditions
from workflows.smoke_runs import CPU, settings, smoke_runs

PARTS = ("autoencoder", "backbone", "expert")
CONSTANT = ["training.schedule.shape=constant", "training.ema_decay=0"]


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke_runs(tmp_path_factory.getbasetemp())


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.parent.name}/{name}": tensor for name, tensor in load_file(path).items()}
    assert found
    return found


def assert_same(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_whole_way_ends_in_a_model(runs: Path) -> None:
    pipeline = VideoAsPromptPipeline.from_pretrained(runs / "model")
    assert pipeline.defaults.size.num_frames == 9
    picture = np.full((16, 16, 3), 90, np.uint8)
    output = pipeline(image=picture, references=[np_clip()], generator=torch.Generator().manual_seed(0))
    assert output.clips[0].frames.shape == (9, 16, 16, 3)
    card = (runs / "model" / "README.md").read_text()
    assert "smoke-expert: 4 steps, 16 samples" in card
    assert "psnr" in card


def np_clip() -> Clip:
    return Clip(np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8), 8.0)


@pytest.mark.parametrize("part", PARTS)
def test_a_run_tells_what_it_is(part: str, runs: Path) -> None:
    record, summary = read_run(runs / part), read_summary(runs / part)
    assert record is not None
    assert summary is not None
    assert record.recipe == summary.recipe == f"smoke-{part}"
    assert record.settings["training.num_steps"] == "4"
    assert record.inputs["clips"].startswith("world 2, 9 frames of 16x16")
    assert (summary.step, summary.ending) == (4, "finished")
    assert summary.device.endswith("CPU threads")
    assert (runs / part / "start").is_dir()


@pytest.mark.parametrize("part", [*PARTS, "expert-joint"])
def test_a_resumed_run_is_that_of_one_piece(part: str, runs: Path, tmp_path: Path) -> None:
    given = settings(runs, part) + CONSTANT
    events: list[TrainingEvent] = []
    for name, steps in (("whole", (3,)), ("parts", (1, 3))):
        for number in steps:
            recipe = resolve_training_recipe(f"smoke-{part}", [*given, f"training.num_steps={number}"])
            allowed = ["training.num_steps"]
            summary = train_recipe(recipe, tmp_path / name, on_event=events.append, allow_changes=allowed)
            assert summary.step == number
    assert_same(tmp_path / "whole" / "model", tmp_path / "parts" / "model")
    assert sum(isinstance(event, CheckpointSaved) for event in events) == 3
    assert [event.step for event in events if isinstance(event, TrainingProgress)] == [1, 2, 3, 1, 2, 3]
    start = tmp_path / "whole" / "start" / ("expert" if part == "expert-joint" else "")
    assert any(
        not torch.equal(tensors(tmp_path / "whole" / "model")[name], tensor) for name, tensor in tensors(start).items()
    )


def test_progress_tells_loss_and_time(runs: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    recipe = resolve_training_recipe("smoke-backbone", [*settings(runs, "backbone"), "training.num_steps=2"])
    train_recipe(recipe, tmp_path / "run", on_progress=seen.append)
    assert [progress.stage for progress in seen[:2]] == ["reading latents", "fitting the tokenizer"]
    assert seen[-1].description.startswith("smoke-backbone, loss ")
    assert (seen[-1].step, seen[-1].num_steps, seen[-1].seconds_left) == (2, 2, 0.0)


# Beginning with other weights


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["model", "run"])
def test_weights_of_a_model_or_a_run(
    kind: str, part: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = runs / ("model" if kind == "model" else part)
    recipe = resolve_training_recipe(f"smoke-{part}", [*settings(runs, part), "training.learning_rate=1e-9"])
    train_recipe(recipe, tmp_path / "run", init_from=str(source))
    expected = tensors(source if kind == "model" else source / "model")
    for name, tensor in tensors(tmp_path / "run" / "model").items():
        assert torch.allclose(tensor.float(), expected[name].float(), atol=1e-6), name
    record = read_run(tmp_path / "run")
    assert record is not None
    assert record.init_from == str(source)
    assert not any(key.startswith(("network.", "text.")) for key in record.settings)
    monkeypatch.chdir(source)
    train_recipe(recipe, tmp_path / "run", init_from=f"../{source.name}")  # resumed: the path is the same


def test_weights_of_an_unfinished_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "expert", tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "model")
    checkpoint = tmp_path / "old" / "checkpoints" / "step_000004"
    for number, source in enumerate((tmp_path / "old", checkpoint)):
        assert find_initial(str(source)).checkpoint == source
        recipe = resolve_training_recipe("smoke-expert", [*settings(runs, "expert"), "training.learning_rate=1e-9"])
        train_recipe(recipe, tmp_path / str(number), init_from=str(source))
        expected = tensors(runs / "expert" / "model")
        for name, tensor in tensors(tmp_path / str(number) / "model").items():
            assert torch.allclose(tensor, expected[name], atol=1e-6), name
    shutil.rmtree(tmp_path / "old" / "start")
    with pytest.raises(ModelError, match="no folder start"):
        find_initial(str(checkpoint))


def test_another_beginning_needs_another_folder(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "expert", tmp_path / "run")
    recipe = resolve_training_recipe("smoke-expert", settings(runs, "expert"))
    with pytest.raises(RecipeError, match="began from its own weights, not from"):
        train_recipe(recipe, tmp_path / "run", init_from=str(runs / "model"))


def test_other_processes_wait_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makes = ("tokenizer",)

    def make(folder: Path) -> None:
        time.sleep(0.3)
        (folder / "tokenizer").mkdir()

    first = threading.Thread(target=prepare_start, args=(makes, tmp_path, None, make))
    first.start()
    time.sleep(0.1)
    monkeypatch.setenv("RANK", "1")
    start = prepare_start(makes, tmp_path, None, lambda _: pytest.fail("the first process makes it"))
    assert (start / "tokenizer").is_dir()
    first.join()


# What is trained on what


def test_the_backbone_meets_everything_and_hears_no_unseen_name(runs: Path, tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-backbone", settings(runs, "backbone"))
    stage = prepare_stage(recipe, tmp_path / "run", None, ignore_progress).stage
    assert isinstance(stage, BackboneStage)
    cache = ArrayCache.open(runs / "latents")
    assert set(stage.latents.conditions) == set(conditions())
    unseen = {name for name, is_unnamed in zip(cache.conditions, stage._unnamed, strict=True) if is_unnamed}
    assert unseen == set(conditions(split="unseen"))


def test_the_expert_meets_seen_conditions_only(runs: Path, tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-expert", settings(runs, "expert"))
    stage = prepare_stage(recipe, tmp_path / "run", None, ignore_progress).stage
    assert isinstance(stage, ExpertStage)
    assert set(stage.latents.conditions) == set(conditions(split="seen"))
    frozen = [name for name, parameter in stage.transformer.named_parameters() if not parameter.requires_grad]
    assert "patch_embedding.weight" in frozen
    cache = ArrayCache.open(runs / "latents")
    unseen = find_unseen(cache, None)
    few, more = (set(select_conditions(cache, unseen, number).conditions) for number in (10, 24))
    assert few < more < set(conditions(split="seen"))
    assert (len(few), len(more)) == (10, 24)
    number = len(conditions(split="seen"))
    # One clip of a condition alone is no pair.
    lonely = unseen | (np.array(cache.conditions) == "melt")
    lonely[cache.conditions.index("melt")] = False
    assert set(select_conditions(cache, lonely, None).conditions) == set(conditions(split="seen")) - {"melt"}
    with pytest.raises(RecipeError, match=f"at most {number}"):
        select_conditions(cache, unseen, number + 1)


def test_a_recipe_names_its_unseen_conditions(runs: Path, tmp_path: Path) -> None:
    for part in ("backbone", "expert"):
        recipe = resolve_training_recipe(f"smoke-{part}", [*settings(runs, part), "unseen=melt,jump"])
        stage = prepare_stage(recipe, tmp_path / part, None, ignore_progress).stage
        if isinstance(stage, BackboneStage):
            names = np.array(stage.latents.conditions)
            assert set(names[stage._unnamed]) == {"melt", "jump"}
        else:
            assert isinstance(stage, ExpertStage)
            assert set(stage.latents.conditions) == set(conditions()) - {"melt", "jump"}


# Validation


def test_the_best_model_is_a_run_of_its_own(runs: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    given = [*settings(runs, "backbone"), f"autoencoder={runs / 'autoencoder'}", "training.validate_every=2"]
    recipe = resolve_training_recipe("smoke-backbone", given)
    summary = train_recipe(recipe, tmp_path / "run", on_progress=seen.append)
    assert summary.validation is not None
    first = next(line["validation_loss"] for line in read_log(tmp_path / "run") if "validation_loss" in line)
    assert f", validation {first:.4f} (best {first:.4f}), " in seen[-1].description
    best = read_summary(tmp_path / "run" / "best")
    assert best is not None
    assert best.step == summary.validation.best_step
    assert best.metrics == {"validation_loss": summary.validation.best_loss}
    last = read_summary(tmp_path / "run")
    assert last is not None
    assert best.num_samples / last.num_samples == best.step / last.step
    assert read_run(tmp_path / "run" / "best") == read_run(tmp_path / "run")
    assert find_part(tmp_path / "run" / "best", "transformer") == tmp_path / "run" / "best" / "model" / "transformer"
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2


def test_an_expert_is_validated_on_targets_that_it_never_sees(runs: Path, tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-expert", [*settings(runs, "expert"), f"autoencoder={runs / 'autoencoder'}"])
    with pytest.raises(RecipeError, match="at least 3 scenes"):
        prepare_stage(recipe, tmp_path / "start", None, ignore_progress).stage.hold_out()
    stage = prepare_stage(recipe, tmp_path / "start", None, ignore_progress).stage
    assert isinstance(stage, ExpertStage)
    # Conditions of more clips, each in a scene of its own.
    cache = ArrayCache.open(runs / "latents")
    places = range(len(cache))
    changed = {"condition": tuple(str(place % 4) for place in places), "scene": tuple(map(str, places))}
    index = replace(cache._index, columns={**cache._index.columns, **changed})
    many = ArrayCache(index, cache.arrays, cache._values, cache._entries, cache._picked)
    pairing = replace(stage.settings, same_scene_share=0.0)
    trained = ExpertStage(stage.transformer, stage.text, many, pairing, stage._path)
    trained.sampler = stage.sampler
    train(trained, replace(recipe.training, num_steps=1, validate_every=1), tmp_path / "run")
    (line,) = [line for line in read_log(tmp_path / "run") if "validation_loss" in line]
    assert {"validation_loss_noise_75_100"} < line.keys()
    assert (tmp_path / "run" / "samples" / "step_000001.png").stat().st_size > 1000


# Mistakes


def test_a_folder_of_another_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "expert", tmp_path / "run")
    with pytest.raises(RecipeError, match="holds a run of smoke-expert, not of smoke-backbone"):
        train_recipe(resolve_training_recipe("smoke-backbone", settings(runs, "backbone")), tmp_path / "run")
    recipe = resolve_training_recipe("smoke-expert", settings(runs, "expert"))
    with pytest.raises(RecipeError, match="holds a run already"):
        train_recipe(recipe, tmp_path / "run", resume="never")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["inputs"]["backbone"] = "0123"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(RecipeError, match="was begun with backbone 0123"):
        train_recipe(recipe, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        train_recipe(recipe, tmp_path / "run")


def test_changed_settings_are_refused_or_noted(runs: Path, tmp_path: Path) -> None:
    def resume(*given: str, allow: Sequence[str] = ()) -> TrainingSummary:
        recipe = resolve_training_recipe("smoke-expert", [*settings(runs, "expert"), "training.num_steps=1", *given])
        return train_recipe(recipe, tmp_path / "run", allow_changes=allow)

    resume()
    before = (tmp_path / "run" / "run.json").read_bytes()
    resume()
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    faster = ["training.learning_rate=0.5", "settings.num_references=1"]
    message = (
        "learning_rate 0.0012, and it is 0.5 now; .*--allow-changes settings.num_references,training.learning_rate"
    )
    with pytest.raises(RecipeError, match=message):
        resume(*faster, allow=["training.seed"])
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    resume(*faster, "training.log_every=7", allow=["training.learning_rate", "settings.num_references"])
    resume(*faster, "training.seed=9", allow=["training.seed"])
    record = read_run(tmp_path / "run")
    assert record is not None
    assert [(change.step, dict(change.now)) for change in record.changes] == [
        (1, {"training.learning_rate": "0.5", "settings.num_references": "1", "training.log_every": "7"}),
        (1, {"training.seed": "9", "training.log_every": "1"}),
    ]
    # A setting of a later version: the run went on without it, which its default stands for.
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    del content["settings"]["settings.reference_weight"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    resume(*faster, "training.seed=9")
    with pytest.raises(RecipeError, match=r"begun with settings.reference_weight 0.0, and it is 0.5 now"):
        resume(*faster, "training.seed=9", "settings.reference_weight=0.5")
    assert record.changes[0].before["training.learning_rate"] == "0.0012"
    assert record.settings["training.seed"] == "9"


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-autoencoder")
    with lock_folder(tmp_path / "run"), pytest.raises(OutputError, match="another process"):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_recipe(recipe, tmp_path / "run")


@pytest.mark.parametrize("name", ["smoke-renderer", "smoke-planner", "smoke-gen1-unet"])
def test_networks_that_cannot_share_tokens_are_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    recipe = resolve_training_recipe(name, ["training.context=2"])
    refused = rf"training\.context=1 for {name}, got 2; .* Leave it out; fewer clips in each of more shares"
    for begin in (train_recipe, rehearse):
        with pytest.raises(RecipeError, match=refused):
            begin(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_systems_say_which_stages_share_tokens(system: System) -> None:
    for spec in system.stages.values():
        stage = get_type_hints(resolve_name(spec.preparation).build)["return"]
        shares_tokens = stage.split_by_tokens is not Stage.split_by_tokens
        assert spec.shares_tokens == shares_tokens, spec.recipe


def test_what_a_try_without_a_checkpoint_left_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "run" / "start").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{")
    # They fail when their parts are written.
    for given in ("training.optimizer=muon", "training.shard=2"):
        with pytest.raises(RecipeError):
            train_recipe(resolve_training_recipe("smoke-autoencoder", [given]), tmp_path / "run")
        assert (tmp_path / "run" / "start" / "vae").is_dir()
    wider = resolve_training_recipe("smoke-autoencoder", ["network.hidden_channels=16", "training.num_steps=1"])
    rehearse(wider, tmp_path / "run")
    assert train_recipe(wider, tmp_path / "run").is_complete
    config = json.loads((tmp_path / "run" / "model" / "vae" / "config.json").read_text())
    assert config["hidden_channels"] == 16


def test_a_complete_run_keeps_its_figures_and_networks(tmp_path: Path) -> None:
    given = ["training.num_steps=1", "network.hidden_channels=16"]
    train_recipe(resolve_training_recipe("smoke-autoencoder", given[:1]), tmp_path / "run")
    train_recipe(resolve_training_recipe("smoke-autoencoder", given[:1]), tmp_path / "run")
    # Nothing was left to do.
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert summary.metrics.keys() == {"psnr"}
    with pytest.raises(RecipeError, match=r"hidden_channels 8, and it is 16 now; .* because a run keeps its networks"):
        train_recipe(
            resolve_training_recipe("smoke-autoencoder", given),
            tmp_path / "run",
            allow_changes=["network.hidden_channels"],
        )


def test_a_model_whose_checkpoints_were_removed_is_not_replaced(tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-autoencoder", ["training.num_steps=1"])
    train_recipe(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    for begin in (rehearse, train_recipe):
        with pytest.raises(RecipeError, match="holds a trained model without checkpoints"):
            begin(recipe, tmp_path / "run")
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == before


def test_a_change_that_the_loop_refuses_is_not_recorded(tmp_path: Path) -> None:
    train_recipe(resolve_training_recipe("smoke-autoencoder", ["training.num_steps=1"]), tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    for given, message in (
        ("training.optimizer=muon", "optimizer"),
        ("training.learning_rate_factors=*nothing*:2", "no trained parameter matches"),
    ):
        changed = resolve_training_recipe("smoke-autoencoder", ["training.num_steps=2", given])
        allowed = ["training.num_steps", given.partition("=")[0]]
        for begin in (rehearse, train_recipe):
            with pytest.raises(RecipeError, match=message):
                begin(changed, tmp_path / "run", allow_changes=allowed)
        assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_model_older_than_its_run_is_not_taken_for_the_runs(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "autoencoder", tmp_path / "run")
    given = [CPU, "training.num_steps=200", "training.stop_after_minutes=1e-9"]
    longer = resolve_training_recipe("smoke-autoencoder", given)
    assert train_recipe(longer, tmp_path / "run", allow_changes=["training.num_steps"]).ending == "paused"
    assembled = [f"{name}={runs / name}" for name in ("backbone", "expert")]
    for autoencoder, is_refused in ((tmp_path / "run", True), (tmp_path / "run" / "model", False)):
        recipe = resolve_recipe("smoke-model", [*assembled, f"autoencoder={autoencoder}"], ModelRecipe, "assemble")
        with pytest.raises(ModelError, match="resume it first, or give") if is_refused else nullcontext():
            assemble_recipe(recipe, tmp_path / "model")
    assert find_initial(str(tmp_path / "run")).checkpoint == tmp_path / "run"


def test_a_folder_that_is_no_start_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "run" / "start").mkdir(parents=True)
    (tmp_path / "run" / "start" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError):
        train_recipe(resolve_training_recipe("smoke-autoencoder"), tmp_path / "run")
    assert (tmp_path / "run" / "start" / "notes.txt").read_text() == "mine"


def test_latents_that_are_not_there(runs: Path, tmp_path: Path) -> None:
    given = [*settings(runs, "expert")[:1], f"backbone={runs / 'backbone'}"]
    with pytest.raises(InputError, match="holds no cache"):
        train_recipe(resolve_training_recipe("smoke-expert", [*given, f"latents={tmp_path}"]), tmp_path / "run")
    shutil.copytree(runs / "latents", tmp_path / "half")
    (tmp_path / "half" / "index.jsonl").unlink()
    with pytest.raises(InputError, match="is not finished"):
        train_recipe(
            resolve_training_recipe("smoke-expert", [*given, f"latents={tmp_path / 'half'}"]), tmp_path / "run"
        )


def test_latents_of_another_autoencoder(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "backbone", tmp_path / "backbone")
    record = json.loads((tmp_path / "backbone" / "run.json").read_text())
    record["inputs"]["autoencoder"] = "f" * 64
    (tmp_path / "backbone" / "run.json").write_text(json.dumps(record))
    given = [*settings(runs, "expert")[:-1], f"backbone={tmp_path / 'backbone'}"]
    with pytest.raises(RecipeError, match="autoencoder ffff"):
        train_recipe(resolve_training_recipe("smoke-expert", given), tmp_path / "run")


def test_latents_of_another_shape(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "backbone", tmp_path / "backbone")
    path = tmp_path / "backbone" / "model" / "transformer" / "config.json"
    network = make_transformer(WanNetwork(num_mask_channels=4, num_layers=1), 8, 16)
    network.save_pretrained(path.parent)
    given = [*settings(runs, "expert")[:-1], f"backbone={tmp_path / 'backbone'}"]
    with pytest.raises(RecipeError, match="latents of 8 channels, got 4"):
        train_recipe(resolve_training_recipe("smoke-expert", given), tmp_path / "run")


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    recipe = resolve_training_recipe("tiny-backbone", ["training.device=cpu"])
    with pytest.raises(RecipeError, match="needs a C\\+\\+ compiler"):
        train_recipe(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("smoke-exprt", [], "did you mean smoke-expert"),
        ("smoke-latents", [], "a recipe for latents, which `sememe train` does not run"),
        ("smoke-expert", ["training.learning_rat=1"], "nearest is training.learning_rate"),
        ("smoke-expert", ["training.learning_rate=fast"], "must be a number"),
        ("smoke-expert", ["name=other"], "name and description cannot be set"),
    ],
)
def test_wrong_recipes_and_settings(name: str, given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_training_recipe(name, given)


def test_max_minutes_is_a_setting_like_others() -> None:
    assert resolve_training_recipe("tiny-expert", [], 12.5).training.max_minutes == 12.5
    with pytest.raises(InputError, match="given twice"):
        resolve_training_recipe("tiny-expert", ["training.max_minutes=1"], 12.5)
