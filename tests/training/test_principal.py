import pytest
import torch
from torch import Tensor

from sememe.training.principal import fit_principal_components, start_from_principal_components
from training.small_video import make_folding_vae, small_video


@pytest.fixture(scope="module")
def video() -> Tensor:
    return small_video(0, 60)


@pytest.fixture(scope="module")
def started(video: Tensor) -> torch.nn.Module:
    vae = make_folding_vae().eval()
    start_from_principal_components(vae, video)
    return vae


def psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * torch.log10((one - other).square().mean() / 4))


@torch.no_grad()
def test_it_is_the_best_linear_code(video: Tensor) -> None:
    vae = make_folding_vae().eval()
    code = start_from_principal_components(vae, video)
    bands = vae.encoder.patch_embed(video)
    rows = bands.movedim(1, -1).double() - code.mean
    projected = rows @ code.directions @ code.directions.T + code.mean
    best = vae.decoder.unpatch_embed(projected.movedim(-1, 1).float())[:, :, -video.shape[2] :]
    latents = vae.encode(video).latent_dist.mode()
    assert torch.allclose(latents, (rows @ code.directions / code.scales).movedim(-1, 1).float(), atol=2e-3)
    reached = psnr(vae.decode(latents).sample, video)
    assert reached == pytest.approx(psnr(best, video), abs=0.05)
    assert reached > 16.5


@torch.no_grad()
def test_the_encoder_is_linear(started: torch.nn.Module) -> None:
    """Affine, that is: what three pictures on a line become lies on a line."""
    one, other = small_video(70, 1), small_video(90, 1)
    a, b, middle = (started.encode(x).latent_dist.mode() for x in (one, other, 0.25 * one + 0.75 * other))  # type: ignore[operator]
    assert torch.allclose(middle, 0.25 * a + 0.75 * b, atol=2e-3)
    assert (a - b).abs().max() > 0.5


@torch.no_grad()
def test_the_first_frame_alone_gives_the_first_latent_frame(started: torch.nn.Module) -> None:
    video = small_video(70, 3)
    whole = started.encode(video).latent_dist.mode()  # type: ignore[operator]
    alone = started.encode(video[:, :, :1]).latent_dist.mode()  # type: ignore[operator]
    assert whole.shape[2] == 2
    assert torch.allclose(alone, whole[:, :, :1], atol=1e-4)


def test_whitening_leaves_the_mean_variance() -> None:
    bands = torch.randn(4, 6, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [8.0, 4, 2, 1, 1, 1]
    ).view(1, 6, 1, 1, 1)
    for whitening, ratio in ((0.0, 8.0), (0.5, 8.0**0.5), (1.0, 1.0)):
        code = fit_principal_components(bands, 4, whitening)
        rows = (bands.movedim(1, -1).double() - code.mean) @ code.directions / code.scales
        deviations = rows.flatten(0, -2).std(dim=0)
        assert float(deviations.square().mean()) == pytest.approx(1.0, rel=0.02)
        assert float(deviations[0] / deviations[3]) == pytest.approx(ratio, rel=0.2)


def test_clips_may_come_in_batches(video: Tensor) -> None:
    one, other = make_folding_vae(), make_folding_vae()
    whole = start_from_principal_components(one, video)
    parts = start_from_principal_components(other, iter(video.split(7)))
    assert torch.allclose(whole.scales, parts.scales, rtol=1e-6)
    difference = (whole.directions.T @ parts.directions).abs() - torch.eye(12).double()
    assert difference.abs().max() < 1e-4


def test_too_few_channels_are_our_own_mistake(video: Tensor) -> None:
    with pytest.raises(AssertionError, match="cannot hold"):
        start_from_principal_components(make_folding_vae(latent_channels=16), video)
