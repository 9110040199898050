"""Names of the tensors of an expert on Wan: ours, those of the released checkpoint, and those of the backbone's twins.

So `blocks.3.expert.projection.to_q.bias` is `blocks.3.attn1_mot_ref.to_q.bias` there.
"""

from sememe.video_as_prompt.keys import KeyMap

WAN_KEYS = KeyMap(
    blocks="blocks",
    embedders=("patch_embedding", "condition_embedder"),
    parts=(
        ("modulation.scale_shift_table", "scale_shift_table"),
        ("projection.to_q.", "attn1.to_q."),
        ("projection.to_k.", "attn1.to_k."),
        ("projection.to_v.", "attn1.to_v."),
        ("projection.norm_q.", "attn1.norm_q."),
        ("projection.norm_k.", "attn1.norm_k."),
        ("output.to_out.", "attn1.to_out."),
        ("output.norm2.", "norm2."),
        ("output.attn2.", "attn2."),
        ("output.ffn.", "ffn."),
    ),
)

is_expert_key = WAN_KEYS.is_expert_key
is_official_expert_key = WAN_KEYS.is_official_expert_key
to_backbone_key = WAN_KEYS.to_backbone_key
to_official_key = WAN_KEYS.to_official_key
from_official_key = WAN_KEYS.from_official_key
