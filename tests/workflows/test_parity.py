"""The check of parity on vectors made here, and on the official ones where they are beside the project."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.factories import make_reference, make_target, make_transformer
from sememe.errors import InputError, ModelError
from sememe.models.key_map_wan import is_expert_key, to_official_key
from sememe.workflows.parity import check_parity

OFFICIAL = Path(__file__).parents[2].parent / "shared" / "parity"
SETTINGS = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "image_dim",
    "added_kv_proj_dim",
    "rope_max_seq_len",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A forward pass of a tiny two-way model, written as the official one would be."""
    model = make_transformer(attention_mode="joint", expert_blocks=[0, 2], reference_timestep=1.0)
    target, reference = make_target(batch_size=1), make_reference(batch_size=1)
    config = {name: model.config[name] for name in SETTINGS} | {"block_idx_with_mot_ref": [0, 2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = model.state_dict()
    named = {to_official_key(key) if is_expert_key(key) else key: value.clone() for key, value in tensors.items()}
    save_file(named, tmp_path / "weights.safetensors")
    inputs = target | {
        "hidden_states_mot_ref": reference.latents[0],
        "encoder_hidden_states_mot_ref": reference.text_embeds[0],
        "timestep_mot_ref": torch.tensor([1.0]),
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    with torch.no_grad():
        sample = model(**target, reference=reference).sample
    save_file({"sample": sample}, tmp_path / "outputs.safetensors")
    return tmp_path


def test_equal_is_ok(folder: Path) -> None:
    assert check_parity(folder).to_document() == {
        "kind": "forward",
        "family": "wan",
        "max_abs_error": 0.0,
        "tolerance": 1e-4,
        "ok": True,
    }


def test_a_difference_is_measured(folder: Path) -> None:
    sample = load_file(folder / "outputs.safetensors")["sample"]
    sample[0, 0, 0, 0, 0] += 0.5
    save_file({"sample": sample}, folder / "outputs.safetensors")
    result = check_parity(folder)
    assert result.max_abs_error == pytest.approx(0.5, abs=1e-5)
    assert not result.ok
    save_file({"sample": torch.full_like(sample, torch.nan)}, folder / "outputs.safetensors")
    assert not check_parity(folder).ok


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    save_file(weights | {"blocks.0.extra_mot_ref.weight": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"no known part: blocks\.0\.extra_mot_ref"):
        check_parity(folder)
    save_file({key: value for key, value in weights.items() if key != "proj_out.bias"}, folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"1 missing: proj_out\.bias"):
        check_parity(folder)


def test_folders_that_are_no_vectors_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InputError, match="expected a folder of parity vectors"):
        check_parity(tmp_path_factory.mktemp("empty"))
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="Wan or CogVideoX transformer"):
        check_parity(folder)
    (folder / "config.json").write_text('{"added_kv_proj_dim": null, "colour": 3, "block_idx_with_mot_ref": [0]}')
    with pytest.raises(ModelError, match="colour"):
        check_parity(folder)
    (folder / "weights.safetensors").write_bytes(b"nothing")
    config = {"added_kv_proj_dim": None, "block_idx_with_mot_ref": [0], "num_layers": 1, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be read"):
        check_parity(folder)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the parity vectors are not beside the project")
def test_the_official_vectors() -> None:
    assert check_parity(OFFICIAL / "wan").ok
    for name in ("cogvideox", "cogvideox_2refs_cropped", "pipeline_wan", "pipeline_cogvideox"):
        with pytest.raises(InputError, match="not supported yet"):
            check_parity(OFFICIAL / name)
