"""The phases of a Video-As-Prompt generation, by which its memory is planned."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sememe.backbones.autoencoder import decode_latents
from sememe.compute.rehearsal import Phase, Workload, list_tiled_phases, rehearse_step
from sememe.video import Clip
from sememe.video_as_prompt.conditioning import ConditionEncoder, Predictor
from sememe.video_as_prompt.guidance import VideoAsPromptSchedule
from sememe.video_as_prompt.inputs import make_request
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.settings import Settings


def list_phases(
    pipeline: VideoAsPromptPipeline,
    name: str,
    *,
    num_references: int = 1,
    num_negative_references: int = 0,
    **settings: Any,
) -> Workload:
    """List the phases of a generation: inputs, references, steps, decoding; see `SystemPipeline.list_phases`.

    Without `text_keys` among the settings a plan may choose.

    Raises:
        InputError: The model cannot make such a video.
    """
    settings.pop("negative_references", None)
    # Autocast is not measured: the meta device has none.
    chosen = pipeline.defaults.override(**settings).override(autocast="off", reference_sampling="even")
    if num_references == 0:
        chosen = chosen.without_reference()
    rehearsal = _Rehearsal(pipeline, chosen, num_references, num_negative_references)
    keeps: tuple[bool | None, ...] = (None,)
    if rehearsal.family.keeps_texts:
        is_kept = chosen.execution.text_keys == "kept"
        keeps = (True, False) if is_kept and settings.get("text_keys") is None else (is_kept,)
    phases = [
        *list_tiled_phases("inputs", pipeline.vae, rehearsal.encode_inputs),
        *list_tiled_phases("references", pipeline.vae, rehearsal.encode_references),
        *(Phase("denoise", rehearsal.denoise(keep), keeps_text_keys=keep) for keep in keeps),
        *list_tiled_phases("decode", pipeline.vae, rehearsal.decode),
    ]
    size = chosen.size
    return Workload(
        title=f"{name} at {size.width}x{size.height}, {size.num_frames} frames",
        components=pipeline.networks,
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

    def __init__(
        self, pipeline: VideoAsPromptPipeline, settings: Settings, num_references: int, num_negative_references: int
    ) -> None:
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

    def encode_inputs(self) -> None:
        self.conditions = self.encoder.encode_targets(self.request, self.guidance, None)

    def encode_references(self) -> None:
        references = self.encoder.encode_references(self.request, self.guidance, None)
        self.conditions = replace(self.conditions, references=references)

    def denoise(self, keep: bool | None) -> Callable[[], None]:  # noqa: FBT001
        """Return one step, with keys and values of texts kept or not."""
        settings = self.settings.override(text_keys="kept" if keep else "recomputed")

        def work() -> None:
            groups = self.guidance.groups(settings.execution.batching)
            # The largest last, when everything that is kept over the steps is there.
            groups.sort(key=lambda rows: (len(rows), rows[0].variant.reference != "none"))
            latents = torch.zeros(1, *self.shape, device=self.family.device)
            self.latents = rehearse_step(Predictor(self.family, self.conditions, settings), groups, latents)

        return work

    def decode(self) -> None:
        decode_latents(self.pipeline.vae, torch.zeros(1, *self.shape, device=self.family.device))


def _make_clips(settings: Settings, count: int) -> list[Clip]:
    """Make black clips, as long and as large as they are read."""
    readings = [settings.read_reference(place, count) for place in range(count)]
    return [Clip(np.zeros((max(2, each.num_frames), *each.size, 3), np.uint8), settings.size.fps) for each in readings]
