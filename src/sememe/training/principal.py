"""Starts a Cosmos autoencoder as an exact principal-component code of its wavelet bands.

Trained from scratch on two cores, a convolutional video autoencoder spends its first thousand steps on what linear
algebra knows in seconds: the best linear code of a block of pixels. `start_from_principal_components` writes that code
into the stock class `AutoencoderKLCosmos`, whose encoder then is linear and can be frozen at once; the decoder begins
as its inverse, and training teaches it what lies beyond (edges across blocks, sharp outlines).

How a linear map fits into a network of norms and activations: every component travels twice, once with each sign, and
silu(x) - silu(-x) = x; two channels of constant size dominate the norms' statistics, so these act as constants; every
residual branch begins at zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The two constant channels, in standard deviations of a latent: so large in the encoder that its norm sees nothing
# else, and small enough in the decoder that the residual branches, once trained, see more than the constants.
_ENCODER_CONSTANT = 1000.0
_DECODER_CONSTANT = 30.0
# Their wavelet bands are held in double precision, which is a hundred megabytes at 64x64 pixels.
_CLIPS_AT_ONCE = 32


@dataclass(frozen=True)
class PrincipalComponents:
    """The best linear code of wavelet bands.

    Attributes:
        mean: (bands,) float64.
        directions: (bands, components) float64, orthonormal columns, the most important first.
        scales: (components,) float64; a latent is a coefficient divided by its scale.
    """

    mean: Tensor
    directions: Tensor
    scales: Tensor


@torch.no_grad()
def fit_principal_components(
    bands: Tensor | Iterable[Tensor], num_components: int, whitening: float = 0.5
) -> PrincipalComponents:
    """Fit a code to `bands` (batch, band, frame, height, width), given at once or in batches.

    With `whitening` 1 all latents get unit variance, with 0 they keep the proportions of the coefficients; between,
    their standard deviations are the coefficients' to the power 1 - `whitening`, so that under noise the coarse
    components stay visible longest. The mean variance over the components is 1 in any case.
    """
    count, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in bands.split(_CLIPS_AT_ONCE) if isinstance(bands, Tensor) else bands:
        rows = batch.movedim(1, -1).flatten(0, -2).double()
        count += len(rows)
        total = total + rows.sum(dim=0)
        products = products + rows.T @ rows
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    deviations = values.flip(0)[:num_components].clamp_min(1e-12).sqrt()
    scales = deviations**whitening
    scales = scales * (deviations / scales).square().mean().sqrt()
    return PrincipalComponents(mean, vectors.flip(1)[:, :num_components], scales)


@torch.no_grad()
def start_from_principal_components(
    autoencoder: Any, video: Tensor | Iterable[Tensor], whitening: float = 0.5
) -> PrincipalComponents:
    """Write the principal components of `video` (batch, 3, frame, height, width) into an `AutoencoderKLCosmos`.

    Clips are given at once or in batches. The network must fold all of its compression into the wavelet patches (as
    many pixels as the patch size in space and time) and have at least twice as many channels as latents, and two more.
    """
    batches = video.split(_CLIPS_AT_ONCE) if isinstance(video, Tensor) else video
    folded = (autoencoder.encoder.patch_embed(batch) for batch in batches)
    code = fit_principal_components(folded, autoencoder.config.latent_channels, whitening)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    _silence_residuals(encoder)
    _silence_residuals(decoder)
    into = (code.directions / code.scales).T
    gain = _write_pairs(encoder.conv_in, into, -into @ code.mean, _ENCODER_CONSTANT)
    _read_pairs(encoder.conv_out, torch.eye(len(into), dtype=torch.float64), None, gain)
    _write_identity(autoencoder.quant_conv)
    _write_identity(autoencoder.post_quant_conv)
    gain = _write_pairs(decoder.conv_in, torch.eye(len(into), dtype=torch.float64), None, _DECODER_CONSTANT)
    _read_pairs(decoder.conv_out, code.directions * code.scales, code.mean, gain)
    return code


def _silence_residuals(module: nn.Module) -> None:
    for part in module.modules():
        match type(part).__name__:
            case "CosmosResnetBlock3d":
                _zero(part.conv2.conv_t)  # type: ignore[union-attr]
            case "CosmosCausalAttention":
                _zero(part.to_out[0])  # type: ignore[index]
            case _:
                pass


def _zero(convolution: Any) -> None:
    convolution.weight.zero_()
    convolution.bias.zero_()


def _pass_through(convolution: Any) -> None:
    """A causal convolution over time that hands on the present."""
    _zero(convolution)
    channels = torch.arange(convolution.weight.shape[0])
    convolution.weight[channels, channels, -1] = 1.0


def _write_pairs(projection: Any, weight: Tensor, bias: Tensor | None, constant: float) -> float:
    """Components into channels, each with both signs, and the two constants; returns what the norms divide by."""
    count, channels = len(weight), projection.conv_s.weight.shape[0]
    assert channels >= 2 * count + 2, f"{channels} channels cannot hold {count} components with both signs"
    _zero(projection.conv_s)
    for start, sign in ((0, 1.0), (count, -1.0)):
        projection.conv_s.weight[start : start + count, :, 0, 1, 1] = sign * weight.float()
        if bias is not None:
            projection.conv_s.bias[start : start + count] = sign * bias.float()
    projection.conv_s.bias[-2], projection.conv_s.bias[-1] = constant, -constant
    _pass_through(projection.conv_t)
    return float(((2 * constant**2 + 2 * count) / channels) ** 0.5)


def _read_pairs(projection: Any, weight: Tensor, bias: Tensor | None, gain: float) -> None:
    count = weight.shape[1]
    _zero(projection.conv_s)
    for start, sign in ((0, 1.0), (count, -1.0)):
        projection.conv_s.weight[:, start : start + count, 0, 1, 1] = (sign * gain * weight).float()
    if bias is not None:
        projection.conv_s.bias.copy_(bias.float())
    _pass_through(projection.conv_t)


def _write_identity(convolution: Any) -> None:
    _zero(convolution)
    channels = torch.arange(convolution.weight.shape[0])
    convolution.weight[channels, channels] = 1.0
