"""Encoding clips once, before the trainings that read latents."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sememe.checkpoints.parts import find_part
from sememe.data.latents import CacheOrigin, LatentCache, LatentCacheWriter
from sememe.errors import InputError
from sememe.files import write_text
from sememe.video_as_prompt.recipe_records import LatentsRecipe
from sememe.workflows.clips import ClipCollection, open_clips
from sememe.workflows.events import Progress, ProgressHandler, ignore_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

SUMMARY_NAME = "summary.json"
# Small, so that little is lost when the work is broken off.
_SHARD_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class PrecomputeSummary:
    """What a call of `precompute_latents` did.

    Attributes:
        folder: of the cache.
        num_clips: in the cache.
        num_first_frames: in the cache.
        num_new: clips that this call encoded.
        seconds: that it took.
        origin: what the latents were made from and by.
    """

    folder: Path
    num_clips: int
    num_first_frames: int
    num_new: int
    seconds: float
    origin: CacheOrigin


def precompute_latents(
    recipe: LatentsRecipe, output_dir: Path | str, on_progress: ProgressHandler = ignore_progress
) -> PrecomputeSummary:
    """Encode the recipe's clips and their first frames, or go on with it where it was broken off.

    Raises:
        ModelError: there is no autoencoder where the recipe says.
        InputError: a clip cannot be read.
        RecipeError: the folder holds latents of other clips or of another autoencoder.
        OutputError: the folder cannot be written.
    """
    import torch

    from sememe.checkpoints.components import load_autoencoder
    from sememe.training.distribution import choose_device
    from sememe.workflows.networks import fingerprint_encoder

    begin, folder = time.monotonic(), Path(output_dir)
    clips = open_clips(recipe.data, recipe.dataset)
    vae = load_autoencoder(find_part(recipe.autoencoder, "vae")).to(choose_device(recipe.device))
    origin = CacheOrigin(
        dataset=clips.version, autoencoder=fingerprint_encoder(vae), first_frame_fill=recipe.first_frame_fill
    )
    writer = LatentCacheWriter(folder, origin, dtype=recipe.dtype, shard_bytes=_SHARD_BYTES)
    num_before = writer.num_items
    if recipe.num_threads:
        torch.set_num_threads(recipe.num_threads)
    work = _Encoding(vae, clips, writer, recipe, on_progress)
    work.encode_first_frames()
    work.encode_clips()
    writer.finish()
    summary = PrecomputeSummary(
        folder=folder,
        num_clips=writer.num_items,
        num_first_frames=writer.num_first_frames,
        num_new=writer.num_items - num_before,
        seconds=time.monotonic() - begin,
        origin=origin,
    )
    # Last, so that a cache without it is known to be unfinished.
    write_text(folder / SUMMARY_NAME, json.dumps({"recipe": recipe.name, "num_clips": summary.num_clips}) + "\n")
    return summary


def open_latents(folder: Path) -> LatentCache:
    """Read a cache that `precompute_latents` has finished.

    Raises:
        InputError: there is none, or it is not finished.
    """
    if not (folder / SUMMARY_NAME).is_file():
        state = "is not finished" if (folder / "index.json").is_file() else "does not exist"
        raise InputError(f"the latent cache {folder} {state}; run `sememe precompute ... --output-dir {folder}`")
    return LatentCache.open(folder)


class _Encoding:
    """The work that is left."""

    def __init__(
        self,
        vae: nn.Module,
        clips: ClipCollection,
        writer: LatentCacheWriter,
        recipe: LatentsRecipe,
        on_progress: ProgressHandler,
    ) -> None:
        self.vae, self.clips, self.writer = vae, clips, writer
        self.batch_size, self.fill, self.on_progress = recipe.batch_size, recipe.first_frame_fill, on_progress

    def encode_first_frames(self) -> None:
        from sememe.backbones.first_frame import encode_cached_first_frame
        from sememe.training.stage_autoencoder import to_video

        names = self.clips.first_frame_names()
        num_frames = len(self.clips.frames(0))

        def encode(start: int, stop: int) -> None:
            pictures = to_video(_stack([self.clips.first_frame(name)[None] for name in names[start:stop]]))
            latents = encode_cached_first_frame(self.vae, pictures[:, :, 0], num_frames, self.fill)
            self.writer.append_first_frames(names[start:stop], latents)

        self._run("encoding first frames", self.writer.num_first_frames, len(names), encode)

    def encode_clips(self) -> None:
        from sememe.backbones.autoencoder import encode_video
        from sememe.workflows.networks import read_video

        def encode(start: int, stop: int) -> None:
            items = [self.clips.item(index) for index in range(start, stop)]
            self.writer.append_clips(items, encode_video(self.vae, read_video(self.clips, range(start, stop))))

        self._run("encoding clips", self.writer.num_items, len(self.clips), encode)

    def _run(self, stage: str, done: int, total: int, encode: Callable[[int, int], None]) -> None:
        import torch

        begin, first = time.monotonic(), done
        self.on_progress(Progress(stage, done, total))
        while done < total:
            stop = min(done + self.batch_size, total)
            with torch.inference_mode():
                encode(done, stop)
            done = stop
            left = (time.monotonic() - begin) / (done - first) * (total - done)
            self.on_progress(Progress(stage, done, total, left))


def _stack(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    import numpy as np

    return np.stack(frames)
