"""Expert and backbone on CogVideoX in their own folders: what is written comes back, what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file

from sememe.checkpoints.tensor_files import WEIGHTS_NAME
from sememe.errors import ModelError
from sememe.video_as_prompt.expert_files import COGVIDEOX_KEYS
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from video_as_prompt import wan_factories
from video_as_prompt.cogvideox_factories import (
    LEARNED,
    SINES,
    make_backbone,
    make_reference,
    make_target,
    make_transformer,
)


@pytest.mark.parametrize("kind", [{}, LEARNED, SINES])
@pytest.mark.parametrize("timestep", [None, 3.0])
@torch.no_grad()
def test_round_trip_through_two_folders(tmp_path: Path, kind: dict[str, Any], timestep: float | None) -> None:
    model = make_transformer(expert_blocks=[0, 1], reference_timestep=timestep, **kind)
    target = make_target(model)
    expected = model(**target, reference=make_reference()).sample
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")

    assert all(COGVIDEOX_KEYS.is_expert_key(key) for key in load_file(tmp_path / "expert" / WEIGHTS_NAME))
    stock = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert torch.equal(stock(**target).sample, make_backbone(**kind)(**target).sample)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "CogVideoXTransformer3DModel"

    loaded = CogVideoXVideoAsPromptTransformer.from_folders(tmp_path / "transformer", tmp_path / "expert")
    assert not loaded.training
    assert loaded.config.expert_blocks == [0, 1]
    assert loaded.config.reference_timestep == timestep
    assert torch.equal(loaded(**target, reference=make_reference()).sample, expected)


def test_precision_follows_the_backbone(tmp_path: Path) -> None:
    model = make_transformer(**LEARNED)
    model.save_backbone(tmp_path / "transformer")
    model.save_expert(tmp_path / "expert")
    loaded = CogVideoXVideoAsPromptTransformer.from_folders(
        tmp_path / "transformer", tmp_path / "expert", torch_dtype=torch.bfloat16
    )
    for name, parameter in loaded.expert_named_parameters():
        assert parameter.dtype == torch.bfloat16, name


def test_an_expert_for_another_backbone_is_refused(tmp_path: Path) -> None:
    model = make_transformer()
    model.save_expert(tmp_path / "expert")
    with pytest.raises(ModelError, match="max_text_seq_length = 5, but the model at hand has 6"):
        make_transformer(max_text_seq_length=6).load_expert(tmp_path / "expert")
    wan_factories.make_transformer().save_expert(tmp_path / "wan")
    with pytest.raises(ModelError, match="expected to hold a CogVideoXVideoAsPromptExpert"):
        model.load_expert(tmp_path / "wan")
    with pytest.raises(ModelError, match="expected to hold a WanVideoAsPromptExpert"):
        wan_factories.make_transformer().load_expert(tmp_path / "expert")
