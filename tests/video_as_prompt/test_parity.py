"""The check of parity on vectors made here, and on the official ones where they are beside the project."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sememe.errors import InputError, ModelError
from sememe.video_as_prompt.parity import check_parity
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.transformer_files import official_config
from video_as_prompt import cogvideox_factories, wan_factories

OFFICIAL = Path(__file__).parents[2].parent / "shared" / "parity"


def write_vectors(
    folder: Path, model: Any, target: dict[str, Any], reference: ReferenceInputs, frame_axis: int
) -> None:
    """A forward pass of a tiny two-way model, written as the official one would be."""
    config = official_config(model)
    del config["_class_name"]
    (folder / "config.json").write_text(json.dumps(config))
    names = model.key_map
    named = {
        names.to_official_key(key) if names.is_expert_key(key) else key: tensor.clone()
        for key, tensor in model.state_dict().items()
    }
    save_file(named, folder / "weights.safetensors")
    inputs = {name: value for name, value in target.items() if isinstance(value, torch.Tensor)} | {
        "hidden_states_mot_ref": torch.cat(reference.latents, dim=frame_axis),
        "encoder_hidden_states_mot_ref": torch.cat(reference.text_embeds, dim=1),
    }
    save_file(inputs, folder / "inputs.safetensors")
    with torch.no_grad():
        sample = model(**target, reference=reference).sample
    save_file({"sample": sample}, folder / "outputs.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Vectors of Wan."""
    model = wan_factories.make_transformer(attention_mode="joint", expert_blocks=[0, 2], reference_timestep=1.0)
    target, reference = wan_factories.make_target(batch_size=1), wan_factories.make_reference(batch_size=1)
    write_vectors(tmp_path, model, target, reference, frame_axis=2)
    return tmp_path


def test_equal_is_ok(folder: Path) -> None:
    assert check_parity(folder).to_document() == {
        "kind": "forward",
        "family": "wan",
        "max_abs_error": 0.0,
        "tolerance": 1e-4,
        "ok": True,
    }


def test_the_references_timestep_may_be_another_than_the_released(folder: Path) -> None:
    inputs = load_file(folder / "inputs.safetensors")
    save_file(inputs | {"timestep_mot_ref": torch.tensor([1.0])}, folder / "inputs.safetensors")
    assert check_parity(folder).ok
    save_file(inputs | {"timestep_mot_ref": torch.tensor([700.0])}, folder / "inputs.safetensors")
    assert not check_parity(folder).ok
    save_file(inputs | {"timestep_mot_ref": torch.tensor([1.0, 2.0])}, folder / "inputs.safetensors")
    with pytest.raises(InputError, match="one timestep for all references"):
        check_parity(folder)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [{}, cogvideox_factories.LEARNED, cogvideox_factories.GROUPED])
def test_cogvideox_with_several_references(tmp_path: Path, kind: dict[str, Any], count: int) -> None:
    model = cogvideox_factories.make_transformer(expert_blocks=[0, 1], reference_timestep=None, **kind)
    target = cogvideox_factories.make_target(model, num_frames=4)
    reference = cogvideox_factories.make_reference(num_frames=(4,) * count)
    write_vectors(tmp_path, model, target, reference, frame_axis=1)
    result = check_parity(tmp_path)
    assert (result.kind, result.family, result.max_abs_error) == ("forward", "cogvideox", 0.0)

    inputs = load_file(tmp_path / "inputs.safetensors")
    name = "hidden_states_mot_ref" if count > 1 else "encoder_hidden_states_mot_ref"
    save_file(inputs | {name: inputs[name][:, 1:].contiguous()}, tmp_path / "inputs.safetensors")
    with pytest.raises(InputError, match="captions of 5 tokens"):
        check_parity(tmp_path)


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
    with pytest.raises(ModelError, match=r"1 not expected: blocks\.0\.extra_mot_ref"):
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
    (folder / "weights.safetensors").write_bytes(b"nothing")
    config = {"added_kv_proj_dim": None, "block_idx_with_mot_ref": [0], "num_layers": 1, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no safetensors file"):
        check_parity(folder)
    (folder / "inputs.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        check_parity(folder)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the parity vectors are not beside the project")
def test_the_official_vectors() -> None:
    for name in ("wan", "cogvideox", "cogvideox_2refs_cropped"):
        result = check_parity(OFFICIAL / name)
        assert result.family == name.split("_", maxsplit=1)[0]
        assert result.max_abs_error < 1e-5
    for name in ("pipeline_wan", "pipeline_cogvideox"):
        result = check_parity(OFFICIAL / name)
        assert (result.kind, result.ok) == ("pipeline", True)
