"""Settings of the backbone's and the expert's stage. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sememe.data.caption_policy import CaptionPolicy
from sememe.training.autoencoder_settings import check_setting


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """How the backbone is trained.

    Noise levels are drawn from a logit-normal distribution with `sigma_mean` and `sigma_std`; `sigma_shift` moves them
    towards the noisy end, where it is decided what happens. Captions follow `captions`.
    """

    batch_size: int = 64
    sigma_mean: float = 0.0
    sigma_std: float = 1.5
    sigma_shift: float = 2.0
    captions: CaptionPolicy = field(
        default_factory=lambda: CaptionPolicy(drop_target_caption=0.4, drop_reference_caption=0.0, full_share=0.75)
    )

    def __post_init__(self) -> None:
        check_setting(self.batch_size >= 1, f"batch_size must be 1 or more, got {self.batch_size}")
        _check_noise(self)


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """How the expert is trained.

    In the one-way mode a reference is encoded once and serves `targets_per_reference` targets, which makes a pair
    nearly twice as cheap. `full_share` of `captions` is 0: a caption that names the condition would make the
    reference superfluous (the official recipe names it in nearly every caption; set it to 1 to reproduce that).
    """

    num_references: int = 16
    targets_per_reference: int = 4
    same_scene_share: float = 0.5
    sigma_mean: float = 0.0
    sigma_std: float = 1.3
    sigma_shift: float = 4.0
    captions: CaptionPolicy = field(
        default_factory=lambda: CaptionPolicy(
            drop_target_caption=0.7, drop_reference_caption=0.7, drop_reference=0.0, full_share=0.0
        )
    )

    def __post_init__(self) -> None:
        for name in ("num_references", "targets_per_reference"):
            check_setting(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        check_setting(
            0 <= self.same_scene_share <= 1, f"same_scene_share must be between 0 and 1, got {self.same_scene_share}"
        )
        _check_noise(self)


def _check_noise(settings: BackboneSettings | ExpertSettings) -> None:
    for name in ("sigma_std", "sigma_shift"):
        check_setting(getattr(settings, name) > 0, f"{name} must be above 0, got {getattr(settings, name)}")
