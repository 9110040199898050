"""How often captions and references are left out in training. Imports no numpy, so that recipes list at once."""

from dataclasses import dataclass

from sememe.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class CaptionPolicy:
    """Independent probabilities in 0..1 of dropping a target's caption, a reference's caption, and the reference.

    `full_share` is the probability that a kept caption is the full one, which names the condition.
    """

    drop_target_caption: float = 0.5
    drop_reference_caption: float = 0.5
    drop_reference: float = 0.0
    full_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_target_caption", "drop_reference_caption", "drop_reference", "full_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
