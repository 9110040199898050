"""The chain of verbs for an accelerator, at its smallest size."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accelerator import Step, keep_result, main, plan, run_part
from sememe.cli.app import run


def run_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Run a verb in this process: starting one takes longer than its work at this size."""
    return subprocess.CompletedProcess(command, run(command[3:]))


@pytest.mark.parametrize("system", ["video-as-prompt", "semanticgen"])
def test_parts_continue_each_other_until_a_model_is_assembled(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.accelerator.plan", lambda *given: plan(*given)[:-1])  # the evaluation takes minutes
    monkeypatch.setattr("benchmarks.accelerator.subprocess.run", run_here)
    call = [
        str(tmp_path),
        "--system",
        system,
        "--size",
        "smoke",
        "--set",
        "training.num_steps=2",
        "--training-minutes",
        "60",
        "--processes",
        "1",
    ]
    assert main([*call, "--minutes", "0"]) == 3
    assert main([*call, "--minutes", "60"]) == 0
    assert (tmp_path / "result" / "model" / "model_index.json").is_file()
    assert '"assembled": true' in capfd.readouterr().out
    # All is there: the same command starts no process any more.
    monkeypatch.setattr("benchmarks.accelerator._run", lambda *given: pytest.fail(f"ran {given}"))
    assert main([*call, "--minutes", "60"]) == 0


def test_processes_share_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            begun.append(command[3:])

        def wait(self, seconds: float) -> int:
            return 0

    monkeypatch.setattr("benchmarks.accelerator.subprocess.Popen", Process)
    monkeypatch.setattr("benchmarks.accelerator._run", lambda *_: True)
    assert run_part([Step(tmp_path / "latents", ("precompute", "smoke-latents"))], 1.0, 1.0, 2)
    expected = ["precompute", "smoke-latents", "--output-dir", str(tmp_path / "latents"), "--part"]
    assert begun == [[*expected, "1/2"], [*expected, "2/2"]]


def test_a_step_that_fails_ends_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.accelerator.subprocess.run", run_here)
    steps = (
        Step(tmp_path / "latents", ("precompute", "no-such-recipe")),
        *plan("video-as-prompt", tmp_path, "smoke", None, (), 8)[4:],
    )
    assert not run_part(steps, 60.0, 60.0)
    keep_result(steps, tmp_path / "result")
    assert not list((tmp_path / "result").iterdir())
