"""From the layout of the released models to ours and back, tensor by tensor and bit for bit.

Ours keeps the backbone as diffusers writes it and the expert in a folder of its own, so that one backbone serves many
experts; a released folder has both in one (see `sememe.video_as_prompt.model_folders`).
"""

import json
import math
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers

from sememe.checkpoints.headers import MODEL_INDEX, list_weight_files, read_stored_tensors
from sememe.checkpoints.zoo import find_folder
from sememe.errors import InputError, ModelError, OutputError
from sememe.events import ProgressHandler, StepCounter, ignore_progress
from sememe.files import atomic_folder, write_text
from sememe.video_as_prompt.model_folders import (
    COMPONENTS,
    EXPERT_FOLDER,
    OWN_CLASS,
    ModelLayout,
    check_whole,
    find_expert,
    read_layout,
)
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
from sememe.video_as_prompt.transformer_files import (
    StoredTransformer,
    open_merged,
    open_separate,
    save_merged,
    write_separate,
)

TARGET_LAYOUTS = ("own", "published")

_NETWORKS = ("vae", "text_encoder", "image_encoder")
_SMALL_SUFFIXES = (".json", ".txt", ".model")
_CARDS = ("README.md", "LICENSE*", "NOTICE*")
_SHARD_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B)", re.IGNORECASE)


@dataclass(frozen=True)
class ConversionRequest:
    """What is to be converted.

    Attributes:
        source: A folder, a built-in name, or a repository on the Hugging Face hub.
        output: Folder to write; it must not exist.
        layout: What to write: `own` splits the expert off, `published` merges it in.
        expert: Folder of an expert, for a source that is a stock model, or instead of the source's own.
        revision: Revision of a repository.
        max_shard_size: Largest file of the transformer's tensors.
    """

    source: str | Path
    output: Path
    layout: str = "own"
    expert: str | Path | None = None
    revision: str | None = None
    max_shard_size: str = "5GB"


@dataclass(frozen=True)
class ConversionResult:
    """What was written.

    Attributes:
        source: The folder that was read.
        output: The folder that was written.
        layout: Layout of the output.
        family: `wan` or `cogvideox`.
        expert_blocks: The blocks that carry an expert.
        num_tensors: Tensors of the transformer, the expert included.
        num_parameters: Numbers in them.
        num_expert_parameters: Numbers in those of the expert.
        num_bytes: Size of all files.
        seconds: That it took.
    """

    source: Path
    output: Path
    layout: str
    family: str
    expert_blocks: tuple[int, ...]
    num_tensors: int
    num_parameters: int
    num_expert_parameters: int
    num_bytes: int
    seconds: float

    def to_document(self) -> dict[str, Any]:
        """Return plain values."""
        paths = {"source": str(self.source), "output": str(self.output)}
        return asdict(self) | paths | {"expert_blocks": list(self.expert_blocks)}


def convert_model(request: ConversionRequest, on_progress: ProgressHandler = ignore_progress) -> ConversionResult:
    """Write a model in the other layout; its folder is whole or not there at all.

    No tensor is changed, and no more than one shard of tensors is in memory. Every name and shape is checked before
    anything is written.

    Raises:
        ModelError: The source is no model, is not whole, has that layout already, or cannot be written in the other.
        InputError: A setting is not valid.
        OutputError: The output exists, or cannot be written.
    """
    begin = time.monotonic()
    _check_request(request)
    layout = read_layout(find_folder(request.source, request.revision, VIDEO_AS_PROMPT.name))
    stored = _open_source(layout, request)
    files = _list_files(layout)
    num_bytes = sum(path.stat().st_size for path in files) + sum(tensor.num_bytes for tensor in stored.tensors.values())
    _check_space(request.output, num_bytes)
    with atomic_folder(request.output) as folder:
        counter = StepCounter("copying the tensors of the transformer", len(stored.tensors), on_progress)
        if request.layout == "published":
            size = request.max_shard_size
            save_merged(stored.skeleton, folder / "transformer", size, stored.tensors, counter.advance)
        else:
            folders = (folder / "transformer", folder / EXPERT_FOLDER)
            write_separate(stored, *folders, request.max_shard_size, counter.advance)
        counter = StepCounter("copying the other files", len(files), on_progress)
        for path in files:
            target = folder / path.relative_to(layout.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
            counter.advance()
        index = _make_index(layout, request.layout)
        write_text(folder / MODEL_INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return _describe(layout, stored, request, time.monotonic() - begin)


def _check_request(request: ConversionRequest) -> None:
    if request.layout not in TARGET_LAYOUTS:
        raise InputError(f"expected layout to be one of {', '.join(TARGET_LAYOUTS)}, got {request.layout!r}")
    if not _SHARD_SIZE.fullmatch(request.max_shard_size):
        raise InputError(f"expected a size such as 5GB for max_shard_size, got {request.max_shard_size!r}")
    if request.output.exists():
        raise OutputError(f"expected a folder to write that does not exist yet, got {request.output}; choose another")


def _open_source(layout: ModelLayout, request: ConversionRequest) -> StoredTransformer:
    """Open the source's transformer and expert, and check all names and shapes."""
    if layout.kind == request.layout and request.expert is None:
        other = next(each for each in TARGET_LAYOUTS if each != request.layout)
        raise ModelError(
            f"{layout.folder} has the layout '{request.layout}' already; ask for '{other}', or use it as it is"
        )
    if layout.kind == "published":
        if request.expert is not None:
            raise ModelError(f"{layout.folder} has an expert merged in; leave the expert {request.expert} out")
        check_whole(layout, (), needs_expert=False)
        return open_merged(layout.folder / "transformer")
    if layout.kind == "stock" and request.expert is None:
        raise ModelError(
            f"{layout.folder} is a stock model without an expert; say which goes with it (--expert FOLDER)"
        )
    expert = layout.folder / EXPERT_FOLDER if request.expert is None else find_expert(request.expert)
    check_whole(layout, (), needs_expert=request.expert is None)
    return open_separate(layout.folder / "transformer", expert)


def _list_files(layout: ModelLayout) -> list[Path]:
    """List the files that are copied unchanged: those of the other components, and the model card."""
    files = [path for pattern in _CARDS for path in sorted(layout.folder.glob(pattern)) if path.is_file()]
    for name in COMPONENTS:
        if name == "transformer" or not layout.has(name):
            continue
        folder = layout.folder / name
        if name in _NETWORKS:
            read_stored_tensors(folder)
            files += list_weight_files(folder)
        files += sorted(path for path in folder.iterdir() if path.suffix in _SMALL_SUFFIXES and path.is_file())
    return files


def _check_space(output: Path, num_bytes: int) -> None:
    place = next(parent for parent in output.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise OutputError(
            f"cannot write {output}: it takes {num_bytes / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left; "
            "free some space or choose another folder"
        )


def _make_index(layout: ModelLayout, target: str) -> dict[str, Any]:
    known = layout.format
    components = {name: layout.index.get(name, [None, None]) for name in COMPONENTS}
    defaults = {"generation_defaults": layout.index.get("generation_defaults")}
    if layout.has_token_timesteps:
        defaults["expand_timesteps"] = True
    version = {"_diffusers_version": diffusers.__version__}
    if target == "own":
        expert = {EXPERT_FOLDER: ["sememe", known.expert_class]}
        transformer = {"transformer": ["diffusers", known.stock_class]}
        return components | defaults | version | expert | transformer | {"_class_name": OWN_CLASS}
    transformer = {"transformer": ["diffusers", known.official_class]}
    # The official code does not know our settings; it says so and goes on. Where there are none, none are written.
    kept = {name: value for name, value in defaults.items() if value is not None}
    return components | kept | version | transformer | {"_class_name": known.official_pipeline}


def _describe(
    layout: ModelLayout, stored: StoredTransformer, request: ConversionRequest, seconds: float
) -> ConversionResult:
    counts = {key: math.prod(tensor.shape) for key, tensor in stored.tensors.items()}
    return ConversionResult(
        source=layout.folder,
        output=request.output,
        layout=request.layout,
        family=stored.format.name,
        expert_blocks=tuple(stored.skeleton.config.expert_blocks),
        num_tensors=len(counts),
        num_parameters=sum(counts.values()),
        num_expert_parameters=sum(count for key, count in counts.items() if stored.format.keys.is_expert_key(key)),
        num_bytes=sum(path.stat().st_size for path in request.output.rglob("*") if path.is_file()),
        seconds=seconds,
    )
