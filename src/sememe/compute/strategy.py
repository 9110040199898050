"""Memory plans: ways to compute, what each takes, and the one that was chosen. 1 GB is 1e9 bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal, get_args

from sememe.errors import InputError

Offload = Literal["none", "model", "group", "group-leaf", "sequential"]
"""Which weights are on the device, from the fastest to the slowest: all; one component at a time; blocks, or layers
("group-leaf"), each fetched while the one before computes; or one layer at a time."""

# Bytes of a weight with its scales; nf4 has a float32 for every 64 weights.
STORED_BYTES: Mapping[str, float] = {
    "fp8": 1.0,
    "fp8wo": 1.0,
    "int8wo": 1.0,
    "int8dq": 1.0,
    "int8": 1.0,
    "nf4": 0.5 + 4 / 64,
}
STORAGES = ("full", *STORED_BYTES)
OFFLOADS: Sequence[Offload] = get_args(Offload)
_BY_LAYER = ("group-leaf", "sequential")
GIGABYTE = 1e9


@dataclass(frozen=True)
class Strategy:
    """A way to compute.

    Attributes:
        dtype: Precision of the networks, but for those that are always computed in float32.
        storage: How the blocks of the main network are stored.
        offload: Where weights lie.
        tiles: Whether the autoencoder works in tiles.
        keeps_text_keys: Whether keys and values of texts are kept over the steps.
    """

    dtype: str
    storage: str = "full"
    offload: Offload = "none"
    tiles: bool = False
    keeps_text_keys: bool = True

    def __str__(self) -> str:
        words = [self.dtype]
        if self.storage != "full":
            words.append(f"weights stored as {self.storage}")
        words.append(f"offload {self.offload}")
        if not self.keeps_text_keys:
            words.append("keys of texts recomputed")
        if self.tiles:
            words.append("autoencoder in tiles")
        return ", ".join(words)


@dataclass(frozen=True)
class PhasePeak:
    """Bytes on the device at the worst moment of a phase.

    Attributes:
        weights: Bytes of weights that are there.
        tensors: Bytes of tensors made in this phase, or kept from those before.
    """

    weights: int
    tensors: int

    @property
    def total(self) -> int:
        return self.weights + self.tensors


@dataclass(frozen=True)
class Estimate:
    """What a strategy takes.

    Attributes:
        phases: Peaks of the phases by name, in order.
        host_bytes: Bytes of the machine's own memory that weights take, while they are loaded or while they wait.
    """

    phases: Mapping[str, PhasePeak]
    host_bytes: int

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name].total)

    @property
    def peak(self) -> int:
        """Bytes, the most that any phase takes."""
        return self.phases[self.peak_phase].total


@dataclass(frozen=True)
class Candidate:
    """A strategy, and what it takes."""

    strategy: Strategy
    estimate: Estimate


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a plan has to respect.

    Attributes:
        vram: GB of the card.
        dtypes: Allowed precisions, the best first.
        own_dtype: The precision in which the model is meant to be computed.
        storage: How the blocks of the main network are stored.
        compiles: Whether blocks are compiled, which not all strategies allow.
        vae_dtype: Precision of the autoencoder; anything but float32 is approximate.
        host: GB of memory that are free in the machine that computes; None where that is not known.
    """

    vram: float
    dtypes: tuple[str, ...]
    own_dtype: str
    storage: str = "full"
    compiles: bool = False
    vae_dtype: str = "float32"
    host: float | None = None

    def __post_init__(self) -> None:
        check_constraints(self.vram, self.storage, compiles=self.compiles)

    def allows(self, strategy: Strategy) -> bool:
        """Return whether the libraries can offload such weights, and compile what is offloaded so."""
        if self.compiles and (strategy.offload in _BY_LAYER or strategy.storage == "fp8"):
            return False
        if strategy.storage in ("int8", "nf4"):
            return strategy.offload in ("none", "model")
        return strategy.storage == "full" or strategy.offload != "sequential"


@dataclass(frozen=True)
class MemoryPlan:
    """The chosen way to compute.

    Attributes:
        title: What is computed.
        settings: The same as plain values.
        constraints: What had to be respected.
        chosen: The first candidate that fits.
        rejected: Faster ones, which need more.
        faster: One that would be offloaded less, at the price of exactness.
        smaller: The next one, which takes less.
    """

    title: str
    settings: Mapping[str, Any]
    constraints: Constraints
    chosen: Candidate
    rejected: tuple[Candidate, ...] = ()
    faster: Candidate | None = None
    smaller: Candidate | None = None

    @property
    def strategy(self) -> Strategy:
        return self.chosen.strategy

    @property
    def summary(self) -> str:
        """The plan in one line."""
        return f"{self.constraints.vram:.3g} GB to use: {self.strategy} (--vram plans for another size)"

    @property
    def host_memory(self) -> str | None:
        """How offload by groups holds weights: "pinned", or "lean" where there is no room for that; None elsewhere."""
        if not self.strategy.offload.startswith("group"):
            return None
        has_room = self.constraints.host is not None and self.constraints.host * GIGABYTE >= self._pinned_bytes
        return "pinned" if has_room else "lean"

    @property
    def shortcuts(self) -> list[str]:
        """What departs from how the model is to be computed; empty where the plan is exact."""
        strategy = self.strategy
        found = [] if strategy.storage == "full" else [f"weights stored as {strategy.storage}"]
        found += ["autoencoder in tiles"] if strategy.tiles else []
        found += list_vae_shortcuts(self.constraints.vae_dtype)
        return found + list_dtype_shortcuts(self.constraints.own_dtype, strategy.dtype)

    @property
    def _pinned_bytes(self) -> int:
        # Pinning copies the weights while the originals are still there.
        return 2 * self.chosen.estimate.host_bytes

    def explain(self) -> list[str]:
        """Say why this way, one sentence each."""
        lines = [f"{_describe(candidate)} does not fit" for candidate in self.rejected]
        lines.append(f"{_describe(self.chosen)} fits")
        host = self.constraints.host
        lines.append(f"weights take up to {in_gb(self.chosen.estimate.host_bytes)} GB of the machine's own memory")
        if self.host_memory is not None:
            free = "an unknown amount" if host is None else f"{host:.1f} GB"
            lines.append(
                f"weights are pinned {'ahead' if self.host_memory == 'pinned' else 'on their way, which is slower'}: "
                f"ahead takes {in_gb(self._pinned_bytes)} GB, {free} is free there"
            )
        if self.faster is not None:
            lines.append(f"faster but approximate: {_describe(self.faster)} fits")
        return lines

    def to_document(self) -> dict[str, Any]:
        """Return the plan as plain values; bytes as GB."""
        strategy, estimate = self.strategy, self.chosen.estimate
        return {
            **self.settings,
            "vram_gb": self.constraints.vram,
            "dtype": strategy.dtype,
            "storage": strategy.storage,
            "offload": strategy.offload,
            "text_keys": "kept" if strategy.keeps_text_keys else "recomputed",
            "vae_tiling": strategy.tiles,
            "host_memory": self.host_memory,
            "label": "approximate" if self.shortcuts else "exact",
            "shortcuts": self.shortcuts,
            "peak_gb": in_gb(estimate.peak),
            "peak_phase": estimate.peak_phase,
            "phases_gb": {
                name: {"weights": in_gb(phase.weights), "tensors": in_gb(phase.tensors)}
                for name, phase in estimate.phases.items()
            },
            "host_gb": in_gb(estimate.host_bytes),
            "why": self.explain(),
        }


def check_constraints(vram: float, storage: str, *, compiles: bool = False) -> None:
    """Raise `InputError` for a card of no size, or a storage that is unknown or cannot be compiled."""
    if not 0 < vram < float("inf"):
        raise InputError(f"expected the GB of a card as vram, above 0, got {vram:g}")
    if storage not in STORAGES:
        raise InputError(f"expected storage to be one of {', '.join(STORAGES)}, got {storage!r}")
    if compiles and storage == "fp8":
        raise InputError("fp8 storage casts weights within a block, which cannot be compiled; use fp8wo or int8wo")


def list_dtype_shortcuts(own: str, used: str) -> list[str]:
    """Return what departs from the precision that a model is meant for: nothing does in that or in float32."""
    return [] if used in (own, "float32") else [f"{used} in place of {own}"]


def list_vae_shortcuts(used: str) -> list[str]:
    """Return what departs from the float32 that autoencoders are meant for."""
    return [] if used == "float32" else [f"autoencoder in {used}"]


def in_gb(num_bytes: float) -> float:
    """Return GB for people to read: three decimals below 1 GB, one from there on."""
    return round(num_bytes / GIGABYTE, 3 if num_bytes < GIGABYTE else 1)


def round_up_gb(num_bytes: float) -> float:
    """Return GB with a decimal, and two figures where there are fewer; never less than the bytes."""
    size = Decimal(num_bytes) / Decimal(GIGABYTE)
    step = Decimal(1).scaleb(min(-1, size.adjusted() - 1))
    return float(size.quantize(step, ROUND_CEILING))


def _describe(candidate: Candidate) -> str:
    estimate = candidate.estimate
    return f"{candidate.strategy} takes {in_gb(estimate.peak)} GB in the phase {estimate.peak_phase} and"
