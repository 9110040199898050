"""Safetensors files that are headers alone: sparse, so that full-size models take no room on the disk."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from sememe.checkpoints.tensor_files import INDEX_NAME

BYTES = {"BF16": 2, "F32": 4}


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """Writes a file whose tensors have these shapes and hold zeros that are not stored."""
    header: dict[str, object] = {}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + BYTES[dtype] * math.prod(shape)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_sharded_headers(folder: Path, shapes: Mapping[str, tuple[int, ...]], num_shards: int) -> None:
    """The same in shards with an index."""
    weight_map: dict[str, str] = {}
    names = sorted(shapes)
    for shard in range(num_shards):
        file_name = f"diffusion_pytorch_model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        keys = names[shard::num_shards]
        write_header(folder / file_name, {key: shapes[key] for key in keys})
        weight_map |= dict.fromkeys(keys, file_name)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
