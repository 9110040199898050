"""A built-in model from clips to figures on an accelerator, in parts that continue each other.

`python -m benchmarks.accelerator FOLDER --minutes 9` runs for at most about that long and stops; the same command goes
on where it stopped, until the model is assembled and evaluated. Each step is a verb of the command line, so that
nothing here can differ from what a person would type. `FOLDER/result` holds what is worth keeping after each part: the
newest exported weights in shards of less than 16 MB, and the reports. `--system semanticgen` trains encoder, renderer
and planner of SemanticGen; the autoencoder and the backbone to begin with are those of the built-in Video-As-Prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LEAST_MINUTES = 0.5  # a shorter rest of a part is not worth starting a process for
_BATCHES = {
    "tiny-backbone": ("settings.batch_size=384",),
    "tiny-expert": ("settings.num_references=64", "settings.targets_per_reference=3"),
    "tiny-semantic-encoder": ("settings.batch_size=1024",),
    "tiny-renderer": ("settings.batch_size=128",),
    "tiny-planner": ("settings.batch_size=256",),
}
"""Batches that fill an H200; those of the recipes are for a CPU."""


@dataclass(frozen=True)
class Step:
    """One verb with its arguments, and the folder that it writes.

    `share` is the part of the training time that a training gets; 0 for steps that end on their own.
    """

    folder: Path
    arguments: tuple[str, ...]
    share: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether the step ended well: trainings export a model, the other verbs are noted beside their folder."""
        return (self.folder / "model").is_dir() if self.share else self.note.is_file()

    @property
    def note(self) -> Path:
        """The file that says that a step without training is complete."""
        return self.folder.with_name(f"{self.folder.name}.complete")


def plan(
    system: str, folder: Path, size: str, init_from: str | None, settings: Sequence[str], generations: int
) -> tuple[Step, ...]:
    """The steps for a system's recipes of `size`, such as `tiny`, `small` or `smoke`."""
    start = ("--init-from", init_from) if init_from else ()

    def train(name: str, recipe: str, share: float, *inputs: str) -> Step:
        sizes = _BATCHES.get(f"{size}-{recipe}", ())
        return Step(folder / name, ("train", f"{size}-{recipe}", *_set(*inputs, *sizes, *settings), *start), share)

    def make(name: str, verb: str, recipe: str, *inputs: str) -> Step:
        return Step(folder / name, (verb, f"{size}-{recipe}", *_set(*inputs)))

    def at(setting: str, name: str = "") -> str:
        return f"{setting}={folder / (name or setting)}"

    if system == "video-as-prompt":
        steps: tuple[Step, ...] = (
            train("autoencoder", "autoencoder", 0.1),
            make("latents", "precompute", "latents", at("autoencoder")),
            train("backbone", "backbone", 0.4, at("latents")),
            train("expert", "expert", 0.5, at("latents"), at("backbone")),
            make("assembled", "assemble", "model", at("autoencoder"), at("backbone"), at("expert")),
        )
    else:
        videos, backbone = "autoencoder=video-as-prompt/tiny", "backbone=video-as-prompt/tiny"
        # The recipe of seconds has an autoencoder of its own, of another temporal ratio than the built-in one.
        of_latents = (at("dataset", "frames"), at("semantic_encoder", "encoder"))
        of_renderer = (at("latents"), at("encoder"), backbone, "temporal_ratio=8")
        steps = (
            make("short_frames", "precompute", "encoder-frames"),
            train("encoder", "semantic-encoder", 0.25, at("frames", "short_frames")),
            make("frames", "precompute", "semantic-frames"),
            make("latents", "precompute", "semantic-latents", videos, *of_latents),
            train("renderer", "renderer", 0.45, *of_renderer),
            train("planner", "planner", 0.3, at("latents"), at("renderer")),
            make("assembled", "assemble", "semanticgen", videos, at("encoder"), at("renderer"), at("planner")),
        )
    evaluate = ("evaluate", system, "--model", str(folder / "assembled"), "--generations", str(generations))
    return (*steps, Step(folder / "report", evaluate))


def _set(*settings: str) -> tuple[str, ...]:
    return tuple(argument for setting in settings for argument in ("--set", setting))


def run_part(steps: Sequence[Step], minutes: float, training_minutes: float, processes: int = 1) -> bool:
    """Run steps until they are complete or the time is up; returns whether all are complete.

    Clips are rendered and encoded by as many `processes`.
    """
    end = time.monotonic() + 60 * minutes
    for step in steps:
        if step.is_complete:
            continue
        left = (end - time.monotonic()) / 60
        if left < min(_LEAST_MINUTES, minutes / 4):
            return False
        print(f"{step.arguments[0]} {step.arguments[1]}: {left:.1f} min left in this part", flush=True)
        if step.arguments[0] == "precompute" and processes > 1:
            _run_side_by_side(step, left, processes)
            left = (end - time.monotonic()) / 60
        if not _run(step, left, training_minutes):
            return False
    return True


def keep_result(steps: Sequence[Step], result: Path) -> None:
    """Copy what is worth keeping: the assembled model, or the newest exported weights, and logs and reports."""
    if result.exists():
        shutil.rmtree(result)
    result.mkdir(parents=True)
    for step in steps:
        for path in (*step.folder.glob("*.json"), *step.folder.glob("*.jsonl"), *step.folder.glob("*.png")):
            shutil.copy2(path, result / f"{step.folder.name}-{path.name}")
    assembled = next(step.folder for step in steps if step.folder.name == "assembled")
    if assembled.is_dir():
        shutil.copytree(assembled, result / "model")


def _run_side_by_side(step: Step, left: float, processes: int) -> None:
    """Encode one part of the clips in each process; what is then missing is left to the call without a part."""
    command = [sys.executable, "-m", "sememe", *step.arguments, "--output-dir", str(step.folder)]
    parts = [subprocess.Popen([*command, "--part", f"{number + 1}/{processes}"]) for number in range(processes)]
    end = time.monotonic() + 60 * left
    for part in parts:
        try:
            part.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.terminate()


def _run(step: Step, left: float, training_minutes: float) -> bool:
    command = [sys.executable, "-m", "sememe", *step.arguments]
    if step.share:
        command += ["--output-dir", str(step.folder), "--max-minutes", f"{training_minutes * step.share:.3f}"]
        command += ["--set", f"training.stop_after_minutes={left:.3f}"]
        return subprocess.run(command, check=False).returncode == 0 and step.is_complete
    if step.arguments[0] == "precompute":
        command += ["--output-dir", str(step.folder)]
    elif step.arguments[0] == "assemble":
        command += ["--output", str(step.folder)]
    else:
        step.folder.mkdir(parents=True, exist_ok=True)
        command += ["--output", str(step.folder / "report.json"), "--sheet", str(step.folder / "sheet.png")]
    try:
        # What does not end in time is stopped; these verbs continue what they have saved.
        done = subprocess.run(command, check=False, timeout=60 * left).returncode == 0
    except subprocess.TimeoutExpired:
        return False
    if done:
        step.note.touch()
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part; returns 0 when everything is complete, 3 when the same command has to be run again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the runs are; the same for all parts")
    parser.add_argument("--system", choices=("video-as-prompt", "semanticgen"), default="video-as-prompt")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this part")
    parser.add_argument("--training-minutes", type=float, default=22.0, help="time of all trainings, over all parts")
    parser.add_argument("--size", default="tiny", help="which recipes: tiny, small or smoke")
    parser.add_argument("--init-from", help="weights to begin with, such as tiny")
    parser.add_argument("--generations", type=int, default=200, help="of each row of the evaluation")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="that render clips")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="KEY=VALUE for all trainings")
    given = parser.parse_args(arguments)
    steps = plan(given.system, given.folder, given.size, given.init_from, given.settings, given.generations)
    is_complete = run_part(steps, given.minutes, given.training_minutes, given.processes)
    keep_result(steps, given.folder / "result")
    print(json.dumps({step.folder.name: step.is_complete for step in steps}))
    return 0 if is_complete else 3


if __name__ == "__main__":
    raise SystemExit(main())
