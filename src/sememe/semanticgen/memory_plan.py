"""The phases of a SemanticGen generation, by which its memory is planned."""

from typing import Any

import numpy as np
import torch

from sememe.backbones.decoding import decode_in_chunks
from sememe.compute.rehearsal import Phase, Workload, list_tiled_phases, rehearse_step
from sememe.semanticgen.inputs import make_request, resolve_length
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.semanticgen.production import Production, encode_texts
from sememe.semanticgen.settings import Settings


def list_phases(
    pipeline: SemanticGenPipeline,
    name: str,
    *,
    seconds: float | None = None,
    num_images: int = 0,
    **settings: Any,
) -> Workload:
    """List the phases of a generation: texts, plan, steps of the renderer, decoding; see `SystemPipeline.list_phases`.

    The plan is one that the planner makes. What the semantic encoder takes to read a source, besides its weights, is
    not counted: networks of transformers that read sizes from a tensor do not run on the meta device.

    Raises:
        InputError: The model cannot make such a video.
    """
    chosen = pipeline.defaults.override(**settings)
    request = make_request("a prompt other than the negative one")
    chosen = resolve_length(
        request, chosen, pipeline.grid, pipeline.clock, None if seconds else chosen.size.num_frames, seconds
    )
    rehearsal = _Rehearsal(pipeline, chosen, num_images)
    size = chosen.size
    phases = [Phase("texts", rehearsal.encode_texts)]
    if rehearsal.has_plan:
        phases.append(Phase("plan", rehearsal.plan))
    return Workload(
        title=f"{name} at {size.width}x{size.height}, {size.num_frames} frames",
        components=pipeline.networks,
        phases=[
            *phases,
            *list_tiled_phases("prepare", pipeline.vae, rehearsal.prepare),
            Phase("denoise", rehearsal.denoise),
            *list_tiled_phases("decode", pipeline.vae, rehearsal.decode),
        ],
        whole=pipeline._exclude_from_cpu_offload,
        settings={
            "model": name,
            "height": size.height,
            "width": size.width,
            "num_frames": size.num_frames,
            "num_images": num_images,
        },
    )


class _Rehearsal:
    """The steps of a generation, each with what the steps before it have left."""

    def __init__(self, pipeline: SemanticGenPipeline, settings: Settings, num_images: int) -> None:
        size = settings.size
        self.pipeline, self.settings = pipeline, settings
        image = np.zeros((size.height, size.width, 3), np.uint8) if num_images else None
        request = make_request("a prompt other than the negative one", image=image)
        self.work = Production(pipeline, request, settings, [torch.Generator().manual_seed(0)])
        self.work.check()
        self.has_plan = any(row.variant.has_plan for row in self.work.guidance.rows)
        self.features: torch.Tensor | None = None

    def encode_texts(self) -> None:
        self.texts = encode_texts(self.pipeline, self.work.request, self.settings)

    def plan(self) -> None:
        step = self.work.prepare_planning(self.texts)
        planned = rehearse_step(step.predict, step.guidance.groups("sequential"), step.noise)
        # (batch, number, slice, row, column) -> (batch, slice, row, column, number)
        self.features = planned.permute(0, 2, 3, 4, 1)

    def prepare(self) -> None:
        self.step = self.work.prepare_rendering(self.texts, self.features)

    def denoise(self) -> None:
        groups = sorted(self.step.guidance.groups("sequential"), key=lambda rows: rows[0].variant.has_plan)
        self.latents = rehearse_step(self.step.predict, groups, self.step.noise)

    def decode(self) -> None:
        for _ in decode_in_chunks(self.pipeline.vae, self.latents):
            pass
