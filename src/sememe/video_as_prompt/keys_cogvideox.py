"""Names of the tensors of an expert on CogVideoX: ours, the released checkpoint's, and the backbone's twins'.

So `transformer_blocks.3.expert.projection.to_q.bias` is `transformer_blocks.3.attn1_mot_ref.to_q.bias` there. The
learned positions are a tensor of the patch embedding, and each stream has its own.
"""

from sememe.video_as_prompt.keys import KeyMap

COGVIDEOX_KEYS = KeyMap(
    blocks="transformer_blocks",
    embedders=("patch_embed", "time_embedding"),
    parts=(
        ("projection.norm1.", "norm1."),
        ("projection.to_q.", "attn1.to_q."),
        ("projection.to_k.", "attn1.to_k."),
        ("projection.to_v.", "attn1.to_v."),
        ("projection.norm_q.", "attn1.norm_q."),
        ("projection.norm_k.", "attn1.norm_k."),
        ("output.to_out.", "attn1.to_out."),
        ("output.norm2.", "norm2."),
        ("output.ff.", "ff."),
    ),
)

is_expert_key = COGVIDEOX_KEYS.is_expert_key
is_official_expert_key = COGVIDEOX_KEYS.is_official_expert_key
to_backbone_key = COGVIDEOX_KEYS.to_backbone_key
to_official_key = COGVIDEOX_KEYS.to_official_key
from_official_key = COGVIDEOX_KEYS.from_official_key
