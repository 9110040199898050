from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from model_folders import save_model
from sememe.checkpoints.zoo import describe_model, find_part
from sememe.errors import ModelError, OutputError
from sememe.files import hash_file
from sememe.training.networks import make_scheduler
from sememe.training.recipes import SchedulerSettings
from sememe.training.run_record import RunRecord, RunSummary, write_run, write_summary
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.stage_settings import VideoAsPromptModelRecipe
from sememe.video_as_prompt.stages import build_pipeline
from sememe.workflows.assemble import describe_runs, list_origins, write_model
from sememe.workflows.model_card import ModelCard
from video_as_prompt.pipeline_factories import DEFAULTS, make_clip, make_picture, make_pipeline

CARD = ModelCard(
    title="random",
    description="Weights: random, for tests.",
    source="a test",
    pipeline="VideoAsPromptPipeline",
    task="image-to-video",
    intended_use="tests",
    training={"backbone, steps": "3"},
    origins=["world 2, 17 frames of 64x64 at 8 fps, 9 clips"],
)


RECIPE = VideoAsPromptModelRecipe(
    name="random",
    description="random weights",
    autoencoder="a",
    backbone="b",
    expert="c",
    generation=Settings.from_config(DEFAULTS),
)


def assemble(output: Path, parts: dict[str, Path], card: ModelCard = CARD, **changes: Any) -> Path:
    recipe = replace(RECIPE, **changes)
    return write_model(build_pipeline(recipe, parts), recipe, output, card)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = save_model(tmp_path_factory.mktemp("parts") / "model", vae="linear")
    return {name: folder / name for name in ("vae", "transformer", "text_encoder", "tokenizer", "expert")}


def generate(pipeline: VideoAsPromptPipeline) -> torch.Tensor:
    output = pipeline(
        image=make_picture(),
        references=[make_clip()],
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    frames: torch.Tensor = output.frames
    return frames


def test_float32_changes_nothing(parts: dict[str, Path], tmp_path: Path) -> None:
    made = VideoAsPromptPipeline.from_pretrained(assemble(tmp_path / "made", parts, precision="float32"))
    whole = make_pipeline(vae="linear")
    for part in ("vae", "text_encoder", "transformer"):
        expected = whole.components[part].state_dict()
        found = made.components[part].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.allclose(generate(made), generate(whole), atol=1e-5)


def test_files_are_small_and_of_half_precision(parts: dict[str, Path], tmp_path: Path) -> None:
    folder = assemble(tmp_path / "made", parts, max_shard_size="100KB")
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) > len(list(parts["vae"].parent.rglob("*.safetensors"))), "the shards are several"
    assert max(path.stat().st_size for path in files) < 120_000
    for path in files:
        with safe_open(path, "pt") as file:
            found = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        code = ("encoder.", "decoder.") if path.parent.name == "vae" else ()
        assert all(dtype == ("F32" if key.startswith(code) else "BF16") for key, dtype in found.items())
    whole, rounded = make_pipeline(vae="linear"), VideoAsPromptPipeline.from_pretrained(folder)
    assert rounded.transformer.dtype == torch.float32
    for (name, one), other in zip(whole.transformer.named_parameters(), rounded.transformer.parameters(), strict=True):
        assert torch.equal(one.bfloat16().float(), other), name


def test_no_path_of_this_machine_is_written(parts: dict[str, Path], tmp_path: Path) -> None:
    for path in assemble(tmp_path / "made", parts).rglob("*.json"):
        assert str(parts["vae"].parent) not in path.read_text(), path


def test_the_card(parts: dict[str, Path], tmp_path: Path) -> None:
    folder = assemble(tmp_path / "made", parts)
    record = describe_model(folder)
    assert (record.description, record.license, record.source) == (CARD.description, "apache-2.0", "a test")
    assert (record.height, record.num_frames) == (32, 5)
    text = (folder / "README.md").read_text()
    for path in (folder / "model_index.json", *folder.rglob("*.safetensors")):
        assert f"| `{path.relative_to(folder).as_posix()}` | `{hash_file(path)}` |" in text
    for entry in ("## Limits", "## Intended use", "backbone, steps | 3", "## Base", "## Data"):
        assert entry in text


def test_the_card_claims_no_license_of_what_others_made(parts: dict[str, Path], tmp_path: Path) -> None:
    origins = ["Wan2.1-T2V-1.3B-Diffusers", "dataset 3f2a, videos, 17 frames of 64x64, 8 fps"]
    folder = assemble(tmp_path / "made", parts, card=replace(CARD, origins=[*CARD.origins, *origins]))
    text = (folder / "README.md").read_text()
    assert describe_model(folder).license == "other"
    assert all(f"\n- {origin}\n" in text for origin in origins)
    assert "Apache" not in text
    assert "No other model" not in text


def test_origins_are_followed_through_runs(tmp_path: Path) -> None:
    def add_run(name: str, clips: str, init_from: str | None = None, **settings: str) -> str:
        (tmp_path / name).mkdir()
        write_run(
            tmp_path / name, RunRecord(recipe="r", settings=settings, inputs={"clips": clips}, init_from=init_from)
        )
        return str(tmp_path / name)

    backbone = add_run("backbone", "world 2, 9 clips", backbone="None", latents="runs/latents")
    assert list_origins(backbone) == {"world 2, 9 clips"}
    own = add_run("own", "dataset 3f2a, videos", backbone, teacher="video-as-prompt/tiny", image_model="Some/Model")
    assert list_origins(own) == {"world 2, 9 clips", "dataset 3f2a, videos", "Model"}
    for inside in ("model", "checkpoints/step_000004"):
        (tmp_path / "own" / inside).mkdir(parents=True)
        assert list_origins(f"{own}/{inside}") == list_origins(own)
    ring = [add_run(f"ring_{number}", f"world {number}", str(tmp_path / f"ring_{1 - number}")) for number in (0, 1)]
    assert list_origins(ring[0]) == {"world 0", "world 1"}
    (tmp_path / "Wan").mkdir()
    assert list_origins(str(tmp_path / "Wan")) == {"Wan"}
    assert list_origins("video-as-prompt/tiny") == set()


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_schedulers_keep_their_shift(kind: str, parts: dict[str, Path], tmp_path: Path) -> None:
    settings = SchedulerSettings(kind=kind, shift=4.0)  # type: ignore[arg-type]
    pipeline = VideoAsPromptPipeline.from_pretrained(assemble(tmp_path / "made", parts, scheduler=settings))
    pipeline.scheduler.set_timesteps(4)
    expected = make_scheduler(settings)
    expected.set_timesteps(4)
    assert torch.equal(pipeline.scheduler.sigmas, expected.sigmas)
    assert float(expected.sigmas[1]) > 0.8
    assert generate(pipeline).isfinite().all()


def test_an_older_model_stays_if_something_fails(parts: dict[str, Path], tmp_path: Path) -> None:
    folder = assemble(tmp_path / "made", parts)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ModelError):
        assemble(folder, parts | {"expert": parts["vae"]})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assemble(folder, parts, card=replace(CARD, description="new"))
    assert describe_model(folder).description == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("output", ["kept", "."])
def test_a_folder_of_other_files_is_not_replaced(
    output: str, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files, which would be lost"):
        assemble(Path(output), parts)
    assert (tmp_path / "kept" / "notes.txt").read_text() == "mine"


def test_the_folder_of_the_process_becomes_a_model(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assemble(Path(), parts)
    assert describe_model(tmp_path).source == "a test"


def test_a_run_that_was_moved_to_where_it_began_from(tmp_path: Path) -> None:
    source = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", RunRecord(recipe="r", settings={}, inputs={}, init_from=source))
    summary = RunSummary(recipe="r", step=1, num_samples=1, seconds=1, loss=None, ending="finished", device="CPU")
    write_summary(tmp_path / "run", summary)
    told = describe_runs({"expert": source})["expert"]
    assert told.startswith(f"begun from {source}, whose training is not stated here; then r: 1 steps")


def test_a_place_that_cannot_be_written(parts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        assemble(tmp_path / "file" / "model", parts)


def test_parts_are_found(parts: dict[str, Path], tmp_path: Path) -> None:
    model = parts["vae"].parent
    for name, folder in parts.items():
        assert find_part(model, name) == folder
        assert find_part(folder, name) == folder
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match="expected a complete run"):
        find_part(run, "vae")
    (run / "model").symlink_to(parts["vae"])
    assert find_part(run, "vae") == run / "model"
    with pytest.raises(ModelError, match="holds none"):
        find_part(tmp_path, "expert")


def test_the_card_tells_of_every_run_that_the_weights_went_through(tmp_path: Path) -> None:
    def add_run(name: str, step: int, init_from: str | None) -> str:
        folder = tmp_path / name
        folder.mkdir()
        write_run(folder, RunRecord(recipe="r", settings={}, inputs={}, init_from=init_from))
        summary = RunSummary(
            recipe="r", step=step, num_samples=10, seconds=60.0, loss=0.5, ending="steps", device="a CPU"
        )
        write_summary(folder, summary)
        return str(folder)

    first = add_run("first", 1, None)
    second = add_run("second", 2, first)
    third = add_run("third", 3, str(tmp_path / "gone"))
    told = describe_runs({"backbone": second, "expert": third})
    assert told["backbone"].index("1 steps") < told["backbone"].index("; then r: 2 steps")
    assert told["expert"].startswith(
        f"begun from {tmp_path / 'gone'}, whose training is not stated here; then r: 3 steps"
    )
