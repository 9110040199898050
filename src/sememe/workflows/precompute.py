"""Encoding clips once, before the trainings that read arrays of them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import cv2
import torch

from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import describe_model, find_part, resolve_model
from sememe.compute.devices import choose_device
from sememe.data.array_writer import ArrayCacheWriter, ArrayEncoder, remove_damaged
from sememe.data.cache_index import ClipItem
from sememe.data.storage import Storage
from sememe.errors import InputError, OutputError, RecipeError, VideoError
from sememe.events import Progress, ProgressHandler, ignore_progress
from sememe.training.array_encoders import (
    CleanLatents,
    FirstFrameLatents,
    GeneratedLatents,
    ImageEmbeddings,
    TextEmbeddings,
)
from sememe.training.clips import ClipCollection
from sememe.training.dataset_clips import open_clips
from sememe.training.recipes import ArraysRecipe, LatentsRecipe
from sememe.workflows.quarantine import Quarantine, QuarantinedClip
from sememe.workflows.systems import find_system

_SHARD_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class PrecomputeSummary:
    """What a call of `precompute_latents` did.

    Attributes:
        folder: Folder of the cache, or its URL.
        version: Hash or version that identifies the clips; None where one part was encoded, for that reads no others.
        num_clips: Clips in the cache; those of the part, where one was encoded.
        num_new: Entries of each array that this call encoded.
        made_by: What each array was made by.
        quarantine: Clips that were left out.
        damaged: Names of the files that were removed because they were damaged.
        num_unused: Entries of clips that are not in the data any more; none are counted where one part was encoded.
        seconds: Seconds that the call took.
    """

    folder: str
    version: str | None
    num_clips: int
    num_new: Mapping[str, int]
    made_by: Mapping[str, Mapping[str, str]]
    quarantine: Sequence[QuarantinedClip]
    damaged: Sequence[str]
    num_unused: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Part:
    """One of several parts of the clips, for as many processes; written as "2/8".

    Attributes:
        number: Which part, from 1.
        count: How many parts there are.

    Raises:
        InputError: There is no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"expected a part between 1/{self.count} and {self.count}/{self.count}, got {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read a part as it is written. Raises `InputError` for anything else."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(count)):
            raise InputError(f"expected a part such as 2/8, got {text!r}")
        return cls(int(number), int(count))

    def list_clips(self, num_clips: int) -> range:
        """Return the numbers of the part's clips. They are neighbours, which often share a first frame."""
        return range(num_clips * (self.number - 1) // self.count, num_clips * self.number // self.count)


_WHOLE = Part(1, 1)


def precompute_latents(
    recipe: ArraysRecipe,
    output_dir: Path | str,
    on_progress: ProgressHandler = ignore_progress,
    *,
    verify: bool = False,
    prune: bool = False,
    part: Part = _WHOLE,
    ray: str | None = None,
) -> PrecomputeSummary:
    """Encode the recipe's clips into named arrays, or continue where that was interrupted.

    Entries are identified by the content of their clips: only clips that were added or changed are encoded.
    Videos that cannot be read are left out and listed in `quarantine.jsonl`.

    Args:
        recipe: Clips and arrays.
        output_dir: Folder of the cache, or its URL in object storage (see `data.storage`).
        on_progress: Called with what is being done, and how long it takes.
        verify: Read the whole cache first, and encode again what is damaged.
        prune: Remove the entries of clips that are not in the data any more.
        part: The clips to encode, where processes share the work; a call without it encodes the rest and finishes.
        ray: Address of a Ray cluster that encodes, "auto" for this machine's, or "local"; None for this process alone.

    Raises:
        ModelError: There is no autoencoder or text encoder where the recipe says.
        InputError: Over 1 % of the videos cannot be read, the cache is damaged, no such cluster, or a part is pruned.
        RecipeError: The folder holds arrays of other clips or of another encoder.
        OutputError: The folder cannot be written, or the cluster's machines do not write to the same one.
    """
    begin = time.monotonic()
    if prune and part.count > 1:
        raise InputError(f"expected no part with prune, got {part}; the last call, without a part, can prune")
    on_progress(Progress("listing clips"))
    # Each clip is read once, and several processes may encode parts: none holds all of them.
    clips = open_clips(recipe.clips, recipe.data, recipe.dataset, recipe.min_score, memory_bytes=0)
    if verify:
        on_progress(Progress("verifying"))
    damaged = remove_damaged(output_dir) if verify else ()
    limit_threads(recipe.num_threads or (1 if part.count > 1 else 0))
    num_far = Counter[str]()
    if ray is not None:
        from sememe.workflows.precompute_ray import encode_on_cluster

        num_far = encode_on_cluster(recipe, clips, output_dir, ray, on_progress)
    encoding = Encoding(recipe, clips, output_dir)
    encoding.check_shared(num_far)
    encoded = encoding.encode(part, on_progress)
    num_unused = encoding.finish(encoded.quarantine, prune=prune) if part.count == 1 else 0
    return PrecomputeSummary(
        folder=str(Storage(output_dir)),
        version=clips.version if part.count == 1 else None,
        num_clips=len(encoded.quarantine.list_good()),
        num_new={name: num_far[name] + encoded.num_new[name] for name in encoding.made_by},
        made_by=encoding.made_by,
        quarantine=encoded.quarantine.clips,
        damaged=damaged,
        num_unused=num_unused,
        seconds=time.monotonic() - begin,
    )


@dataclass(frozen=True, kw_only=True)
class EncodedPart:
    """What was encoded of a part of the clips.

    Attributes:
        num_new: How many entries of each array.
        quarantine: The part's clips, and which of them cannot be read.
    """

    num_new: Mapping[str, int]
    quarantine: Quarantine


class Encoding:
    """The encoders of a recipe and the cache that they fill.

    No entry is encoded twice, except one that clips of several parts share, if these are encoded at the same time.

    Args:
        recipe: Arrays.
        clips: The recipe's clips.
        folder: Folder of the cache, or its URL.

    Raises:
        ModelError: There is no autoencoder or text encoder where the recipe says.
        RecipeError: The folder holds arrays of other clips or of another encoder.
    """

    def __init__(self, recipe: ArraysRecipe, clips: ClipCollection, folder: Path | str) -> None:
        self._recipe, self._clips, self._encoders = recipe, clips, list_encoders(recipe, clips)
        self._storage = Storage(folder)
        self.writer = ArrayCacheWriter(folder, clips.origin, dtype=recipe.dtype, shard_bytes=_SHARD_BYTES)
        self.made_by = {encoder.name: encoder.made_by for encoder in self._encoders}

    def encode(self, part: Part = _WHOLE, on_progress: ProgressHandler = ignore_progress) -> EncodedPart:
        """Encode what the cache lacks of a part of the clips, which alone are listed.

        Raises:
            InputError: More than one video in a hundred cannot be read.
        """
        size, num_clips = self._recipe.batch_size, len(self._clips)
        items = {index: self._clips.item(index) for index in part.list_clips(num_clips)}
        quarantine = Quarantine(items, num_clips)
        num_new = {
            encoder.name: encode_array(encoder, items, self.writer, size, quarantine, on_progress)
            for encoder in self._encoders
        }
        return EncodedPart(num_new=num_new, quarantine=quarantine)

    def check_shared(self, num_written: Mapping[str, int]) -> None:
        """Check that the folder holds what other machines have written to it.

        Raises:
            OutputError: It holds fewer entries.
        """
        for encoder in self._encoders:
            num_found, expected = len(self.writer.begin(encoder)), num_written.get(encoder.name, 0)
            if num_found < expected:
                raise OutputError(
                    f"the cluster encoded {expected} entries of {encoder.name}, but {num_found} are here; give a "
                    "folder that all of its machines share, or a URL of object storage"
                )

    def finish(self, quarantine: Quarantine, *, prune: bool) -> int:
        """Write the index and what was left out.

        Args:
            quarantine: All clips, and which of them cannot be read.
            prune: Whether entries of other clips are removed.

        Returns:
            Their number.
        """
        good = quarantine.list_good()
        self.writer.finish(tuple(good.values()), self._clips.version)
        quarantine.write(self._storage)
        needed = {encoder.name: encoder.list_entries(good).keys() for encoder in self._encoders}
        num_unused = self.writer.count_unused(needed)
        if prune:
            self.writer.prune(needed)
        return num_unused


def limit_threads(count: int) -> None:
    """Have torch and OpenCV, which renders, use that many threads; 0 leaves them as they are.

    OpenCV takes all cores in each of several processes: seven beside eight others on 16 cores made a load of 160 and
    a third of the speed.
    """
    if count:
        torch.set_num_threads(count)
        cv2.setNumThreads(count)


def list_encoders(recipe: ArraysRecipe, clips: ClipCollection) -> list[ArrayEncoder]:
    """Return the encoders of a recipe, in the order in which they run."""
    device = choose_device(recipe.device)
    encoders = _list_latents(recipe, clips, device) if isinstance(recipe, LatentsRecipe) else []
    is_regenerated = isinstance(recipe, LatentsRecipe) and recipe.regeneration is not None
    if recipe.more_arrays is not None and not is_regenerated:
        encoders += resolve_name(recipe.more_arrays)(recipe, clips, device)
    return encoders


def _list_latents(recipe: LatentsRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    vae = load_component("vae", find_part(recipe.autoencoder, "vae")).to(device)
    if recipe.regeneration is not None:
        model = resolve_model(recipe.regeneration.model)
        system = find_system(describe_model(model).pipeline)
        if system.regenerator is None:
            raise RecipeError(f"{system.title} cannot generate training clips again; leave out regeneration")
        regenerator = resolve_name(system.regenerator)(recipe.regeneration, clips, recipe.clips.fps)
        return [GeneratedLatents(vae, recipe.regeneration, model, regenerator.generate)]
    encoders: list[ArrayEncoder] = []
    if recipe.first_frame_fill is not None:
        encoders.append(FirstFrameLatents(vae, clips, recipe.first_frame_fill))
    encoders.append(CleanLatents(vae, clips))
    if recipe.text_encoder is not None:
        text_encoder, tokenizer = (find_part(recipe.text_encoder, part) for part in ("text_encoder", "tokenizer"))
        text = TextEmbeddings(text_encoder, tokenizer, device, recipe.text_length, reads_padding=recipe.reads_padding)
        encoders.append(text)
    if recipe.first_frame_encoder is not None:
        image_encoder, processor = (
            find_part(recipe.first_frame_encoder, each) for each in ("image_encoder", "image_processor")
        )
        encoders.append(ImageEmbeddings(image_encoder, processor, clips, device))
    return encoders


def encode_array(
    encoder: ArrayEncoder,
    items: Mapping[int, ClipItem],
    writer: ArrayCacheWriter,
    batch_size: int,
    quarantine: Quarantine,
    on_progress: ProgressHandler = ignore_progress,
) -> int:
    """Encode those entries of an array that the cache lacks, except of clips that cannot be read; return how many."""
    present, entries = writer.begin(encoder), encoder.list_entries(items)
    missing = {key: entry for key, entry in entries.items() if key not in present}
    begin, stage, num_present = time.monotonic(), f"encoding {encoder.name}", len(entries) - len(missing)
    on_progress(Progress(stage, num_present, len(entries)))
    num_new = done = 0
    for batch in _list_batches(missing, encoder.key, items, batch_size):
        readable = _read_entries(encoder, batch, quarantine)
        if readable.keys:
            with torch.inference_mode():
                writer.append(encoder.name, readable.keys, encoder.encode(readable.inputs))
        num_new, done = num_new + len(readable.keys), done + len(batch)
        left = (time.monotonic() - begin) / done * (len(missing) - done)
        on_progress(Progress(stage, num_present + done, len(entries), left))
    writer.flush(encoder.name)
    return num_new


def _list_batches(
    entries: Mapping[str, Any], key_field: str, items: Mapping[int, ClipItem], batch_size: int
) -> Iterator[Mapping[str, Any]]:
    """Divide entries into batches of clips of one bucket each."""
    buckets = {getattr(item, key_field): item.bucket for item in items.values()}
    keys_of: dict[str, list[str]] = defaultdict(list)
    for key in entries:
        keys_of[buckets.get(key, "")].append(key)
    for keys in keys_of.values():
        for start in range(0, len(keys), batch_size):
            yield {key: entries[key] for key in keys[start : start + batch_size]}


@dataclass(frozen=True)
class _Readable:
    keys: Sequence[str]
    inputs: Any


def _read_entries(encoder: ArrayEncoder, entries: Mapping[str, Any], quarantine: Quarantine) -> _Readable:
    try:
        return _Readable(list(entries), encoder.preprocess(list(entries.values())))
    except VideoError:
        # Which of them?
        good: dict[str, Any] = {}
        for key, entry in entries.items():
            try:
                encoder.preprocess([entry])
            except VideoError as error:
                quarantine.add(encoder.key, key, str(error))
            else:
                good[key] = entry
        return _Readable(list(good), encoder.preprocess(list(good.values())) if good else None)
