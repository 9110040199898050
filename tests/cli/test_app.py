"""The command as a whole: help, speed, exit codes and what becomes of errors."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sememe
from cli.runs import refused, run_here
from sememe.cli.app import main
from sememe.cli.generate import name_flags
from sememe.errors import ModelError, OutputError
from sememe.files import atomic_path
from sememe.workflows import model_list as verb

COMMANDS = [[], ["generate", "video-as-prompt"], ["demo"], ["generate"], ["evaluate"], ["models"], ["convert"]]
COMMANDS += [["download"], ["env"]]
HEAVY = {"accelerate", "av", "cv2", "diffusers", "peft", "scipy", "torch", "transformers"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_names_what_there_is(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, *command, "--help")
    assert outcome.out == run_here(capsys, *command, "-h").out
    assert outcome.code == 0
    assert "Usage: sememe" in outcome.out
    assert outcome.err == ""


def test_help_settings_and_lists_load_nothing_heavy() -> None:
    code = (
        "import sys, json; from sememe.cli.app import run\n"
        "for command in json.loads(sys.argv[1]): assert run([*command, '--help']) == 0\n"
        "def tell(): print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)\n"
        "import sememe, sememe.errors, sememe.files, sememe.records\n"
        "tell()\n"
        "import sememe.data.manifest, sememe.data.pairing, sememe.training.config, sememe.video_as_prompt.settings\n"
        "from sememe.workflows.recipe_list import list_recipes; list_recipes()\n"
        "tell()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(COMMANDS)], capture_output=True, check=True)
    for_help, for_lists = map(json.loads, done.stderr.splitlines()[-2:])
    assert not (HEAVY | {"numpy"}) & set(for_help)
    assert not HEAVY & set(for_lists)


def test_every_flag_has_a_help_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run_here(capsys, "generate", "video-as-prompt", "--help").out
    flags = "reference image prompt output model seed steps num-frames guidance-scale reference-guidance-scale"
    flags += " device vram sheet set json help-all"
    for flag in flags.split():
        assert re.search(rf"--{flag}\s.*\w{{3}}", text), flag
    rare = {"--reference-prompt", "--last-image", "--influence"}
    assert not rare & set(re.findall(r"--[a-z-]+", text))
    assert rare < set(run_here(capsys, "generate", "video-as-prompt", "--help-all").out.split())


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys)
    assert outcome.code == 2
    assert "generate" in outcome.out + outcome.err
    assert "error" not in outcome.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(capsys, "--version").out == f"sememe {sememe.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generatte"], "Did you mean 'generate'"),
        (["generate", "video-as-prompt", "--image", "a.png"], "Missing option '--output'"),
        (["generate", "video-as-prompt", "--seed", "x"], "valid integer"),
        (["models", "--colour"], "--colour"),
    ],
)
def test_usage_errors_take_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(run_here(capsys, *arguments))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("num_frames must be 17, got 16", "--num-frames must be 17, got 16"),
        ("num_inference_steps of at least 1", "--steps of at least 1"),
        ("so reference_prompts has no effect", "so --reference-prompt has no effect"),
        ("reference_strength of at most 1", "reference_strength of at most 1"),
        ("no file a/last_image.png or last_image.png", "no file a/last_image.png or last_image.png"),
    ],
)
def test_errors_name_flags(message: str, told: str) -> None:
    assert name_flags(message) == told


def test_words_are_completed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_SEMEME_COMPLETE": "complete_bash", "COMP_WORDS": "sememe gen", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        run_here(capsys)
    assert capsys.readouterr().out.split() == ["generate"]


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[object]:
        raise error

    monkeypatch.setattr(verb, "list_built_in_models", fail)


def test_mistakes_and_lost_outputs_exit_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (ModelError("expected a,\n got b"), OutputError("the disk is full")):
        fail_with(error, monkeypatch)
        assert refused(run_here(capsys, "models")) == f"error: {' '.join(str(error).split())}"


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    outcome = run_here(capsys, "models")
    assert outcome.code == 130
    assert outcome.err == "interrupted\n"
    assert "Traceback" not in outcome.err


def test_faults_of_ours_take_one_line_and_exit_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(RuntimeError("first\nsecond"), monkeypatch)
    outcome = run_here(capsys, "models")
    assert outcome.code == 1
    assert outcome.err.startswith("error: unexpected RuntimeError: first second (")
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_a_traceback_on_request(way: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(RuntimeError("first"), monkeypatch)
    if way == "variable":
        monkeypatch.setenv("SEMEME_DEBUG", "1")
    outcome = run_here(capsys, *(["--debug"] if way == "flag" else []), "models")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "fail_with" in outcome.err or "in fail" in outcome.err


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_signals")
def test_main_exits_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ModelError("x"), monkeypatch)
    with pytest.raises(SystemExit) as caught:
        main(["models"])
    assert caught.value.code == 2


@pytest.mark.usefixtures("own_signals")
def test_sigterm_leaves_no_unfinished_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "out.bin"):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it goes on")

    monkeypatch.setattr(verb, "list_built_in_models", write)
    with pytest.raises(SystemExit) as caught:
        main(["models"])
    assert caught.value.code == 143
    assert list(tmp_path.iterdir()) == []


def test_a_reader_who_leaves_is_no_error() -> None:
    code = f"{sys.executable} -m sememe generate video-as-prompt --help | head -2"
    done = subprocess.run(["/bin/sh", "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert "Usage: sememe" in done.stdout
    assert "Traceback" not in done.stderr
