"""Encoding clips once, before the trainings that read arrays of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import cv2
import torch

from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import describe_model, find_part, resolve_model
from sememe.compute.devices import choose_device
from sememe.data.array_cache import ArrayCacheWriter, ArrayEncoder, ClipItem, remove_damaged
from sememe.errors import InputError, RecipeError, VideoError
from sememe.events import Progress, ProgressHandler, ignore_progress
from sememe.files import write_text
from sememe.training.array_encoders import CleanLatents, FirstFrameLatents, GeneratedLatents, TextEmbeddings
from sememe.training.clips import ClipCollection
from sememe.training.dataset_clips import open_clips
from sememe.training.recipes import ArraysRecipe, LatentsRecipe
from sememe.workflows.systems import find_system

# Small, so that little is lost when the work is interrupted.
_SHARD_BYTES = 16 * 1024 * 1024
_MAX_BAD_SHARE = 0.01
QUARANTINE_NAME = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class QuarantinedClip:
    """A clip that was left out.

    Attributes:
        clip: Its key.
        reason: Why it cannot be used; names the file.
    """

    clip: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PrecomputeSummary:
    """What a call of `precompute_latents` did.

    Attributes:
        folder: Folder of the cache.
        version: What tells the clips from all others.
        num_clips: in the cache.
        num_new: entries of each array that this call encoded.
        made_by: what each array was made by.
        quarantine: Clips that were left out.
        damaged: Names of the files that were removed because they were damaged.
        num_unused: Entries of clips that are not in the data any more.
        seconds: that it took.
    """

    folder: Path
    version: str
    num_clips: int
    num_new: Mapping[str, int]
    made_by: Mapping[str, Mapping[str, str]]
    quarantine: Sequence[QuarantinedClip]
    damaged: Sequence[str]
    num_unused: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Part:
    """One of several parts of the entries of every array, for as many processes; written as "2/8".

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


_WHOLE = Part(1, 1)


def precompute_latents(
    recipe: ArraysRecipe,
    output_dir: Path | str,
    on_progress: ProgressHandler = ignore_progress,
    *,
    verify: bool = False,
    prune: bool = False,
    part: Part = _WHOLE,
) -> PrecomputeSummary:
    """Encode the recipe's clips into named arrays, or go on where that was interrupted.

    Entries are known by the content of their clips: clips that were added or changed are encoded, and nothing else is.
    Videos that cannot be read are left out and listed in `quarantine.jsonl`.

    Args:
        recipe: Clips and arrays.
        output_dir: Folder of the cache.
        on_progress: Called with what is being done, and how long it takes.
        verify: Read the whole cache first, and encode again what is damaged.
        prune: Remove the entries of clips that are not in the data any more.
        part: The entries to encode, for several processes that share the work. A cache is finished by a call without
            it, which encodes what is still missing.

    Raises:
        ModelError: there is no autoencoder or text encoder where the recipe says.
        InputError: More than one video in a hundred cannot be read, or the cache is damaged and `verify` is not given.
        RecipeError: the folder holds arrays of other clips or of another encoder.
        OutputError: the folder cannot be written.
    """
    begin, folder = time.monotonic(), Path(output_dir)
    on_progress(Progress("listing clips"))
    clips = open_clips(recipe.clips, recipe.data, recipe.dataset, recipe.min_score)
    encoders = list_encoders(recipe, clips)
    if verify:
        on_progress(Progress("verifying"))
    damaged = remove_damaged(folder) if verify else ()
    _limit_threads(recipe.num_threads or (1 if part.count > 1 else 0))
    items = [clips.item(index) for index in range(len(clips))]  # takes long; others may add entries meanwhile
    writer = ArrayCacheWriter(folder, clips.origin, dtype=recipe.dtype, shard_bytes=_SHARD_BYTES)
    quarantine = Quarantine(items)
    num_new = {
        encoder.name: encode_array(encoder, items, writer, recipe.batch_size, quarantine, on_progress, part)
        for encoder in encoders
    }
    good = quarantine.list_good()
    if part.count == 1:
        writer.finish(good, clips.version)
        quarantine.write(folder / QUARANTINE_NAME)
    return PrecomputeSummary(
        folder=folder,
        version=clips.version,
        num_clips=len(good),
        num_new=num_new,
        made_by={encoder.name: encoder.made_by for encoder in encoders},
        quarantine=quarantine.clips,
        damaged=damaged,
        num_unused=_count_unused(writer, encoders, good, prune=prune),
        seconds=time.monotonic() - begin,
    )


def _limit_threads(count: int) -> None:
    """Have torch and OpenCV, which renders, use that many threads; 0 leaves them as they are.

    OpenCV takes all cores in each of several processes: seven beside eight others on 16 cores made a load of 160 and
    a third of the speed.
    """
    if count:
        torch.set_num_threads(count)
        cv2.setNumThreads(count)


def _count_unused(
    writer: ArrayCacheWriter, encoders: Sequence[ArrayEncoder], items: Sequence[ClipItem], *, prune: bool
) -> int:
    """Count entries of clips that are not among the items, and remove them if they are to be pruned."""
    needed = {encoder.name: encoder.list_entries(items).keys() for encoder in encoders}
    num_unused = writer.count_unused(needed)
    if prune:
        writer.prune(needed)
    return num_unused


class Quarantine:
    """Clips that cannot be used, with reasons.

    Args:
        items: All clips of the data.
    """

    def __init__(self, items: Sequence[ClipItem]) -> None:
        self._items = items
        self._reasons: dict[str, str] = {}

    @property
    def clips(self) -> tuple[QuarantinedClip, ...]:
        """The clips that were left out, in the order of the data."""
        keys = dict.fromkeys(item.clip for item in self._items if item.clip in self._reasons)
        return tuple(QuarantinedClip(clip=key, reason=self._reasons[key]) for key in keys)

    def add(self, key_field: str, key: str, reason: str) -> None:
        """Leave out the clips of which one field holds a key. Raises `InputError` if these are too many by now."""
        for item in self._items:
            if getattr(item, key_field) == key:
                self._reasons[item.clip] = reason
        num_bad = len(self._items) - len(self.list_good())
        if num_bad > _MAX_BAD_SHARE * len(self._items):
            raise InputError(
                f"{num_bad} of {len(self._items)} videos cannot be used, more than the {_MAX_BAD_SHARE:.0%} that "
                f"are left out; repair them, or take them out of the list; the last: {reason}"
            )

    def list_good(self) -> list[ClipItem]:
        """The clips that were not left out, in order."""
        return [item for item in self._items if item.clip not in self._reasons]

    def write(self, path: Path) -> None:
        """Write a JSON line for each clip that was left out; no file if there is none."""
        lines = [json.dumps(asdict(clip)) + "\n" for clip in self.clips]
        if lines:
            write_text(path, "".join(lines))
        else:
            path.unlink(missing_ok=True)


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
    quarantine: Quarantine,
    on_progress: ProgressHandler = ignore_progress,
    part: Part = _WHOLE,
) -> int:
    """Encode those entries of an array that the cache lacks, except of clips that cannot be read; return how many."""
    present, entries = writer.begin(encoder), encoder.list_entries(items)
    entries = dict(list(entries.items())[part.number - 1 :: part.count])
    missing = [key for key in entries if key not in present]
    begin, stage, num_present = time.monotonic(), f"encoding {encoder.name}", len(entries) - len(missing)
    on_progress(Progress(stage, num_present, len(entries)))
    num_new = 0
    for start in range(0, len(missing), batch_size):
        keys = missing[start : start + batch_size]
        readable = _read_entries(encoder, {key: entries[key] for key in keys}, quarantine)
        if readable.keys:
            with torch.inference_mode():
                writer.append(encoder.name, readable.keys, encoder.encode(readable.inputs))
        num_new += len(readable.keys)
        done = start + len(keys)
        left = (time.monotonic() - begin) / done * (len(missing) - done)
        on_progress(Progress(stage, num_present + done, len(entries), left))
    writer.flush(encoder.name)
    return num_new


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
