"""A whole system in a few lines: it adds a learned light to a source clip, for as many seconds as are asked for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sememe.backbones.autoencoder import LatentGrid
from sememe.evaluation.runner import Row, SystemRows
from sememe.evaluation.statistics import Estimate
from sememe.files import write_text
from sememe.records import Count, Positive, Record, Scale
from sememe.system import GenerationSpec, StageSpec, System, SystemInputs
from sememe.training.config import TrainingConfig
from sememe.training.recipes import TrainingRecipe
from sememe.training.stage import Stage, StepLoss
from sememe.video import Clip

TARGET = 0.5


class SizeSettings(Record):
    """The shape of the result.

    Attributes:
        height: Height in pixels.
        width: Width in pixels.
        fps: Frames per second.
        seconds: Length of the result.
    """

    height: Count = 16
    width: Count = 32
    fps: Positive = 4.0
    seconds: Positive = 1.0

    @property
    def num_frames(self) -> int:
        return round(self.seconds * self.fps)


class SamplingSettings(Record):
    """How the result is made.

    Attributes:
        num_inference_steps: Steps.
    """

    num_inference_steps: Count = 2


class GuidanceSettings(Record):
    """How strongly it follows.

    Attributes:
        light: Strength of the light.
    """

    light: Scale = 1.0


class Settings(Record):
    size: SizeSettings = SizeSettings()
    sampling: SamplingSettings = SamplingSettings()
    guidance: GuidanceSettings = GuidanceSettings()

    def list_shortcuts(self) -> list[str]:
        return []


@dataclass(frozen=True, kw_only=True)
class ToyInputs(SystemInputs):
    """Files and texts of a generation.

    Attributes:
        prompt: What the result shows.
        source: Clip to light; black if left out.
        save_plan: JSON file to write the plan to.
    """

    system: ClassVar[str] = "toy"

    prompt: str
    source: Path | None = None
    save_plan: Path | None = None

    def texts(self) -> Mapping[str, Any]:
        return {"prompt": self.prompt}

    def videos(self, settings: Settings) -> Mapping[str, tuple[Path, ...]]:
        return {} if self.source is None else {"source": (self.source,)}

    def reading(self, settings: Settings, place: int, num_places: int) -> Mapping[str, Any]:
        size = settings.size
        return {"num_frames": size.num_frames, "size": (size.height, size.width)}

    def write_extra(self, name: str, output: Any, path: Path) -> None:
        write_text(path, json.dumps(output.plan))


class Light(torch.nn.Module):
    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor([level]))

    @property
    def dtype(self) -> torch.dtype:
        return self.level.dtype

    def save(self, folder: Path) -> None:
        (folder / "transformer").mkdir(parents=True)
        save_file(self.state_dict(), folder / "transformer" / "light.safetensors")
        write_text(folder / "model_index.json", json.dumps({"_class_name": "ToyPipeline"}))

    @classmethod
    def load(cls, folder: Path) -> "Light":
        return cls(float(load_file(folder / "transformer" / "light.safetensors")["level"]))


@dataclass(frozen=True)
class ToyOutput:
    clips: list[Clip]
    settings: Settings
    plan: list[str]
    guidance: tuple[()] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


class ToyPipeline:
    """What the processes ask of a pipeline, and no more."""

    defaults = Settings()
    grid = LatentGrid(temporal_ratio=1, spatial_ratio=8, num_channels=3)
    vae = None

    def __init__(self, transformer: Light) -> None:
        self.transformer = transformer

    @classmethod
    def from_pretrained(cls, folder: Path, torch_dtype: torch.dtype | None = None) -> "ToyPipeline":
        return cls(Light.load(folder).to(torch_dtype or torch.float32))

    def to(self, device: torch.device) -> None:
        self.transformer.to(device)

    def set_progress_bar_config(self, **_: Any) -> None:
        """Show none."""

    def describe(self) -> dict[str, Any]:
        return {}

    def __call__(
        self,
        prompt: str,
        settings: Settings,
        source: Sequence[Clip] | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Any = None,
    ) -> ToyOutput:
        size, steps = settings.size, settings.sampling.num_inference_steps
        frames = np.zeros((size.num_frames, size.height, size.width, 3)) if source is None else source[0].frames / 255
        for step in range(steps):
            frames = frames + settings.guidance.light * float(self.transformer.level.detach()) / steps
            callback_on_step_end(self, step, step, {})
        clip = Clip((255 * frames).clip(0, 255).round().astype(np.uint8), size.fps)
        return ToyOutput([clip], settings, prompt.split(", "))


_TRAINING = TrainingConfig(num_steps=100, learning_rate=0.02, ema_decay=0.0, precision="fp32", device="cpu")


class LightRecipe(TrainingRecipe):
    name: str = "toy-light"
    description: str = "a light"
    training: TrainingConfig = _TRAINING


class LightStage(Stage):
    name = "light"

    def __init__(self, light: Light) -> None:
        self.light = light

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"transformer": self.light}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        return torch.rand(4, generator=generator).to(device)

    def loss(self, batch: torch.Tensor, generator: torch.Generator) -> StepLoss:
        return StepLoss(total=(batch + self.light.level - (batch + TARGET)).square().sum(), num_samples=len(batch))

    def export(self, folder: Path) -> None:
        self.light.save(folder)


class LightPreparation:
    inputs: Mapping[str, str] = {"clips": "none"}

    def __init__(self, recipe: LightRecipe, parts: Mapping[str, Path], announce: Any) -> None:
        announce("beginning in the dark")

    def begin(self, folder: Path) -> None:
        Light().save(folder)

    def build(self, start: Path) -> LightStage:
        return LightStage(Light.load(start))


@dataclass(frozen=True)
class ToyResult:
    case: int
    level: float
    is_right: bool


@dataclass(frozen=True)
class ToySummary:
    num_generations: int
    num_right: int

    @property
    def by_group(self) -> Mapping[str, Estimate]:
        return {}

    def to_cells(self) -> Mapping[str, Any]:
        return {"right": f"{self.num_right} of {self.num_generations}"}


def build_rows(
    pipeline: ToyPipeline, settings: Settings, folder: Path, *, generations: int, per_scene: int, seed: int
) -> SystemRows[int, ToyResult]:
    def make(cases: Sequence[int]) -> list[Clip]:
        return [pipeline("", settings, callback_on_step_end=lambda *_: {}).clips[0] for _ in cases]

    def judge(case: int, clip: Clip) -> ToyResult:
        level = float(clip.frames.mean()) / 255
        return ToyResult(case, level, abs(level - TARGET) < 0.05)

    def summarise(results: Sequence[ToyResult]) -> ToySummary:
        return ToySummary(len(results), sum(result.is_right for result in results))

    cases = tuple(range(generations))
    row = Row("light", {}, cases, make, judge, summarise, lambda saved: ToyResult(**saved), lambda *_: [])
    return SystemRows((row,), {"target": TARGET})


TOY = System(
    name="toy",
    title="Toy",
    settings=Settings,
    generation=GenerationSpec(
        summary="Light a clip.",
        inputs=ToyInputs,
        flags=("size.seconds", "guidance.light"),
        arguments=("prompt",),
        rare=("plan",),
    ),
    pipeline="workflows.toy_system:ToyPipeline",
    stages={
        "light": StageSpec(
            recipe=LightRecipe, makes=("transformer",), preparation="workflows.toy_system:LightPreparation"
        )
    },
    evaluation="workflows.toy_system:build_rows",
    recipes={"toy-light": LightRecipe},
)
