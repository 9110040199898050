"""The ways to compute that a plan chooses among, the best first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sememe.pipelines.planning import Generation, MemoryEstimate, ModelMemory, Strategy

# From the fastest to the slowest.
OFFLOADS: Sequence[Any] = ("none", "model", "group", "group-leaf", "sequential")
# What saves memory within an offload, each beside those before it: first what is done once in a generation, such as
# moving weights, then what is done again in every step.
_SAVINGS: Mapping[str, Sequence[str]] = {
    "none": ("texts first", "encoders rest", "expert rests", "text keys recomputed"),
    "model": ("expert rests", "text keys recomputed"),
}
_BY_LAYER = ("group-leaf", "sequential")
# Tried for a faster way, those that are closest to the full weights first.
_HINTED_STORAGES = ("fp8", "int8wo", "fp8wo", "nf4")


@dataclass(frozen=True)
class Wish:
    """What is asked of all ways.

    Attributes:
        dtype: precision; None for the model's own, or bfloat16 in its place where nothing else fits.
        storage: how the transformer's weights are stored.
        compiles: whether the transformer's blocks are to be compiled.
        text_keys: `kept` or `recomputed`; None for the model's own, or recomputed where kept does not fit.
    """

    dtype: str | None = None
    storage: str = "full"
    compiles: bool = False
    text_keys: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A way to compute, and what it takes."""

    strategy: "Strategy"
    estimate: "MemoryEstimate"


def list_candidates(model: "ModelMemory", generation: "Generation", wish: Wish) -> Iterator[Candidate]:
    """Exact ones first, and among those that are equally exact the fastest first."""
    from sememe.pipelines.planning import Strategy

    dtypes = [wish.dtype or model.dtype]
    if wish.dtype is None and model.dtype == "float32":
        dtypes.append("bfloat16")
    can_tile = model.vae.can_tile and model.vae.tiles_at(generation.height, generation.width)
    keeps_texts = model.keeps_texts if wish.text_keys is None else wish.text_keys == "kept"
    for precision in dtypes:
        for tiles in (False, True) if can_tile else (False,):
            for offload in OFFLOADS:
                plain = Strategy(precision, wish.storage, offload, tiles=tiles, keeps_texts=keeps_texts)
                if _can_be(plain, compiles=wish.compiles):
                    yield from _save(model, generation, plain, wish)


def find_first(model: "ModelMemory", generation: "Generation", wish: Wish, budget: float) -> Candidate | None:
    """The first that takes no more bytes than the budget."""
    candidates = list_candidates(model, generation, wish)
    return next((each for each in candidates if each.estimate.peak <= budget), None)


def find_faster(
    model: "ModelMemory", generation: "Generation", wish: Wish, budget: float, chosen: Candidate
) -> Candidate | None:
    """The way with weights in fewer bits that fits and is offloaded the least, if less than the one chosen."""
    found = (find_first(model, generation, replace(wish, storage=storage), budget) for storage in _HINTED_STORAGES)
    fitting = [each for each in found if each is not None]
    best = min(fitting, key=_rank, default=None)
    return best if best is not None and _rank(best) < _rank(chosen) else None


def _rank(candidate: Candidate) -> int:
    return OFFLOADS.index(candidate.strategy.offload)


def _save(model: "ModelMemory", generation: "Generation", plain: "Strategy", wish: Wish) -> Iterator[Candidate]:
    """A strategy, then the same with one saving after the other; those that would save nothing are left out."""
    from sememe.pipelines.planning import estimate_memory

    last = Candidate(plain, estimate_memory(model, generation, plain))
    yield last
    for saving in _SAVINGS.get(plain.offload, ()):
        changed = _add(saving, last.strategy, model, wish)
        if changed is None:
            continue
        candidate = Candidate(changed, estimate_memory(model, generation, changed))
        if candidate.estimate.peak < last.estimate.peak:
            yield candidate
            last = candidate


def _add(saving: str, strategy: "Strategy", model: "ModelMemory", wish: Wish) -> "Strategy | None":
    """The strategy with a saving; None where the model has nothing to save so, or it is not wanted."""
    if saving == "texts first":
        return replace(strategy, frees_texts=True)
    if saving == "encoders rest":
        # The text encoder is gone by then.
        return None if model.image_encoder is None else replace(strategy, resting=("encoders",))
    if saving == "expert rests":
        is_one_way = model.attention_mode == "cached"
        return replace(strategy, resting=(*strategy.resting, "expert")) if is_one_way else None
    is_wanted = wish.text_keys != "kept" and model.shape.family == "wan"
    return replace(strategy, keeps_texts=False) if is_wanted else None


def _can_be(strategy: "Strategy", *, compiles: bool) -> bool:
    """Not all storages can be offloaded in all ways, nor all that comes and goes be compiled."""
    if compiles and (strategy.offload in _BY_LAYER or strategy.storage == "fp8"):
        return False
    if strategy.storage in ("int8", "nf4"):
        return strategy.offload in ("none", "model")
    return strategy.storage == "full" or strategy.offload != "sequential"
