"""Guidance over the variants of no system."""

from dataclasses import dataclass

from sememe.diffusion.guidance import Guidance, make_guidance


@dataclass(frozen=True)
class Variant:
    """A letter; letters of the same case share a forward, capitals first."""

    letter: str

    @property
    def batch_key(self) -> int:
        return int(self.letter.islower())


ALONE = make_guidance([(Variant("a"), 1.0)])


def guide(**weights: float) -> Guidance[Variant]:
    return make_guidance([(Variant(letter), weight) for letter, weight in weights.items()])
