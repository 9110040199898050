from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCosmos
from torch.nn.utils import parametrize

from sememe.training.autoencoder_settings import AutoencoderSettings
from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.principal import start_from_principal_components
from sememe.training.progress import read_log
from sememe.training.stage_autoencoder import AutoencoderStage, balance_bands, fold_bands
from training.small_video import NUM_FRAMES, SIZE, SmallClips, make_folding_vae, small_video

SETTINGS = AutoencoderSettings(batch_size=4, window=NUM_FRAMES)


def make_started() -> Any:
    vae = make_folding_vae()
    video = small_video(0, 60)
    start_from_principal_components(vae, video)
    return vae


@torch.no_grad()
def measure(stage: AutoencoderStage) -> float:
    """The loss on the clips of the test below."""
    return float(stage.loss(small_video(0, 6), torch.Generator().manual_seed(0)).total)


@torch.no_grad()
def test_balancing_and_folding_change_nothing() -> None:
    vae, video = make_started(), small_video(70, 2)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    expected = vae.decode(vae.encode(video).latent_dist.mode()).sample
    balance_bands(vae, small_video(0, 20))
    balance_bands(vae, small_video(20, 20))
    balanced = vae.decoder.conv_out.conv_t
    assert parametrize.is_parametrized(balanced, "weight")
    raw = balanced.parametrizations.weight.original
    assert not torch.equal(raw, before["decoder.conv_out.conv_t.weight"]), "the optimiser sees other numbers"
    assert torch.equal(vae.decode(vae.encode(video).latent_dist.mode()).sample, expected)
    folded = fold_bands(vae)
    assert folded.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in folded.state_dict().items())
    assert torch.equal(vae.decode(vae.encode(video).latent_dist.mode()).sample, expected), "folding works on a copy"
    assert parametrize.is_parametrized(balanced, "weight")


def test_bands_are_balanced() -> None:
    vae, video = make_folding_vae(), small_video(0, 40)
    balance_bands(vae, video)
    scale = vae.decoder.conv_out.conv_t.parametrizations.bias[0].scale
    bands = vae.encoder.patch_embed(video).std(dim=(0, 2, 3, 4)) / scale
    assert scale.max() / scale.min() > 100
    assert bands.max() < 2
    assert parametrize.is_parametrized(vae.encoder.conv_in.conv_s, "weight"), "an encoder that is trained needs it too"


def test_training_the_decoder_lowers_the_loss_and_leaves_the_encoder(tmp_path: Path) -> None:
    vae = make_started()
    encoder = {name: tensor.clone() for name, tensor in vae.encoder.state_dict().items()}
    stage = AutoencoderStage(vae, SmallClips(6), SETTINGS)
    balance_bands(vae, small_video(0, 20))
    config = TrainingConfig(
        num_steps=15,
        learning_rate=7e-4,
        schedule=ScheduleConfig(warmup_steps=5, shape="constant"),
        precision="fp32",
        log_every=5,
        device="cpu",
        ema_decay=0,
    )
    before = measure(stage)
    summary = train(stage, config, tmp_path)
    assert measure(stage) < 0.9 * before
    assert read_log(tmp_path)[-1]["psnr"] > 15
    assert summary.model is not None
    written = AutoencoderKLCosmos.from_pretrained(summary.model / "vae")
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in written.encoder.state_dict().items())
    assert not torch.equal(written.decoder.conv_out.conv_t.weight, make_started().decoder.conv_out.conv_t.weight)


def test_everything_can_be_trained() -> None:
    stage = AutoencoderStage(make_folding_vae(), SmallClips(4), AutoencoderSettings(trains="all", window=NUM_FRAMES))
    batch = stage.batch(0, torch.Generator().manual_seed(0), torch.device("cpu"))
    stage.loss(batch, torch.Generator().manual_seed(0)).total.backward()
    assert stage.autoencoder.encoder.conv_in.conv_s.weight.grad.abs().max() > 0


def test_batches_follow_the_generator() -> None:
    stage = AutoencoderStage(make_folding_vae(), SmallClips(8), AutoencoderSettings(batch_size=3, window=5))
    one, same, other = (stage.batch(0, torch.Generator().manual_seed(n), torch.device("cpu")) for n in (1, 1, 2))
    assert one.shape == (3, 3, 5, SIZE, SIZE)
    assert one.dtype == torch.float32
    assert -1 <= one.min() < one.max() <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_frozen_encoder_works_in_full_precision(precision: torch.dtype) -> None:
    stage = AutoencoderStage(make_started(), SmallClips(4), SETTINGS)
    video = small_video(0, 1)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        latents = stage._encode(video)
    assert torch.equal(latents, stage.autoencoder.encode(video).latent_dist.mode())
