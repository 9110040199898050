"""The base class of all pipelines: loading, placement on a card, and interruption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from diffusers import DiffusionPipeline
from torch import nn

from sememe.backbones.autoencoder import Generators
from sememe.checkpoints.components import FULL_PRECISION, Dtypes, check_components
from sememe.checkpoints.zoo import find_folder
from sememe.compute.devices import check_vram, choose_device, find_device, read_free_vram
from sememe.compute.host import read_free_memory
from sememe.compute.placement import apply_offload, apply_storage, enable_tiling, store_weights
from sememe.compute.plan import Planner
from sememe.compute.rehearsal import Workload, copy_to_meta
from sememe.compute.speed import compile_transformer, is_compiled
from sememe.compute.strategy import GIGABYTE, Constraints, MemoryPlan, check_constraints
from sememe.diffusion.denoise import Predict, denoise
from sememe.diffusion.guidance import Guidance, GuidanceSchedule, VariantT
from sememe.errors import InputError
from sememe.system import System
from sememe.video import Clip

P = TypeVar("P", bound="SystemPipeline")
OutputType = Literal["np", "pt", "pil", "latent"]
CallbackOnStepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]
"""Called with the pipeline, the number of the step, its timestep and tensors by name, as diffusers does."""


@dataclass(frozen=True)
class GenerationOutput:
    """The result of a generation.

    Attributes:
        clips: One per result, uint8 RGB; empty for the output type "latent".
        frames: The clips in the form of the output type. "np": float (batch, frame, height, width, 3) in [0, 1]; "pt":
            float (batch, frame, 3, height, width) in [0, 1]; "pil": a list of PIL images per clip; "latent":
            normalised latents (batch, channel, frame, height, width).
        settings: Resolved settings; pass them to repeat the generation.
        guidance: The guidance table, as plain values.
        timings: Seconds that the parts of the generation took, by name.
    """

    clips: list[Clip]
    frames: Any
    settings: Any
    guidance: list[dict[str, Any]]
    timings: dict[str, float]


class SystemPipeline(DiffusionPipeline):
    """The pipeline of a system; subclasses define its components and how they are read."""

    system: ClassVar[System]
    known_parts: ClassVar[tuple[str, ...]]
    """Names accepted on loading: components, and other arguments of the constructor."""
    loading_options: ClassVar[tuple[str, ...]] = ()
    """Names of further options of `load_components`."""
    load_components: ClassVar[Callable[..., dict[str, Any]]]
    """Reads the arguments of the constructor from a folder; takes the folder, the precision as `from_pretrained` has
    it, the parts that are not to be loaded, the name of the class, and by name the device of the networks (None for
    the CPU), the options, and a function that is called with the denoising network as soon as it is read, which is
    before everything else."""
    exact_components: ClassVar[tuple[str, ...]] = ()
    """Components that are always float32, in files and in memory."""
    known_device: torch.device | None = None
    """Device of the running call; None outside of a call."""
    current_timestep: float | None = None
    """Timestep of the current step, 0..1000, which some feature caches read."""
    _interrupt = False
    _storage = "full"
    _offload: Any = None
    _hook_removers: Sequence[Callable[[], None]] = ()

    @property
    def _execution_device(self) -> torch.device:
        return self.known_device or super()._execution_device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision in which the denoising network computes."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    @property
    def interrupt(self) -> bool:
        """Set it to True in a callback or from another thread to end the generation before its next step."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    @classmethod
    def from_pretrained(  # noqa: PYI019 (beartype checks methods one by one and refuses Self)
        cls: type[P],
        name: str | Path,
        torch_dtype: Dtypes | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device_map: torch.device | str | None = None,
        storage: str = "full",
        **parts: Any,
    ) -> P:
        """Load a model.

        Args:
            name: Built-in model, local folder in the layout of `save_pretrained` or another that the system reads, or
                a repository on the Hugging Face hub.
            torch_dtype: Dtype of the networks, or as in diffusers a dict by component with "default" for the others;
                None for the model's own, which for released models is that of their files. Autoencoders and image
                encoders have float32 unless they are named.
            revision: Revision of a repository on the hub.
            cache_dir: Folder of the hub's cache; None for that of huggingface_hub (`HF_HOME`).
            token: Token for the hub, or whether to use the stored one; None uses it if needed.
            local_files_only: Use only the hub's cache, without network access.
            device_map: Device, such as "cuda", to which each network is moved before the next is read, so that host
                memory holds one at a time; None leaves all on the CPU.
            storage: Quantised storage of the denoising network's blocks, such as "nf4", applied before anything else is
                read; all but "full" are approximate.
            parts: Loaded components to use instead of the model's, by name, and the options of the class.

        Raises:
            ModelError: There is no such model, or files of it are missing.
            InputError: An argument is not a component, or the device does not exist; nothing has been read then.
        """
        check_components((*cls.known_parts, *cls.loading_options), parts, torch_dtype)
        check_constraints(1.0, storage)
        device = None if device_map is None else find_device(device_map)
        hub = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        folder = find_folder(name, revision, cls.system.name, **hub)
        options = {each: parts.pop(each) for each in cls.loading_options if each in parts}
        options |= {"device": device, "store": partial(store_weights, storage=storage)}
        made = cls(**(cls.load_components(folder, torch_dtype, parts, cls.__name__, **options) | parts))
        made._storage = storage
        return made

    @classmethod
    def sketch(cls: type[P], folder: Path) -> P:  # noqa: PYI019 (as above)
        """Read a model folder without its weights: all networks are on the meta device.

        Raises:
            ModelError: The folder is not a complete model.
        """
        return cls(**cls.load_components(folder, None, {}, cls.__name__, device=torch.device("meta")))

    @classmethod
    def from_pipe(  # noqa: PYI019 (as above)
        cls: type[P], pipeline: DiffusionPipeline, torch_dtype: torch.dtype | None = None, **parts: Any
    ) -> P:
        """Make a pipeline from the components of another; both share them.

        Args:
            pipeline: A pipeline of any class with compatible components of the same names.
            torch_dtype: Precision to which all of them are cast, in both pipelines; None leaves them as they are.
            parts: Components to use instead, by name, and other arguments of the constructor.

        Raises:
            InputError: A component is missing, or an argument is unknown.
            ModelError: A component is of a class that the pipeline cannot use, or components do not fit together.
        """
        needed, settings = cls._get_signature_keys(cls)
        check_components((*needed, *settings), parts, torch_dtype)
        given = {name: part for name, part in pipeline.components.items() if name in needed}
        given |= {name: pipeline.config[name] for name in settings if name in pipeline.config}
        given |= parts
        missing = sorted(set(needed) - set(cls._optional_components) - {k for k, v in given.items() if v is not None})
        if missing:
            raise InputError(
                f"expected a pipeline with {', '.join(needed)}, but a {type(pipeline).__name__} has no "
                f"{', '.join(missing)}; give what is missing by name"
            )
        made = cls(**given)
        return made if torch_dtype is None else made.to(torch_dtype)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Networks by name, in the order in which offload moves them."""
        names = (*self.model_cpu_offload_seq.split("->"), *self.components)
        found = {name: getattr(self, name) for name in dict.fromkeys(names)}
        return {name: part for name, part in found.items() if isinstance(part, nn.Module)}

    def list_phases(self, name: str = "the model", **generation: Any) -> Workload:
        """List the phases of a generation, for memory plans.

        The networks may be on any device; on the meta device nothing is computed.

        Args:
            name: Name of the model, for messages.
            generation: Settings and numbers of inputs (`num_references`, ...), by name; None for the model's own.

        Raises:
            InputError: The model cannot make such a video.
        """
        assert self.system.workload is not None, f"{self.system.title} has no memory plans"
        given = {key.rpartition(".")[2]: value for key, value in generation.items()}
        found: Workload = resolve_name(self.system.workload)(self, name, **given)
        return found

    def make_planner(
        self, name: str, vae_dtype: str | None = None, *, stores_last: bool = False, **generation: Any
    ) -> Planner:
        """Make a planner for a generation; the pipeline may be on any device, and is not changed.

        Args:
            name: Name of the model, for messages.
            vae_dtype: Precision of the autoencoder, such as "bfloat16"; None for its own.
            stores_last: See `Planner`.
            generation: Further arguments of `list_phases`.

        Raises:
            InputError: The model cannot make such a video.
        """

        def build(dtype: str) -> Workload:
            copied = _copy_to_meta(self, getattr(torch, dtype))
            if vae_dtype is not None:
                _cast(copied.vae, getattr(torch, vae_dtype))
            return copied.list_phases(name, **generation)

        return Planner(build, stores_last=stores_last)

    def place(
        self,
        vram: float | None = None,
        device: torch.device | str | None = None,
        *,
        storage: str = "full",
        **generation: Any,
    ) -> MemoryPlan:
        """Place the pipeline on a card in the fastest way that fits, with offload if needed.

        Args:
            vram: GB (1e9 bytes) of the card; None for the free memory of a CUDA device.
            device: Where to compute; None for a GPU if there is one.
            storage: Quantised storage of the denoising network's blocks, such as "fp8"; all but "full" are approximate.
            generation: What will be generated (`num_frames`, ...): arguments of `list_phases`.

        Returns:
            The plan; `explain` gives its reasons.

        Raises:
            InputError: Nothing fits the card or the machine; the message names the least memory that would.
        """
        target = choose_device(device)
        apply_offload(self, "none", "cpu")
        if vram is None and target.type != "cuda":
            raise InputError(f"expected vram, because {target} does not say how much memory it has; give the GB")
        vram = read_free_vram(target) if vram is None else vram
        check_vram(target, vram)
        dtype = str(self.transformer.dtype).removeprefix("torch.")
        constraints = Constraints(
            vram=vram,
            dtypes=(dtype,),
            own_dtype=dtype,
            storage=storage,
            compiles=is_compiled(self.transformer),
            vae_dtype=str(self.vae.dtype).removeprefix("torch."),
            host=read_free_memory() / GIGABYTE,
        )
        plan = self.make_planner("this model", **generation).choose(constraints)
        self.apply_plan(plan, target)
        return plan

    def apply_plan(self, plan: MemoryPlan, device: torch.device | str) -> None:
        """Apply a plan; the weights have to be on the CPU, in the planned precision."""
        strategy = plan.strategy
        if strategy.tiles:
            enable_tiling(self.vae)
        if self._storage != strategy.storage:
            apply_storage(self, strategy.storage)
        kind, _, level = strategy.offload.partition("-")
        apply_offload(self, kind, device, group_level=level or "block", host_memory=plan.host_memory or "lean")

    def check_call(self, output_type: str, generator: Generators, count: int, of: str) -> None:
        """Raise `InputError` for an unknown type of output, or another number of generators than of results."""
        if output_type not in get_args(OutputType):
            raise InputError(f"expected output_type of {', '.join(get_args(OutputType))}, got {output_type!r}")
        if isinstance(generator, list) and len(generator) != count:
            raise InputError(f"expected one generator per {of}, got {len(generator)} for {count}")

    def place_noise(self, given: Any, shape: tuple[int, ...]) -> torch.Tensor:
        """Return initial noise that was given, on the pipeline's device in float32.

        Raises:
            InputError: It is no tensor of the shape.
        """
        if not isinstance(given, torch.Tensor) or tuple(given.shape) != shape:
            got = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
            raise InputError(f"expected latents of shape {shape}, got {got}")
        return given.to(self._execution_device, torch.float32)

    def run_steps(
        self,
        predict: Predict[VariantT],
        noise: torch.Tensor,
        guidance: Guidance[VariantT] | GuidanceSchedule[VariantT],
        num_steps: int,
        *,
        callback: CallbackOnStepEnd | None,
        name: str = "latents",
        hold: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Run the denoising loop with a progress bar, until it is done or interrupted.

        Args:
            predict: Argument of `denoise`, as are the next three and the options.
            noise: Where the steps begin.
            guidance: Table of the variants.
            num_steps: Steps.
            callback: Called after each step; what it returns by the name replaces the latents.
            name: What the latents are called for it.
            hold: Called before it with latents and number of the step, to put in what is known already.
            options: Further arguments.
        """
        with self.progress_bar(total=num_steps) as bar:

            def advance(step: int, timestep: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
                bar.total = len(self.scheduler.timesteps)  # Heun's schedulers take more than they are asked for
                bar.update()
                held = current if hold is None else hold(current, step)
                found = None if callback is None else callback(self, step, timestep, {name: held})
                return (found or {}).get(name, held)

            return denoise(
                predict,
                self.scheduler,
                noise,
                guidance,
                num_steps,
                on_step_end=advance,
                is_interrupted=lambda: self._interrupt,
                **options,
            )

    def compile(self, **options: Any) -> None:
        """Compile the blocks of the denoising network; see `compile_transformer`."""
        compile_transformer(self, **options)


def _copy_to_meta(pipeline: P, dtype: torch.dtype) -> P:
    """Copy a pipeline to the meta device, in a precision."""
    parts = dict(pipeline.components)
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            parts[name] = copied = copy_to_meta(part)
            if name not in (*FULL_PRECISION, *pipeline.exact_components):
                _cast(copied, dtype)
            for processor in getattr(copied, "attn_processors", {}).values():
                # Not all backends compute on meta tensors; their memory is the same.
                if getattr(processor, "_attention_backend", None) is not None:
                    processor._attention_backend = None
    _, settings = pipeline._get_signature_keys(type(pipeline))
    return type(pipeline)(**parts, **{name: pipeline.config[name] for name in settings if name in pipeline.config})


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast as loading does, which leaves in float32 what diffusers keeps there."""
    model: Any = module
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype != torch.float16 and hasattr(model, "get_input_embeddings"):
        kept = set()  # transformers keeps its own only where float16 would overflow
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
