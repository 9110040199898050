"""Records in which a reference travels: as given, embedded, and reduced to keys and values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from sememe.backbones.cross_attention import TextKeys
from sememe.errors import ModelError
from sememe.video_as_prompt.reference_attention import ReferenceStream
from sememe.video_as_prompt.rotary import RotaryTables, TokenExtent


@dataclass(frozen=True)
class ReferenceInputs:
    """References as a transformer takes them, one entry per reference; all have the batch of the target, and its grid
    unless they are spread over it.

    Attributes:
        latents: per reference (batch, channel, frame, height, width), or (batch, frame, channel, height, width) on
            CogVideoX: clean latents, then the mask and condition of its first frame, as the backbone's own input has
            them.
        text_embeds: per reference (batch, text token, text_dim), the embedded caption.
        image_embeds: per reference (batch, image token, image_dim), where the backbone reads image embeddings.
        extent: for references of fewer rows, columns or frames than the target: what they are spread over, so that a
            token lies in the middle of those that it stands for. None for one position after the other.
    """

    latents: tuple[torch.Tensor, ...]
    text_embeds: tuple[torch.Tensor, ...]
    image_embeds: tuple[torch.Tensor, ...] | None = None
    extent: TokenExtent | None = None

    def __post_init__(self) -> None:
        counts = [len(self.latents), len(self.text_embeds)]
        if self.image_embeds is not None:
            counts.append(len(self.image_embeds))
        if min(counts) < 1 or len(set(counts)) > 1:
            raise ModelError(f"each reference needs latents and a caption, but their counts are {counts}")


@dataclass(frozen=True)
class ReferenceTokens:
    """References after the expert's embedders: everything about them that depends neither on the step nor the target.

    Attributes:
        hidden_states: (batch, token, dim), the references one after the other.
        stream: their captions, lengths, modulation and positions.
        grid: (height, width) in tokens, of the target.
        text_keys: per expert block and reference, the keys and values of its caption, where they are kept.
        num_ranks: among which the references were shared out; this is one rank's share.
    """

    hidden_states: torch.Tensor
    stream: ReferenceStream
    grid: tuple[int, int]
    text_keys: tuple[tuple[TextKeys, ...], ...] | None = None
    num_ranks: int = 1

    @property
    def batch_size(self) -> int:
        return self.hidden_states.shape[0]

    def repeat(self, num_repeats: int) -> "ReferenceTokens":
        """The batch entries a, b as a, b, a, b, ..."""
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
        """Serves `batch_size` targets with one reference, without copying it.

        Raises:
            ModelError: where the record holds more than one batch entry, and not `batch_size`.
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
    """Keys and values of a reference that saw only itself, one pair per expert block, as the target reads them.

    Attributes:
        keys: per expert block (batch, token, head, head_dim), rotated.
        values: per expert block, of the same shape.
        grid: (height, width) in tokens, which the target must share.
        num_ranks: among which the references were shared out; this is one rank's share.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    grid: tuple[int, int]
    num_ranks: int = 1

    @property
    def batch_size(self) -> int:
        return self.keys[0].shape[0]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ReferenceCache":
        """The same record with `change` applied to every tensor."""
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)))

    def repeat_interleave(self, num_repeats: int) -> "ReferenceCache":
        """Serves `num_repeats` targets per reference: batch entries a, b become a, a, ..., b, b, ..."""
        return self.map(lambda tensor: tensor.repeat_interleave(num_repeats, dim=0))

    def repeat(self, num_repeats: int) -> "ReferenceCache":
        """The batch entries a, b as a, b, a, b, ..."""
        return self.map(lambda tensor: tensor.repeat(num_repeats, 1, 1, 1)) if num_repeats > 1 else self

    def expand(self, batch_size: int) -> "ReferenceCache":
        """Serves `batch_size` targets with one reference, without copying it.

        Raises:
            ModelError: where the record holds more than one batch entry, and not `batch_size`.
        """
        _check_expansion(self.batch_size, batch_size)
        return self.map(lambda tensor: tensor.expand(batch_size, -1, -1, -1))

    def select(self, index: int) -> "ReferenceCache":
        """One entry of the batch, as a record of batch 1."""
        return self.map(lambda tensor: tensor[index : index + 1])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ReferenceCache":
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))


def join_references(
    references: Sequence[ReferenceCache | ReferenceTokens],
) -> ReferenceCache | ReferenceTokens:
    """Joins records of one kind on the batch axis.

    Raises:
        ModelError: where they differ in kind, blocks or size.
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
            raise ModelError("references of one batch must lie at equal positions; encode them with equal settings")


def _check_expansion(batch_size: int, num_targets: int) -> None:
    if batch_size not in (1, num_targets):
        raise ModelError(f"got references for a batch of {batch_size}, but {num_targets} targets")
