"""The transformer against what the official implementation computed with the same weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sememe.video_as_prompt.expert_files import WAN_KEYS
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs

FOLDER = Path(__file__).parents[2].parent / "shared" / "parity" / "wan"


@pytest.mark.skipif(not FOLDER.exists(), reason="the parity vectors are not beside the project")
@torch.no_grad()
def test_two_way_forward_equals_the_official_one() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    given = load_file(FOLDER / "inputs.safetensors")
    model = WanVideoAsPromptTransformer(
        expert_blocks=config.pop("block_idx_with_mot_ref"),
        attention_mode="joint",
        reference_timestep=given["timestep_mot_ref"].item(),
        **config,
    ).eval()
    weights = load_file(FOLDER / "weights.safetensors")
    model.load_state_dict(
        {
            WAN_KEYS.from_official_key(key) if WAN_KEYS.is_official_expert_key(key) else key: tensor
            for key, tensor in weights.items()
        }
    )
    sample = model(
        given["hidden_states"],
        given["timestep"],
        given["encoder_hidden_states"],
        given["encoder_hidden_states_image"],
        reference=ReferenceInputs(
            (given["hidden_states_mot_ref"],),
            (given["encoder_hidden_states_mot_ref"],),
            (given["encoder_hidden_states_image_mot_ref"],),
        ),
    ).sample
    assert (sample - load_file(FOLDER / "outputs.safetensors")["sample"]).abs().max() < 1e-5
