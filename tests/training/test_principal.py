import pytest
import torch
from torch import Tensor

from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder, fold
from sememe.training.principal import fit_principal_components, start_from_principal_components
from training.small_video import make_linear_vae, small_video


@pytest.fixture(scope="module")
def video() -> Tensor:
    return small_video(0, 60)


def psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * torch.log10((one - other).square().mean() / 4))


@torch.no_grad()
def test_it_is_the_best_linear_code(video: Tensor) -> None:
    vae = make_linear_vae().eval()
    code = start_from_principal_components(vae, [video])
    padded = torch.cat([video[:, :, :1].expand(-1, -1, 7, -1, -1), video], dim=2)
    rows = fold(padded, 8, 8).movedim(1, -1).double() - code.mean
    latents = vae.encode(video).latent_dist.mode()
    assert torch.allclose(latents, (rows @ code.directions / code.scales).movedim(-1, 1).float(), atol=1e-4)
    best = rows @ code.directions @ code.directions.T + code.mean
    assert torch.allclose(fold(vae.decode_linear(latents), 8, 8), best.movedim(-1, 1).float(), atol=1e-4)
    assert psnr(vae.decode(latents).sample, video) > 16.5


def test_whitening_leaves_the_mean_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 6, generator=generator) * torch.tensor([8.0, 4, 2, 1, 1, 1])
    for whitening, ratio in ((0.0, 8.0), (0.5, 8.0**0.5), (1.0, 1.0)):
        code = fit_principal_components([rows], 4, whitening)
        deviations = ((rows.double() - code.mean) @ code.directions / code.scales).std(dim=0)
        assert float(deviations.square().mean()) == pytest.approx(1.0, rel=0.02)
        assert float(deviations[0] / deviations[3]) == pytest.approx(ratio, rel=0.2)


def test_clips_may_come_in_batches(video: Tensor) -> None:
    def start(batches: list[Tensor]) -> LinearVideoAutoencoder:
        vae = make_linear_vae()
        start_from_principal_components(vae, batches)
        return vae

    whole, parts = start([video]), start(list(video.split(7)))
    one, other = (vae.encode(video).latent_dist.mode().abs() for vae in (whole, parts))
    assert torch.allclose(one, other, atol=1e-3), "the same but for signs"
