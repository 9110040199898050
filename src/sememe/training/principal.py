"""Starts a linear autoencoder as the principal components of blocks of pixels, the best linear code that there is."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder, fold


@dataclass(frozen=True)
class PrincipalComponents:
    """The best linear code of vectors.

    Attributes:
        mean: float64.
        directions: float64, orthonormal columns, the most important first.
        scales: float64; a latent is a coefficient divided by its scale.
    """

    mean: Float[Tensor, "number"]
    directions: Float[Tensor, "number component"]
    scales: Float[Tensor, "component"]


@torch.no_grad()
def fit_principal_components(
    batches: Iterable[Float[Tensor, "_ number"]], num_components: int, whitening: float = 0.5
) -> PrincipalComponents:
    """Fit a code to vectors, given in batches.

    With `whitening` 1 all latents get unit variance, with 0 they keep the proportions of the coefficients; between,
    their standard deviations are the coefficients' to the power 1 - `whitening`, so that under noise the coarse
    components stay visible longest. The mean variance over the components is 1 in any case.
    """
    count, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in batches:
        rows = batch.double()
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
    autoencoder: LinearVideoAutoencoder,
    batches: Iterable[Float[Tensor, "_ 3 _ _ _"]],  # batch, colour, frame, height, width; batches may differ
    whitening: float = 0.5,
) -> PrincipalComponents:
    """Write the principal components of clips, given in batches, into the linear maps of an autoencoder."""
    size = autoencoder.config.patch_size
    rows = (_blocks(video, size) for video in batches)
    code = fit_principal_components(rows, autoencoder.config.latent_channels, whitening)
    into = (code.directions / code.scales).T
    autoencoder.encoder.weight.copy_(into)
    autoencoder.encoder.bias.copy_(-into @ code.mean)
    autoencoder.decoder.weight.copy_(code.directions * code.scales)
    autoencoder.decoder.bias.copy_(code.mean)
    return code


def _blocks(video: Tensor, size: int) -> Tensor:
    padded = torch.cat([video[:, :, :1].expand(-1, -1, size - 1, -1, -1), video], dim=2)
    # (batch, number, frame, height, width) -> (batch * frame * height * width, number)
    return fold(padded, size, size).movedim(1, -1).flatten(0, -2)
