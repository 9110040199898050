"""Hold a reference in its three forms: network inputs, embedded tokens, and cached keys and values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from sememe.backbones.cross_attention import TextKeys
from sememe.errors import ModelError
from sememe.video_as_prompt.reference_attention import ReferenceStream
from sememe.video_as_prompt.rotary import RotaryTables, TokenExtent
from sememe.video_as_prompt.shapes import Heads, ImageEmbeds, ReferenceLatents, TextEmbeds, Tokens


@dataclass(frozen=True)
class ReferenceInputs:
    """Network inputs of references, one entry per reference.

    All entries have the target's batch size. They have its height and width too, unless `extent` spreads them over it.

    Attributes:
        latents: Clean latents, followed on the channel axis by the mask and first-frame latents that the backbone
            takes for a target.
        text_embeds: Embedded captions.
        image_embeds: Image embeddings, for backbones that read them.
        extent: Size of the target in tokens, for references with fewer rows, columns or frames: each position is then
            the centre of the target's positions that it covers. None for consecutive positions.
    """

    latents: tuple[ReferenceLatents, ...]
    text_embeds: tuple[TextEmbeds, ...]
    image_embeds: tuple[ImageEmbeds, ...] | None = None
    extent: TokenExtent | None = None

    def __post_init__(self) -> None:
        counts = [len(self.latents), len(self.text_embeds)]
        if self.image_embeds is not None:
            counts.append(len(self.image_embeds))
        if min(counts) < 1 or len(set(counts)) > 1:
            raise ModelError(f"each reference needs latents and a caption, but their counts are {counts}")


@dataclass(frozen=True)
class ReferenceTokens:
    """References after the expert's embedders: all that depends neither on the step nor on the target.

    Attributes:
        hidden_states: Tokens of all references, one reference after the other.
        stream: Captions, lengths, modulation and positions of the references.
        grid: Target's (height, width) in tokens.
        text_keys: Cached keys and values of the captions, per expert block and reference; None if not cached.
        num_ranks: Number of ranks that share the references; this record is one rank's share.
    """

    hidden_states: Tokens
    stream: ReferenceStream
    grid: tuple[int, int]
    text_keys: tuple[tuple[TextKeys, ...], ...] | None = None
    num_ranks: int = 1

    @property
    def batch_size(self) -> int:
        return self.hidden_states.shape[0]

    def repeat(self, num_repeats: int) -> "ReferenceTokens":
        """Repeat the batch: entries a, b become a, b, a, b, ..."""
        if num_repeats == 1:
            return self
        texts = tuple(text.repeat(num_repeats, 1, 1) for text in self.stream.texts)
        return replace(
            self,
            hidden_states=self.hidden_states.repeat(num_repeats, 1, 1),
            stream=self.stream._replace(texts=texts),
            text_keys=self._map_text_keys(lambda keys: keys.repeat(num_repeats)),
        )

    def expand(self, batch_size: int) -> "ReferenceTokens":
        """Expand one batch entry to `batch_size` entries without copying.

        Raises:
            ModelError: If the record holds more than one batch entry, and not `batch_size`.
        """
        _check_expansion(self.batch_size, batch_size)
        texts = tuple(text.expand(batch_size, -1, -1) for text in self.stream.texts)
        return replace(
            self,
            hidden_states=self.hidden_states.expand(batch_size, -1, -1),
            stream=self.stream._replace(texts=texts),
            text_keys=self._map_text_keys(lambda keys: keys.expand(batch_size)),
        )

    def _map_text_keys(self, change: Callable[[TextKeys], TextKeys]) -> tuple[tuple[TextKeys, ...], ...] | None:
        if self.text_keys is None:
            return None
        return tuple(tuple(map(change, block)) for block in self.text_keys)


@dataclass(frozen=True)
class ReferenceCache:
    """KV cache of a reference: one pair of keys and values per expert block.

    Attributes:
        keys: Rotated keys, per expert block.
        values: Values, per expert block.
        grid: (height, width) in tokens, which must equal the target's.
        num_ranks: Number of ranks that share the references; this record is one rank's share.
    """

    keys: tuple[Heads, ...]
    values: tuple[Heads, ...]
    grid: tuple[int, int]
    num_ranks: int = 1

    @property
    def batch_size(self) -> int:
        return self.keys[0].shape[0]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ReferenceCache":
        """Apply `change` to every tensor."""
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)))

    def repeat_interleave(self, num_repeats: int) -> "ReferenceCache":
        """Repeat each batch entry: a, b become a, a, ..., b, b, ..."""
        return self.map(lambda tensor: tensor.repeat_interleave(num_repeats, dim=0))

    def repeat(self, num_repeats: int) -> "ReferenceCache":
        """Repeat the batch: entries a, b become a, b, a, b, ..."""
        return self.map(lambda tensor: tensor.repeat(num_repeats, 1, 1, 1)) if num_repeats > 1 else self

    def expand(self, batch_size: int) -> "ReferenceCache":
        """Expand one batch entry to `batch_size` entries without copying.

        Raises:
            ModelError: If the record holds more than one batch entry, and not `batch_size`.
        """
        _check_expansion(self.batch_size, batch_size)
        return self.map(lambda tensor: tensor.expand(batch_size, -1, -1, -1))

    def select(self, index: int) -> "ReferenceCache":
        """Select one entry of the batch, keeping the batch axis."""
        return self.map(lambda tensor: tensor[index : index + 1])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ReferenceCache":
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))


def join_references(
    references: Sequence[ReferenceCache | ReferenceTokens],
) -> ReferenceCache | ReferenceTokens:
    """Concatenate records of one kind on the batch axis.

    Raises:
        ModelError: If they differ in kind, number of blocks or size.
    """
    if len(references) == 1:
        return references[0]
    caches = [entry for entry in references if isinstance(entry, ReferenceCache)]
    tokens = [entry for entry in references if isinstance(entry, ReferenceTokens)]
    if caches and not tokens:
        _check_equal([(len(cache.keys), cache.grid, cache.keys[0].shape[1:]) for cache in caches])
        layers = range(len(caches[0].keys))
        return replace(
            caches[0],
            keys=tuple(torch.cat([cache.keys[layer] for cache in caches]) for layer in layers),
            values=tuple(torch.cat([cache.values[layer] for cache in caches]) for layer in layers),
        )
    if tokens and not caches:
        _check_equal([(entry.stream.lengths, entry.grid) for entry in tokens])
        _check_positions([entry.stream.rotary for entry in tokens])
        texts = zip(*(entry.stream.texts for entry in tokens), strict=True)
        return replace(
            tokens[0],
            hidden_states=torch.cat([entry.hidden_states for entry in tokens]),
            stream=tokens[0].stream._replace(texts=tuple(torch.cat(text) for text in texts)),
            text_keys=None,
        )
    raise ModelError("encoded references of one batch must come from one model, got different kinds")


def _check_equal(shapes: Sequence[object]) -> None:
    if any(shape != shapes[0] for shape in shapes):
        raise ModelError(f"references of one batch must agree in number, length and size, got {list(shapes)}")


def _check_positions(tables: Sequence[RotaryTables | None]) -> None:
    for table in tables[1:]:
        if not all(torch.equal(one, other) for one, other in zip(tables[0] or (), table or (), strict=False)):
            raise ModelError("references of one batch must have equal positions; encode them with equal settings")


def _check_expansion(batch_size: int, num_targets: int) -> None:
    if batch_size not in (1, num_targets):
        raise ModelError(f"got references for a batch of {batch_size}, but {num_targets} targets")
