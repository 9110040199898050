"""What Video-As-Prompt hands to the memory plan, and how a plan is applied to a pipeline."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sememe.backbones.autoencoder import decode_latents
from sememe.compute.devices import check_vram, choose_device, read_free_vram
from sememe.compute.host import read_free_memory
from sememe.compute.placement import apply_offload, apply_storage, check_tiling, enable_tiling
from sememe.compute.plan import Planner
from sememe.compute.rehearsal import Phase, Workload, copy_to_meta
from sememe.compute.speed import compile_transformer, is_compiled
from sememe.compute.strategy import GIGABYTE, Constraints, MemoryPlan
from sememe.errors import InputError
from sememe.video import Clip
from sememe.video_as_prompt.conditioning import ConditionEncoder, Predictor
from sememe.video_as_prompt.guidance import VideoAsPromptSchedule
from sememe.video_as_prompt.inputs import make_request
from sememe.video_as_prompt.settings import Settings

_TILED = ("AutoencoderKLWan", "AutoencoderKLCogVideoX")
# These are computed in float32 whatever the precision of the others.
_FULL_PRECISION = ("vae", "image_encoder")


def make_planner(pipeline: Any, name: str, vae_dtype: str | None = None, **generation: Any) -> Planner:
    """Make a planner for a generation; the pipeline is on any device.

    Args:
        pipeline: A `VideoAsPromptPipeline`.
        name: Name of the model, for messages.
        vae_dtype: Precision of the autoencoder; None for the one that it has.
        generation: Further arguments of `list_phases`.

    Raises:
        InputError: The model cannot make such a video.
    """

    def build(dtype: str) -> Workload:
        copied = _copy_in(pipeline, getattr(torch, dtype))
        if vae_dtype is not None:
            _cast(copied.vae, getattr(torch, vae_dtype))
        return list_phases(copied, name, **generation)

    return Planner(build)


def list_phases(
    pipeline: Any,
    name: str = "the model",
    *,
    num_references: int = 1,
    num_negative_references: int = 0,
    **settings: Any,
) -> Workload:
    """List the phases of a generation: texts and picture, references, steps, decoding.

    Args:
        pipeline: A `VideoAsPromptPipeline` whose networks are on one device; on the meta device nothing is computed.
        name: Name of the model, for messages.
        num_references: Videos that are read.
        num_negative_references: Videos to steer away from.
        settings: Fields of the settings, by name; None for the model's own. Without `text_keys` a plan may choose.

    Raises:
        InputError: The model cannot make such a video.
    """
    given = {key.rpartition(".")[2]: value for key, value in settings.items()}
    given.pop("negative_references", None)
    # Autocast is not measured: the meta device has none.
    chosen = pipeline.defaults.override(**given).override(autocast="off", reference_sampling="even")
    if num_references == 0:
        chosen = chosen.without_reference()
    rehearsal = _Rehearsal(pipeline, chosen, num_references, num_negative_references)
    keeps: tuple[bool | None, ...] = (None,)
    if rehearsal.family.keeps_texts:
        is_kept = chosen.execution.text_keys == "kept"
        keeps = (True, False) if is_kept and given.get("text_keys") is None else (is_kept,)
    tilings = (False, True) if type(pipeline.vae).__name__ in _TILED else (None,)
    phases = [
        *(Phase("inputs", rehearsal.tiled(rehearsal.encode_inputs, tiles), tiles) for tiles in tilings),
        *(Phase("references", rehearsal.tiled(rehearsal.encode_references, tiles), tiles) for tiles in tilings),
        *(Phase("denoise", rehearsal.denoise(keep), keeps_text_keys=keep) for keep in keeps),
        *(Phase("decode", rehearsal.tiled(rehearsal.decode, tiles), tiles) for tiles in tilings),
    ]
    modules = {part: getattr(pipeline, part) for part in pipeline.model_cpu_offload_seq.split("->")}
    size = chosen.size
    return Workload(
        title=f"{name} at {size.width}x{size.height}, {size.num_frames} frames",
        components={part: module for part, module in modules.items() if module is not None},
        phases=phases,
        settings={
            "model": name,
            "height": size.height,
            "width": size.width,
            "num_frames": size.num_frames,
            "num_references": num_references,
            "num_negative_references": num_negative_references,
        },
    )


class _Rehearsal:
    """The steps of a generation on black pictures, each with what the steps before it have left."""

    def __init__(self, pipeline: Any, settings: Settings, num_references: int, num_negative_references: int) -> None:
        self.pipeline, self.family = pipeline, pipeline.family
        size = settings.size
        self.family.check_shape(settings)
        self.shape = pipeline.grid.latent_shape(size.num_frames, size.height, size.width)
        negative = _make_clips(settings, num_negative_references)
        self.settings = settings.override(negative_references=negative) if negative else settings
        self.encoder = ConditionEncoder(self.family, self.settings)
        self.request = make_request(
            self.family,
            self.settings,
            np.zeros((size.height, size.width, 3), np.uint8) if self.family.takes_image else None,
            _make_clips(settings, num_references),
            "a prompt other than the negative one",
        )
        self.guidance = VideoAsPromptSchedule(settings=self.settings, texts_differ=True).needed

    def tiled(self, run: Callable[[], None], tiles: bool | None) -> Callable[[], None]:  # noqa: FBT001
        """Return a step with or without tiles; None leaves the autoencoder alone."""

        def work() -> None:
            vae = self.pipeline.vae
            if tiles:
                enable_tiling(vae)
                check_tiling(vae)
            run()
            if tiles:
                vae.disable_tiling()

        return work

    def encode_inputs(self) -> None:
        self.conditions = self.encoder.encode_targets(self.request, self.guidance, None)

    def encode_references(self) -> None:
        references = self.encoder.encode_references(self.request, self.guidance, None)
        self.conditions = replace(self.conditions, references=references)

    def denoise(self, keep: bool | None) -> Callable[[], None]:  # noqa: FBT001
        """Return one step, with keys and values of texts kept or not."""
        settings = self.settings.override(text_keys="kept" if keep else "recomputed")

        def work() -> None:
            predict = Predictor(self.family, self.conditions, settings)
            latents = torch.zeros(1, *self.shape, device=self.family.device)
            groups = self.guidance.groups(settings.execution.batching)
            # The largest last, when everything that is kept over the steps is there.
            groups.sort(key=lambda rows: (len(rows), rows[0].variant.reference != "none"))
            predictions = [predict(latents, torch.tensor(500.0), tuple(row.variant for row in rows)) for rows in groups]
            self.latents = latents - torch.cat(predictions)[0].sum(0)

        return work

    def decode(self) -> None:
        decode_latents(self.pipeline.vae, torch.zeros(1, *self.shape, device=self.family.device))


def _make_clips(settings: Settings, count: int) -> list[Clip]:
    """Make black clips, as long and as large as they are read."""
    readings = [settings.read_reference(place, count) for place in range(count)]
    return [Clip(np.zeros((max(2, each.num_frames), *each.size, 3), np.uint8), settings.size.fps) for each in readings]


class PlacementMixin:
    """Methods of a pipeline that is made to fit a card, and to compute faster."""

    def place(
        self: Any,
        vram: float | None = None,
        device: torch.device | str | None = None,
        *,
        storage: str = "full",
        **generation: Any,
    ) -> MemoryPlan:
        """Put the pipeline to work on a card, in the fastest way that fits.

        Args:
            vram: GB of the card; None for what is free on a CUDA device.
            device: where to compute; None for a GPU where there is one.
            storage: how the transformer's blocks are stored, such as "fp8"; approximate but for "full".
            generation: what will be generated (`num_frames`, `num_references`, ...): arguments of `list_phases`.

        Returns:
            The plan; its `explain` says why this way.

        Raises:
            InputError: Nothing fits the card or the machine; the message names the least that would do.
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
        plan = make_planner(self, "this model", **generation).choose(constraints)
        self.apply_plan(plan, target)
        return plan

    def apply_plan(self: Any, plan: MemoryPlan, device: torch.device | str) -> None:
        """Compute as planned, from now on; the weights are on the CPU, in the planned precision."""
        strategy = plan.strategy
        if strategy.tiles:
            enable_tiling(self.vae)
        if not strategy.keeps_text_keys:
            defaults = self.defaults.override(text_keys="recomputed")
            self.register_to_config(generation_defaults=defaults.to_config())
        apply_storage(self, strategy.storage)
        kind, _, level = strategy.offload.partition("-")
        apply_offload(self, kind, device, group_level=level or "block", host_memory=plan.host_memory or "lean")

    def compile(self, **options: Any) -> None:
        """Compile the transformer's blocks, as `compile_transformer` does."""
        compile_transformer(self, **options)


def _copy_in(pipeline: Any, dtype: torch.dtype) -> Any:
    """Copy a pipeline to the meta device, in a precision."""
    parts = dict(pipeline.components)
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            parts[name] = copy_to_meta(part)
            if name not in _FULL_PRECISION:
                _cast(parts[name], dtype)
    for processor in parts["transformer"].attn_processors.values():
        processor._attention_backend = None  # not all backends compute on meta tensors; their memory is the same
    return type(pipeline)(**parts, **pipeline._own_settings())


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast as loading does: what a library keeps in float32 stays so."""
    model: Any = module
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype != torch.float16 and hasattr(model, "get_input_embeddings"):
        kept = set()  # transformers keeps its own only where float16 would overflow
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
