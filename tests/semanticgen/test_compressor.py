"""The compressor: Gaussians and their divergence, statistics, collapse, files."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sememe.checkpoints.components import load_strictly
from sememe.errors import ModelError
from sememe.semanticgen.compressor import ChannelReport, Posterior, SemanticCompressor


def make_compressor(**settings: Any) -> SemanticCompressor:
    torch.manual_seed(0)
    return SemanticCompressor(12, **({"semantic_dim": 4, "hidden_dim": 16} | settings)).eval()


def make_features(batch_size: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch_size, 5, 2, 3, 12, generator=torch.Generator().manual_seed(seed))


def make_posterior(mean: torch.Tensor, std: torch.Tensor) -> Posterior:
    shape = (2, 50, 2, 2, len(std))
    random = torch.Generator().manual_seed(0)
    return Posterior(mean * torch.randn(shape, generator=random), std.square().log().expand(shape))


def test_kl_is_that_of_the_library() -> None:
    posterior = make_compressor()(make_features())
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(posterior.kl_loss(), expected.sum(dim=-1).mean())


def test_draws_have_the_posterior_moments_and_carry_gradients() -> None:
    posterior = Posterior(torch.full((1, 5000, 1, 1, 1), 2.0, requires_grad=True), torch.full((1, 5000, 1, 1, 1), -1.0))
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.03)
    assert drawn.std().item() == pytest.approx(math.exp(-0.5), abs=0.02)
    drawn.sum().backward()
    assert torch.equal(posterior.mean.grad, torch.ones_like(posterior.mean))  # type: ignore[arg-type]


def test_statistics_give_plans_unit_variance() -> None:
    compressor = make_compressor()
    batches = [make_features(3), make_features(1, seed=1)]
    compressor.fit_statistics(batches)
    plans = torch.cat([compressor.encode(batch) for batch in batches]).flatten(0, -2)
    torch.testing.assert_close(plans.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(plans.std(dim=0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_a_generator_draws_and_none_takes_the_mean() -> None:
    compressor, features = make_compressor(), make_features()
    assert torch.equal(compressor.encode(features), compressor(features).mean)
    drawn = [compressor.encode(features, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_collapse_is_found_and_said(caplog: pytest.LogCaptureFixture) -> None:
    # The second channel is the standard Gaussian whatever the token.
    report = ChannelReport.of(make_posterior(torch.tensor([1.0, 0.0]), torch.tensor([0.3, 1.0])))
    assert report.collapsed == [1]
    with caplog.at_level(logging.WARNING):
        ChannelReport.of(make_posterior(torch.tensor([1.0]), torch.tensor([0.3]))).warn()
        assert not caplog.text
        report.warn()
    assert "1 of 2 channels of the compressor have collapsed (1; posterior std 1.00)" in caplog.text


def test_it_is_saved_and_loaded_with_its_statistics(tmp_path: Path) -> None:
    compressor = make_compressor(fps=4.0, encoder="abc")
    compressor.fit_statistics([make_features()])
    compressor.save_pretrained(tmp_path)
    loaded = load_strictly(SemanticCompressor, tmp_path)
    assert torch.equal(loaded.encode(make_features()), compressor.encode(make_features()))
    assert loaded.fingerprint == compressor.fingerprint
    assert loaded.clock.slice_seconds == 0.5
    loaded.channel_std.mul_(2.0)
    assert loaded.fingerprint != compressor.fingerprint


def test_another_encoder_is_refused() -> None:
    compressor = make_compressor(encoder="abc")
    compressor.check_encoder("abc")
    with pytest.raises(ModelError, match=r"features of the encoder abc .* got those of xyz"):
        compressor.check_encoder("xyz")
