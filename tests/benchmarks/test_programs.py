"""Both programs run from end to end at sizes of seconds, and write what they found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as cpu
from benchmarks import gpu, lengths
from benchmarks.gpu_models import Case, fit_layers, native_layers
from benchmarks.results import ROOT, describe_run
from benchmarks.speed import choose_dtypes
from semanticgen.renderer_factories import make_backbone
from sememe.semanticgen.network_renderer import SemanticGenTransformer

CONTESTANTS = {"stock", "official", "ours, exact", "ours, stock null", "ours, one-way"}


@pytest.fixture(autouse=True)
def keep_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


@pytest.fixture(autouse=True)
def emulate_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take the same way, and about the same time, on CPUs with and without instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


def test_bfloat16_is_measured_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(choose_dtypes()) == ["float32"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert list(choose_dtypes()) == ["float32", "bfloat16"]


def run_cpu(folder: Path, *parts: str) -> dict[str, Any]:
    output = folder / "result.json"
    assert cpu.main(["--quick", "--rounds", "1", "--output", str(output), "--only", *parts]) == 0
    record: dict[str, Any] = json.loads(output.read_text())
    return record


def test_the_reference_is_embedded_once_and_a_result_says_where_it_comes_from(tmp_path: Path) -> None:
    record = run_cpu(tmp_path, "reference")
    rows = {row["name"]: row for row in record["reference"]}
    steps = rows["official"]["num_steps"]
    assert rows["official"]["num_reference_embeddings"] == 2 * steps
    assert {name: row["num_reference_embeddings"] for name, row in rows.items() if name != "official"} == {
        name: 1 for name in rows if name != "official"
    }
    passes = {name: row["num_expert_passes"] for name, row in rows.items()}
    assert passes == {
        "official": 2 * steps,
        "ours, exact": 2 * steps,
        "ours, stock null": steps,
        "ours, one-way": 1,
    }
    run = record["run"]
    assert {"date", "commit", "uncommitted_changes", "versions", "machine"} <= run.keys()
    # Packages from PyPI leave the name of the build out of their own version.
    assert run["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert run["machine"]["num_threads"] == torch.get_num_threads()
    assert record["kind"].startswith("quick")
    assert str(ROOT) not in json.dumps(run), "no path of one machine"
    assert describe_run()["versions"]["sememe"]


def test_the_rival_is_checked(tmp_path: Path) -> None:
    found = run_cpu(tmp_path, "rival")["rival"]
    for forward in found["forwards"]:
        assert [round(entry["expected"], 2) for entry in forward["costs"]] == [2.48, 1.39]
        assert found["holds"][forward["dtype"]] == all(entry["holds"] for entry in forward["costs"])


def test_guided_steps(tmp_path: Path) -> None:
    found = run_cpu(tmp_path, "steps")["steps"]
    assert {(entry["dtype"], entry["placement"]) for entry in found} == {
        ("float32", placement) for placement in ("every block", "one block in four")
    }
    for entry in found:
        rows = {row["name"]: row for row in entry["rows"]}
        assert rows.keys() >= CONTESTANTS
        assert all(rows[name]["exactness"] and rows[name]["step_peak_bytes"] > 0 for name in CONTESTANTS)
        # Both hold keys and values of a reference for longer than a block.
        assert rows["ours, one-way"]["kept_bytes"] > entry["reference_record_bytes"]["one-way"]
        assert rows["official"]["gain_over_official"] == 1.0


def test_memory_of_a_generation_stays_near_the_stock_pipeline(tmp_path: Path) -> None:
    found = run_cpu(tmp_path, "memory")["memory"]
    assert found["stock"]["peak_bytes"] > found["stock"]["weight_bytes"]
    for row in found["ours"]:
        assert row["holds"], row
        assert row["weight_bytes"] == found["stock"]["weight_bytes"] + row["expert_bytes"]


def test_growth(tmp_path: Path) -> None:
    found = run_cpu(tmp_path, "growth")["growth"]
    assert len(found["tokens"]) == len(found["references"]) == 2
    assert "official" not in found["references"][0]["timings"]
    assert {row["name"] for row in found["steps"]["rows"]} == CONTESTANTS


def test_memory_is_that_of_a_window_whatever_the_length(tmp_path: Path) -> None:
    one, two, _ = run_cpu(tmp_path, "frames")["frames"]
    assert (one["num_frames"], two["num_frames"]) == (8, 16)
    # Beside a window there are only what the network is given of the clip, and its prediction.
    assert two["peak_bytes"] < 1.25 * one["peak_bytes"]


def run_gpu(folder: Path, family: str, *parts: str) -> dict[str, Any]:
    output = folder / "result.json"
    options = ["--device", "cpu", "--quick", "--rounds", "1", "--families", family, "--output", str(output)]
    assert gpu.main([*options, "--only", *parts]) == 0
    (case,) = json.loads(output.read_text())["cases"]
    found: dict[str, Any] = case
    return found


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_steps_on_an_accelerator(family: str, tmp_path: Path) -> None:
    rows = run_gpu(tmp_path, family, "steps")["steps"]
    assert {row["name"] for row in rows} == CONTESTANTS - ({"official"} if family == "cogvideox" else set())
    assert all(row["operations"] > 0 and row["step_peak_bytes"] > 0 for row in rows)


@pytest.mark.slow
def test_offload_on_an_accelerator(tmp_path: Path) -> None:
    found = run_gpu(tmp_path, "wan", "offload")["offload"]
    assert found.keys() == {"none", "model", "group", "sequential"}
    assert not [rows for rows in found.values() if "failed" in rows]


@pytest.mark.slow
def test_attention_backends_on_an_accelerator(tmp_path: Path) -> None:
    # In float32: guidance enlarges the rounding of bfloat16 to hundredths of the output.
    found = run_gpu(tmp_path, "wan", "attention", "--dtype", "float32")["attention"]
    rows = {row["backend"]: row for row in found}
    assert rows["native"]["largest_deviation"] == 0.0
    assert all(row["largest_deviation"] < 1e-4 for row in rows.values() if "largest_deviation" in row)


def test_what_fails_says_why_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_settings: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "make_contestants", fail)
    found = run_gpu(tmp_path, "wan", "steps")
    assert found["steps"] == {"failed": "RuntimeError: out of memory"}
    assert found["weight_bytes"] > 0


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("refuses a missing CUDA device, and this machine has one")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --quick" in capsys.readouterr().err


def test_fewer_layers_where_they_do_not_fit() -> None:
    case = Case(family="wan", experts="every", num_layers=native_layers("wan", is_quick=False), is_quick=False)
    assert fit_layers(case, 200 * 2**30, 2) == 40
    assert fit_layers(case, 24 * 2**30, 2) < 12


def test_memory_of_long_videos_grows_in_full_attention_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SemanticGenTransformer.from_backbone(make_backbone())
    monkeypatch.setattr(lengths, "load_renderer", lambda model: lengths.Renderer(network.eval(), 4, 2))
    output = tmp_path / "lengths.json"
    assert lengths.main(["--factors", "2", "4", "--rounds", "1", "--output", str(output)]) == 0
    peaks = {(row["attention"], row["factor"]): row["peak_bytes"] for row in json.loads(output.read_text())["rows"]}
    growth = {way: peaks[way, 4] - peaks[way, 2] for way in ("windows", "full")}
    assert growth["windows"] < growth["full"] / 4
