"""The tensors of both released models, by name and shape, against our classes at full size.

`released/*.txt` lists them, one a line, as a release names them. The lists were not read from a release: they were
derived from the naming rule (an expert's tensor has the name of its twin with `_mot_ref` behind one component of the
path), the modules of the stock transformers, the configurations of Wan2.1-I2V-14B and CogVideoX-5B-I2V in
`released/*.json`, and the blocks that carry an expert (every fourth of 40; the first 41 of 42). They were not made
with our classes either, so that each checks the other. Nothing here takes memory: models are built on the meta
device, and files are headers only.
"""

import inspect
import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.safetensors_headers import write_sharded_headers
from sememe.errors import ModelError
from sememe.video_as_prompt.transformer_files import COGVIDEOX, WAN, TransformerFormat, open_merged

FOLDER = Path(__file__).parent / "released"
NAMES = {"wan2.1_14b": WAN, "cogvideox_5b": COGVIDEOX}

each_model = pytest.mark.parametrize(("name", "known"), NAMES.items(), ids=NAMES)


def read_list(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes by official names."""
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return {key: tuple(int(size) for size in shape.split("x")) for key, shape in map(str.split, lines)}


def read_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return config


@each_model
def test_our_class_at_full_size_has_these_tensors(name: str, known: TransformerFormat) -> None:
    stock = {key: value for key, value in read_config(name).items() if not key.startswith("_")}
    taken = inspect.signature(known.transformer.backbone_class.__init__).parameters
    settings = {key: value for key, value in stock.items() if key in taken}
    with torch.device("meta"):
        model = known.transformer(**settings, **known.released_settings(known.released_expert_blocks))
    found = {known.to_official_name(key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert found == read_list(name)


@pytest.mark.parametrize(
    ("name", "num_experts", "billions", "expert_billions"),
    [("wan2.1_14b", 10, 20.67, 4.28), ("cogvideox_5b", 41, 11.11, 5.49)],
)
def test_sizes_are_those_that_are_known(name: str, num_experts: int, billions: float, expert_billions: float) -> None:
    shapes = read_list(name)
    sizes = {key: math.prod(shape) for key, shape in shapes.items()}
    expert = {key: size for key, size in sizes.items() if "_mot_ref" in key}
    assert len({key.split(".")[1] for key in expert if "blocks." in key}) == num_experts
    assert sum(sizes.values()) / 1e9 == pytest.approx(billions, abs=0.01)
    assert sum(expert.values()) / 1e9 == pytest.approx(expert_billions, abs=0.01)
    # Every expert's tensor has a twin of its shape.
    assert all(shapes[key.replace("_mot_ref", "")] == shapes[key] for key in expert)


@pytest.fixture(params=list(NAMES))
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A released transformer folder in full size, of which only the headers take room; its config names no blocks."""
    folder = tmp_path / request.param
    folder.mkdir()
    shutil.copy(FOLDER / f"{request.param}.json", folder / "config.json")
    try:
        write_sharded_headers(folder, read_list(request.param), num_shards=9)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    yield folder
    shutil.rmtree(folder)


def test_a_full_size_folder_is_looked_at(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stored = open_merged(released)
    known = NAMES[released.name]
    assert stored.format is known
    assert stored.settings["expert_blocks"] == list(known.released_expert_blocks)
    assert len(stored.tensors) == len(read_list(released.name))
    assert "does not say which blocks carry an expert" in caplog.text
    assert str(list(known.released_expert_blocks)) in caplog.text

    shard = sorted(released.glob("*.safetensors"))[3]
    shard.rename(shard.with_name(f"{shard.name}.incomplete"))
    with pytest.raises(ModelError, match=rf"1 of them missing: {shard.name} .*{shard.name}\.incomplete"):
        open_merged(released)
