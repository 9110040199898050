"""Names of an expert's tensors: ours, those of the released checkpoints, and those of the backbone's twins.

In a released checkpoint every expert tensor has the name of its twin in the backbone, with `_mot_ref` appended to one
component of the path. The twin is also the tensor from which the expert's is initialised.
"""

from dataclasses import dataclass

_SUFFIX = "_mot_ref"
_EMBEDDER = "expert_embedder."


@dataclass(frozen=True)
class KeyMap:
    """The names on one kind of backbone.

    Attributes:
        blocks: Name of its list of blocks.
        embedders: Modules at its top that have a twin in the expert.
        parts: Pairs of a path inside our expert of a block and the path inside the backbone's block, each a prefix
            that ends at a dot or a name.
    """

    blocks: str
    embedders: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]

    def is_expert_key(self, key: str) -> bool:
        """Return whether a key of our state dict belongs to the expert."""
        return key.startswith(_EMBEDDER) or self._split(key)[1].startswith("expert.")

    def is_official_expert_key(self, key: str) -> bool:
        """Return whether a key of a released checkpoint belongs to the expert."""
        return any(part.endswith(_SUFFIX) for part in key.split("."))

    def to_backbone_key(self, key: str) -> str:
        """Return the backbone's twin of one of our expert keys.

        So `blocks.3.expert.projection.to_q.bias` gives `blocks.3.attn1.to_q.bias`.

        Raises:
            KeyError: `key` names no expert tensor.
        """
        if key.startswith(_EMBEDDER):
            return key.removeprefix(_EMBEDDER)
        block, path = self._split(key)
        for own, stock in self.parts:
            if path.startswith("expert." + own):
                return block + stock + path.removeprefix("expert." + own)
        raise KeyError(key)

    def to_official_key(self, key: str) -> str:
        """Return the name in a released checkpoint of one of our expert keys.

        Raises:
            KeyError: `key` names no expert tensor.
        """
        twin = self.to_backbone_key(key).split(".")
        twin[2 if twin[0] == self.blocks else 0] += _SUFFIX
        return ".".join(twin)

    def from_official_key(self, key: str) -> str:
        """Return our name of an expert tensor of a released checkpoint.

        Raises:
            KeyError: `key` names no expert tensor that this model has.
        """
        if self.is_official_expert_key(key):
            twin = ".".join(part.removesuffix(_SUFFIX) for part in key.split("."))
            own = self._from_backbone_key(twin)
            if own is not None and self.to_official_key(own) == key:
                return own
        raise KeyError(key)

    def _from_backbone_key(self, key: str) -> str | None:
        if key.split(".", maxsplit=1)[0] in self.embedders:
            return _EMBEDDER + key
        block, path = self._split(key)
        for own, stock in self.parts:
            if block and path.startswith(stock):
                return f"{block}expert.{own}{path.removeprefix(stock)}"
        return None

    def _split(self, key: str) -> tuple[str, str]:
        """Return a block's prefix, such as `blocks.3.`, and the path inside it; both are empty outside the blocks."""
        parts = key.split(".", 2)
        if len(parts) == 3 and parts[0] == self.blocks and parts[1].isdecimal():
            return f"{parts[0]}.{parts[1]}.", parts[2]
        return "", ""


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
"""So `blocks.3.expert.projection.to_q.bias` is `blocks.3.attn1_mot_ref.to_q.bias` in a released checkpoint."""

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
"""The learned positions are a tensor of the patch embedding, and each stream has its own."""
