"""Names of expert tensors, ours and released."""

import pytest

from sememe.video_as_prompt.expert_files import WAN_KEYS
from video_as_prompt.wan_factories import make_transformer

SPOT_CHECKS = {
    "blocks.2.expert.projection.to_q.weight": "blocks.2.attn1_mot_ref.to_q.weight",
    "blocks.2.expert.projection.norm_k.weight": "blocks.2.attn1_mot_ref.norm_k.weight",
    "blocks.2.expert.output.to_out.0.bias": "blocks.2.attn1_mot_ref.to_out.0.bias",
    "blocks.2.expert.output.attn2.add_k_proj.bias": "blocks.2.attn2_mot_ref.add_k_proj.bias",
    "blocks.2.expert.output.norm2.bias": "blocks.2.norm2_mot_ref.bias",
    "blocks.2.expert.output.ffn.net.0.proj.weight": "blocks.2.ffn_mot_ref.net.0.proj.weight",
    "blocks.2.expert.modulation.scale_shift_table": "blocks.2.scale_shift_table_mot_ref",
    "expert_embedder.patch_embedding.bias": "patch_embedding_mot_ref.bias",
    "expert_embedder.condition_embedder.time_proj.bias": "condition_embedder_mot_ref.time_proj.bias",
}


def test_the_map_is_a_bijection_on_every_expert_tensor() -> None:
    model = make_transformer(expert_blocks=[0, 2], image_dim=20, added_kv_proj_dim=48)
    tensors = model.state_dict()
    own = {key for key in tensors if WAN_KEYS.is_expert_key(key)}
    official = {WAN_KEYS.to_official_key(key) for key in own}
    assert len(official) == len(own)
    assert all(WAN_KEYS.is_official_expert_key(key) for key in official)
    assert {WAN_KEYS.from_official_key(key) for key in official} == own
    for key in own:
        assert WAN_KEYS.from_official_key(WAN_KEYS.to_official_key(key)) == key
        # The released rule: the suffix stripped, it is the backbone's twin, of the same shape.
        assert WAN_KEYS.to_official_key(key).replace("_mot_ref", "") == WAN_KEYS.to_backbone_key(key)
        assert tensors[WAN_KEYS.to_backbone_key(key)].shape == tensors[key].shape


@pytest.mark.parametrize(("own", "official"), SPOT_CHECKS.items())
def test_released_names(own: str, official: str) -> None:
    assert WAN_KEYS.to_official_key(own) == official
    assert WAN_KEYS.from_official_key(official) == own


def test_what_is_no_expert_tensor_is_refused() -> None:
    for key in ("blocks.2.attn1.to_q.weight", "proj_out.weight", "rope.freqs_cos"):
        assert not WAN_KEYS.is_expert_key(key)
        assert not WAN_KEYS.is_official_expert_key(key)
        with pytest.raises(KeyError):
            WAN_KEYS.to_official_key(key)
    for key in ("blocks.2.attn1.to_q.weight", "proj_out_mot_ref.weight", "scale_shift_table_mot_ref"):
        with pytest.raises(KeyError):
            WAN_KEYS.from_official_key(key)
