"""CogVideoX against what the official implementation computed with the same weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sememe.video_as_prompt.expert_files import COGVIDEOX_KEYS
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.rotary import cogvideox_reference_rotary, cogvideox_rotary

ROOT = Path(__file__).parents[2].parent / "shared" / "parity"
pytestmark = pytest.mark.skipif(not ROOT.exists(), reason="the parity vectors are not beside the project")


def load_official(folder: Path) -> CogVideoXVideoAsPromptTransformer:
    config = json.loads((folder / "config.json").read_text())
    model = CogVideoXVideoAsPromptTransformer(
        expert_blocks=config.pop("block_idx_with_mot_ref"), attention_mode="joint", **config
    ).eval()
    weights = load_file(folder / "weights.safetensors")
    model.load_state_dict(
        {
            COGVIDEOX_KEYS.from_official_key(key) if COGVIDEOX_KEYS.is_official_expert_key(key) else key: tensor
            for key, tensor in weights.items()
        }
    )
    return model


@pytest.mark.parametrize(("name", "count"), [("cogvideox", 1), ("cogvideox_2refs_cropped", 2)])
@torch.no_grad()
def test_two_way_forward_equals_the_official_one(name: str, count: int) -> None:
    model = load_official(ROOT / name)
    given = load_file(ROOT / name / "inputs.safetensors")
    _, num_frames, _, height, width = given["hidden_states"].shape
    reference = ReferenceInputs(
        given["hidden_states_mot_ref"].chunk(count, dim=1), given["encoder_hidden_states_mot_ref"].chunk(count, dim=1)
    )
    sample = model(
        given["hidden_states"],
        given["encoder_hidden_states"],
        given["timestep"],
        image_rotary_emb=model.rotary_tables(num_frames, height, width),
        reference=model.embed_reference(reference),
    ).sample
    assert (sample - load_file(ROOT / name / "outputs.safetensors")["sample"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["cogvideox", "cogvideox_2refs_cropped"])
def test_rotary_tables_equal_the_official_ones(name: str) -> None:
    config = load_official(ROOT / name).config
    given = load_file(ROOT / name / "inputs.safetensors")
    if "rope_cos" not in given:
        pytest.skip("these vectors hold no rotary tables")
    target, reference = given["hidden_states"].shape, given["hidden_states_mot_ref"].shape
    tables = (
        *cogvideox_rotary(config, target[1], *target[3:]),
        *cogvideox_reference_rotary(config, reference[1], *reference[3:]),
    )
    for got, official in zip(tables, ("rope_cos", "rope_sin", "rope_ref_cos", "rope_ref_sin"), strict=True):
        torch.testing.assert_close(got, given[official], atol=1e-6, rtol=0)
