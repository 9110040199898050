from pathlib import Path

import pytest
import torch

from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.training.config import AutoencoderSettings, ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.networks import start_from_principal_components
from sememe.training.progress import read_log
from sememe.training.stage_autoencoder import AutoencoderStage
from training.small_video import SIZE, SmallClips, make_linear_vae, small_video

SETTINGS = AutoencoderSettings(batch_size=4)


def make_started() -> LinearVideoAutoencoder:
    vae = make_linear_vae()
    start_from_principal_components(vae, [small_video(0, 60)])
    return vae


class Generations:
    """Latents with an error, of the first clips."""

    def __init__(self, vae: LinearVideoAutoencoder, count: int) -> None:
        self.latents = vae.encode(small_video(0, count)).latent_dist.mode().detach() + 0.5

    def __len__(self) -> int:
        return len(self.latents)

    def select(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        return self.latents[indices]


@torch.no_grad()
def measure(stage: AutoencoderStage) -> float:
    """The loss on the clips of the test below."""
    batch = stage.batch(0, torch.Generator().manual_seed(0), torch.device("cpu"))
    return float(stage.loss(batch, torch.Generator().manual_seed(0)).total)


def test_training_lowers_the_loss_and_leaves_the_code(tmp_path: Path) -> None:
    vae, started = make_started(), make_started()
    stage = AutoencoderStage(vae, SmallClips(6), SETTINGS)
    config = TrainingConfig(
        num_steps=15,
        learning_rate=3e-3,
        schedule=ScheduleConfig(warmup_steps=5, shape="constant"),
        precision="fp32",
        log_every=5,
        device="cpu",
        ema_decay=0,
    )
    before = measure(stage)
    summary = train(stage, config, tmp_path)
    assert measure(stage) < 0.95 * before
    assert read_log(tmp_path)[-1]["psnr"] > 12
    assert summary.model is not None
    written = LinearVideoAutoencoder.from_pretrained(summary.model / "vae").state_dict()
    for name, tensor in started.state_dict().items():
        assert torch.equal(written[name], tensor) is name.startswith(("encoder.", "decoder.")), name


def test_batches_follow_the_generator() -> None:
    stage = AutoencoderStage(make_linear_vae(), SmallClips(8), SETTINGS)
    one, same, other = (stage.batch(0, torch.Generator().manual_seed(n), torch.device("cpu")).video for n in (1, 1, 2))
    assert one.shape == (4, 3, 9, SIZE, SIZE)
    assert one.dtype == torch.float32
    assert -1 <= one.min() < one.max() <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_share_of_each_batch_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_started()
    generations = Generations(vae, 2)
    stage = AutoencoderStage(vae, SmallClips(8), AutoencoderSettings(batch_size=4, generated_share=0.5), generations)
    batch = stage.batch(0, torch.Generator().manual_seed(0), torch.device("cpu"))
    clean = vae.encode(batch.video).latent_dist.mode()
    assert batch.generated is not None
    torch.testing.assert_close(batch.generated, clean[:2] + 0.5)
    seen: dict[str, torch.Tensor] = {}

    def decode(latents: torch.Tensor, noise_levels: torch.Tensor) -> torch.Tensor:
        seen.update(latents=latents, levels=noise_levels)
        raise InterruptedError

    monkeypatch.setattr(vae, "decode", decode)
    # Under autocast, latents and their errors are still computed in full precision.
    with pytest.raises(InterruptedError), torch.autocast("cpu", torch.bfloat16):
        stage.loss(batch, torch.Generator().manual_seed(0))
    assert torch.equal(seen["latents"][:2], batch.generated)
    torch.testing.assert_close(seen["levels"][:2], torch.full((2, 2), 0.5))
    error = (seen["latents"] - clean)[2:].square().mean(dim=(1, 3, 4)).sqrt()
    torch.testing.assert_close(error, seen["levels"][2:], atol=0.05, rtol=0.4)
