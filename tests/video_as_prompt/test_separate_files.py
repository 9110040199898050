"""Backbone and expert in two folders, split off and merged again without a model in memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sememe.checkpoints.tensor_files import INDEX_NAME, WEIGHTS_NAME
from sememe.errors import ModelError, OutputError
from sememe.video_as_prompt.transformer_files import (
    check_pair,
    format_of_model,
    open_merged,
    open_separate,
    save_merged,
    write_merged,
    write_separate,
)
from video_as_prompt.two_way_models import Make, each_family, equal, make_cogvideox, make_wan


def ignore() -> None:
    """For whoever does not want to know of every tensor."""


def save_both(model: Any, folder: Path) -> None:
    model.save_backbone(folder / "transformer")
    model.save_expert(folder / "expert")


@each_family
def test_splitting_writes_what_saving_writes(make: Make, tmp_path: Path) -> None:
    model = make(expert_blocks=[0, 2]).to(torch.bfloat16)
    save_merged(model, tmp_path / "merged")
    save_both(model, tmp_path / "saved")
    seen = []
    write_separate(
        open_merged(tmp_path / "merged"),
        tmp_path / "split" / "transformer",
        tmp_path / "split" / "expert",
        "5GB",
        lambda: seen.append(1),
    )
    assert len(seen) == len(model.state_dict())
    for name in ("transformer", "expert"):
        saved, split = tmp_path / "saved" / name, tmp_path / "split" / name
        assert equal(load_file(saved / WEIGHTS_NAME), load_file(split / WEIGHTS_NAME))
        assert json.loads((saved / "config.json").read_text()) == json.loads((split / "config.json").read_text())
    loaded = format_of_model(model).transformer.from_folders(tmp_path / "split/transformer", tmp_path / "split/expert")
    assert all(torch.equal(loaded.state_dict()[key], value.float()) for key, value in model.state_dict().items())


@each_family
def test_merging_writes_what_saving_writes(make: Make, tmp_path: Path) -> None:
    model = make()
    save_merged(model, tmp_path / "saved")
    save_both(model, tmp_path)
    stored = open_separate(tmp_path / "transformer", tmp_path / "expert")
    write_merged(stored, tmp_path / "merged", "20KB", ignore)
    shards = json.loads((tmp_path / "merged" / INDEX_NAME).read_text())["weight_map"]
    merged: dict[str, torch.Tensor] = {}
    for name in set(shards.values()):
        tensors = load_file(tmp_path / "merged" / name)
        assert all(shards[key] == name for key in tensors)
        merged |= tensors
    assert equal(merged, load_file(tmp_path / "saved" / WEIGHTS_NAME))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "merged")]
    assert configs[0] == configs[1]


def test_folders_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    save_both(make_wan(), tmp_path / "wan")
    save_both(make_cogvideox(), tmp_path / "cogvideox")
    save_merged(make_wan(), tmp_path / "merged")
    backbone, expert = tmp_path / "wan" / "transformer", tmp_path / "wan" / "expert"
    assert check_pair(backbone, expert).name == "wan"
    wrong = [
        (backbone, tmp_path / "cogvideox/expert", "expected a WanVideoAsPromptExpert .*, but .* holds a CogVideoX"),
        (tmp_path / "cogvideox/transformer", expert, "expected a CogVideoXVideoAsPromptExpert .* holds a WanVideo"),
        (backbone, backbone, "expected a WanVideoAsPromptExpert .* holds a WanTransformer3DModel"),
        (
            backbone,
            tmp_path / "merged",
            "WanTransformer3DMOTModel with its backbone merged in; split .*sememe convert",
        ),
        (expert, expert, "expected a WanTransformer3DModel or CogVideoX.*names WanVideoAsPromptExpert"),
        (backbone, tmp_path / "absent", r"config\.json.* cannot be read"),
    ]
    for first, second, message in wrong:
        with pytest.raises(ModelError, match=message) as caught:
            open_separate(first, second)
        assert "\n" not in str(caught.value)


def test_an_expert_for_a_backbone_of_another_size_is_told(tmp_path: Path) -> None:
    save_both(make_wan(), tmp_path / "a")
    save_both(make_wan(ffn_dim=96), tmp_path / "b")
    with pytest.raises(ModelError, match=r"made for a backbone with ffn_dim = 96, but that in .* has 64"):
        open_separate(tmp_path / "a" / "transformer", tmp_path / "b" / "expert")


@pytest.mark.parametrize("part", ["transformer", "expert"])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, part: str) -> None:
    save_both(make_wan(), tmp_path)
    tensors = load_file(tmp_path / part / WEIGHTS_NAME)
    lost = next(iter(sorted(tensors)))
    del tensors[lost]
    save_file(tensors, tmp_path / part / WEIGHTS_NAME)
    with pytest.raises(ModelError, match=f"1 missing: {lost}"):
        open_separate(tmp_path / "transformer", tmp_path / "expert")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    save_merged(make_wan(), tmp_path / "merged")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_merged(open_merged(tmp_path / "merged"), tmp_path / "file" / "below", "5GB", ignore)
