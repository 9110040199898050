"""Encoding clips once, before the trainings that read arrays of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import torch

from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import describe_model, find_part, resolve_model
from sememe.compute.devices import choose_device
from sememe.data.array_cache import ArrayCacheWriter, ArrayEncoder, ClipItem
from sememe.errors import RecipeError
from sememe.events import Progress, ProgressHandler, ignore_progress
from sememe.training.array_encoders import CleanLatents, FirstFrameLatents, GeneratedLatents, TextEmbeddings
from sememe.training.clips import ClipCollection
from sememe.training.dataset_clips import open_clips
from sememe.training.recipes import ArraysRecipe, LatentsRecipe
from sememe.workflows.systems import find_system

# Small, so that little is lost when the work is interrupted.
_SHARD_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class PrecomputeSummary:
    """What a call of `precompute_latents` did.

    Attributes:
        folder: Folder of the cache.
        source: Source of the clips.
        num_clips: in the cache.
        num_new: entries of each array that this call encoded.
        made_by: what each array was made by.
        seconds: that it took.
    """

    folder: Path
    source: str
    num_clips: int
    num_new: Mapping[str, int]
    made_by: Mapping[str, Mapping[str, str]]
    seconds: float


def precompute_latents(
    recipe: ArraysRecipe, output_dir: Path | str, on_progress: ProgressHandler = ignore_progress
) -> PrecomputeSummary:
    """Encode the recipe's clips into named arrays, or go on where that was interrupted.

    Raises:
        ModelError: there is no autoencoder or text encoder where the recipe says.
        InputError: a clip cannot be read.
        RecipeError: the folder holds arrays of other clips or of another encoder.
        OutputError: the folder cannot be written.
    """
    begin, folder = time.monotonic(), Path(output_dir)
    clips = open_clips(recipe.clips, recipe.data, recipe.dataset)
    encoders = list_encoders(recipe, clips)
    writer = ArrayCacheWriter(folder, clips.origin, dtype=recipe.dtype, shard_bytes=_SHARD_BYTES)
    if recipe.num_threads:
        torch.set_num_threads(recipe.num_threads)
    items = [clips.item(index) for index in range(len(clips))]
    num_new = {
        encoder.name: encode_array(encoder, items, writer, recipe.batch_size, on_progress) for encoder in encoders
    }
    writer.finish(items, clips.version)
    return PrecomputeSummary(
        folder=folder,
        source=clips.version,
        num_clips=len(items),
        num_new=num_new,
        made_by={encoder.name: encoder.made_by for encoder in encoders},
        seconds=time.monotonic() - begin,
    )


def list_encoders(recipe: ArraysRecipe, clips: ClipCollection) -> list[ArrayEncoder]:
    """The encoders of a recipe, in the order in which they run."""
    device = choose_device(recipe.device)
    encoders = _list_latents(recipe, clips, device) if isinstance(recipe, LatentsRecipe) else []
    is_regenerated = isinstance(recipe, LatentsRecipe) and recipe.regeneration is not None
    if recipe.more_arrays is not None and not is_regenerated:
        encoders += resolve_name(recipe.more_arrays)(recipe, clips, device)
    return encoders


def _list_latents(recipe: LatentsRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    vae = load_component("vae", find_part(recipe.autoencoder, "vae")).to(device)
    if recipe.regeneration is not None:
        system = find_system(describe_model(resolve_model(recipe.regeneration.model)).pipeline)
        if system.regenerator is None:
            raise RecipeError(f"{system.title} cannot generate training clips again; leave out regeneration")
        regenerator = resolve_name(system.regenerator)(recipe.regeneration, clips, recipe.clips.fps)
        return [GeneratedLatents(vae, recipe.regeneration, regenerator.generate)]
    encoders: list[ArrayEncoder] = []
    if recipe.first_frame_fill is not None:
        encoders.append(FirstFrameLatents(vae, clips, recipe.first_frame_fill))
    encoders.append(CleanLatents(vae, clips))
    if recipe.text_encoder is not None:
        text_encoder, tokenizer = (find_part(recipe.text_encoder, part) for part in ("text_encoder", "tokenizer"))
        text = TextEmbeddings(text_encoder, tokenizer, device, recipe.text_length, reads_padding=recipe.reads_padding)
        encoders.append(text)
    return encoders


def encode_array(
    encoder: ArrayEncoder,
    items: Sequence[ClipItem],
    writer: ArrayCacheWriter,
    batch_size: int,
    on_progress: ProgressHandler = ignore_progress,
) -> int:
    """Encode those entries of an array that the cache lacks; return how many."""
    present, entries = writer.begin(encoder), encoder.list_entries(items)
    missing = [key for key in entries if key not in present]
    begin, stage, num_present = time.monotonic(), f"encoding {encoder.name}", len(entries) - len(missing)
    on_progress(Progress(stage, num_present, len(entries)))
    for start in range(0, len(missing), batch_size):
        keys = missing[start : start + batch_size]
        with torch.inference_mode():
            writer.append(encoder.name, keys, encoder.encode(encoder.preprocess([entries[key] for key in keys])))
        done = start + len(keys)
        left = (time.monotonic() - begin) / done * (len(missing) - done)
        on_progress(Progress(stage, num_present + done, len(entries), left))
    writer.flush(encoder.name)
    return len(missing)
