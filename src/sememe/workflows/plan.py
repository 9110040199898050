"""Memory plans: the fastest way to compute that fits a card, said before anything is loaded, and applied on request."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sememe.errors import InputError
from sememe.workflows.candidates import Candidate, Wish, find_faster, find_first, list_candidates
from sememe.workflows.model_memory import Guided, read_model_memory

if TYPE_CHECKING:
    from sememe.pipelines.planning import Generation, ModelMemory, Strategy
    from sememe.video_as_prompt.encoders import EncodedPrompt

STORAGES = ("full", "fp8", "int8wo", "int8dq", "fp8wo", "int8", "nf4")
_GIGABYTE = 1e9
_PHASES = {"texts": "texts are encoded", "encode": "pictures and references are encoded"}
_PHASES |= {"expert": "the expert reads the references", "steps": "it takes its steps"}
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
        reference_downscale: by how much references are smaller than the result.
        text_keys: `kept` or `recomputed`, where it is given.
        host: GB of memory that are free in the machine that computes; None where it is another, or does not say.
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
    reference_downscale: int = 1
    text_keys: str | None = None
    host: float | None = None


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
        host: GB of memory that are free in the machine that computes, where that is known.
    """

    model: "ModelMemory"
    generation: "Generation"
    vram: float
    chosen: Candidate
    rejected: tuple[Candidate, ...]
    faster: Candidate | None = None
    host: float | None = None

    @property
    def host_memory(self) -> str | None:
        """How offload by groups holds the weights, as `apply_offload` has it; None for other ways."""
        if not self.strategy.offload.startswith("group"):
            return None
        has_room = self.host is not None and self.host * _GIGABYTE >= self.pinned_bytes
        return "pinned" if has_room else "lean"

    @property
    def pinned_bytes(self) -> int:
        """What pinned weights take in the machine's memory while they are copied there."""
        return 2 * self.chosen.estimate.host_bytes

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


def plan_memory(
    name: str | Path, request: PlanRequest, expert: str | Path | None = None, called: str | None = None
) -> MemoryPlan:
    """Chooses the fastest way that fits; an exact one wherever there is one.

    A card of 24 GB has 24 GiB: the 7 % between that and 24e9 bytes are left to the driver and the allocator.

    Args:
        name: `wan-14b`, `cogvideox-5b`, a built-in name, or a local folder.
        request: what is generated, on which card.
        expert: the folder of an expert that goes with it, or of a model that has one.
        called: what it is called in the plan, where that is not `name`.

    Raises:
        ModelError: there is no such model or expert, it is not whole, or they do not go together.
        InputError: the size is none that the model can make, or nothing fits; says what the least would be.
    """
    check_plan_request(request)
    from sememe.pipelines.planning import Generation

    guided = replace(request.guided or Guided(), leads_away=request.num_negative_references > 0)
    model = read_model_memory(name, expert, guided)
    model = model if called is None else replace(model, name=called)
    generation = Generation(
        height=request.height or model.height,
        width=request.width or model.width,
        num_frames=request.num_frames or model.num_frames,
        num_references=request.num_references,
        num_reference_frames=request.num_reference_frames,
        num_negative_references=request.num_negative_references,
        keeps_keys=request.keeps_keys,
        reference_downscale=request.reference_downscale,
    )
    return choose_plan(model, generation, request)


def choose_plan(model: "ModelMemory", generation: "Generation", request: PlanRequest) -> MemoryPlan:
    """The choice itself, without reading anything.

    Raises:
        InputError: nothing fits the card, or what leaves it does not fit the machine.
    """
    budget, wish = request.vram * _GIGABYTE, _make_wish(request)
    rejected: list[Candidate] = []
    for candidate in list_candidates(model, generation, wish):
        if candidate.estimate.peak <= budget:
            faster = None if request.storage else find_faster(model, generation, wish, budget, candidate)
            plan = MemoryPlan(model, generation, request.vram, candidate, tuple(rejected), faster, request.host)
            _check_host(plan)
            return plan
        rejected.append(candidate)
    least = min(rejected, key=lambda candidate: candidate.estimate.peak)
    size = f"{generation.width}x{generation.height}, {generation.num_frames} frames"
    ways_out = list(_list_ways_out(model, generation, request)) or ["use a larger card"]
    raise InputError(
        f"{model.name} at {size} does not fit in {request.vram:g} GB; the least that would do is "
        f"{_round_up(least.estimate.peak):g} GB ({describe_strategy(least.strategy)}); {', or '.join(ways_out)}"
    )


def apply_plan(pipeline: Any, plan: MemoryPlan, device: Any, texts: "Texts") -> "EncodedPrompt | None":
    """Makes a pipeline, its weights on the CPU, compute as planned.

    Returns:
        The encoded texts, where the plan drops their encoder; they are then to be passed as `prompt`.
    """
    from sememe.compute.placement import apply_offload, apply_storage
    from sememe.compute.tiling import enable_tiling

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
    apply_offload(
        pipeline,
        kind,
        device,
        group_level=level or "block",
        host_memory=plan.host_memory or "lean",
        resting=strategy.resting,
    )
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
    if request.text_keys is not None and request.text_keys not in ("kept", "recomputed"):
        raise InputError(f"expected text_keys to be kept or recomputed, got {request.text_keys!r}")
    if request.compiles and request.storage == "fp8":
        raise InputError("fp8 storage casts weights within a block, which cannot be compiled; use fp8wo or int8wo")
    for name in ("height", "width", "num_frames", "num_reference_frames", "reference_downscale"):
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
    if "encoders" in strategy.resting:
        words.append("image encoder away during the steps")
    if "expert" in strategy.resting:
        words.append("expert away during the steps")
    if not strategy.keeps_texts:
        words.append("keys of texts recomputed")
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
    lines += _explain_host(plan)
    if plan.faster is not None:
        lines.append(
            f"faster but approximate: {describe_strategy(plan.faster.strategy)}, "
            f"{_in_gb(plan.faster.estimate.peak)} GB (--storage {plan.faster.strategy.storage})"
        )
    return lines


def _explain_host(plan: MemoryPlan) -> Iterator[str]:
    """What the machine itself needs, and has where that is known."""
    waiting = plan.chosen.estimate.host_bytes
    if not waiting:
        return
    yield f"weights take {_in_gb(waiting)} GB of the machine's own memory, where they wait"
    if plan.host_memory is None:
        return
    pinned = f"{_in_gb(plan.pinned_bytes)} GB"
    if plan.host is None:
        yield f"with {pinned} free there, weights would be pinned ahead, which is faster; a generation asks its machine"
    elif plan.host_memory == "pinned":
        yield f"weights are pinned ahead, which takes {pinned} of the {_in_gb(plan.host * _GIGABYTE)} GB free there"
    else:
        free = _in_gb(plan.host * _GIGABYTE)
        yield f"weights are pinned on their way, which is slower: ahead would take {pinned}, {free} GB are free there"


def plan_document(plan: MemoryPlan) -> dict[str, Any]:
    """A plan as plain values; bytes as GB of 1e9."""
    from sememe.pipelines.planning import are_texts_kept

    strategy, estimate, generation = plan.strategy, plan.chosen.estimate, plan.generation
    steps, texts, decode = estimate.phases["steps"], estimate.phases["texts"], estimate.phases["decode"]
    parts = {
        "weights": steps.weights,
        "activations": steps.activations,
        "reference_record": steps.record,
        "text_encoder_phase": texts.total,
        "encode_phase": estimate.phases["encode"].total,
        "vae_decode_phase": decode.total,
    }
    if "expert" in estimate.phases:
        parts["expert_phase"] = estimate.phases["expert"].total
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
        "text_keys": "kept" if are_texts_kept(plan.model, strategy) else "recomputed",
        "resting": list(strategy.resting),
        "vae_tiling": strategy.tiles,
        "host_memory": plan.host_memory,
        "label": plan.label,
        "shortcuts": plan.shortcuts,
        "peak_gb": _in_gb(estimate.peak),
        "peak_phase": estimate.peak_phase,
        "parts_gb": {name: _in_gb(size) for name, size in parts.items()},
        "host_gb": _in_gb(estimate.host_bytes),
        "why": explain_plan(plan),
    }


def _make_wish(request: PlanRequest) -> Wish:
    return Wish(request.dtype, request.storage or "full", request.compiles, request.text_keys)


def _check_host(plan: MemoryPlan) -> None:
    """Raises `InputError` where the machine itself cannot hold what is not on the card."""
    needed = plan.chosen.estimate.host_bytes
    if plan.host is not None and needed > plan.host * _GIGABYTE:
        raise InputError(
            f"{plan.model.name} on a card of {plan.vram:g} GB is to be computed with offload {plan.strategy.offload}, "
            f"and its weights then wait in the machine's own memory: expected {_round_up(needed):g} GB free there, got "
            f"{_in_gb(plan.host * _GIGABYTE):g} GB; close other programs, or use a larger card or a machine with more "
            "memory"
        )


def _list_ways_out(model: "ModelMemory", generation: "Generation", request: PlanRequest) -> Iterator[str]:
    """What would help where nothing fits; each is tried."""
    budget, wish = request.vram * _GIGABYTE, _make_wish(request)
    # Weights in fewer bits, and blocks that are compiled, cannot be offloaded in all ways.
    changes: dict[str, dict[str, Any]] = {}
    if wish.storage != "full":
        changes["storage"] = {"storage": "full"}
    if wish.compiles:
        changes["compiling"] = {"compiles": False}
    helping = [name for name, change in changes.items() if _helps(model, generation, replace(wish, **change), budget)]
    if not helping and _helps(model, generation, replace(wish, storage="full", compiles=False), budget):
        helping = [" and ".join(changes)]
    yield from (f"leave {name} out" for name in helping)
    smallest = replace(generation, num_frames=1, num_reference_frames=None)
    if model.only_size is None:
        least = model.vae.grid.size_multiple * generation.reference_downscale
        smallest = replace(smallest, height=least, width=least)
    if _helps(model, smallest, wish, budget):
        yield "ask for fewer frames" if model.only_size else "ask for a smaller size or fewer frames"


def _helps(model: "ModelMemory", generation: "Generation", wish: Wish, budget: float) -> bool:
    return find_first(model, generation, wish, budget) is not None


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


def _round_up(num_bytes: float) -> float:
    """GB with a decimal, and with two figures where there are fewer; rounded up, so that what is said to do does."""
    from decimal import ROUND_CEILING, Decimal

    size = Decimal(num_bytes) / Decimal(_GIGABYTE)
    step = Decimal(1).scaleb(min(-1, size.adjusted() - 1))
    return float(size.quantize(step, ROUND_CEILING))
