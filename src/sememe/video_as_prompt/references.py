"""Hold a reference in its three forms: network inputs, embedded tokens, and cached keys and values."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sememe.backbones.cross_attention import TextKeys
from sememe.errors import ModelError
from sememe.video_as_prompt.reference_attention import ReferenceStream
from sememe.video_as_prompt.rotary import RotaryTables, TokenExtent
from sememe.video_as_prompt.shapes import Heads, ImageEmbeds, TextEmbeds, Tokens

R = TypeVar("R", bound="BatchedReference")


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

    # Networks refuse references of different sizes.
    latents: tuple[Float[Tensor, "batch _ _ _ _"], ...]
    text_embeds: tuple[TextEmbeds, ...]
    image_embeds: tuple[ImageEmbeds, ...] | None = None
    extent: TokenExtent | None = None

    def __post_init__(self) -> None:
        counts = [len(self.latents), len(self.text_embeds)]
        if self.image_embeds is not None:
            counts.append(len(self.image_embeds))
        if min(counts) < 1 or len(set(counts)) > 1:
            raise ModelError(f"each reference needs latents and a caption, but their counts are {counts}")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ReferenceInputs":
        """Move the inputs to a device, in a precision."""

        def move(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(device=device, dtype=dtype) for tensor in tensors)

        images = None if self.image_embeds is None else move(self.image_embeds)
        return replace(self, latents=move(self.latents), text_embeds=move(self.text_embeds), image_embeds=images)

    def split(self) -> tuple["ReferenceInputs", ...]:
        """Return the inputs of each reference."""
        images = self.image_embeds or (None,) * len(self.latents)
        return tuple(
            replace(self, latents=(latents,), text_embeds=(text,), image_embeds=None if image is None else (image,))
            for latents, text, image in zip(self.latents, self.text_embeds, images, strict=True)
        )


class BatchedReference(ABC):
    """A reference whose tensors all have the batch as their first axis."""

    @property
    @abstractmethod
    def batch_size(self) -> int: ...

    @abstractmethod
    def to(self: R, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> R:
        """Move the reference to a device, in a precision."""

    @abstractmethod
    def map(self: R, change: Callable[[torch.Tensor], torch.Tensor]) -> R:
        """Apply `change` to every tensor that has a batch axis."""

    def repeat(self: R, num_repeats: int) -> R:  # noqa: PYI019 (beartype checks methods one by one and refuses Self)
        """Repeat the batch: entries a, b become a, b, a, b, ..."""
        if num_repeats == 1:
            return self
        return self.map(lambda tensor: tensor.repeat(num_repeats, *[1] * (tensor.ndim - 1)))

    def expand(self: R, batch_size: int) -> R:  # noqa: PYI019
        """Expand one batch entry to `batch_size` entries without copying.

        Raises:
            ModelError: If there is more than one entry, and not `batch_size`.
        """
        if self.batch_size not in (1, batch_size):
            raise ModelError(f"got references for a batch of {self.batch_size}, but {batch_size} targets")
        return self.map(lambda tensor: tensor.expand(batch_size, *[-1] * (tensor.ndim - 1)))


@dataclass(frozen=True)
class ReferenceTokens(BatchedReference):
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

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ReferenceTokens":
        """Apply `change` to tokens, captions and cached captions."""
        keys = self.text_keys
        return replace(
            self,
            hidden_states=change(self.hidden_states),
            stream=self.stream._replace(texts=tuple(map(change, self.stream.texts))),
            text_keys=None if keys is None else tuple(tuple(text.map(change) for text in block) for block in keys),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ReferenceTokens":
        """Move the reference to a device; its positions and modulation keep their precision."""
        moved = self.map(lambda tensor: tensor.to(device=device, dtype=dtype))
        stream, rotary = moved.stream, moved.stream.rotary
        temb = None if stream.temb is None else stream.temb.to(device)
        tables = None if rotary is None else RotaryTables(*(table.to(device) for table in rotary))
        return replace(moved, stream=stream._replace(temb=temb, rotary=tables))


@dataclass(frozen=True)
class ReferenceCache(BatchedReference):
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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ReferenceCache":
        """Move the reference to a device, in a precision."""
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
