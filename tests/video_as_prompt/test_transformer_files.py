"""Transformers in files: released folders, and experts apart from backbones; what is not as it should be is named."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sememe.checkpoints.tensor_files import INDEX_NAME, WEIGHTS_NAME
from sememe.errors import ModelError, OutputError
from sememe.video_as_prompt.transformer_files import (
    COGVIDEOX,
    WAN,
    TransformerFormat,
    check_pair,
    format_of_config,
    format_of_model,
    load_merged,
    official_config,
    open_merged,
    open_separate,
    save_merged,
    write_separate,
)
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.two_way_models import Make, each_family, equal, make_cogvideox, make_wan


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


@each_family
def test_round_trip_is_exact(make: Make, tmp_path: Path) -> None:
    model = make(expert_blocks=[0, 2]).to(torch.bfloat16)
    save_merged(model, tmp_path / "a", max_shard_size="20KB")
    assert (tmp_path / "a" / INDEX_NAME).is_file()
    loaded = load_merged(tmp_path / "a")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert equal(loaded.state_dict(), model.state_dict())
    assert {key: value for key, value in loaded.config.items() if not key.startswith("_")} == {
        key: value for key, value in model.config.items() if not key.startswith("_")
    }
    save_merged(loaded, tmp_path / "b")
    first: dict[str, torch.Tensor] = {}
    for shard in (tmp_path / "a").glob("*.safetensors"):
        first |= load_file(shard)
    assert equal(first, load_file(tmp_path / "b" / WEIGHTS_NAME))


@each_family
def test_the_folder_reads_like_a_released_one(make: Make, tmp_path: Path) -> None:
    save_merged(make(expert_blocks=[1, 2]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"].endswith("Transformer3DMOTModel")
    assert config["block_idx_with_mot_ref"] == [1, 2]
    assert config["attention_head_dim_mot_ref"] is None
    assert not {"expert_blocks", "attention_mode", "reference_timestep", "first_frame_fill"} & config.keys()
    keys = load_file(tmp_path / WEIGHTS_NAME).keys()
    assert not [key for key in keys if "expert" in key]
    assert sum("_mot_ref" in key for key in keys) > 20


@each_family
@torch.no_grad()
def test_a_loaded_model_computes_the_same(make: Make, tmp_path: Path) -> None:
    model = make(expert_blocks=[0, 1])
    save_merged(model, tmp_path)
    loaded = load_merged(tmp_path, torch.float32)
    results = []
    for given in (model, loaded):
        if make is make_wan:
            arguments, reference = wan_factories.make_target(), wan_factories.make_reference()
        else:
            arguments, reference = cogvideox_factories.make_target(given), cogvideox_factories.make_reference()
        results.append(given(**arguments, reference=reference).sample)
    assert torch.equal(*results)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_precision_is_that_which_diffusers_gives(tmp_path: Path) -> None:
    save_merged(make_wan().to(torch.float16), tmp_path)
    loaded = load_merged(tmp_path, torch.bfloat16)
    stock = WAN.transformer.backbone_class._keep_in_fp32_modules
    for key, tensor in loaded.state_dict().items():
        twin = WAN.keys.to_backbone_key(key) if WAN.keys.is_expert_key(key) else key
        expected = torch.float32 if set(stock) & set(twin.split(".")) else torch.bfloat16
        assert tensor.dtype == expected, key
    assert loaded.blocks[0].expert.modulation.scale_shift_table.dtype == torch.float32
    assert loaded.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float16 for tensor in load_merged(tmp_path).state_dict().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing: blocks\.1\.attn1_mot_ref\.to_k\.weight"),
        ("extra", r"1 not expected: blocks\.1\.surplus_mot_ref\.bias"),
        ("shape", r"1 of another shape: blocks\.1\.attn1_mot_ref\.to_k\.weight \(3, 3\) instead of \(48, 48\)"),
        ("backbone", r"3 missing: blocks\.\{0-2\}\.ffn\.net\.2\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named_officially(tmp_path: Path, change: str, message: str) -> None:
    save_merged(make_wan(), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    key = "blocks.1.attn1_mot_ref.to_k.weight"
    if change == "missing":
        del tensors[key]
    elif change == "extra":
        tensors["blocks.1.surplus_mot_ref.bias"] = torch.zeros(1)
    elif change == "shape":
        tensors[key] = torch.zeros(3, 3)
    else:
        tensors = {key: value for key, value in tensors.items() if not key.endswith("ffn.net.2.bias")}
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ModelError, match=message) as caught:
        load_merged(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "WanTransformer3DModel"}, "expected a WanTransformer3DMOTModel or CogVideoX.*names WanTransf"),
        ({"_class_name": "SomethingElse"}, "names SomethingElse; give a released folder"),
        ({"attention_head_dim_mot_ref": 64}, "heads have a size of their own .*64.*not supported"),
        ({"reference_train_mode": "reference_independent"}, "an output of its own .*reference_independent"),
        ({"supported_effect_types": ["melt"]}, "learned embeddings of named effects .*melt"),
        ({"num_ref_embeddings": 3}, "learned embeddings of the references' places"),
        ({"ablation_single_encoder": True}, "ablation_single_encoder = true.*not supported"),
        ({"ablation_residual_addition": True}, "ablation_residual_addition = true.*not supported"),
        ({"block_idx_with_mot_ref": "absent"}, "expected block_idx_with_mot_ref.*40 blocks, this one has 3; add it"),
        ({"block_idx_with_mot_ref": [0, 9]}, r"config\.json does not describe a whole model: .*within 0\.\.2"),
        ({"block_idx_with_mot_ref": "all"}, "expected a list of numbers of blocks as block_idx_with_mot_ref"),
        ({"block_idx_with_mot_ref": [0]}, r"not expected: blocks\.\{1-2\}\.attn1_mot_ref"),
        ({"num_layers": "three"}, "does not describe a WanVideoAsPromptTransformer"),
        ({"ffn_dim": 65}, "of another shape"),
    ],
)
def test_configurations_that_do_not_fit_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_merged(make_wan(), tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_merged(tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_that_are_not_known_are_told_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_merged(make_wan(), tmp_path)
    change_config(tmp_path, colour="red", unused=None)
    with caplog.at_level(logging.WARNING):
        load_merged(tmp_path)
    assert 'not known here and are ignored: colour = "red"' in caplog.text
    assert "unused" not in caplog.text


@pytest.mark.parametrize("known", [WAN, COGVIDEOX])
def test_without_a_list_the_released_blocks_carry_experts(
    known: TransformerFormat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = list(known.released_expert_blocks)
    make = make_wan if known is WAN else make_cogvideox
    save_merged(make(num_layers=known.released_num_layers, expert_blocks=blocks), tmp_path)
    change_config(tmp_path, block_idx_with_mot_ref="absent")
    with caplog.at_level(logging.WARNING):
        assert open_merged(tmp_path).settings["expert_blocks"] == blocks
    assert f"taken to be those of the released model: {blocks}" in caplog.text


def test_weights_may_have_another_name_and_the_config_no_class(tmp_path: Path) -> None:
    model = make_wan()
    save_merged(model, tmp_path)
    (tmp_path / WEIGHTS_NAME).rename(tmp_path / "weights.safetensors")
    change_config(tmp_path, _class_name="absent")
    assert equal(load_merged(tmp_path, stems=("weights",)).state_dict(), model.state_dict())
    with pytest.raises(ModelError, match="it has neither"):
        load_merged(tmp_path)


def test_what_a_released_folder_cannot_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a model with attention_mode = joint, .*, got cached"):
        save_merged(wan_factories.make_transformer(reference_timestep=1.0), tmp_path)
    with pytest.raises(ModelError, match=r"reference_timestep = 1\.0, .*, got 5\.0"):
        official_config(wan_factories.make_transformer(attention_mode="joint", reference_timestep=5.0))
    with pytest.raises(ModelError, match="expected a WanVideoAsPromptTransformer or CogVideoX"):
        save_merged(wan_factories.make_backbone(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_kind_of_a_configuration_is_told() -> None:
    assert format_of_config({"_class_name": "CogVideoXTransformer3DModel"}) is COGVIDEOX
    assert format_of_config({"_class_name": "Other", "added_kv_proj_dim": 3}) is None
    assert format_of_config({"added_kv_proj_dim": None}) is WAN
    assert format_of_config({"max_text_seq_length": 226}) is COGVIDEOX
    assert format_of_config({}) is None
    assert format_of_model(make_cogvideox()) is COGVIDEOX


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
    save_merged(stored.skeleton, tmp_path / "merged", "20KB", stored.tensors)
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
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        save_merged(make_wan(), tmp_path / "file" / "below")
