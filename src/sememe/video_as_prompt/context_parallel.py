"""How sequences are shared out between ranks that attend together (context parallelism).

Target and reference are split each by itself, before they are joined: a rank then holds the same share of both, and
the attention, which no order of tokens affects, sees all of either. Halving what is joined would give one rank the
target and the other the reference. Keys and values of a reference that is read at every step stay a rank's own share.
Every sequence must divide by the number of ranks, unless diffusers is told `ulysses_anything` or `ring_anything`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models._modeling_parallel import ContextParallelInput
from torch import nn

from sememe.errors import ModelError
from sememe.video_as_prompt.references import ReferenceCache, ReferenceTokens
from sememe.video_as_prompt.rotary import RotaryTables

SPLIT_TOKENS = {0: ContextParallelInput(split_dim=1, split_output=True)}
"""What a plan says of a `TokenSplit`."""


class TokenSplit(nn.Module):
    """Gives (batch, token, ...) back as it is; where a plan names it, diffusers' hook leaves a rank its share."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def count_ranks(parallel_config: Any) -> int:
    """Among how many ranks a model shares its sequences out; 1 without a configuration."""
    if parallel_config is None:
        return 1
    shares = parallel_config.context_parallel_config
    return int(shares.ring_degree * shares.ulysses_degree)


def check_ranks(reference: ReferenceTokens | ReferenceCache, parallel_config: Any) -> None:
    """Raises `ModelError` for a reference that was shared out among other ranks than a model's sequences are now."""
    num_ranks = count_ranks(parallel_config)
    if reference.num_ranks != num_ranks:
        raise ModelError(
            f"this reference was encoded for {reference.num_ranks} rank(s), but the model now shares its tokens out "
            f"among {num_ranks}; encode it again, behind enable_parallelism"
        )


def split_reference(
    split: TokenSplit, reference: ReferenceTokens, num_ranks: int, *, has_text_tokens: bool
) -> ReferenceTokens:
    """A rank's share of every reference; with `has_text_tokens` of their captions too, which then attend with them."""
    stream, lengths = reference.stream, list(reference.stream.lengths)
    shares = [split(piece) for piece in reference.hidden_states.split(lengths, dim=1)]
    stream = stream._replace(
        lengths=tuple(share.shape[1] for share in shares),
        texts=tuple(split(text) for text in stream.texts) if has_text_tokens else stream.texts,
        rotary=None if stream.rotary is None else split_rotary(split, stream.rotary, lengths),
    )
    return replace(reference, hidden_states=torch.cat(shares, dim=1), stream=stream, num_ranks=num_ranks)


def split_rotary(split: TokenSplit, rotary: RotaryTables, lengths: Sequence[int]) -> RotaryTables:
    """A rank's share of the rotary tables of several sequences, of so many tokens each, one after the other."""
    return RotaryTables(*(_split_table(split, table, lengths) for table in rotary))


def _split_table(split: TokenSplit, table: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    # CogVideoX has (token, head_dim), Wan (1, token, 1, head_dim).
    pieces = (table[None] if table.ndim == 2 else table).split(list(lengths), dim=1)
    shares = torch.cat([split(piece) for piece in pieces], dim=1)
    return shares[0] if table.ndim == 2 else shares
