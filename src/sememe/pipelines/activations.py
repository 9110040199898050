"""What a forward holds in memory at its peak, by counting the tensors that are alive together.

A block of a video transformer holds a few tensors of (token, dim) and two of (token, feed-forward width); nothing grows
with the square of the number of tokens, because attention is computed in tiles. So a peak is

    tokens x dim x bytes per number x tensors alive,

and the work is to count those. Each function below lists a moment of a block and what is alive in it; the peak is that
of the worst moment. Masks, modulations, texts within a forward and scratch space of kernels are small and left out.
The counts are those of the code in `sememe.video_as_prompt`, and tests compare them with measured peaks: who changes
what a block keeps alive changes them here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Reading = Literal["none", "joint", "cached"]
"""How a target reads its reference in a forward: not at all, two-way, or from its keys and values."""

_FLOAT32 = 4


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a transformer with experts.

    Attributes:
        family: `wan` or `cogvideox`.
        dim: of a token.
        ffn_dim: width of the feed-forward.
        head_dim: of an attention head, which the rotary tables have.
        num_layers: blocks.
        expert_blocks: those with an expert, in order.
        patch_size: latent frames, rows and columns of a token.
    """

    family: str
    dim: int
    ffn_dim: int
    head_dim: int
    num_layers: int
    expert_blocks: tuple[int, ...]
    patch_size: tuple[int, int, int]

    @classmethod
    def from_config(cls, family: str, config: Mapping[str, Any]) -> "TransformerShape":
        """Reads the sizes of one of our transformers' configuration."""
        dim, patch = config["num_attention_heads"] * config["attention_head_dim"], config["patch_size"]
        is_wan = family == "wan"
        return cls(
            family=family,
            dim=dim,
            ffn_dim=config["ffn_dim"] if is_wan else 4 * dim,
            head_dim=config["attention_head_dim"],
            num_layers=config["num_layers"],
            expert_blocks=tuple(config["expert_blocks"]),
            patch_size=tuple(patch) if is_wan else (config["patch_size_t"] or 1, patch, patch),
        )

    def count_tokens(self, num_latent_frames: int, height: int, width: int) -> int:
        """Tokens of latents of this size."""
        frames, rows, columns = self.patch_size
        return (num_latent_frames // frames) * (height // rows) * (width // columns)


@dataclass(frozen=True)
class TokenCounts:
    """Tokens in one forward.

    Attributes:
        target: of the video, for each entry of the batch.
        reference: of all references of an entry together.
        text: of the prompt, with those of pictures.
        captions: of all references' captions together, with those of pictures.
    """

    target: int
    reference: int = 0
    text: int = 0
    captions: int = 0


def forward_bytes(
    shape: TransformerShape,
    counts: TokenCounts,
    number_bytes: int,
    reading: Reading,
    *,
    batch_size: int = 1,
    own_forward: bool = False,
) -> int:
    """The peak of one forward: what it allocates, without weights, inputs and the reference's record.

    Args:
        shape: of the transformer.
        counts: tokens.
        number_bytes: of a number in the precision that computes, 2 or 4.
        reading: how the reference is read.
        batch_size: entries that share the forward.
        own_forward: whether a forward without reference takes the way of those with one, as kept texts make it.
    """
    counter = _WanBlocks if shape.family == "wan" else _CogVideoXBlocks
    blocks = counter(shape, counts, number_bytes)
    if reading == "none":
        tensors = blocks.stock() + (blocks.held if own_forward else 0.0)
    else:
        tensors = blocks.joint() if reading == "joint" else blocks.cached()
    tables = 2 * counts.target * shape.head_dim * _FLOAT32 if shape.family == "wan" else 0
    return int(batch_size * tensors * shape.dim * number_bytes) + tables


def encode_bytes(shape: TransformerShape, counts: TokenCounts, number_bytes: int, batch_size: int = 1) -> int:
    """The peak of `encode_reference`, in which an expert runs alone; the keys and values so far are part of it."""
    counter = _WanBlocks if shape.family == "wan" else _CogVideoXBlocks
    tensors = counter(shape, counts, number_bytes).encode()
    tables = 2 * counts.reference * shape.head_dim * _FLOAT32
    return int(batch_size * tensors * shape.dim * number_bytes) + tables


def record_bytes(
    shape: TransformerShape, counts: TokenCounts, number_bytes: int, reading: Reading, batch_size: int = 1
) -> int:
    """What is kept of the references from their encoding to the last step.

    Two-way: their tokens, positions, and the projected captions. One-way: keys and values of every expert. CogVideoX
    attends to captions as to videos, and its embedder's result, of which the captions are a part, stays as a whole.
    """
    tables = 2 * counts.reference * shape.head_dim * _FLOAT32
    if reading == "none":
        return 0
    tokens = counts.reference + (counts.captions if shape.family == "cogvideox" else 0)
    if reading == "cached":
        return 2 * len(shape.expert_blocks) * tokens * shape.dim * number_bytes * batch_size
    copies = 2 if shape.family == "cogvideox" else 1
    numbers = copies * tokens
    if shape.family == "wan":
        numbers += counts.captions
    return numbers * shape.dim * number_bytes * batch_size + tables


def text_bytes(
    shape: TransformerShape, counts: TokenCounts, number_bytes: int, reading: Reading, *, num_texts: int
) -> int:
    """Keys and values of the prompts, and of captions that are read two-way, where they are kept over the steps."""
    if shape.family != "wan":
        return 0
    prompts = num_texts * shape.num_layers * counts.text
    captions = (len(shape.expert_blocks) - 1) * counts.captions if reading == "joint" else 0
    return 2 * (prompts + captions) * shape.dim * number_bytes


class _WanBlocks:
    """Tensors of (token, dim) alive at the worst moment of Wan's blocks.

    The forward itself holds the patches and the first block's tokens throughout (`held`).
    """

    def __init__(self, shape: TransformerShape, counts: TokenCounts, number_bytes: int) -> None:
        self.experts: Sequence[int] = shape.expert_blocks
        self.target: float = counts.target
        self.reference: float = counts.reference
        self.both = self.target + self.reference
        self.wide = shape.ffn_dim / shape.dim
        # A copy in float32, counted in tensors of the computing precision; none is made where that is float32.
        self.float32 = _FLOAT32 / number_bytes
        self.copy = 0.0 if number_bytes == _FLOAT32 else self.float32

    @property
    def held(self) -> float:
        return 2 * self.target

    def stock(self) -> float:
        """Block input, result of the self-attention, norm, cross-attention; then the feed-forward or the last sum."""
        forward = 2 * self.wide
        final = 1 + max(2 * self.copy + self.float32, self.copy + 2 * self.float32)
        # Queries, keys, values and heads stand beside the input and its norm.
        return self.target * max(4 + max(forward, final), 6)

    def cached(self) -> float:
        places = [self.held + (self.target if index else 0) for index in self.experts]
        around = max(places) + self.target  # the norm before the attention stays to the block's end
        attention = around + 3 * self.target + 2 * self.both + self.target
        return max(attention, around + self.target + self._finish(self.target), self.held + self.stock())

    def joint(self) -> float:
        """In the attention, then while the target's stream is finished, then while the reference's is."""
        worst = self.held + self.stock()
        for place, index in enumerate(self.experts):
            is_last = place == len(self.experts) - 1
            held = self._held_before(place, index)
            projected = (2 if is_last else 3) * self.reference
            heads = self.target if is_last else self.both
            around = held + self.both + projected + self.target
            joined = (2 if is_last else 3) * self.both
            worst = max(worst, around + 3 * self.target + joined + heads)
            worst = max(worst, around + heads + self._finish(self.target))
            if not is_last:
                # The target's result, the heads of both, and the projected heads of the reference.
                worst = max(worst, around + self.target + heads + self.reference + self._finish(self.reference))
        return worst

    def encode(self) -> float:
        """The worst expert is the last but one: behind it lie the keys and values of all before it."""
        alone = len(self.experts) - 2
        if alone < 0:
            return 6 * self.reference
        first = 1 if alone else 0
        kept = 1 + first + 2 * alone
        return (kept + 3 + 2) * self.reference + self._finish(self.reference)

    def _held_before(self, place: int, index: int) -> float:
        """The two first tensors; what the last expert returned; and the target's tokens if another block came since."""
        is_apart = index > 0 and (place == 0 or index - 1 not in self.experts)
        return self.held + (self.both if place else 0) + (self.target if is_apart else 0)

    def _finish(self, tokens: float) -> float:
        """Sum, queries, what they read, and norm; then the feed-forward beside a float32 copy of the sum."""
        return tokens * (4 + max(self.copy + 2 * self.wide, 3 * self.float32))


class _CogVideoXBlocks(_WanBlocks):
    """The same for CogVideoX, where a stream's text is part of its tokens and the first tokens alone are held."""

    def __init__(self, shape: TransformerShape, counts: TokenCounts, number_bytes: int) -> None:
        super().__init__(shape, counts, number_bytes)
        self.target = counts.target + counts.text
        self.reference = counts.reference + counts.captions
        self.both = self.target + self.reference

    @property
    def held(self) -> float:
        return self.target

    def stock(self) -> float:
        """Feed-forward, or the rotation of a query in float32 beside both norms and three projections."""
        return self.target * max(4 + 2 * self.wide, 7 + 3 * self.float32)

    def cached(self) -> float:
        around = self.held + (self.target if max(self.experts) else 0)
        attention = around + self.target + 3 * self.target + 2 * self.both + self.target
        return max(attention, around + self.target + self._finish(self.target), self.held + self.stock())

    def joint(self) -> float:
        worst = self.held + self.stock()
        for place, index in enumerate(self.experts):
            is_last = place == len(self.experts) - 1
            projected = (2 if is_last else 3) * self.reference
            heads = self.target if is_last else self.both
            around = self._held_before(place, index) + self.both + projected
            joined = (2 if is_last else 3) * self.both
            worst = max(worst, around + self.target + 3 * self.target + joined + heads)
            worst = max(worst, around + heads + self._finish(self.target))
            if not is_last:
                worst = max(worst, around + self.target + heads + self.reference + self._finish(self.reference))
        return worst

    def encode(self) -> float:
        # The embedder's result and its copy without captions.
        return super().encode() + self.reference

    def _finish(self, tokens: float) -> float:
        """Sum, norms of text and video, both joined, and the feed-forward."""
        return tokens * (3 + 2 * self.wide)
