"""The first losses of a stage on made-up data, to be compared with those that were recorded.

They fail where the loop, an objective or a stage changes numerically. Run one of the files `test_loss_curves.py` as a
program, with `tests` on the path, to print its curves as they are now; only a change that is meant replaces them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sememe.data.array_cache import ArrayCache
from sememe.data.cache_index import ClipItem
from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.progress import read_log
from sememe.training.stage import Stage

NUM_STEPS = 8
NUM_CLIPS = 24
StageCase = tuple[Callable[[], Stage], TrainingConfig]
"""How to make a stage, and how it is trained."""


class MadeUpArrays(ArrayCache):
    """A cache of 24 clips without files: four conditions in six scenes each, half of which follow "nothing".

    Args:
        arrays: Values of each array, first axis clips.
        described: What `describe` says of every array.
    """

    references = ((),) * NUM_CLIPS

    def __init__(self, arrays: Mapping[str, Tensor], **described: str) -> None:
        self._made_up, self._described = arrays, described
        self.arrays: Any = {name: SimpleNamespace(shape=tuple(values.shape[1:])) for name, values in arrays.items()}
        places = range(NUM_CLIPS)
        self.conditions = tuple(f"condition {place % 4}" for place in places)
        self.scenes = tuple(f"scene {place // 4}" for place in places)
        self.captions = tuple(f"a cat on hill {place // 4}" for place in places)
        self.full_captions = tuple(f"a cat on hill {place // 4} does trick {place % 4}" for place in places)
        self.buckets = ("",) * NUM_CLIPS

    def __len__(self) -> int:
        return NUM_CLIPS

    def item(self, index: int) -> ClipItem:
        segments = (f"{self.captions[index]} does nothing", self.full_captions[index])
        return ClipItem(
            clip=str(index),
            condition=self.conditions[index],
            scene=self.scenes[index],
            first_frame=self.scenes[index],
            caption=self.captions[index],
            full_caption=self.full_captions[index],
            segment_captions=segments if index % 2 else (),
            segment_ends=(0.8, 2.0) if index % 2 else (),
        )

    def describe(self, name: str) -> dict[str, str]:
        assert name in self.arrays
        return dict(self._described)

    def select(self, name: str, indices: Any) -> Tensor:
        return self._made_up[name][torch.as_tensor(indices)]


def draw_array(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, one array for each clip."""
    return torch.randn(NUM_CLIPS, *shape, generator=torch.Generator().manual_seed(seed))


def draw_levels(*shape: int, stop: int = 256, seed: int = 1) -> Tensor:
    """Whole numbers from 0 to `stop` - 1, uint8."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(stop, (NUM_CLIPS, *shape), generator=random, dtype=torch.uint8)


def redraw(*networks: nn.Module) -> None:
    """Draw all weights: versions of libraries begin with different ones, and draw more or fewer numbers for them."""
    random = torch.Generator().manual_seed(0)
    for network in networks:
        for name, parameter in sorted(network.named_parameters()):
            with torch.no_grad():
                drawn = torch.randn(parameter.shape, generator=random)
                if parameter.ndim > 1:
                    drawn /= parameter[0].numel() ** 0.5
                parameter.copy_(1 + 0.1 * drawn if name.endswith("norm.weight") else drawn)


def measure(case: StageCase, folder: Path) -> list[float]:
    """The losses of a stage, in float32 and one thread: eight steps, or those of its phases."""
    make, training = case
    fixed: dict[str, Any] = {"precision": "fp32", "device": "cpu", "num_threads": 1, "log_every": 1}
    if not training.phases:
        fixed |= {"num_steps": NUM_STEPS, "schedule": ScheduleConfig(warmup_steps=2, shape="cosine")}
    config = replace(training, **fixed)
    torch.manual_seed(0)
    train(make(), config, folder)
    return [line["loss"] for line in read_log(folder)]


def print_curves(cases: Mapping[str, StageCase]) -> None:
    """Print what is to be recorded."""
    with TemporaryDirectory() as folder:
        curves = {name: measure(case, Path(folder) / name) for name, case in cases.items()}
    print(json.dumps(curves, indent=1))  # noqa: T201
