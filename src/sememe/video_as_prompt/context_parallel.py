"""Split the token sequences of target and reference between ranks (context parallelism).

Target and reference are split separately, before they are joined, so every rank holds the same share of both.
Attention does not depend on the order of tokens and still sees all of them. Splitting the joined sequence would give
one rank the target and the other the reference. A reference's KV cache stays split. Every sequence length must be
divisible by the number of ranks, unless diffusers' `ulysses_anything` or `ring_anything` is set.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers.models._modeling_parallel import ContextParallelInput, ParallelConfig
from jaxtyping import Shaped
from torch import Tensor, nn

from sememe.errors import ModelError
from sememe.video_as_prompt.references import ReferenceCache, ReferenceTokens
from sememe.video_as_prompt.rotary import RotaryTables
from sememe.video_as_prompt.shapes import RotaryTable

SPLIT_TOKENS = {0: ContextParallelInput(split_dim=1, split_output=True)}
"""Entry of a context-parallel plan for a `TokenSplit`."""


class TokenSplit(nn.Module):
    """Identity on (batch, token, ...); diffusers' hook keeps one rank's share where the plan names this module."""

    def forward(self, tokens: Shaped[Tensor, "batch token *rest"]) -> Shaped[Tensor, "batch _ *rest"]:
        return tokens


def count_ranks(parallel_config: ParallelConfig | None) -> int:
    """Return the number of ranks that share a sequence; 1 without a configuration."""
    if parallel_config is None:
        return 1
    shares = parallel_config.context_parallel_config
    return int(shares.ring_degree * shares.ulysses_degree)


def check_ranks(reference: ReferenceTokens | ReferenceCache, parallel_config: ParallelConfig | None) -> None:
    """Raise `ModelError` for a reference that is not split among as many ranks as the model's sequences."""
    num_ranks = count_ranks(parallel_config)
    if reference.num_ranks != num_ranks:
        raise ModelError(
            f"this reference was encoded for {reference.num_ranks} rank(s), but the model now splits its tokens "
            f"among {num_ranks}; encode it again after enable_parallelism()"
        )


def split_reference(
    split: TokenSplit, reference: ReferenceTokens, num_ranks: int, *, has_text_tokens: bool
) -> ReferenceTokens:
    """Return one rank's share of every reference, and of the captions if `has_text_tokens` (they attend too)."""
    stream, lengths = reference.stream, list(reference.stream.lengths)
    shares = [split(piece) for piece in reference.hidden_states.split(lengths, dim=1)]
    stream = stream._replace(
        lengths=tuple(share.shape[1] for share in shares),
        texts=tuple(split(text) for text in stream.texts) if has_text_tokens else stream.texts,
        rotary=None if stream.rotary is None else split_rotary(split, stream.rotary, lengths),
    )
    return replace(reference, hidden_states=torch.cat(shares, dim=1), stream=stream, num_ranks=num_ranks)


def split_rotary(split: TokenSplit, rotary: RotaryTables, lengths: Sequence[int]) -> RotaryTables:
    """Return one rank's share of the rotary tables of consecutive sequences of the given lengths."""
    return RotaryTables(*(_split_table(split, table, lengths) for table in rotary))


def _split_table(split: TokenSplit, table: RotaryTable, lengths: Sequence[int]) -> Tensor:
    # CogVideoX: (token, head_dim) -> (1, token, head_dim), and back. Wan: (1, token, 1, head_dim).
    pieces = (table[None] if table.ndim == 2 else table).split(list(lengths), dim=1)
    shares = torch.cat([split(piece) for piece in pieces], dim=1)
    return shares[0] if table.ndim == 2 else shares
