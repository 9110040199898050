"""Settings of the autoencoder's stage. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sememe.errors import RecipeError


def check_setting(is_valid: object, message: str) -> None:
    """Raise `RecipeError` with this message if a setting is not valid."""
    if not is_valid:
        raise RecipeError(message)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """How the autoencoder's refinement is trained.

    Latents get noise of a standard deviation that is drawn for each clip, up to `max_noise`, and that the network is
    given. `generated_share` of each batch are latents with a sampler's errors, where there are such.
    `gradient_weight` weighs the error of spatial differences against that of pixels (both mean absolute).
    """

    batch_size: int = 16
    max_noise: float = 0.8
    generated_share: float = 0.25
    gradient_weight: float = 0.3

    def __post_init__(self) -> None:
        share = self.generated_share
        check_setting(self.batch_size >= 1, f"batch_size must be 1 or more, got {self.batch_size}")
        check_setting(0 <= share <= 1, f"generated_share must be from 0 to 1, got {share}")
        for name in ("max_noise", "gradient_weight"):
            check_setting(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
