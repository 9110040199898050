"""Memory plans: the fastest way to compute that fits a card, said before anything is loaded, and applied on request."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sememe.errors import InputError
from sememe.workflows.model_memory import Guided, read_model_memory

if TYPE_CHECKING:
    from sememe.pipelines.encoders import EncodedPrompt
    from sememe.pipelines.planning import Generation, MemoryEstimate, ModelMemory, Strategy

STORAGES = ("full", "fp8", "int8wo", "int8dq", "fp8wo", "int8", "nf4")
_GIGABYTE = 1e9
# From the fastest to the slowest. Texts are dropped before anything is moved to and fro.
_PLACEMENTS: Sequence[tuple[Any, bool]] = (
    ("none", False),
    ("none", True),
    ("model", False),
    ("group", False),
    ("group-leaf", False),
    ("sequential", False),
)
_BY_LAYER = ("group-leaf", "sequential")
_PHASES = {"texts": "texts are encoded", "encode": "references are encoded", "steps": "it takes its steps"}
_PHASES |= {"decode": "the result is decoded"}


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned. None stands for the model's own setting.

    Attributes:
        vram: GB of the card.
        height: pixels.
        width: pixels.
        num_frames: of the result.
        num_references: videos that are read.
        num_reference_frames: of each.
        num_negative_references: videos to lead away from.
        dtype: precision, where it is given.
        storage: how the transformer's weights are stored; None for as they are. Others are approximate.
        keeps_keys: whether a two-way model keeps keys and values of its reference (`approximate`).
        compiles: whether the transformer's blocks are to be compiled, which not all ways allow.
        guided: settings of guidance.
    """

    vram: float
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_references: int = 1
    num_reference_frames: int | None = None
    num_negative_references: int = 0
    dtype: str | None = None
    storage: str | None = None
    keeps_keys: bool = False
    compiles: bool = False
    guided: Guided | None = None


@dataclass(frozen=True)
class Candidate:
    """A way to compute, and what it takes."""

    strategy: "Strategy"
    estimate: "MemoryEstimate"


@dataclass(frozen=True)
class MemoryPlan:
    """The way that was chosen.

    Attributes:
        model: what it is for.
        generation: what is generated.
        vram: GB of the card.
        chosen: the way.
        rejected: faster ways, which need more.
        faster: one that would fit at the price of exactness.
    """

    model: "ModelMemory"
    generation: "Generation"
    vram: float
    chosen: Candidate
    rejected: tuple[Candidate, ...]
    faster: Candidate | None = None

    @property
    def strategy(self) -> "Strategy":
        return self.chosen.strategy

    @property
    def shortcuts(self) -> list[str]:
        """What departs from what the model was trained for; empty where the plan is exact."""
        return _list_shortcuts(self.model, self.strategy)

    @property
    def label(self) -> str:
        return "approximate" if self.shortcuts else "exact"


def plan_memory(name: str | Path, request: PlanRequest, expert: str | Path | None = None) -> MemoryPlan:
    """Chooses the fastest way that fits; an exact one wherever there is one.

    A card of 24 GB has 24 GiB: the 7 % between that and 24e9 bytes are left to the driver and the allocator.

    Args:
        name: `wan-14b`, `cogvideox-5b`, a built-in name, or a local folder.
        request: what is generated, on which card.
        expert: the folder of an expert that goes with it, or of a model that has one.

    Raises:
        ModelError: there is no such model or expert, it is not whole, or they do not go together.
        InputError: the size is none that the model can make, or nothing fits; says what the least would be.
    """
    check_plan_request(request)
    from sememe.pipelines.planning import Generation

    guided = replace(request.guided or Guided(), leads_away=request.num_negative_references > 0)
    model = read_model_memory(name, expert, guided)
    generation = Generation(
        height=request.height or model.height,
        width=request.width or model.width,
        num_frames=request.num_frames or model.num_frames,
        num_references=request.num_references,
        num_reference_frames=request.num_reference_frames,
        num_negative_references=request.num_negative_references,
        keeps_keys=request.keeps_keys,
    )
    return choose_plan(model, generation, request)


def choose_plan(model: "ModelMemory", generation: "Generation", request: PlanRequest) -> MemoryPlan:
    """The choice itself, without reading anything.

    Raises:
        InputError: nothing fits.
    """
    budget = request.vram * _GIGABYTE
    rejected: list[Candidate] = []
    for candidate in _list_candidates(model, generation, request, request.storage or "full"):
        if candidate.estimate.peak <= budget:
            faster = None if request.storage else _find_faster(model, generation, request, candidate)
            return MemoryPlan(model, generation, request.vram, candidate, tuple(rejected), faster)
        rejected.append(candidate)
    least = min(rejected, key=lambda candidate: candidate.estimate.peak)
    size = f"{generation.width}x{generation.height}, {generation.num_frames} frames"
    # Weights in fewer bits cannot be offloaded in all ways, so that without them less memory may do.
    ways_out = [] if request.storage in (None, "full") else ["leave storage out"]
    ways_out += ["leave compiling out"] if request.compiles else []
    ways_out.append("ask for a smaller size or fewer frames")
    raise InputError(
        f"{model.name} at {size} does not fit in {request.vram:g} GB; the least that would do is "
        f"{_ceil_tenth(least.estimate.peak):.1f} GB ({describe_strategy(least.strategy)}); {', or '.join(ways_out)}"
    )


def apply_plan(pipeline: Any, plan: MemoryPlan, device: Any, texts: "Texts") -> "EncodedPrompt | None":
    """Makes a pipeline, its weights on the CPU, compute as planned.

    Returns:
        The encoded texts, where the plan drops their encoder; they are then to be passed as `prompt`.
    """
    from sememe.pipelines.memory import apply_offload, apply_storage
    from sememe.pipelines.tiling import enable_tiling

    strategy = plan.strategy
    if strategy.tiles:
        enable_tiling(pipeline.vae)
    encoded = None
    if strategy.frees_texts:
        pipeline.text_encoder.to(device)
        encoded = pipeline.encode_prompt(texts.prompt, texts.negative_prompt, list(texts.reference_prompts) or None)
        pipeline.unload_text_encoders()
    apply_storage(pipeline, strategy.storage)
    kind, _, level = strategy.offload.partition("-")
    apply_offload(pipeline, kind, device, group_level=level or "block")
    return encoded


@dataclass(frozen=True)
class Texts:
    """All texts of a generation."""

    prompt: str = ""
    negative_prompt: str | None = None
    reference_prompts: tuple[str, ...] = ()


def check_plan_request(request: PlanRequest) -> None:
    """Finds mistakes without waiting for torch.

    Raises:
        InputError: a number out of range, or an unknown storage.
    """
    if not 0 < request.vram < float("inf"):
        raise InputError(f"expected the GB of a card as vram, above 0, got {request.vram:g}")
    if request.storage is not None and request.storage not in STORAGES:
        raise InputError(f"expected storage to be one of {', '.join(STORAGES)}, got {request.storage!r}")
    if request.dtype is not None and request.dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"expected dtype to be one of float32, bfloat16, float16, got {request.dtype!r}")
    if request.compiles and request.storage == "fp8":
        raise InputError("fp8 storage casts weights within a block, which cannot be compiled; use fp8wo or int8wo")
    for name in ("height", "width", "num_frames", "num_reference_frames"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise InputError(f"expected {name} of at least 1, got {value}")
    for name in ("num_references", "num_negative_references"):
        if getattr(request, name) < 0:
            raise InputError(f"expected {name} of 0 or more, got {getattr(request, name)}")


def describe_strategy(strategy: "Strategy") -> str:
    """In few words."""
    words = [strategy.dtype]
    if strategy.storage != "full":
        words.append(f"weights stored as {strategy.storage}")
    words.append(f"offload {strategy.offload}")
    if strategy.frees_texts:
        words.append("texts encoded first and their encoder freed")
    if strategy.tiles:
        words.append("autoencoder in tiles")
    return ", ".join(words)


def explain_plan(plan: MemoryPlan) -> list[str]:
    """Why this way, a sentence a line."""
    lines = [
        f"{describe_strategy(candidate.strategy)} would take {_in_gb(candidate.estimate.peak)} GB "
        f"while {_PHASES[candidate.estimate.peak_phase]}"
        for candidate in plan.rejected
    ]
    estimate = plan.chosen.estimate
    lines.append(
        f"{describe_strategy(plan.strategy)} takes at most {_in_gb(estimate.peak)} GB, "
        f"while {_PHASES[estimate.peak_phase]}"
    )
    if plan.faster is not None:
        lines.append(
            f"faster but approximate: {describe_strategy(plan.faster.strategy)}, "
            f"{_in_gb(plan.faster.estimate.peak)} GB (--storage {plan.faster.strategy.storage})"
        )
    return lines


def plan_document(plan: MemoryPlan) -> dict[str, Any]:
    """A plan as plain values; bytes as GB of 1e9."""
    strategy, estimate, generation = plan.strategy, plan.chosen.estimate, plan.generation
    steps, texts, decode = estimate.phases["steps"], estimate.phases["texts"], estimate.phases["decode"]
    return {
        "model": Path(plan.model.name).name,
        "vram_gb": plan.vram,
        "height": generation.height,
        "width": generation.width,
        "num_frames": generation.num_frames,
        "num_references": generation.num_references,
        "num_negative_references": generation.num_negative_references,
        "dtype": strategy.dtype,
        "storage": strategy.storage,
        "offload": strategy.offload,
        "texts": "freed" if strategy.frees_texts else "kept",
        "vae_tiling": strategy.tiles,
        "label": plan.label,
        "shortcuts": plan.shortcuts,
        "peak_gb": _in_gb(estimate.peak),
        "peak_phase": estimate.peak_phase,
        "parts_gb": {
            "weights": _in_gb(steps.weights),
            "activations": _in_gb(steps.activations),
            "reference_record": _in_gb(steps.record),
            "text_encoder_phase": _in_gb(texts.total),
            "encode_phase": _in_gb(estimate.phases["encode"].total),
            "vae_decode_phase": _in_gb(decode.total),
        },
        "host_gb": _in_gb(estimate.host_bytes),
        "why": explain_plan(plan),
    }


def _list_candidates(
    model: "ModelMemory", generation: "Generation", request: PlanRequest, storage: str
) -> Iterator[Candidate]:
    """Exact ones first, and among those that are equally exact the fastest first."""
    from sememe.pipelines.planning import Strategy, estimate_memory

    dtypes = [request.dtype or model.dtype]
    if request.dtype is None and model.dtype == "float32":
        dtypes.append("bfloat16")
    can_tile = model.vae.can_tile and model.vae.tiles_at(generation.height, generation.width)
    for precision in dtypes:
        for tiles in (False, True) if can_tile else (False,):
            for offload, frees_texts in _PLACEMENTS:
                strategy = Strategy(precision, storage, offload, frees_texts, tiles)
                if _can_be(strategy, compiles=request.compiles):
                    yield Candidate(strategy, estimate_memory(model, generation, strategy))


def _can_be(strategy: "Strategy", *, compiles: bool) -> bool:
    """Not all storages can be offloaded in all ways, nor all that comes and goes be compiled."""
    if compiles and (strategy.offload in _BY_LAYER or strategy.storage == "fp8"):
        return False
    if strategy.storage in ("int8", "nf4"):
        return strategy.offload in ("none", "model")
    return strategy.storage == "full" or strategy.offload != "sequential"


def _find_faster(
    model: "ModelMemory", generation: "Generation", request: PlanRequest, chosen: Candidate
) -> Candidate | None:
    """A way with weights in 8 bits that is offloaded less and fits."""
    order = [offload for offload, _ in _PLACEMENTS]
    rank = order.index(chosen.strategy.offload)
    for candidate in _list_candidates(model, generation, request, "fp8"):
        is_less = order.index(candidate.strategy.offload) < rank
        if is_less and candidate.estimate.peak <= request.vram * _GIGABYTE:
            return candidate
    return None


def _list_shortcuts(model: "ModelMemory", strategy: "Strategy") -> list[str]:
    found = []
    if strategy.storage != "full":
        found.append(f"weights stored as {strategy.storage}")
    if strategy.tiles:
        found.append("autoencoder in tiles")
    return found + list_dtype_shortcuts(model.dtype, strategy.dtype)


def list_dtype_shortcuts(own: str, used: str) -> list[str]:
    """What departs from the precision in which a model is to be computed: nothing does in that or in float32."""
    return [] if used in (own, "float32") else [f"{used} in place of {own}"]


def _in_gb(num_bytes: float) -> float:
    return round(num_bytes / _GIGABYTE, 3 if num_bytes < _GIGABYTE else 1)


def _ceil_tenth(num_bytes: float) -> float:
    """GB, rounded up, so that what is said to do does."""
    import math

    return math.ceil(num_bytes / _GIGABYTE * 10) / 10
