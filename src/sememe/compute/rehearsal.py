"""Memory of a computation, measured by running the real networks on the meta device, where nothing is computed.

A system describes a computation as a `Workload`: its networks on the meta device, and phases that call them. Each phase
runs once under a tracker, which counts every tensor that an operation makes from its allocation to its release. The
number is the same to the byte in every run and on any device. The resident size of a process is not: allocators keep
what they got, and libraries load late."""

import copy
import functools
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, no_type_check

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from diffusers.models.attention_dispatch import attention_backend
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sememe.backbones.autoencoder import Autoencoder
from sememe.compute.placement import check_tiling, enable_tiling
from sememe.compute.strategy import OFFLOADS, Offload
from sememe.diffusion.denoise import Predict
from sememe.diffusion.guidance import GuidanceRow, VariantT
from sememe.diffusion.objectives import Samples

# Functions that run for each operation have no_type_check: checking shapes and types took longer than their work.


class TrackedMemory:
    """Bytes of the tensors made since tracking began.

    Attributes:
        live_bytes: Bytes of tensors that are still alive.
        peak_bytes: Most bytes that were alive at once.
    """

    def __init__(self) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0

    def reset_peak(self) -> None:
        """Restart the peak from what is alive now."""
        self.peak_bytes = self.live_bytes

    def _add(self, num_bytes: int) -> None:
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _remove(self, num_bytes: int) -> None:
        self.live_bytes -= num_bytes


@contextmanager
def track_memory(device: str | None = None) -> Iterator[TrackedMemory]:
    """Count the bytes of the tensors that operations make within the block.

    What existed before (weights, inputs) counts nothing, and nothing is subtracted where it is freed. Scratch space
    inside one kernel is not seen: the workspace of a convolution, or the tiles of a fused attention.

    Args:
        device: Type of the only device whose tensors count; None for all devices.

    Yields:
        The record, which is updated until the block ends.
    """
    memory = TrackedMemory()
    with _Tracker(memory, device):
        yield memory


def measure_peak(work: Callable[[], Any]) -> int:
    """Return the most bytes that the tensors of a computation, its result included, took at once; without gradients."""
    with torch.no_grad(), track_memory() as memory:
        result = work()
    del result
    return memory.peak_bytes


class _Tracker(TorchDispatchMode):
    """Sees every operation below autograd, where composed operations are already split into those that allocate."""

    def __init__(self, memory: TrackedMemory, device: str | None) -> None:
        super().__init__()
        self.memory = memory
        self.device = device
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            # Made before tracking began: a result that shares its storage is no new memory.
            self.known.setdefault(tensor.untyped_storage(), 0)
        result = _META_ANSWERS.compute(func, args, kwargs)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self.known and self.device in (None, tensor.device.type):
                num_bytes = storage.nbytes()
                self.known[storage] = num_bytes
                self.memory._add(num_bytes)
                weakref.finalize(storage, self.memory._remove, num_bytes)
        return result


_MOST_LAYOUTS = 100_000


class _MetaAnswers:
    """Operations on the meta device, each computed once for arguments of the same layout.

    Blocks of a transformer repeat the same operations, and a meta result is nothing but a layout; torch takes half a
    millisecond to find it.
    """

    def __init__(self) -> None:
        self._layouts: dict[Any, tuple[_Layout, ...] | _Layout | None] = {}

    @no_type_check
    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operation returns."""
        key = None
        if _makes_new_tensors(func):
            try:
                key = (func, _describe(args), _describe(kwargs))
                known = self._layouts.get(key)
            except TypeError:  # an argument that cannot be hashed, or a tensor that holds values
                key, known = None, None
            if known is not None:
                return tuple(each.make() for each in known) if isinstance(known, tuple) else known.make()
        result = func(*args, **kwargs)
        if key is not None:
            # Some operations, such as _unsafe_view, return views without saying so.
            given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
            is_new = given.isdisjoint(tensor.untyped_storage()._cdata for tensor in _tensors(result))
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = _find_layout(result) if is_new else None
        return result


_META_ANSWERS = _MetaAnswers()
"""Of the whole process: what an operation returns never changes."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of a meta tensor that has a storage of its own."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @no_type_check
    def make(self) -> torch.Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def _find_layout(result: Any) -> tuple[_Layout, ...] | _Layout | None:
    """Return the layouts of a result; None where it is not made of meta tensors with storages of their own."""
    if isinstance(result, tuple):
        found = [_find_layout(each) for each in result]
        whole = tuple(each for each in found if isinstance(each, _Layout))
        return whole if len(whole) == len(found) else None
    if not isinstance(result, torch.Tensor) or not result.is_meta or type(result) is not torch.Tensor:
        return None
    layout = _Layout(result.size(), result.stride(), result.dtype)
    return layout if layout.make().untyped_storage().nbytes() == result.untyped_storage().nbytes() else None


@functools.cache
def _makes_new_tensors(func: Any) -> bool:
    """Return whether an operation neither changes an argument nor returns a view of one."""
    schema = func._schema
    return not schema.is_mutable and all(each.alias_info is None for each in schema.returns)


@no_type_check
def _describe(value: Any) -> Any:
    """Return something hashable that is equal for arguments with the same layouts and values.

    Raises `TypeError` for a tensor that is not on the meta device, so that results may depend on its values.
    """
    if isinstance(value, torch.Tensor):
        if not value.is_meta or type(value) not in (torch.Tensor, nn.Parameter):
            raise TypeError
        return value.size(), value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(_describe(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, _describe(each)) for name, each in value.items())
    return type(value), value  # True is not 1


@no_type_check
def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for each in tree:
            yield from _tensors(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from _tensors(each)


@dataclass(frozen=True)
class Phase:
    """One part of a computation.

    Phases of one name are alternatives, of which `tiles` and `keeps_text_keys` choose; phases run in the order in which
    they are listed.

    Attributes:
        name: Name of the phase.
        run: Calls the networks, and keeps what later phases read.
        tiles: Whether the autoencoder works in tiles; None where that makes no difference.
        keeps_text_keys: Whether keys and values of texts are kept over the steps; None where that makes no difference.
    """

    name: str
    run: Callable[[], object]
    tiles: bool | None = None
    keeps_text_keys: bool | None = None

    def is_chosen(self, *, tiles: bool, keeps_text_keys: bool) -> bool:
        """Return whether this is the alternative for such a way to compute."""
        return self.tiles in (None, tiles) and self.keeps_text_keys in (None, keeps_text_keys)


@dataclass(frozen=True)
class Workload:
    """What a system wants to compute.

    Attributes:
        title: The model and what it makes, for messages.
        components: Networks by name, in the order in which model offload moves them.
        phases: Phases of the computation.
        main: The component whose blocks may be stored in fewer bits.
        whole: Components that offload by blocks or layers leaves on the device.
        offloads: Kinds of offload that go with the networks.
        settings: What is computed, as plain values.
    """

    title: str
    components: Mapping[str, nn.Module]
    phases: Sequence[Phase]
    main: str = "transformer"
    whole: Collection[str] = ()
    offloads: Collection[Offload] = OFFLOADS
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """A stretch of a phase that begins with the call of a component.

    Attributes:
        component: Its name, empty before the first call.
        peak_bytes: The most that tensors made since the phase began took at once.
    """

    component: str
    peak_bytes: int


@dataclass(frozen=True)
class PhaseMemory:
    """What a phase takes besides weights.

    Attributes:
        segments: Stretches in order, each of another component than the one before.
        kept_bytes: Bytes of tensors that are alive when the phase has ended.
    """

    segments: tuple[Segment, ...]
    kept_bytes: int


def measure_phase(run: Callable[[], object], components: Mapping[str, nn.Module]) -> PhaseMemory:
    """Run a phase on the device of its components, and record its memory.

    Args:
        run: Runs the phase.
        components: Networks, all on one device, which may be the meta device.
    """
    device = next(parameter.device.type for module in components.values() for parameter in module.parameters())
    peaks: list[Segment] = []
    current = ""

    def close(memory: TrackedMemory) -> None:
        peak = memory.peak_bytes
        if peaks and peaks[-1].component == current:
            peak = max(peak, peaks.pop().peak_bytes)
        peaks.append(Segment(current, peak))

    with torch.no_grad(), track_memory(device) as memory, attention_backend("native"), _AnswerOnMeta():

        def begin(name: str) -> None:
            nonlocal current
            close(memory)
            memory.reset_peak()
            current = name

        with _watch_calls(components, begin):
            run()
        close(memory)
        return PhaseMemory(tuple(peaks), memory.live_bytes)


def copy_to_meta(module: nn.Module) -> nn.Module:
    """Copy a module to the meta device, without copying its weights on the way."""
    with torch.no_grad():
        twins: dict[int, Any] = {id(tensor): nn.Parameter(tensor.to("meta")) for tensor in module.parameters()}
        twins |= {id(tensor): tensor.to("meta") for tensor in module.buffers()}
    return copy.deepcopy(module, twins)


@contextmanager
def _watch_calls(components: Mapping[str, nn.Module], on_call: Callable[[str], None]) -> Iterator[None]:
    """Report calls of components: of `forward`, and of methods that move offloaded weights as `forward` does."""

    class Watch(ModelHook):
        def __init__(self, name: str) -> None:
            self.name = name

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            on_call(self.name)
            return args, kwargs

    for name, module in components.items():
        add_hook_to_module(module, Watch(name))
    try:
        yield
    finally:
        for module in components.values():
            remove_hook_from_module(module)


class _AnswerOnMeta(TorchFunctionMode):
    """Answers what the meta device cannot, or would answer with the memory of a slow fallback."""

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, _, value = args[:3] if args else (kwargs[name] for name in ("query", "key", "value"))
            if query.is_meta:
                return _attend_on_meta(query, value)
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            # Networks ask it to take shortcuts, such as that of no token being padding, which a plan must not rely on.
            return False
        return func(*args, **kwargs)


def _attend_on_meta(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Allocate what a fused kernel does; a meta tensor would take the path that makes the whole table of scores."""
    assert value.shape[-1] == query.shape[-1]
    # The result is laid out as the query is. Beside it there is a normaliser for each query, which is freed at once.
    result = torch.empty_like(query)
    query.new_empty(query.shape[:-1], dtype=torch.float32)
    return result


# In the middle of a generation; the memory that a step takes does not depend on it.
_TIMESTEP = 500.0


def rehearse_step(
    predict: Predict[VariantT], groups: Iterable[tuple[GuidanceRow[VariantT], ...]], latents: Samples
) -> Float[Tensor, "..."]:
    """Return latents after a step as `denoise` takes it, without a scheduler.

    Args:
        predict: Predicts for variants of the conditioning.
        groups: Rows of the guidance that share a forward, in the order in which they are predicted.
        latents: Noise (batch, ...), which stays in memory beside the result.
    """
    timestep, current = torch.tensor(_TIMESTEP), latents * 1.0
    predictions = [predict(current, timestep, tuple(row.variant for row in rows)) for rows in groups]
    return current - torch.cat(predictions)[0].sum(0)


def list_tiled_phases(name: str, vae: Autoencoder, run: Callable[[], object]) -> list[Phase]:
    """Return a phase that calls an autoencoder: with and without tiles where it can work in tiles."""
    if not isinstance(vae, (AutoencoderKLWan, AutoencoderKLCogVideoX)):
        return [Phase(name, run)]

    def run_in_tiles() -> None:
        autoencoder: Any = vae
        enable_tiling(vae)
        check_tiling(vae)
        run()
        autoencoder.disable_tiling()

    return [Phase(name, run, tiles=False), Phase(name, run_in_tiles, tiles=True)]
