"""Parts of a workload that all systems share: steps of denoising, and autoencoders in tiles."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor

from sememe.backbones.autoencoder import Autoencoder
from sememe.compute.placement import check_tiling, enable_tiling
from sememe.compute.rehearsal import Phase
from sememe.diffusion.denoise import Predict
from sememe.diffusion.guidance import GuidanceRow, VariantT
from sememe.diffusion.objectives import Samples

# In the middle of a generation; the memory that a step takes does not depend on it.
_TIMESTEP = 500.0


def rehearse_step(
    predict: Predict[VariantT], groups: Iterable[tuple[GuidanceRow[VariantT], ...]], latents: Samples
) -> Float[Tensor, "..."]:
    """Return latents after a step as `denoise` takes it, without a scheduler; those before it stay in memory.

    `groups` are the rows of the guidance that share a forward, in the order in which they are predicted.
    """
    timestep, current = torch.tensor(_TIMESTEP), latents * 1.0
    predictions = [predict(current, timestep, tuple(row.variant for row in rows)) for rows in groups]
    return current - torch.cat(predictions)[0].sum(0)


def list_tiled_phases(name: str, vae: Autoencoder, run: Callable[[], object]) -> list[Phase]:
    """Return a phase that calls an autoencoder: with and without tiles where it can work in tiles."""
    if not isinstance(vae, (AutoencoderKLWan, AutoencoderKLCogVideoX)):
        return [Phase(name, run)]

    def run_in_tiles() -> None:
        autoencoder: Any = vae
        enable_tiling(vae)
        check_tiling(vae)
        run()
        autoencoder.disable_tiling()

    return [Phase(name, run, tiles=False), Phase(name, run_in_tiles, tiles=True)]
