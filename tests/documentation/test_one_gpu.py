"""The scripts of `examples/one_gpu` call what there is, in an order in which each step finds what it reads.

The trainings themselves are not run: a stand-in for `sememe` writes down how it is called, and leaves what a training
or a cache leaves.
"""

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from sememe.training.recipes import ArraysRecipe, ModelRecipe
from sememe.workflows.recipe_list import resolve_recipe

FOLDER = Path(__file__).parents[2] / "examples" / "one_gpu"
STAND_IN = """#!/bin/bash
echo "$*" >> "$CALLS"
while [ $# -gt 0 ]; do
  case "$1" in
    *"$FAILS"*) exit 1 ;;
    --output-dir) mkdir -p "$2/model" "$2/start/tokenizer"; touch "$2/log.jsonl" ;;
    --output) mkdir -p "$2" ;;
  esac
  shift
done
"""
KINDS = {"precompute": ArraysRecipe, "train": object, "assemble": ModelRecipe}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File with the calls of `sememe`, one a line."""
    command = tmp_path / "bin" / "sememe"
    command.parent.mkdir()
    command.write_text(STAND_IN)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PROCESSES", "2")
    monkeypatch.setenv("FAILS", "no step")
    return tmp_path / "calls"


def run(name: str, folder: Path, minutes: str = "1") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/bash", str(FOLDER / f"{name}.sh"), str(folder), minutes], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("semanticgen", "encoder"), ("semanticgen", "semanticgen/tiny"), ("video_as_prompt", "encoder")],
)
def test_steps_have_settings_that_exist_and_find_what_they_read(
    name: str, encoder: str, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCODER", encoder)
    ended = run(name, tmp_path / "work")
    assert ended.returncode == 0, ended.stderr
    there: set[str] = set()
    for line in calls.read_text().splitlines():
        verb, recipe, *rest = line.split()
        settings = [text for option, text in pairwise(rest) if option == "--set"]
        resolve_recipe(recipe, settings, KINDS[verb], verb)
        read = {text.partition("=")[2] for text in settings if "=" in text}
        made_here = {"frames", "encoder", "latents", "renderer", "planner", "backbone", "expert"}
        assert {text.partition("/")[0] for text in read} & made_here <= there, line
        there.add(rest[rest.index("--output-dir" if verb != "assemble" else "--output") + 1])
    assert "model" in there
    assert (tmp_path / "work" / "model").is_dir()


def test_an_encoder_that_is_there_needs_no_frames(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODER", "semanticgen/tiny")
    run("semanticgen", tmp_path / "work")
    recipes = {line.split()[1] for line in calls.read_text().splitlines()}
    assert recipes == {"tiny-semantic-latents", "tiny-renderer", "tiny-planner", "tiny-semanticgen"}


def test_a_second_call_makes_nothing_twice(tmp_path: Path, calls: Path) -> None:
    run("semanticgen", tmp_path / "work")
    calls.unlink()
    assert run("semanticgen", tmp_path / "work").returncode == 0
    assert not calls.exists()


@pytest.mark.parametrize(("fails", "step"), [("tiny-semantic-latents", "latents"), ("tiny-renderer", "renderer")])
def test_a_step_that_fails_is_named_and_no_model_follows(
    fails: str, step: str, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", fails)
    ended = run("semanticgen", tmp_path / "work")
    assert ended.returncode == 1
    assert f"{step} is not done" in ended.stderr
    assert "assemble" not in calls.read_text()


def test_no_training_begins_after_the_time_is_over(tmp_path: Path, calls: Path) -> None:
    ended = run("semanticgen", tmp_path / "work", minutes="0")
    assert ended.returncode == 1
    assert "encoder is not done" in ended.stderr
    assert "train" not in {line.split()[0] for line in calls.read_text().splitlines()}


def test_a_call_without_time_left_goes_on_in_the_next(tmp_path: Path, calls: Path) -> None:
    run("semanticgen", tmp_path / "work", minutes="0")
    calls.unlink()
    assert run("semanticgen", tmp_path / "work").returncode == 0
    verbs = [line.split()[:2] for line in calls.read_text().splitlines()]
    assert not [recipe for verb, recipe in verbs if verb == "precompute" and recipe.endswith("-frames")]
    assert verbs[0] == ["train", "tiny-semantic-encoder"]


def test_arguments_are_a_folder_and_minutes(tmp_path: Path, calls: Path) -> None:
    ended = subprocess.run(["/bin/bash", str(FOLDER / "semanticgen.sh")], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "expected FOLDER and MINUTES, got 0 arguments" in ended.stderr
    assert not calls.exists()
