"""The rows of the Video-As-Prompt evaluation: which conditions and scenes each one shows, and at which size."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from sememe.evaluation.cases import Case, SeedRanges, deal_cases
from sememe.evaluation.splits import split_conditions
from sememe.world import EVALUATION_SEED, can_show, conditions, random_scene

Method = Literal["generate", "backbone", "paste", "autoencoder"]
RANGES = SeedRanges(first_scene=EVALUATION_SEED, first_reference=2 * EVALUATION_SEED)
VALIDATION_RANGES = SeedRanges(first_scene=3 * EVALUATION_SEED, first_reference=4 * EVALUATION_SEED)
_scene = lru_cache(maxsize=4096)(random_scene)  # rows deal from the same scenes
_SECOND_DEAL = ("sensitivity",)  # rows with scenes of their own; all others share theirs, and so the renders


@dataclass(frozen=True, slots=True)
class PromptedCase(Case):
    """A case whose prompt may name a condition, and then another one than the reference shows."""

    prompt_condition: str | None = None


@dataclass(frozen=True)
class RowSettings:
    """One row of the evaluation.

    Attributes:
        name: as in reports and on the command line.
        about: what it measures.
        split: which conditions targets show (see `split_conditions`).
        method: how clips are made.
        num_frames: frames of targets and references.
        height: pixels.
        width: pixels.
        is_misled: whether prompts name another condition than the reference shows, and captions of references the
            right one; all are empty otherwise.
        is_validation: whether the row is for choosing settings and checkpoints; its scenes are in no other row.
    """

    name: str
    about: str
    split: str | None
    method: Method
    num_frames: int
    height: int
    width: int
    is_misled: bool = False
    is_validation: bool = False

    @property
    def conditions(self) -> list[str]:
        return split_conditions(self.split)

    @property
    def candidates(self) -> list[str]:
        """What the oracle chooses from: all seen and unseen conditions, and the novel pairs where those are tested."""
        return conditions() + (conditions(split="novel") if self.split == "novel" else [])


def list_rows(pipeline: Any) -> tuple[RowSettings, ...]:
    """List all rows, at the size and length of the model unless the row is about another one."""
    own, grid = pipeline.defaults.size, pipeline.grid
    frames, height, width = own.num_frames, own.height, own.width
    shorter, longer = grid.nearest_num_frames((frames + 1) // 2), grid.nearest_num_frames(2 * frames - 1)
    wide = grid.nearest_size(width * 3 // 2)

    def row(name: str, about: str, split: str | None, method: Method = "generate", **more: Any) -> RowSettings:
        return RowSettings(
            name, about, split, method, **({"num_frames": frames, "height": height, "width": width} | more)
        )

    return (
        row("seen", "conditions that the expert was trained on", "seen"),
        row("unseen", "conditions that the expert never saw and nothing was chosen on", "unseen"),
        row("novel", "two seen conditions at once, which nothing was trained on", "novel"),
        row("sensitivity", "same picture, prompt and noise, two references: do both results follow theirs?", "seen"),
        row("misled", "the prompt names another condition than the reference shows", "seen", is_misled=True),
        row("floor", "the backbone without a reference, judged against a condition drawn at random", None, "backbone"),
        row("paste", "no model: the reference's changes of pixels added to the picture", "unseen", "paste"),
        row("ceiling", "the true target through the autoencoder", None, "autoencoder"),
        row("shorter", "another length than the model was tuned for", "seen", num_frames=shorter),
        row("longer", "another length than the model was tuned for", "seen", num_frames=longer),
        row("wide", "a picture that is not square", "seen", width=wide),
        row("seen_validation", "for choosing: seen conditions", "seen", is_validation=True),
        row("unseen_validation", "for choosing: unseen conditions", "unseen_validation", is_validation=True),
    )


def deal_row(row: RowSettings, generations: int, per_scene: int, seed: int) -> tuple[PromptedCase, ...]:
    """Deal the cases of a row."""
    cases = deal_cases(
        row.conditions,
        generations,
        VALIDATION_RANGES if row.is_validation else RANGES,
        per_scene=per_scene,
        seed=2 * seed + (row.name in _SECOND_DEAL),
        applies=lambda scene, name: can_show(_scene(scene), name),
        same_noise=row.method != "backbone",  # without a reference the same noise would give the same clip
    )
    return tuple(PromptedCase(**asdict(case), prompt_condition=_other_condition(row, case)) for case in cases)


def _other_condition(row: RowSettings, case: Case) -> str | None:
    """Draw a condition for a misleading prompt."""
    if not row.is_misled:
        return None
    scene = _scene(case.scene)
    others = [name for name in row.conditions if name != case.condition and can_show(scene, name)]
    random = np.random.Generator(np.random.PCG64([case.scene, row.conditions.index(case.condition)]))
    return others[int(random.integers(len(others)))]
