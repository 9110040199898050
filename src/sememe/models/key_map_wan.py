"""Names of the expert's tensors: ours, those of the released Wan checkpoints, and those of the backbone's twins.

A released checkpoint is one merged file set in which every expert tensor has the name of its twin in the backbone,
with `_mot_ref` appended to one component of the path. Stripping that suffix is therefore also the rule by which an
expert is initialised from the backbone.
"""

import re

_SUFFIX = "_mot_ref"
_EMBEDDERS = ("patch_embedding", "condition_embedder")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_OWN_BLOCK = re.compile(r"blocks\.(\d+)\.expert\.(.+)")

# Our path inside an expert (left) and the backbone block's path (right), each a prefix that ends at a dot or a name.
_PARTS = (
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
)


def is_expert_key(key: str) -> bool:
    """Whether a key of our state dict belongs to the expert."""
    return key.startswith("expert_embedder.") or _OWN_BLOCK.match(key) is not None


def is_official_expert_key(key: str) -> bool:
    """Whether a key of a released checkpoint belongs to the expert."""
    return any(part.endswith(_SUFFIX) for part in key.split("."))


def to_backbone_key(key: str) -> str:
    """The backbone's twin of one of our expert keys.

    So `blocks.3.expert.projection.to_q.bias` gives `blocks.3.attn1.to_q.bias`.

    Raises:
        KeyError: where `key` names no expert tensor.
    """
    if key.startswith("expert_embedder."):
        return key.removeprefix("expert_embedder.")
    match = _OWN_BLOCK.fullmatch(key)
    if match:
        for own, stock in _PARTS:
            if match[2].startswith(own):
                return f"blocks.{match[1]}.{stock}{match[2].removeprefix(own)}"
    raise KeyError(key)


def to_official_key(key: str) -> str:
    """The name in a released checkpoint of one of our expert keys.

    Raises:
        KeyError: where `key` names no expert tensor.
    """
    twin = to_backbone_key(key).split(".")
    component = 2 if twin[0] == "blocks" else 0
    twin[component] += _SUFFIX
    return ".".join(twin)


def from_official_key(key: str) -> str:
    """Our name of an expert tensor of a released checkpoint.

    Raises:
        KeyError: where `key` names no expert tensor that this model has.
    """
    if is_official_expert_key(key):
        twin = ".".join(part.removesuffix(_SUFFIX) for part in key.split("."))
        if twin.split(".")[0] in _EMBEDDERS:
            return f"expert_embedder.{twin}"
        match = _BLOCK.fullmatch(twin)
        for own, stock in _PARTS if match else ():
            if match and match[2].startswith(stock):
                return f"blocks.{match[1]}.expert.{own}{match[2].removeprefix(stock)}"
    raise KeyError(key)
