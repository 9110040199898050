"""Folders that the official pipelines wrote, read and converted."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from sememe.checkpoints.tensor_files import WEIGHTS_NAME
from sememe.video_as_prompt.convert import ConversionRequest, convert_model
from sememe.video_as_prompt.model_folders import load_components
from sememe.video_as_prompt.transformer_files import load_merged, save_merged

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
FOLDERS = [PARITY / name / "checkpoint" for name in ("pipeline_wan", "pipeline_cogvideox")]

pytestmark = pytest.mark.skipif(not PARITY.exists(), reason="the parity vectors are not beside the project")
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=["wan", "cogvideox"])


def equal(first: Path, second: Path) -> bool:
    tensors, others = load_file(first), load_file(second)
    return tensors.keys() == others.keys() and all(
        tensors[key].dtype == others[key].dtype and torch.equal(tensors[key], others[key]) for key in tensors
    )


@each_folder
def test_the_transformer_makes_a_round_trip(folder: Path, tmp_path: Path) -> None:
    model = load_merged(folder / "transformer")
    save_merged(model, tmp_path)
    assert equal(folder / "transformer" / WEIGHTS_NAME, tmp_path / WEIGHTS_NAME)
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder / "transformer", tmp_path))
    assert before == after | {"_diffusers_version": before["_diffusers_version"]}


@each_folder
def test_every_component_is_read(folder: Path) -> None:
    parts = load_components(folder, None, {}, "VideoAsPromptPipeline")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("vae", "scheduler", "text_encoder"):
        assert type(parts[name]).__name__ == index[name][1]
    assert (parts["image_encoder"] is None) == ("image_encoder" not in index)
    text = "a red star on the green hill melts,  twice"
    exact = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).encode(text).ids
    assert parts["tokenizer"](text).input_ids == exact


@each_folder
def test_it_is_split_and_merged_again(folder: Path, tmp_path: Path) -> None:
    convert_model(ConversionRequest(folder, tmp_path / "own"))
    convert_model(ConversionRequest(tmp_path / "own", tmp_path / "back", layout="published"))
    for path in folder.rglob("*.safetensors"):
        assert equal(path, tmp_path / "back" / path.relative_to(folder))
    before, after = (json.loads((place / "model_index.json").read_text()) for place in (folder, tmp_path / "back"))
    assert {key: after[key] for key in before if key != "_diffusers_version"} == {
        key: value for key, value in before.items() if key != "_diffusers_version"
    }


@each_folder
def test_the_tensors_are_those_of_the_stock_class_too(folder: Path, tmp_path: Path) -> None:
    convert_model(ConversionRequest(folder, tmp_path / "own"))
    model = load_merged(folder / "transformer")
    stock = type(model).backbone_class.from_pretrained(tmp_path / "own" / "transformer")
    tensors = model.state_dict()
    assert all(torch.equal(value.float(), tensors[key].float()) for key, value in stock.state_dict().items())
