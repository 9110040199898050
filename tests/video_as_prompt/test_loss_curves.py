"""The losses of the first steps of each stage, at the sizes of the smoke recipes and on made-up data.

They fail where the loop, an objective or a stage changes numerically. Run this file as a program (with `tests` on the
path) to print the curves as they are now; only a change that is meant replaces them.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor

from sememe.diffusion.objectives import NoisePath
from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.networks import make_autoencoder, make_text_encoder, train_tokenizer
from sememe.training.progress import read_log
from sememe.training.stage import Stage
from sememe.training.stage_autoencoder import AutoencoderStage
from sememe.training.text_source import EncodedText
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.recipes import (
    smoke_autoencoder,
    smoke_backbone,
    smoke_expert,
    smoke_expert_joint,
)
from sememe.video_as_prompt.recipes_released import smoke_cogvideox_expert
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.video_as_prompt.stages import BackboneStage, make_transformer
from video_as_prompt.cogvideox_factories import make_backbone

NUM_STEPS = 8
CURVES: dict[str, list[float]] = json.loads(Path(__file__).with_name("loss_curves.json").read_text())


class MadeUpClips:
    """Clips of random pixels."""

    def __len__(self) -> int:
        return 6

    def frames(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


class MadeUpLatents:
    """Random latents (channel, frame, height, width) of four conditions in six scenes each."""

    conditions = tuple(f"condition {index % 4}" for index in range(24))
    scenes = tuple(f"scene {index // 4}" for index in range(24))
    captions = tuple(f"a cat on hill {index // 4}" for index in range(24))
    full_captions = tuple(f"a cat on hill {index // 4} does trick {index % 4}" for index in range(24))
    buckets, references = ("",) * 24, ((),) * 24

    def select(self, name: str, indices: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(len(name))
        return torch.randn(24, 4, 3, 4, 4, generator=generator)[indices]


def make_autoencoder_stage() -> Stage:
    recipe = smoke_autoencoder()
    return AutoencoderStage(make_autoencoder(recipe.network), MadeUpClips(), recipe.settings)


def make_wan() -> tuple[BackboneStage, WanVideoAsPromptTransformer]:
    recipe, latents = smoke_backbone(), MadeUpLatents()
    tokenizer = train_tokenizer(latents.full_captions, recipe.text)
    text_encoder = make_text_encoder(recipe.text, len(tokenizer))
    # Drawn here: versions of transformers begin with different weights, and draw more or fewer numbers for them.
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(text_encoder.named_parameters()):
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    backbone = make_transformer(recipe.network, 4, recipe.text.d_model)
    return BackboneStage(backbone, text_encoder, tokenizer, latents, recipe.settings), backbone


def make_wan_expert(mode: str) -> Stage:
    recipe = smoke_expert() if mode == "cached" else smoke_expert_joint()
    stage, backbone = make_wan()
    transformer = WanVideoAsPromptTransformer.from_backbone(backbone, None, mode, 0.0)
    text = EncodedText(stage.tokenizer, stage.text_encoder.eval())
    return ExpertStage(transformer, text, MadeUpLatents(), recipe.settings)


def make_cogvideox_expert() -> Stage:
    stage, _ = make_wan()
    transformer = CogVideoXVideoAsPromptTransformer.from_backbone(make_backbone(text_embed_dim=16))
    text = EncodedText(stage.tokenizer, stage.text_encoder.eval(), 5, reads_padding=True)
    path = NoisePath.of_scheduler(CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    return ExpertStage(transformer, text, MadeUpLatents(), smoke_cogvideox_expert().settings, path)


STAGES: dict[str, tuple[Callable[[], Stage], TrainingConfig]] = {
    "autoencoder": (make_autoencoder_stage, smoke_autoencoder().training),
    "backbone": (lambda: make_wan()[0], smoke_backbone().training),
    "expert": (lambda: make_wan_expert("cached"), smoke_expert().training),
    "expert-joint": (lambda: make_wan_expert("joint"), smoke_expert_joint().training),
    "cogvideox-expert": (make_cogvideox_expert, smoke_cogvideox_expert().training),
}


def measure(name: str, folder: Path) -> list[float]:
    """The losses of a stage, in float32 and one thread."""
    make, training = STAGES[name]
    schedule = ScheduleConfig(warmup_steps=2, shape="cosine")
    config = replace(
        training, num_steps=NUM_STEPS, schedule=schedule, precision="fp32", device="cpu", num_threads=1, log_every=1
    )
    torch.manual_seed(0)
    train(make(), config, folder)
    return [line["loss"] for line in read_log(folder)]


@pytest.mark.parametrize("name", STAGES)
def test_losses_are_those_that_were_recorded(name: str, tmp_path: Path) -> None:
    assert measure(name, tmp_path) == pytest.approx(CURVES[name], rel=1e-5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(json.dumps({name: measure(name, Path(made) / name) for name in STAGES}, indent=1))  # noqa: T201
