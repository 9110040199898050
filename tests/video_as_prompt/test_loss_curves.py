"""The losses of the first steps of each stage, at the sizes of the smoke recipes and on made-up data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from sememe.compute.lora import add_expert_adapter
from sememe.diffusion.objectives import FLOW, NoisePath
from sememe.training.networks import make_autoencoder, make_scheduler, make_text_encoder, train_tokenizer
from sememe.training.recipes import SchedulerSettings
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
    smoke_few_step,
    smoke_lora,
    smoke_one_way,
    smoke_preference,
)
from sememe.video_as_prompt.recipes_released import smoke_cogvideox_expert
from sememe.video_as_prompt.stage_distillation import FewStepStage, OneWayStage
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.video_as_prompt.stage_lora import PreferenceStage, make_lora
from sememe.video_as_prompt.stages import BackboneStage, make_transformer
from training.golden_losses import MadeUpArrays, StageCase, draw_array, measure, print_curves
from video_as_prompt.cogvideox_factories import make_backbone

CURVES: dict[str, list[float]] = json.loads(Path(__file__).with_name("loss_curves.json").read_text())


class MadeUpClips:
    """Clips of random pixels."""

    def __len__(self) -> int:
        return 6

    def frames(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


def make_latents() -> MadeUpArrays:
    """Random latents (channel, frame, height, width)."""
    return MadeUpArrays({"clean": draw_array(4, 3, 4, 4, seed=5), "first_frame": draw_array(4, 3, 4, 4, seed=11)})


def make_autoencoder_stage() -> Stage:
    recipe = smoke_autoencoder()
    return AutoencoderStage(make_autoencoder(recipe.network), MadeUpClips(), recipe.settings)


def make_wan() -> tuple[BackboneStage, WanVideoAsPromptTransformer]:
    recipe, latents = smoke_backbone(), make_latents()
    tokenizer = train_tokenizer(latents.full_captions, recipe.text)
    text_encoder = make_text_encoder(recipe.text, len(tokenizer))
    # Drawn here: versions of transformers begin with different weights, and draw more or fewer numbers for them.
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(text_encoder.named_parameters()):
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    backbone = make_transformer(recipe.network, 4, recipe.text.d_model)
    return BackboneStage(backbone, text_encoder, tokenizer, latents, recipe.settings), backbone


def embed_captions(stage: BackboneStage) -> EncodedText:
    return EncodedText(stage.tokenizer, stage.text_encoder.eval())


def add_expert(backbone: Any, mode: str) -> WanVideoAsPromptTransformer:
    """An expert of a mode on a backbone, whose weights it begins as."""
    return WanVideoAsPromptTransformer.from_backbone(backbone, None, mode, 0.0)


def make_wan_expert(mode: str) -> Stage:
    recipe = smoke_expert() if mode == "cached" else smoke_expert_joint()
    stage, backbone = make_wan()
    return ExpertStage(add_expert(backbone, mode), embed_captions(stage), make_latents(), recipe.settings)


def shift(*parameters: torch.Tensor) -> None:
    """Change weights as training would."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))


def make_adapted() -> tuple[WanVideoAsPromptTransformer, EncodedText]:
    """An expert whose adapter changes it: at first it would not, and its first matrix is drawn by PEFT."""
    stage, backbone = make_wan()
    transformer = add_expert(backbone, "cached")
    add_expert_adapter(transformer, make_lora(smoke_lora().rank))
    matrices = dict(transformer.named_parameters())
    names = sorted(name for name in matrices if ".lora_" in name)
    for name in names:
        torch.nn.init.zeros_(matrices[name])
    shift(*(matrices[name] for name in names))
    return transformer, embed_captions(stage)


def make_preference() -> Stage:
    # Less strength than the recipe has: it multiplies errors of rounding as well.
    settings = replace(smoke_preference().settings, strength=2.0)
    return PreferenceStage(*make_adapted(), make_latents(), settings)


def make_pair(mode: str) -> tuple[WanVideoAsPromptTransformer, WanVideoAsPromptTransformer, EncodedText]:
    """A one-way student, a teacher of a mode with other weights, and what embeds their captions."""
    stage, backbone = make_wan()
    student, teacher = add_expert(backbone, "cached"), add_expert(backbone, mode)
    shift(*(parameter for _, parameter in teacher.expert_named_parameters()))
    return student, teacher, embed_captions(stage)


def make_one_way() -> Stage:
    recipe = smoke_one_way()
    return OneWayStage(*make_pair("joint"), make_latents(), recipe.settings, recipe.true_share, FLOW)


def make_few_step() -> Stage:
    scheduler = make_scheduler(SchedulerSettings(kind="euler_trailing"))
    return FewStepStage(*make_pair("cached"), make_latents(), smoke_few_step().settings, scheduler)


def make_cogvideox_expert() -> Stage:
    stage, _ = make_wan()
    transformer = CogVideoXVideoAsPromptTransformer.from_backbone(make_backbone(text_embed_dim=16))
    text = EncodedText(stage.tokenizer, stage.text_encoder.eval(), 5, reads_padding=True)
    path = NoisePath.of_scheduler(CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    return ExpertStage(transformer, text, make_latents(), smoke_cogvideox_expert().settings, path)


CASES: dict[str, StageCase] = {
    "autoencoder": (make_autoencoder_stage, smoke_autoencoder().training),
    "backbone": (lambda: make_wan()[0], smoke_backbone().training),
    "expert": (lambda: make_wan_expert("cached"), smoke_expert().training),
    "expert-joint": (lambda: make_wan_expert("joint"), smoke_expert_joint().training),
    "cogvideox-expert": (make_cogvideox_expert, smoke_cogvideox_expert().training),
    "lora": (lambda: ExpertStage(*make_adapted(), make_latents(), smoke_lora().settings), smoke_lora().training),
    "preference": (make_preference, smoke_preference().training),
    "one-way": (make_one_way, smoke_one_way().training),
    "few-step": (make_few_step, smoke_few_step().training),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_that_were_recorded(name: str, tmp_path: Path) -> None:
    assert measure(CASES[name], tmp_path) == pytest.approx(CURVES[name], rel=1e-5)


if __name__ == "__main__":
    print_curves(CASES)
