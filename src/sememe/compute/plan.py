"""The choice of a memory plan: the fastest way to compute that fits a card.

What networks compute is measured (`sememe.compute.rehearsal`); weights are added for each way to place them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

from torch import nn

from sememe.compute.rehearsal import PhaseMemory, Workload, measure_phase
from sememe.compute.strategy import (
    GIGABYTE,
    OFFLOADS,
    STORED_BYTES,
    Candidate,
    Constraints,
    Estimate,
    MemoryPlan,
    PhasePeak,
    Strategy,
    round_up_gb,
)
from sememe.errors import InputError

# Tried for a hint at a faster way, those that are closest to full weights first.
_HINTED_STORAGES = ("fp8", "int8wo", "fp8wo", "nf4")


class Planner:
    """Estimates strategies for one workload; each phase is measured once, when it is first needed.

    Args:
        build: Makes the workload in a precision.
        stores_last: Whether weights are stored in fewer bits only when all networks are loaded, and not as each is.
    """

    def __init__(self, build: Callable[[str], Workload], *, stores_last: bool = False) -> None:
        self._build = build
        self._stores_last = stores_last
        self._workloads: dict[str, Workload] = {}
        self._measured: dict[tuple[str, int], PhaseMemory] = {}

    def workload(self, dtype: str) -> Workload:
        """Return the workload in a precision, such as "bfloat16"; it is built once."""
        if dtype not in self._workloads:
            self._workloads[dtype] = self._build(dtype)
        return self._workloads[dtype]

    def estimate(self, strategy: Strategy) -> Estimate:
        """Add up weights and tensors at every moment of the phases."""
        workload = self.workload(strategy.dtype)
        weights = _Weights(workload, strategy, stores_last=self._stores_last)
        kept, peaks, resident = 0, {}, frozenset[str]()
        for index, phase in enumerate(workload.phases):
            if not phase.is_chosen(tiles=strategy.tiles, keeps_text_keys=strategy.keeps_text_keys):
                continue
            key = (strategy.dtype, index)
            if key not in self._measured:
                self._measured[key] = measure_phase(phase.run, workload.components)
            found = []
            for segment in self._measured[key].segments:
                resident = weights.bring(segment.component, resident)
                found.append(PhasePeak(weights.count(segment.component, resident), kept + segment.peak_bytes))
            peaks[phase.name] = max(found, key=lambda peak: peak.total)
            kept += self._measured[key].kept_bytes
        return Estimate(peaks, weights.host_bytes)

    def list_candidates(self, constraints: Constraints) -> Iterator[Candidate]:
        """Yield exact candidates first, and among those that are equally exact the fastest first.

        A candidate that takes no less than a faster one is left out.
        """
        workload = self.workload(constraints.dtypes[0])
        phases = workload.phases
        tilings = sorted({phase.tiles for phase in phases if phase.tiles is not None}) or [False]
        # Keys that are kept save a little in each step; the result is the same.
        alternatives = {phase.keeps_text_keys for phase in phases if phase.keeps_text_keys is not None}
        keepings = sorted(alternatives, reverse=True) or [True]
        for dtype in constraints.dtypes:
            for tiles in tilings:
                least: float = float("inf")
                for offload in workload.offloads:
                    # Blocks that come and go have no weights with which to project a text ahead of the steps.
                    for keeps in keepings[-1:] if offload.startswith("group") else keepings:
                        strategy = Strategy(dtype, constraints.storage, offload, tiles, keeps)
                        if not constraints.allows(strategy):
                            continue
                        candidate = Candidate(strategy, self.estimate(strategy))
                        if candidate.estimate.peak < least:
                            least = candidate.estimate.peak
                            yield candidate

    def find_first(self, constraints: Constraints) -> Candidate | None:
        """Return the first candidate that fits."""
        budget = constraints.vram * GIGABYTE
        return next((each for each in self.list_candidates(constraints) if each.estimate.peak <= budget), None)

    def choose(self, constraints: Constraints) -> MemoryPlan:
        """Choose the fastest strategy that fits; an exact one wherever there is one.

        Raises:
            InputError: Nothing fits the card, or what is offloaded does not fit the machine.
        """
        workload = self.workload(constraints.dtypes[0])
        rejected: list[Candidate] = []
        candidates = self.list_candidates(constraints)
        for candidate in candidates:
            if candidate.estimate.peak > constraints.vram * GIGABYTE:
                rejected.append(candidate)
                continue
            faster = self._find_faster(constraints, candidate) if constraints.storage == "full" else None
            title, settings, smaller = workload.title, workload.settings, next(candidates, None)
            plan = MemoryPlan(title, settings, constraints, candidate, tuple(rejected), faster, smaller)
            _check_host(plan)
            return plan
        least = min(rejected, key=lambda candidate: candidate.estimate.peak)
        raise InputError(
            f"{workload.title} does not fit in {constraints.vram:g} GB; the least that would do is "
            f"{round_up_gb(least.estimate.peak):g} GB ({least.strategy}); use a larger card, or ask for less"
        )

    def _find_faster(self, constraints: Constraints, chosen: Candidate) -> Candidate | None:
        """Return the candidate with weights in fewer bits that is offloaded least, if less than the chosen one."""
        found = [self.find_first(replace(constraints, storage=storage)) for storage in _HINTED_STORAGES]
        best = min((each for each in found if each is not None), key=_rank, default=None)
        return best if best is not None and _rank(best) < _rank(chosen) else None


class _Weights:
    """Bytes of weights on the device under a strategy."""

    def __init__(self, workload: Workload, strategy: Strategy, *, stores_last: bool) -> None:
        self.offload, self.names, self.main = strategy.offload, [*workload.components], workload.main
        self.is_stored, self.stores_last = strategy.storage != "full", stores_last
        self.whole = frozenset(workload.whole) & frozenset(workload.components)
        self.components = {
            name: _ComponentWeights(module, strategy.storage if name == workload.main else "full")
            for name, module in workload.components.items()
        }

    @property
    def host_bytes(self) -> int:
        """The main network is loaded first, and stored in fewer bits at once.

        With offload "none" each leaves for the device before the next is loaded; otherwise all of them wait.
        """
        sizes = {name: component.loaded for name, component in self.components.items()}
        if self.is_stored and self.stores_last:
            return sum(sizes.values())
        if self.offload == "none":
            return max(sizes.values())
        main = self.components[self.main]
        return max(main.loaded, main.total + sum(sizes.values()) - main.loaded)

    def bring(self, name: str, resident: frozenset[str]) -> frozenset[str]:
        """Return the components on the device when one is called, given those that were there before."""
        if self.offload == "none":
            return frozenset(self.names)
        if not name:
            return resident
        if self.offload != "model":
            return self.whole | {name}
        # As accelerate does it: a component sends the one before it in the order away, and no other.
        before = self.names.index(name) - 1
        left = {self.names[before]} if before >= 0 else set()
        return (resident - left) | {name}

    def count(self, current: str, resident: frozenset[str]) -> int:
        """Return the bytes of resident components, and of what the current one widens while it computes."""
        if self.offload in ("none", "model"):
            present = sum(self.components[name].total for name in resident)
        else:
            sizes = {name: self.components[name] for name in resident | self.whole}
            present = sum(
                size.total if name in self.whole else size.fetched(self.offload) for name, size in sizes.items()
            )
        return present + (self.components[current].widened if current else 0)


class _ComponentWeights:
    """Bytes of one component's weights, with linear layers of its blocks in fewer bits."""

    def __init__(self, module: nn.Module, storage: str) -> None:
        self.module, self.storage = module, storage
        # Group offload fetches the entries of these lists one by one.
        lists = [child for child in module.children() if isinstance(child, (nn.ModuleList, nn.Sequential))]
        self.blocks = [block for each in lists for block in each]
        self.stored = set()
        if storage != "full":
            # As quantisation and layerwise casting do: norms, and what modulates them, stay as they are.
            self.stored = {
                id(layer.weight)
                for block in self.blocks
                for name, layer in block.named_modules()
                if isinstance(layer, nn.Linear) and "norm" not in name
            }

    @cached_property
    def total(self) -> int:
        return self._count(self.module)

    @cached_property
    def loaded(self) -> int:
        """Before any of it is stored in fewer bits."""
        return sum(tensor.nbytes for tensor in (*self.module.parameters(), *self.module.buffers()))

    @cached_property
    def widened(self) -> int:
        """Of the largest layer in fewer bits, which is widened to compute."""
        weights = (parameter for parameter in self.module.parameters() if id(parameter) in self.stored)
        return max((weight.nbytes for weight in weights), default=0)

    def fetched(self, offload: str) -> int:
        """Return the bytes on the device while the component computes by blocks or layers."""
        if offload == "group":
            sizes = sorted(map(self._count, self.blocks))
            # The largest two: one is fetched while another computes.
            return self.total - sum(sizes[:-2])
        layers = sorted(self._count(layer, recurse=False) for layer in self.module.modules())
        return sum(layers[-2:]) if offload == "group-leaf" else layers[-1]

    def _count(self, module: nn.Module, *, recurse: bool = True) -> int:
        tensors = (*module.parameters(recurse), *module.buffers(recurse))
        return sum(
            int(each.numel() * STORED_BYTES[self.storage]) if id(each) in self.stored else each.nbytes
            for each in tensors
        )


def _rank(candidate: Candidate) -> int:
    return OFFLOADS.index(candidate.strategy.offload)


def _check_host(plan: MemoryPlan) -> None:
    needed, host = plan.chosen.estimate.host_bytes, plan.constraints.host
    if host is not None and needed > host * GIGABYTE:
        raise InputError(
            f"{plan.title} on a card of {plan.constraints.vram:g} GB ({plan.strategy}) takes more of the machine's own "
            f"memory than there is: expected {round_up_gb(needed):g} GB free there, got {host:.1f} GB; close other "
            "programs, or use a larger card or a machine with more memory"
        )
