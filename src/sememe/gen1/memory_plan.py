"""The phases of a Gen-1 generation, by which its memory is planned."""

from typing import Any

import numpy as np
import torch

from sememe.backbones.autoencoder import decode_latents
from sememe.compute.rehearsal import Phase, Workload, rehearse_step
from sememe.compute.strategy import OFFLOADS
from sememe.errors import InputError
from sememe.gen1.content import ContentEmbedding, ContentEncoder, ImageSpaceEncoder, PromptEncoder
from sememe.gen1.guidance import make_table
from sememe.gen1.models import MotionModel, make_model
from sememe.gen1.pipeline import Contents, Gen1Pipeline
from sememe.gen1.predictor import stack_contents
from sememe.gen1.settings import Settings
from sememe.gen1.structure import DepthEstimator


def list_phases(
    pipeline: Gen1Pipeline,
    name: str,
    *,
    source_height: int | None = None,
    source_width: int | None = None,
    **settings: Any,
) -> Workload:
    """List the phases of a generation: structure, content, steps, decoding; see `SystemPipeline.list_phases`.

    Content is a text where the model takes one, otherwise a picture. Height and width, or else the source's, are
    brought to the nearest that the model can make. Where neither is stated, they are those that the U-Net was made for;
    the length is then that of a window.

    Raises:
        InputError: The size is not known, or the model cannot make such a video.
    """
    chosen = pipeline.defaults.override(**settings)
    num_frames, height, width = _choose_shape(pipeline, chosen, source_height, source_width)
    rehearsal = _Rehearsal(pipeline, chosen, (num_frames, height, width))
    # Blocks of Stable Diffusion serve the image model as well, whose calls bring none of them.
    is_shared = isinstance(rehearsal.model, MotionModel)
    return Workload(
        title=f"{name} at {width}x{height}, {num_frames} frames",
        components=pipeline.networks,
        phases=[
            *([Phase("structure", rehearsal.estimate_depth)] if rehearsal.depth is not None else ()),
            Phase("content", rehearsal.encode_contents),
            Phase("prepare", rehearsal.prepare),
            Phase("denoise", rehearsal.denoise),
            Phase("decode", rehearsal.decode),
        ],
        main="unet",
        whole=pipeline._exclude_from_cpu_offload,
        offloads=[kind for kind in OFFLOADS if not (is_shared and kind.startswith("group"))],
        settings={"model": name, "height": height, "width": width, "num_frames": num_frames},
    )


def _choose_shape(
    pipeline: Gen1Pipeline, settings: Settings, source_height: int | None, source_width: int | None
) -> tuple[int, int, int]:
    size, grid, sample_size = settings.size, pipeline.grid, pipeline.unet.config.sample_size
    usual = sample_size * grid.spatial_ratio if isinstance(sample_size, int) else None
    height, width = size.height or source_height or usual, size.width or source_width or usual
    if height is None or width is None:
        raise InputError("expected the size of the source, to plan for it; give height and width")
    num_frames = size.num_frames or make_model(pipeline.unet, pipeline.controlnet).max_frames
    return num_frames, grid.nearest_size(height), grid.nearest_size(width)


class _Rehearsal:
    """The steps of a generation from a black clip, each with what the steps before it have left."""

    def __init__(self, pipeline: Gen1Pipeline, settings: Settings, shape: tuple[int, int, int]) -> None:
        self.pipeline, self.settings, self.shape = pipeline, settings, shape
        self.device = pipeline._execution_device
        self.model = make_model(pipeline.unet, pipeline.controlnet, settings.structure.controlnet_scale)
        self.guidance = make_table(settings)
        found = pipeline.estimators.get("depth") if "depth" in settings.structure.structure_kinds else None
        self.depth = found if isinstance(found, DepthEstimator) else None

    def estimate_depth(self) -> None:
        assert self.depth is not None
        num_frames, height, width = self.shape
        self.depth.predict(np.zeros((min(num_frames, self.depth.batch_size), height, width, 3), np.uint8))

    def encode_contents(self) -> None:
        encoder = self.pipeline.make_encoder(self.settings)
        nothing = encoder.encode_nothing()
        given = _encode_text(encoder) or self._encode_image(encoder) or nothing
        length = self.shape[0]
        self.contents: Contents = {
            "given": stack_contents([[given] * length], self.device),
            "none": stack_contents([[nothing] * length], self.device),
        }

    def _encode_image(self, encoder: ContentEncoder) -> ContentEmbedding | None:
        if self.pipeline.image_encoder is None or isinstance(encoder, PromptEncoder):
            return None
        return encoder.encode_image(np.zeros((*self.shape[1:], 3), np.uint8))

    def prepare(self) -> None:
        maps = torch.zeros(1, *self.shape, device=self.device)
        self.predictor = self.pipeline.prepare(self.model, self.shape[0], self.settings, maps, self.contents)
        self.noise = torch.zeros(1, *self.pipeline.grid.latent_shape(*self.shape), device=self.device)

    def denoise(self) -> None:
        groups = self.guidance.groups(self.settings.execution.batching)
        groups.sort(key=lambda rows: (len(rows), rows[0].variant.frames == "together"))
        self.latents = rehearse_step(self.predictor, groups, self.noise)

    def decode(self) -> None:
        decode_latents(self.pipeline.vae, self.latents)


def _encode_text(encoder: ContentEncoder) -> ContentEmbedding | None:
    """Encode a text, with one step of the prior where there is one; None where the model takes no text."""
    if not isinstance(encoder, ImageSpaceEncoder):
        return encoder.encode_text("a text", None)
    sampler = encoder.prior
    if sampler is None:
        return None
    noise = torch.zeros(1, encoder.dim, device=sampler.prior.device)
    clean = rehearse_step(sampler.make_predict(["a text"]), sampler.guidance.groups("batched"), noise)
    return ContentEmbedding(sampler.prior.post_process_latents(clean.to(sampler.prior.dtype)))
