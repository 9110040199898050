"""The losses of the first steps of each stage, at the sizes of the smoke recipes and on made-up data."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gen1.model_factories import make_vae
from gen1.unet_factories import CONTENT_DIM, make_unet
from sememe.gen1.arrays import CONTENT_ARRAY, STRUCTURE_ARRAY
from sememe.gen1.recipes import (
    smoke_gen1_clip,
    smoke_gen1_customisation,
    smoke_gen1_depth,
    smoke_gen1_prior,
    smoke_gen1_unet,
)
from sememe.gen1.stage_clip import ClipStage, list_captions, make_image_encoder, make_image_processor, make_text_encoder
from sememe.gen1.stage_customisation import CustomisationStage, Pictures, add_lora
from sememe.gen1.stage_depth import DepthStage, make_depth_estimator, make_depth_processor
from sememe.gen1.stage_prior import PriorStage, make_prior, set_statistics
from sememe.gen1.stage_prior import make_scheduler as make_prior_scheduler
from sememe.gen1.stage_settings import UNetSettings
from sememe.gen1.stage_unet import UNetStage, make_scheduler
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.networks import train_tokenizer
from sememe.training.recipes import TextNetwork
from training.golden_losses import MadeUpArrays, StageCase, draw_array, draw_levels, measure, print_curves, redraw

CURVES: dict[str, list[float]] = json.loads(Path(__file__).with_name("loss_curves.json").read_text())
SIZE, NUM_FRAMES = 16, 3


def make_frames() -> MadeUpArrays:
    """Square frames with their depth, 1 to 3."""
    colours = draw_levels(NUM_FRAMES, SIZE, SIZE, 3).float()
    depth = 1 + draw_levels(NUM_FRAMES, SIZE, SIZE, 1, stop=3, seed=2).float()
    return MadeUpArrays({FRAMES_ARRAY: torch.cat([colours, depth], dim=-1)})


def make_arrays() -> MadeUpArrays:
    """Latents of half the size of the frames, structure and content."""
    return MadeUpArrays(
        {
            "clean": draw_array(4, NUM_FRAMES, 8, 8),
            STRUCTURE_ARRAY: draw_levels(NUM_FRAMES, SIZE, SIZE).float() / 255,
            CONTENT_ARRAY: draw_array(NUM_FRAMES, CONTENT_DIM, seed=2),
        }
    )


def make_depth_stage() -> DepthStage:
    model = make_depth_estimator(smoke_gen1_depth().network, SIZE)
    redraw(model)
    return DepthStage(model, make_depth_processor(SIZE), make_frames(), smoke_gen1_depth().settings)


def make_clip_stage() -> ClipStage:
    network, frames = smoke_gen1_clip().network, make_frames()
    tokenizer = train_tokenizer(list_captions(frames), TextNetwork(vocab_size=network.vocab_size, max_tokens=16))
    image_encoder, text_encoder = make_image_encoder(network, SIZE), make_text_encoder(network, tokenizer)
    redraw(image_encoder, text_encoder)
    processor = make_image_processor(SIZE)
    return ClipStage(image_encoder, processor, text_encoder, tokenizer, frames, smoke_gen1_clip().settings)


def make_prior_stage() -> PriorStage:
    clip, arrays = make_clip_stage(), make_arrays()
    num_tokens = int(clip.tokenizer.model_max_length)
    prior = make_prior(smoke_gen1_prior().network, CONTENT_DIM, num_tokens)
    redraw(prior)
    set_statistics(prior, arrays)
    scheduler, settings = make_prior_scheduler(), smoke_gen1_prior().settings
    return PriorStage(prior, scheduler, clip.tokenizer, clip.text_encoder, arrays, settings)


def make_unet_stage() -> UNetStage:
    unet, vae = make_unet(), make_vae()
    redraw(unet, vae)
    return UNetStage(unet, vae, make_scheduler(), make_arrays(), UNetSettings(batch_size=2, image_batch_size=4))


def make_customisation_stage() -> CustomisationStage:
    images, arrays, settings = make_unet_stage(), make_arrays(), smoke_gen1_customisation().settings
    add_lora(images.unet, settings.rank)
    redraw(images.unet)
    pictures = Pictures(
        clean=arrays.select("clean", range(5))[:, :, :1],
        structure=arrays.select(STRUCTURE_ARRAY, range(5))[:, :1],
        content=arrays.select(CONTENT_ARRAY, range(5))[:, 0],
    )
    return CustomisationStage(images, pictures, settings.batch_size, settings.preservation_weight)


PHASES = tuple(replace(phase, num_steps=3) for phase in smoke_gen1_unet().training.phases)
CASES: dict[str, StageCase] = {
    "depth": (make_depth_stage, smoke_gen1_depth().training),
    "clip": (make_clip_stage, smoke_gen1_clip().training),
    "prior": (make_prior_stage, smoke_gen1_prior().training),
    "unet": (make_unet_stage, replace(smoke_gen1_unet().training, phases=PHASES)),
    "customisation": (make_customisation_stage, smoke_gen1_customisation().training),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_that_were_recorded(name: str, tmp_path: Path) -> None:
    assert measure(CASES[name], tmp_path) == pytest.approx(CURVES[name], rel=1e-5)


if __name__ == "__main__":
    print_curves(CASES)
