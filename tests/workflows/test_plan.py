"""Plans by the name of a model: released ones, folders, and generations that follow them."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from generation_requests import vary
from model_folders import make_stock, save_published
from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.plan import Planner
from sememe.compute.strategy import Candidate, Constraints, Strategy
from sememe.errors import InputError, MissingExtraError, ModelError
from sememe.video import write_clip, write_image
from sememe.video_as_prompt.blueprint import RELEASED, make_released, read_blueprint
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.video_as_prompt.model_folders import read_own_dtype
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
from sememe.workflows.generate import GenerationRequest, generate
from sememe.workflows.loading import load_model
from sememe.workflows.plan import plan_memory
from video_as_prompt.pipeline_factories import make_clip, make_picture

REPOSITORIES = VIDEO_AS_PROMPT.checkpoints.released
# The released models at a size that is measured in a moment.
SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_frames": 5}


WHOLE = RELEASED["wan-14b"]


@pytest.fixture(scope="module")
def few_layers() -> Iterator[None]:
    """A tenth of the layers of the released model on Wan: planned as the whole one is, in a tenth of the time."""
    assert WHOLE.image_config is not None
    small = replace(
        WHOLE,
        transformer={**WHOLE.transformer, "num_layers": 4, "expert_blocks": [0, 2]},
        text_config={**WHOLE.text_config, "num_layers": 2},
        image_config={**WHOLE.image_config, "num_hidden_layers": 3},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RELEASED, "wan-14b", small)
        yield


@pytest.fixture(scope="module")
def wan(few_layers: None) -> Planner:
    return make_released("wan-14b").make_planner("wan-14b", **SMALL)


def constraints(vram: float) -> Constraints:
    return Constraints(vram=vram, dtypes=("bfloat16",), own_dtype="bfloat16")


def test_released_models_have_the_weights_of_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RELEASED, "wan-14b", WHOLE)  # with all layers, whatever ran before
    expected = {
        "wan-14b": {"transformer": 41.46, "text_encoder": 11.36, "image_encoder": 2.52, "vae": 0.51},
        "cogvideox-5b": {"transformer": 22.01, "text_encoder": 9.5, "vae": 0.86},
    }
    for name, sizes in expected.items():
        components = make_released(name).make_planner(name).workload("bfloat16").components
        found = {part: sum(each.nbytes for each in module.parameters()) / 1e9 for part, module in components.items()}
        assert found == pytest.approx(sizes, abs=0.1)
        assert {each.device.type for module in components.values() for each in module.parameters()} == {"meta"}


def test_more_memory_never_makes_it_slower(wan: Planner) -> None:
    candidates = list(wan.list_candidates(constraints(1.0)))
    order = [each.strategy for each in candidates]
    for place, candidate in enumerate(candidates):
        chosen = wan.find_first(constraints(candidate.estimate.peak / 1e9))
        assert chosen is not None
        assert order.index(chosen.strategy) <= place
    assert order[0].offload == "none"
    assert {each.offload for each in order} >= {"none", "group"}
    assert {each.offload for each in order} & {"group-leaf", "sequential"}, "by layer in one way or the other"


def test_nothing_fits_and_the_least_does(wan: Planner) -> None:
    with pytest.raises(InputError, match=r"wan-14b at 96x64, 5 frames does not fit in 0\.1 GB") as caught:
        wan.choose(constraints(0.1))
    least = float(str(caught.value).split("would do is ")[1].split(" GB")[0])
    assert wan.choose(constraints(least)).chosen.estimate.peak <= least * 1e9


@pytest.mark.usefixtures("few_layers")
def test_released_models_are_known_by_their_repositories() -> None:
    assert VIDEO_AS_PROMPT.checkpoints.find_released(REPOSITORIES["cogvideox-5b"]) == "cogvideox-5b"
    assert VIDEO_AS_PROMPT.checkpoints.find_released("owner/name") is None
    plan = plan_memory(VIDEO_AS_PROMPT, REPOSITORIES["wan-14b"], LoadingSettings(vram=80), SMALL)
    assert plan.title == "Video-As-Prompt-Wan2.1-14B at 96x64, 5 frames"


@pytest.mark.parametrize(
    ("name", "expert", "message"),
    [
        ("wan-15b", None, "wan-14b and cogvideox-5b"),
        ("owner/name", None, "owner/name"),
        ("wan-14b", "tiny", "wan-14b has one"),
    ],
)
def test_unknown_models(name: str, expert: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        plan_memory(VIDEO_AS_PROMPT, name, LoadingSettings(vram=24, expert=expert))


def test_learned_positions_have_one_size() -> None:
    with pytest.raises(InputError, match="480x720"):
        plan_memory(VIDEO_AS_PROMPT, "cogvideox-5b", LoadingSettings(vram=80), {"height": 256})


@pytest.mark.parametrize("kind", ["own", "published", "stock"])
def test_folders_are_read_and_not_loaded(
    kind: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expert = model_folder, None
    if kind == "published":
        folder = save_published(tmp_path / "published")
    elif kind == "stock":
        shutil.copytree(model_folder, tmp_path / "stock")
        folder, expert = make_stock(tmp_path / "stock", "WanImageToVideoPipeline"), model_folder / "expert"
    loading = LoadingSettings(device="cpu", expert=None if expert is None else str(expert))
    loaded = load_model(VIDEO_AS_PROMPT, str(folder), loading).pipeline
    monkeypatch.setattr("safetensors.safe_open", None)
    sketched = read_blueprint(folder, expert)
    for name, module in loaded.components.items():
        if isinstance(module, torch.nn.Module):
            shapes = {key: each.shape for key, each in module.state_dict().items()}
            twin = getattr(sketched, name)
            assert {key: each.shape for key, each in twin.state_dict().items()} == shapes
            assert next(twin.parameters()).is_meta
    assert sketched.defaults == loaded.defaults
    assert read_own_dtype(folder, expert) == "float32"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("model_index.json", "vae", ["diffusers"]),
        ("text_encoder/config.json", "d_model", "wide"),
        ("vae/config.json", "patch_size", "wide"),
    ],
)
def test_a_folder_that_is_not_whole(file: str, key: str, value: Any, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match="broken") as caught:
        plan_memory(VIDEO_AS_PROMPT, folder, LoadingSettings(vram=24))
    assert "\n" not in str(caught.value)


@pytest.fixture
def request_of_files(tmp_path: Path, model_folder: Path) -> GenerationRequest:
    write_clip(make_clip(), tmp_path / "reference.mp4")
    write_image(make_picture(), tmp_path / "image.png")
    inputs = VideoAsPromptInputs(
        references=(tmp_path / "reference.mp4",), image=tmp_path / "image.png", prompt="a red ball"
    )
    loading = LoadingSettings(device="cpu")
    return GenerationRequest(
        inputs=inputs, output=tmp_path / "out.mp4", model=str(model_folder), seed=7, loading=loading
    )


def test_a_planned_generation_is_the_plain_one(
    request_of_files: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generate(request_of_files).document
    assert plain["computing"]["plan"] is None
    strategy = Strategy("float32", offload="group", keeps_text_keys=False)

    def only(planner: Planner, _: Constraints) -> Iterator[Candidate]:
        yield Candidate(strategy, planner.estimate(strategy))

    monkeypatch.setattr(Planner, "list_candidates", only)
    said: list[str] = []
    planned = generate(vary(request_of_files, vram=24.0), lambda progress: said.append(progress.stage)).document
    summary = "float32, offload group, keys of texts recomputed"
    assert f"cpu, 24 GB to use: {summary} (--vram plans for another size)" in said
    plan = planned["computing"]["plan"]
    assert (plan["offload"], plan["label"], planned["exactness"]["label"]) == ("group", "exact", "exact")
    assert planned["settings"]["text_keys"] == plan["text_keys"] == "recomputed"
    assert planned["output"]["sha256"] == plain["output"]["sha256"]


def test_shortcuts_of_a_plan_are_recorded(request_of_files: GenerationRequest) -> None:
    request = vary(request_of_files, vram=24.0, storage="fp8", dtype="bfloat16", vae_dtype="bfloat16")
    document = generate(request).document
    shortcuts = ["weights stored as fp8", "autoencoder in bfloat16", "bfloat16 in place of float32"]
    assert document["exactness"]["shortcuts"] == document["computing"]["plan"]["shortcuts"] == shortcuts
    assert document["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"storage": "fp8"}, "vram"), ({"vram": 1e-6} | SMALL, "does not fit"), ({"vram": 8, "storage": "int3"}, "int3")],
)
def test_refused_before_anything_is_loaded(
    settings: dict[str, Any], message: str, request_of_files: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sememe.checkpoints.components.load_strictly", None)
    with pytest.raises(InputError, match=message):
        generate(vary(request_of_files, **settings))


def test_a_missing_extra_is_named_before_loading(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sememe.compute.storage.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"sememe\[quant\]"):
        load_model(VIDEO_AS_PROMPT, str(model_folder), LoadingSettings(device="cpu", vram=24, storage="int8wo"))


@pytest.mark.usefixtures("few_layers")
def test_a_released_model_that_does_not_fit_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> None:
        raise AssertionError("nothing was to be fetched")

    monkeypatch.setattr("sememe.checkpoints.zoo._download", fetch)
    with pytest.raises(InputError, match=r"does not fit in 0\.5 GB"):
        load_model(VIDEO_AS_PROMPT, REPOSITORIES["wan-14b"], LoadingSettings(device="cpu", vram=0.5), SMALL)


def test_without_vram_the_card_is_asked(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sememe.compute.devices.choose_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (3 * 2**30, 2**34))

    def plan(*given: Any, **_: Any) -> None:
        raise InputError(f"planned for {given[2].vram} GB, stored as {given[2].storage}")

    monkeypatch.setattr("sememe.workflows.loading.plan_memory", plan)
    with pytest.raises(InputError, match=r"planned for 3\.0 GB, stored as None"):
        load_model(VIDEO_AS_PROMPT, str(model_folder))
    with pytest.raises(InputError, match=r"planned for 3\.0 GB, stored as fp8"):
        load_model(VIDEO_AS_PROMPT, str(model_folder), LoadingSettings(storage="fp8"))


def test_a_card_has_what_is_planned_for(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sememe.compute.devices.choose_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: type("Card", (), {"total_memory": 23.6e9}))
    with pytest.raises(InputError, match=r"23.6 GB that cuda:0 has, got 80"):
        load_model(VIDEO_AS_PROMPT, str(model_folder), LoadingSettings(device="cuda:0", vram=80))
