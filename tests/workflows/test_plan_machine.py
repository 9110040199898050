"""What a plan asks of the machine, and what is refused before anything is loaded."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sememe.compute import placement, speed
from sememe.compute import storage as storage_module
from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError, MissingExtraError
from sememe.pipelines.planning import Strategy
from sememe.workflows import host_memory, loading, model_memory
from sememe.workflows import plan as planning
from sememe.workflows.candidates import Candidate
from sememe.workflows.loading import load_model
from sememe.workflows.plan import MemoryPlan, PlanRequest, Texts, apply_plan, explain_plan, plan_document, plan_memory


@pytest.fixture(scope="module")
def offloaded() -> MemoryPlan:
    """Wan-14B on 24 GB, of which blocks come one by one."""
    plan = plan_memory("wan-14b", PlanRequest(24))
    assert plan.strategy.offload == "group"
    return plan


def test_weights_are_pinned_where_the_machine_has_room(offloaded: MemoryPlan) -> None:
    needed = offloaded.chosen.estimate.host_bytes / 1e9
    assert needed == pytest.approx(55.7, abs=0.5)
    for host, how, told in (
        (None, "lean", "a generation asks its machine"),
        (1.9 * needed, "lean", "weights are pinned on their way, which is slower"),
        (2.1 * needed, "pinned", "weights are pinned ahead, which takes 111"),
    ):
        plan = dataclasses.replace(offloaded, host=host)
        assert plan.host_memory == plan_document(plan)["host_memory"] == how
        assert any(told in line for line in explain_plan(plan)), host
    whole = plan_memory("wan-14b", PlanRequest(80, host=1.0))
    assert (whole.host_memory, plan_document(whole)["host_gb"]) == (None, 0)


def test_a_machine_that_cannot_hold_the_weights_is_told(offloaded: MemoryPlan) -> None:
    with pytest.raises(InputError, match=r"expected 55\.\d GB free there, got 32 GB; close other programs"):
        planning.choose_plan(offloaded.model, offloaded.generation, PlanRequest(24, host=32.0))
    assert any("take 55.7 GB of the machine's own memory" in line for line in explain_plan(offloaded))


@pytest.mark.parametrize("how", ["lean", "pinned"])
def test_the_choice_is_applied(how: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_memory(model_folder, PlanRequest(24, host=500.0 if how == "pinned" else 1.0))
    group = Candidate(Strategy("float32", offload="group"), dataclasses.replace(plan.chosen.estimate, host_bytes=10**9))
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(placement, "apply_offload", lambda *_, **settings: seen.append(settings))
    pipeline = load_model(str(model_folder), LoadingSettings(device="cpu")).pipeline
    apply_plan(pipeline, dataclasses.replace(plan, chosen=group), "cpu", Texts())
    assert seen == [{"group_level": "block", "host_memory": how, "resting": ()}]


def test_a_generation_asks_its_machine(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "read_free_memory", lambda: 5 * 10**11)
    model = load_model(str(model_folder), LoadingSettings(device="cpu", vram=24))
    assert model.plan is not None
    assert model.plan.host == 500.0
    assert model.plan.model.name == str(model_folder)


def test_a_model_has_one_name(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sememe.checkpoints.zoo.resolve_model", lambda *_: model_folder)
    with pytest.raises(InputError, match=r"^tiny at 48x32"):
        load_model("tiny", LoadingSettings(device="cpu", vram=1e-6))


def test_free_memory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     500 kB\n")
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path)
    assert host_memory.read_free_memory() == 512000
    for name, text in (("max", "max"), ("current", "90000"), ("stat", "anon 50000\nfile 30000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert host_memory.read_free_memory() == 512000, "no limit"
    (tmp_path / "memory.max").write_text("100000\n")
    assert host_memory.read_free_memory() == 40000, "what files take makes room"


def test_free_memory_that_nobody_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> int:
        raise ValueError

    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "nowhere")
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path)
    monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False)
    assert host_memory.read_free_memory() == 12288
    monkeypatch.setattr("os.sysconf", fail, raising=False)
    assert host_memory.read_free_memory() is None


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights are read, or a repository is fetched."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing was to be loaded")

    monkeypatch.setattr("sememe.video_as_prompt.pipeline.VideoAsPromptPipeline.from_pretrained", fail)
    monkeypatch.setattr("sememe.checkpoints.zoo._download", fail)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("storage", "package"), [("int8wo", "torchao"), ("fp8wo", "torchao"), ("nf4", "bitsandbytes"), ("fp8", None)]
)
def test_a_missing_extra_is_told_before_loading(
    storage: str, package: str | None, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "find_spec", lambda _: None)
    wanted = LoadingSettings(device="cpu", vram=24, storage=storage)
    expected: Any = (AssertionError, "nothing was to be loaded")
    if package is not None:
        expected = (MissingExtraError, rf"{package} is not installed; install it with: pip install 'sememe\[quant\]'")
    with pytest.raises(expected[0], match=expected[1]):
        load_model(str(model_folder), wanted)


@pytest.mark.usefixtures("unloaded")
def test_attention_that_is_not_installed_is_told_before_loading(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miss(_: Any) -> None:
        raise RuntimeError("Flash Attention backend 'flash' is not usable.\nInstall it.")

    monkeypatch.setattr(speed, "_check_attention_backend_requirements", miss)
    with pytest.raises(
        InputError, match=r"'flash' cannot be used here \(Flash Attention .* not usable.\); 'native' always"
    ):
        load_model(str(model_folder), LoadingSettings(device="cpu", attention="flash"))
    with pytest.raises(InputError, match="would fetch code from the hub"):
        load_model(str(model_folder), LoadingSettings(device="cpu", attention="flash_hub"))


@pytest.mark.usefixtures("unloaded")
def test_a_released_model_that_does_not_fit_is_not_fetched() -> None:
    name = model_memory.RELEASED["cogvideox-5b"].hub_id
    with pytest.raises(InputError, match=f"^{name} at 720x480, 49 frames does not fit in 3 GB"):
        load_model(name, LoadingSettings(device="cpu", vram=3))
    with pytest.raises(AssertionError, match="nothing was to be loaded"):
        load_model(name, LoadingSettings(device="cpu", vram=80))


@pytest.mark.usefixtures("unloaded")
def test_a_card_has_what_is_planned_for(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 23_600_000_000

    monkeypatch.setattr(loading, "choose_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: Card())
    with pytest.raises(InputError, match=r"expected a vram of at most the 23.6 GB that cuda:0 has, got 80"):
        load_model(str(model_folder), LoadingSettings(device="cuda:0", vram=80))
    with pytest.raises(AssertionError, match="nothing was to be loaded"):
        load_model(str(model_folder), LoadingSettings(device="cuda:0", vram=24))
