"""Names of expert tensors on CogVideoX, ours and released."""

from typing import Any

import pytest

from sememe.video_as_prompt.expert_files import COGVIDEOX_KEYS
from video_as_prompt.cogvideox_factories import GROUPED, LEARNED, make_transformer

SPOT_CHECKS = {
    "transformer_blocks.2.expert.projection.norm1.linear.weight": "transformer_blocks.2.norm1_mot_ref.linear.weight",
    "transformer_blocks.2.expert.projection.norm1.norm.bias": "transformer_blocks.2.norm1_mot_ref.norm.bias",
    "transformer_blocks.2.expert.projection.to_q.weight": "transformer_blocks.2.attn1_mot_ref.to_q.weight",
    "transformer_blocks.2.expert.projection.norm_k.bias": "transformer_blocks.2.attn1_mot_ref.norm_k.bias",
    "transformer_blocks.12.expert.output.to_out.0.bias": "transformer_blocks.12.attn1_mot_ref.to_out.0.bias",
    "transformer_blocks.2.expert.output.norm2.linear.bias": "transformer_blocks.2.norm2_mot_ref.linear.bias",
    "transformer_blocks.2.expert.output.ff.net.0.proj.weight": "transformer_blocks.2.ff_mot_ref.net.0.proj.weight",
    "expert_embedder.patch_embed.pos_embedding": "patch_embed_mot_ref.pos_embedding",
    "expert_embedder.patch_embed.text_proj.bias": "patch_embed_mot_ref.text_proj.bias",
    "expert_embedder.time_embedding.linear_1.weight": "time_embedding_mot_ref.linear_1.weight",
}


@pytest.mark.parametrize("settings", [LEARNED, GROUPED])
def test_the_map_is_a_bijection_on_every_expert_tensor(settings: dict[str, Any]) -> None:
    model = make_transformer(expert_blocks=[0, 2], **settings)
    tensors = model.state_dict()
    own = {key for key in tensors if COGVIDEOX_KEYS.is_expert_key(key)}
    official = {COGVIDEOX_KEYS.to_official_key(key) for key in own}
    assert len(official) == len(own)
    assert all(COGVIDEOX_KEYS.is_official_expert_key(key) for key in official)
    assert {COGVIDEOX_KEYS.from_official_key(key) for key in official} == own
    for key in own:
        assert COGVIDEOX_KEYS.from_official_key(COGVIDEOX_KEYS.to_official_key(key)) == key
        # The released rule: the suffix stripped, it is the backbone's twin, of the same shape.
        assert COGVIDEOX_KEYS.to_official_key(key).replace("_mot_ref", "") == COGVIDEOX_KEYS.to_backbone_key(key)
        assert tensors[COGVIDEOX_KEYS.to_backbone_key(key)].shape == tensors[key].shape


@pytest.mark.parametrize(("own", "official"), SPOT_CHECKS.items())
def test_released_names(own: str, official: str) -> None:
    assert COGVIDEOX_KEYS.to_official_key(own) == official
    assert COGVIDEOX_KEYS.from_official_key(official) == own


def test_what_is_no_expert_tensor_is_refused() -> None:
    for key in ("transformer_blocks.2.attn1.to_q.weight", "proj_out.weight", "patch_embed.pos_embedding"):
        assert not COGVIDEOX_KEYS.is_expert_key(key)
        assert not COGVIDEOX_KEYS.is_official_expert_key(key)
        with pytest.raises(KeyError):
            COGVIDEOX_KEYS.to_official_key(key)
        with pytest.raises(KeyError):
            COGVIDEOX_KEYS.from_official_key(key)
    for key in (
        "proj_out_mot_ref.weight",
        "norm_final_mot_ref.weight",
        "blocks.2.attn1_mot_ref.to_q.weight",
        "transformer_blocks.2.attn2_mot_ref.to_q.weight",
        "transformer_blocks.2.attn1.to_q_mot_ref.weight",
        "transformer_blocks_mot_ref.2.attn1.to_q.weight",
    ):
        with pytest.raises(KeyError):
            COGVIDEOX_KEYS.from_official_key(key)
