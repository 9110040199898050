"""What a SemanticGen model's plans know of a clip, by linear probes: `python -m benchmarks.probes --model FOLDER`.

Scripts of the world that no training has shown are encoded. Ridge regressions read from the encoder's features, and
from the plan that they are compressed to: kind and colour of the subject, from the mean over the places that show it,
and kind of the backdrop, from that over the others, voted over slices; how much of each place is subject, and so the
subject's path, from each place. With `--seen` clips of the training are read by the same probes: where these are read
much better, the encoder knows them by heart.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import RESULTS, describe_run, write_result
from sememe.evaluation.paths import correlate_paths, find_path
from sememe.evaluation.reader import name_scene
from sememe.evaluation.statistics import Estimate, bootstrap_interval, format_mean, format_share, wilson_interval
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.video import Clip
from sememe.world import EVALUATION_SEED, random_script, render_script

LABELS = ("subject", "colour", "place")
_PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
_FRESH = 2 * EVALUATION_SEED  # neither trainings nor evaluations take scripts from here on
_AT_ONCE = 20


@dataclass(frozen=True, eq=False)
class Known:
    """Clips as a model sees them, and what is true of them.

    Attributes:
        tokens: (clip, slice, row, column, number) by kind: features of the encoder, and plans.
        cover: (clip, slice, row, column) how much of each place is subject.
        words: Words for each clip's scene, by label.
    """

    tokens: dict[str, np.ndarray]
    cover: np.ndarray
    words: list[dict[str, str]]


@torch.no_grad()
def encode_scripts(pipeline: Any, seeds: Sequence[int]) -> Known:
    """Render scripts of the length that the model makes by default, and encode them."""
    size, clock = pipeline.defaults.size, pipeline.clock
    features, plans, covers, words = [], [], [], []
    for start in range(0, len(seeds), _AT_ONCE):
        scripts = [random_script(seed, seconds=size.num_frames / size.fps) for seed in seeds[start : start + _AT_ONCE]]
        shots = [
            render_script(each.scene, each.spans, size=(size.height, size.width), fps=size.fps) for each in scripts
        ]
        picks = clock.pick_frames(size.num_frames, size.fps)
        found = pipeline.encoder.encode([Clip(shot.clip.frames[picks], clock.fps) for shot in shots])
        features.append(found.float().numpy())
        plans.append(pipeline.compressor.encode(found).numpy())
        _, slices, rows, columns, _ = found.shape
        for shot in shots:
            cells = np.asarray(shot.mask, np.float64)[picks].reshape(
                slices, -1, rows, size.height // rows, columns, size.width // columns
            )
            covers.append(cells.mean(axis=(1, 3, 5)))
        words += [name_scene(each.scene) for each in scripts]
    return Known({"features": np.concatenate(features), "plan": np.concatenate(plans)}, np.stack(covers), words)


def fit_ridge(inputs: np.ndarray, targets: np.ndarray, penalty: float) -> Any:
    """Return the linear function, with a bias, that fits best; `inputs` are brought to unit variance."""
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    middle = targets.mean(axis=0)
    scaled = (inputs - mean) / spread
    weights = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(scaled.shape[1]), scaled.T @ (targets - middle))
    return lambda values: (values - mean) / spread @ weights + middle


def average_shown(tokens: np.ndarray, cover: np.ndarray, label: str) -> np.ndarray:
    """Return the mean of each slice's tokens, (clip, slice, number), over the places that show what a label names."""
    shown = (1 - cover if label == "place" else cover)[..., None] + 1e-3
    mean: np.ndarray = (tokens * shown).sum(axis=(2, 3)) / shown.sum(axis=(2, 3))
    return mean


def probe_label(tokens: np.ndarray, words: Sequence[str], others: Sequence[np.ndarray]) -> list[list[str]]:
    """Return the words that a probe reads from the clips of `others`; a sixth of `tokens` chooses the penalty.

    Args:
        tokens: Tokens to fit to, (clip, slice, number).
        words: Their words.
        others: Tokens to read.
    """
    names = sorted(set(words))
    truth = np.array([names.index(word) for word in words])
    slices = tokens.shape[1]

    def rows(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, values.shape[-1])

    def read(count: int, penalty: float, values: np.ndarray) -> np.ndarray:
        targets = np.eye(len(names))[truth[:count]].repeat(slices, axis=0)
        scores = fit_ridge(rows(tokens[:count]), targets, penalty)(rows(values))
        found: np.ndarray = scores.reshape(len(values), slices, -1).sum(axis=1).argmax(axis=1)
        return found

    kept = len(tokens) - len(tokens) // 6
    best = max(_PENALTIES, key=lambda penalty: (read(kept, penalty, tokens[kept:]) == truth[kept:]).mean())
    return [[names[value] for value in read(len(tokens), best, values)] for values in others]


def probe_path(tokens: np.ndarray, cover: np.ndarray, held: np.ndarray, true: np.ndarray) -> tuple[float, Estimate]:
    """Return the share of the variance of cover that is read from held clips, and the correlation of paths."""
    read = fit_ridge(tokens.reshape(-1, tokens.shape[-1]).astype(np.float64), cover.reshape(-1, 1), 10.0)
    found = read(held.reshape(-1, held.shape[-1]).astype(np.float64)).reshape(true.shape)
    explained = 1 - ((found - true) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    paths = [correlate_paths(find_path(a), find_path(b.clip(0))) for a, b in zip(true, found, strict=True)]
    return float(explained), bootstrap_interval([each for each in paths if each is not None])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes", description=__doc__)
    parser.add_argument("--model", required=True, help="SemanticGen model")
    parser.add_argument("--clips", type=int, default=480, help="fresh scripts, a quarter of which is held out")
    parser.add_argument("--seen", type=int, default=0, help="scripts of the training that are read as well")
    parser.add_argument("--output", type=Path, default=RESULTS / "probes.json")
    given = parser.parse_args(arguments)
    pipeline = SemanticGenPipeline.from_pretrained(given.model)
    fresh = encode_scripts(pipeline, range(_FRESH, _FRESH + given.clips))
    groups = {"fresh": fresh} | ({"seen": encode_scripts(pipeline, range(given.seen))} if given.seen else {})
    fitted = given.clips - given.clips // 4
    starts = {name: fitted if name == "fresh" else 0 for name in groups}
    rows: list[dict[str, Any]] = []
    for kind, tokens in fresh.tokens.items():
        for label in LABELS:
            shown = {name: average_shown(each.tokens[kind], each.cover, label) for name, each in groups.items()}
            to_read = [shown[name][start:] for name, start in starts.items()]
            truths = {name: [words[label] for words in groups[name].words[start:]] for name, start in starts.items()}
            read = probe_label(shown["fresh"][:fitted], [words[label] for words in fresh.words[:fitted]], to_read)
            for (name, truth), found in zip(truths.items(), read, strict=True):
                share = wilson_interval(sum(a == b for a, b in zip(truth, found, strict=True)), len(truth))
                rows.append({"read from": kind, "what": label, "clips": name, "right": format_share(share)})
        explained, path = probe_path(tokens[:fitted], fresh.cover[:fitted], tokens[fitted:], fresh.cover[fitted:])
        rows.append({"read from": kind, "what": "cover", "clips": "fresh", "variance explained": round(explained, 3)})
        rows.append({"read from": kind, "what": "path", "clips": "fresh", "correlation": format_mean(path, digits=2)})
    write_result(given.output, {"format": 1, "run": describe_run(), "model": given.model, "rows": rows})
    for row in rows:
        print(", ".join(str(value) for value in row.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
