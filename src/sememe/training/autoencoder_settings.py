"""Settings of the autoencoder's stage. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sememe.errors import RecipeError


def check_setting(is_valid: object, message: str) -> None:
    """Raise `RecipeError` with this message if a setting is not valid."""
    if not is_valid:
        raise RecipeError(message)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """What the autoencoder's training does.

    `trains` "decoder" leaves the encoder as it is, so that latents never change and those that were cached stay valid;
    "all" trains everything. Windows of `window` frames start anywhere in a clip. `latent_noise` is the standard
    deviation of the noise on latents before decoding, in standard deviations of the batch's latents; a little of it
    makes the decoder forgive what a diffusion model gets slightly wrong. `gradient_weight` weighs the error of spatial
    differences, and `motion_weight` that of temporal ones, against the error of pixels (all mean absolute).
    """

    trains: Literal["decoder", "all"] = "decoder"
    batch_size: int = 16
    window: int = 17
    latent_noise: float = 0.03
    gradient_weight: float = 0.5
    motion_weight: float = 0.25

    def __post_init__(self) -> None:
        check_setting(self.batch_size >= 1, f"batch_size must be 1 or more, got {self.batch_size}")
        check_setting(self.window >= 2, f"window must be 2 frames or more, got {self.window}")
        for name in ("latent_noise", "gradient_weight", "motion_weight"):
            check_setting(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
