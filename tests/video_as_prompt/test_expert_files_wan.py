"""Expert and backbone in their own folders: what is written comes back, what does not fit is named."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from sememe.checkpoints.tensor_files import INDEX_NAME, WEIGHTS_NAME
from sememe.errors import ModelError
from sememe.video_as_prompt.expert_files import WAN_KEYS
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from video_as_prompt.wan_factories import make_backbone, make_reference, make_target, make_transformer


@torch.no_grad()
def test_round_trip_through_two_folders(tmp_path: Path) -> None:
    model = make_transformer(expert_blocks=[0, 2], reference_timestep=3.0)
    expected = model(**make_target(), reference=make_reference()).sample
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")

    assert all(WAN_KEYS.is_expert_key(key) for key in load_file(tmp_path / "expert" / WEIGHTS_NAME))
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert torch.equal(stock(**make_target()).sample, make_backbone()(**make_target()).sample)
    assert json.loads((tmp_path / "transformer" / "config.json").read_text())["_class_name"] == "WanTransformer3DModel"

    loaded = WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")
    assert not loaded.training
    assert loaded.config.expert_blocks == [0, 2]
    assert loaded.config.reference_timestep == 3.0
    assert torch.equal(loaded(**make_target(), reference=make_reference()).sample, expected)


def test_shards_are_written_and_read(tmp_path: Path) -> None:
    model = make_transformer()
    model.save_expert(tmp_path)
    model.save_expert(tmp_path, max_shard_size=100_000)
    assert (tmp_path / INDEX_NAME).exists()
    assert not (tmp_path / WEIGHTS_NAME).exists()
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    other = make_transformer(seed=5)
    other.load_expert(tmp_path)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*map(expert_tensors, (model, other)), strict=True))
    # Back in one file: no shard and no index may stay behind.
    model.save_expert(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS_NAME]


def expert_tensors(model: WanVideoAsPromptTransformer) -> list[tuple[str, torch.nn.Parameter]]:
    return model.expert_named_parameters()


def test_precision_follows_the_backbone(tmp_path: Path) -> None:
    model = make_transformer()
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")
    loaded = WanVideoAsPromptTransformer.from_folders(
        tmp_path / "transformer", tmp_path / "expert", torch_dtype=torch.bfloat16
    )
    expert = loaded.blocks[0].expert
    assert expert.projection.to_q.weight.dtype == torch.bfloat16
    # diffusers keeps these in float32, and so must the expert's.
    assert loaded.blocks[0].scale_shift_table.dtype == torch.float32
    assert expert.modulation.scale_shift_table.dtype == torch.float32
    assert expert.output.norm2.weight.dtype == torch.float32


def damage(folder: Path, change: str) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    key = "blocks.1.expert.projection.to_k.weight"
    if change == "missing":
        del tensors[key]
    elif change == "extra":
        tensors["blocks.1.expert.surplus"] = torch.zeros(1)
    else:
        tensors[key] = torch.zeros(3, 3)
    save_file(tensors, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing: blocks\.1\.expert\.projection\.to_k\.weight"),
        ("extra", r"1 not expected: blocks\.1\.expert\.surplus"),
        ("shape", r"1 of another shape: blocks\.1\.expert\.projection\.to_k\.weight \(3, 3\) instead of \(48, 48\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: str, message: str) -> None:
    model = make_transformer()
    model.save_expert(tmp_path)
    before = [parameter.clone() for _, parameter in model.expert_named_parameters()]
    damage(tmp_path, change)
    with pytest.raises(ModelError, match=message):
        model.load_expert(tmp_path)
    # Nothing was half-loaded.
    assert all(torch.equal(a, b[1]) for a, b in zip(before, model.expert_named_parameters(), strict=True))


def test_backbone_folder_is_read_strictly(tmp_path: Path) -> None:
    model = make_transformer()
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")
    weights = tmp_path / "transformer" / WEIGHTS_NAME
    tensors = load_file(weights)
    proj_out = tensors.pop("proj_out.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing keys: proj_out\.weight"):
        WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")
    save_file(tensors | {"proj_out.weight": proj_out, "surplus": torch.zeros(1)}, weights, {"format": "pt"})
    with pytest.raises(ModelError, match="unexpected keys: surplus"):
        WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")
    weights.write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match="cannot be loaded"):
        WanVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")


def test_folders_that_hold_something_else_are_named(tmp_path: Path) -> None:
    model = make_transformer()
    with pytest.raises(ModelError, match=r"config\.json cannot be read|cannot be read"):
        model.load_expert(tmp_path / "absent")
    model.save_backbone(tmp_path / "transformer")
    with pytest.raises(ModelError, match="WanVideoAsPromptExpert"):
        model.load_expert(tmp_path / "transformer")
    make_transformer(expert_blocks=[0]).save_expert(tmp_path / "expert")
    with pytest.raises(ModelError, match="expert_blocks"):
        model.load_expert(tmp_path / "expert")
    (tmp_path / "expert" / WEIGHTS_NAME).unlink()
    with pytest.raises(ModelError, match="has neither"):
        make_transformer(expert_blocks=[0]).load_expert(tmp_path / "expert")
    index = {"weight_map": {"a": "../transformer/" + WEIGHTS_NAME}}
    (tmp_path / "expert" / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="files beside it"):
        make_transformer(expert_blocks=[0]).load_expert(tmp_path / "expert")
