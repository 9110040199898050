"""Encoding clips on the machines of a Ray cluster, through Ray Data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sememe.data.storage import Storage
from sememe.errors import InputError, RecipeError
from sememe.events import Progress, ProgressHandler
from sememe.training.clips import ClipCollection
from sememe.training.dataset_clips import DatasetClips, open_clips
from sememe.training.recipes import ArraysRecipe

# Small parts leave no machine idle at the end.
_PARTS_PER_WORKER = 8


class PartEncoder:
    """A worker of the cluster, which loads the encoders once and encodes one part after another.

    Args:
        recipe: Clips and arrays.
        clips: Clips of a dataset, whose videos were hashed already; None opens the recipe's clips.
        url: Where the cache is.
        num_parts: How many parts there are.
    """

    def __init__(self, recipe: ArraysRecipe, clips: DatasetClips | None, url: str, num_parts: int) -> None:
        from sememe.workflows.precompute import Encoding, limit_threads

        limit_threads(recipe.num_threads or 1)
        self._num_parts = num_parts
        self._encoding = Encoding(
            recipe,
            clips or open_clips(recipe.clips, recipe.data, recipe.dataset, recipe.min_score, memory_bytes=0),
            url,
        )

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Encode the part of a row, a number from 1; return how many entries of each array were new."""
        from sememe.workflows.precompute import Part

        return dict(self._encoding.encode(Part(int(row["part"]), self._num_parts)).num_new)


def encode_on_cluster(
    recipe: ArraysRecipe, clips: ClipCollection, folder: Path | str, address: str, on_progress: ProgressHandler
) -> Counter[str]:
    """Encode what a cache lacks on all machines of a cluster; return how many entries of each array were new.

    Each worker has a GPU where the cluster has any and the recipe's device allows it, else as many CPUs as the recipe
    has threads.

    Args:
        recipe: Clips and arrays.
        clips: The recipe's clips.
        folder: Folder of the cache, which all machines share, or its URL.
        address: As Ray takes it: "auto", "local", or that of the head.
        on_progress: Called with how many parts are done.

    Raises:
        InputError: There is no such cluster, or the clips cannot be encoded; the message is a worker's.
        RecipeError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RecipeError("encoding on a cluster needs Ray; install it (pip install sememe[ray])") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"expected the address of a Ray cluster, got {address!r}: {error}") from error
    resources = ray.cluster_resources()
    num_gpus = int(resources.get("GPU", 0)) if recipe.device == "auto" or recipe.device.startswith("cuda") else 0
    num_cpus = 1 if num_gpus else max(1, recipe.num_threads)
    num_workers = num_gpus or max(1, int(resources["CPU"]) // num_cpus)
    num_parts = _PARTS_PER_WORKER * num_workers
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Rows that are there already need no task to read them, which would wait for a CPU that the workers have taken.
    parts = ray.data.from_items([{"part": number} for number in range(1, num_parts + 1)], override_num_blocks=num_parts)
    done = parts.map(
        PartEncoder,
        fn_constructor_args=(
            recipe,
            clips if isinstance(clips, DatasetClips) else None,
            Storage(folder).url,
            num_parts,
        ),
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=num_cpus,
        num_gpus=1 if num_gpus else 0,
    )
    num_new: Counter[str] = Counter()
    stage = f"encoding on {num_workers} workers of {len(ray.nodes())} machines"
    on_progress(Progress(stage, 0, num_parts))
    try:
        for number, row in enumerate(done.iter_rows(), 1):
            num_new.update(row)
            on_progress(Progress(stage, number, num_parts))
    except ray.exceptions.RayError as error:
        raise InputError(f"the cluster could not encode the clips: {str(error).strip().splitlines()[-1]}") from error
    return num_new
