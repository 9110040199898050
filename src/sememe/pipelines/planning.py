"""How much memory a generation takes, by arithmetic on a model's configuration: weights, phases, and their peaks.

A generation has phases, and each holds its own: texts and references are encoded, the transformer takes its steps, the
result is decoded. What is on the device in each follows from how modules are offloaded, what each phase computes
from `sememe.pipelines.activations`. 1 GB is 1e9 bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from sememe.compute.offload import RestingPart, expert_modules
from sememe.errors import InputError
from sememe.pipelines.activations import (
    Reading,
    TokenCounts,
    TransformerShape,
    encode_bytes,
    forward_bytes,
    record_bytes,
    text_bytes,
)
from sememe.pipelines.autoencoder_memory import AutoencoderShape

NUMBER_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# A quantised weight with its scales: nf4 has a float32 for each 64.
STORED_BYTES: Mapping[str, float] = {
    "fp8": 1.0,
    "fp8wo": 1.0,
    "int8wo": 1.0,
    "int8dq": 1.0,
    "int8": 1.0,
    "nf4": 0.5 + 4 / 64,
}

Placement = Literal["none", "model", "group", "group-leaf", "sequential"]
"""`none`, `model`, `group` and `sequential` as `apply_offload` has them; `group-leaf` is `group` by single layers."""

# Of blocks or layers under offload by groups: one computes while the next comes, where the device can do that.
_GROUPS_TOGETHER = 2


@dataclass(frozen=True)
class TransformerWeights:
    """Numbers in a transformer's weights.

    Attributes:
        blocks: of each block, with its expert.
        rest: of what is outside the blocks.
        largest_layer: of the largest single layer.
        experts: of all experts in the blocks, which count among those too.
        expert_embedder: of the experts' own embedder, which counts in `rest` too.
    """

    blocks: tuple[int, ...]
    rest: int
    largest_layer: int
    experts: int = 0
    expert_embedder: int = 0

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.rest

    def bytes_as(self, number_bytes: int, storage: str) -> float:
        """Blocks may be stored in fewer bits; the rest is not."""
        return sum(self.blocks) * self._block_bytes(number_bytes, storage) + self.rest * number_bytes

    def largest_blocks(self, num_blocks: int, number_bytes: int, storage: str) -> float:
        """Of the largest blocks that are on the device together, and of the rest."""
        largest = sum(sorted(self.blocks)[-num_blocks:])
        return largest * self._block_bytes(number_bytes, storage) + self.rest * number_bytes

    def expert_bytes(self, number_bytes: int, storage: str) -> float:
        """Of what the expert alone has."""
        return self.experts * self._block_bytes(number_bytes, storage) + self.expert_embedder * number_bytes

    def _block_bytes(self, number_bytes: int, storage: str) -> float:
        return number_bytes if storage == "full" else STORED_BYTES[storage]


@dataclass(frozen=True)
class EncoderWeights:
    """A text or image encoder: numbers in it, in its largest layer, and what a forward holds beside them.

    Attributes:
        total: numbers in all.
        largest_layer: numbers in the largest single layer; of a text encoder its table of words.
        width: of its tokens.
        ffn_dim: of its feed-forward.
        num_heads: of its attention, whose scores are kept as a whole.
    """

    total: int
    largest_layer: int
    width: int
    ffn_dim: int
    num_heads: int

    def forward_bytes(self, num_tokens: int, number_bytes: int) -> int:
        """Tokens and their feed-forward, and three tables of scores in float32."""
        dense = num_tokens * (6 * self.width + 3 * self.ffn_dim) * number_bytes
        return dense + 3 * self.num_heads * num_tokens**2 * 4


@dataclass(frozen=True)
class ModelMemory:
    """All that a plan needs to know of a model.

    Attributes:
        name: as it was asked for.
        shape: of its transformer.
        transformer: its weights.
        attention_mode: `joint` or `cached`.
        in_channels: of what the transformer reads.
        text_encoder: its weights and sizes.
        image_encoder: the same, where there is one; it is kept in float32.
        vae: of the model.
        dtype: the precision in which it is to be computed; any other than that and float32 is approximate.
        height: pixels, by default.
        width: pixels, the same.
        num_frames: the same.
        num_text_tokens: of a prompt.
        num_image_tokens: of a picture, which stand beside a prompt's.
        num_texts: texts that are kept, projected, over the steps: each that guidance tells, and those that share a
            forward once more for it.
        num_readers: variants of guidance that read a reference.
        batch_size: variants of guidance that share a forward.
        only_size: height and width in pixels, where the model can make no others.
        keeps_texts: whether keys and values of texts are kept over the steps, by default.
    """

    name: str
    shape: TransformerShape
    transformer: TransformerWeights
    attention_mode: Literal["joint", "cached"]
    in_channels: int
    text_encoder: EncoderWeights
    image_encoder: EncoderWeights | None
    vae: AutoencoderShape
    dtype: str
    height: int
    width: int
    num_frames: int
    num_text_tokens: int
    num_image_tokens: int = 0
    num_texts: int = 2
    num_readers: int = 1
    batch_size: int = 1
    only_size: tuple[int, int] | None = None
    keeps_texts: bool = True


@dataclass(frozen=True)
class Generation:
    """What is generated.

    Attributes:
        height: pixels.
        width: pixels.
        num_frames: of the result.
        num_references: videos that are read.
        num_reference_frames: of each.
        num_negative_references: videos to lead away from, which another forward reads.
        keeps_keys: whether keys and values of a reference that is read two-way are kept too (`approximate`).
        reference_downscale: by how much references are smaller than the result in height and width.
    """

    height: int
    width: int
    num_frames: int
    num_references: int = 1
    num_reference_frames: int | None = None
    num_negative_references: int = 0
    keeps_keys: bool = False
    reference_downscale: int = 1

    @property
    def reference_frames(self) -> int:
        return self.num_reference_frames or self.num_frames


@dataclass(frozen=True)
class Strategy:
    """A way to compute.

    Attributes:
        dtype: precision of transformer and text encoder.
        storage: of the transformer's weights, as `apply_storage` has it.
        offload: where the modules are.
        frees_texts: whether texts are encoded first and their encoder is dropped before anything else is loaded.
        tiles: whether the autoencoder works in tiles.
        resting: what is on the device only while it is needed: "encoders", with offload `none`, leave it while the
            transformer works; "expert", one-way and with offload `none` or `model`, while it takes steps.
        keeps_texts: whether keys and values of texts are kept over the steps, where backbone and offload allow it.
    """

    dtype: str
    storage: str = "full"
    offload: Placement = "none"
    frees_texts: bool = False
    tiles: bool = False
    resting: tuple[RestingPart, ...] = ()
    keeps_texts: bool = True


@dataclass(frozen=True)
class Phase:
    """What one phase of a generation has on the device, in bytes.

    Attributes:
        weights: that are there.
        activations: what is computed, at its peak.
        record: of references and texts, kept over the steps.
    """

    weights: int
    activations: int
    record: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.record


@dataclass(frozen=True)
class MemoryEstimate:
    """The phases of a generation, by name: texts, encode, expert (one-way only), steps, decode.

    Attributes:
        phases: in the order in which they come.
        host_bytes: weights in the memory of the machine itself, where modules are offloaded.
    """

    phases: Mapping[str, Phase]
    host_bytes: int

    @property
    def peak(self) -> int:
        """Bytes, the most that any phase takes."""
        return max(phase.total for phase in self.phases.values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name].total)


def estimate_memory(model: ModelMemory, generation: Generation, strategy: Strategy) -> MemoryEstimate:
    """What a generation with a strategy takes on the device.

    Raises:
        InputError: the model cannot make a video of that size.
    """
    # A forward reads the references or the negative ones, while both are kept.
    groups = (generation.num_references, generation.num_negative_references)
    counts, kept = (count_tokens(model, replace(generation, num_references=take(groups))) for take in (max, sum))
    number_bytes = NUMBER_BYTES[strategy.dtype]
    reading: Reading = "none" if not any(groups) else model.attention_mode
    shape, batch = model.shape, model.batch_size
    keeps_texts = are_texts_kept(model, strategy)
    record = record_bytes(shape, kept, number_bytes, reading, batch)
    if generation.keeps_keys and reading == "joint":
        record += model.num_readers * record_bytes(shape, counts, number_bytes, "cached")
    texts = text_bytes(shape, kept, number_bytes, reading, num_texts=model.num_texts) if keeps_texts else 0
    way: dict[str, Any] = {"batch_size": batch, "own_forward": keeps_texts}
    step = forward_bytes(shape, counts, number_bytes, reading, **way)
    latents = _latent_bytes(model, generation, number_bytes)
    size = (generation.height, generation.width)
    most = max(generation.num_frames, generation.reference_frames if any(groups) else 0)
    vae_encode = model.vae.encode_bytes(most, *size, tiled=strategy.tiles)
    vae_decode = model.vae.decode_bytes(generation.num_frames, *size, tiled=strategy.tiles)
    # Prompt and negative prompt are encoded together, unless each text is encoded ahead.
    together = 1 if strategy.frees_texts else min(2, model.num_texts)
    told = model.text_encoder.forward_bytes(model.num_text_tokens, number_bytes)
    resident = _Resident(model, strategy, encodes_twice=all(groups))
    phases = {
        "texts": Phase(resident.texts, together * told),
        "encode": Phase(resident.encode, vae_encode + latents),
    }
    if reading == "cached":
        # The keys and values of the group that is read are part of the pass, and of the record.
        own = record_bytes(shape, counts, number_bytes, reading, batch)
        phases["expert"] = Phase(resident.expert, encode_bytes(shape, counts, number_bytes) - own + latents, record)
    phases["steps"] = Phase(resident.steps, step + latents, record + texts)
    phases["decode"] = Phase(resident.decode, vae_decode + latents, record)
    return MemoryEstimate(phases, 0 if strategy.offload == "none" else int(resident.everything))


def are_texts_kept(model: ModelMemory, strategy: Strategy) -> bool:
    """Whether keys and values of texts are kept over the steps: only backbones with cross-attention have such."""
    # Blocks that come and go have no weights between forwards, so that no text is projected ahead.
    return strategy.keeps_texts and model.shape.family == "wan" and not strategy.offload.startswith("group")


def count_tokens(model: ModelMemory, generation: Generation) -> TokenCounts:
    """Tokens of a generation.

    Raises:
        InputError: the model cannot make a video of that size.
    """
    only, size = model.only_size, (generation.height, generation.width)
    if only is not None and only != size:
        raise InputError(
            f"this model has learned positions for {only[0]}x{only[1]} pixels only, got {size[0]}x{size[1]}"
        )
    grid = model.vae.grid
    _, frames, height, width = grid.latent_shape(generation.num_frames, generation.height, generation.width)
    reference = 0
    if generation.num_references:
        downscale = generation.reference_downscale
        for name, pixels in (("height", generation.height), ("width", generation.width)):
            if pixels % (downscale * grid.size_multiple):
                raise InputError(
                    f"reference_downscale {downscale} needs a {name} that is a multiple of "
                    f"{downscale * grid.size_multiple}, got {pixels}"
                )
        arguments = (generation.reference_frames, generation.height // downscale, generation.width // downscale)
        per_clip = grid.latent_shape(*arguments, is_decoded=False, what="num_reference_frames")
        reference = generation.num_references * model.shape.count_tokens(*per_clip[1:])
    text = model.num_text_tokens + model.num_image_tokens
    if generation.num_references < 0:
        raise InputError(f"expected num_references of 0 or more, got {generation.num_references}")
    return TokenCounts(
        model.shape.count_tokens(frames, height, width), reference, text, generation.num_references * text
    )


def count_weights(transformer: Any) -> TransformerWeights:
    """Counts the numbers of one of our transformers, which may be on the meta device."""
    blocks = getattr(transformer, transformer.key_map.blocks)
    inside = tuple(_count(block) for block in blocks)
    embedder, *experts = (_count(module) for module in expert_modules(transformer))
    rest = _count(transformer) - sum(inside)
    return TransformerWeights(inside, rest, largest_layer([transformer]), sum(experts), embedder)


def largest_layer(modules: Sequence[nn.Module]) -> int:
    """Numbers of the largest module that has weights of its own."""
    leaves = (leaf for module in modules for leaf in module.modules())
    return max(sum(parameter.numel() for parameter in leaf.parameters(recurse=False)) for leaf in leaves)


class _Resident:
    """Bytes of weights that each phase has on the device under a strategy.

    Attributes:
        everything: all of the model's.
        texts: while texts are encoded.
        encode: while pictures and references are.
        expert: while a one-way expert reads the references.
        steps: while the transformer takes its steps.
        decode: while the result is decoded.
    """

    def __init__(self, model: ModelMemory, strategy: Strategy, *, encodes_twice: bool = False) -> None:
        number_bytes, storage = NUMBER_BYTES[strategy.dtype], strategy.storage
        weights = model.transformer
        transformer = weights.bytes_as(number_bytes, storage)
        text = model.text_encoder.total * number_bytes
        image = 0 if model.image_encoder is None else 4 * model.image_encoder.total
        vae = 4 * model.vae.total
        self.everything = transformer + text + image + vae
        # Weights in fewer bits are widened layer by layer.
        widened = 0 if storage == "full" else weights.largest_layer * number_bytes
        resting = weights.expert_bytes(number_bytes, storage) if "expert" in strategy.resting else 0
        if strategy.offload == "none":
            encoders = image + (0 if strategy.frees_texts else text)
            at_steps = transformer - resting + vae + (0 if "encoders" in strategy.resting else encoders)
            before = transformer - resting + vae + encoders
            self.texts = int(text if strategy.frees_texts else before)
            # A resting expert comes behind the first group of references, and is there when the second is encoded.
            self.encode = int(before + (resting if encodes_twice else 0))
            self.expert = int(before + resting + widened)
            self.steps, self.decode = int(at_steps + widened), int(at_steps)
        elif strategy.offload == "model":
            # The autoencoder has no later neighbour that would send it away, and stays during the steps.
            self.texts = self.encode = int(text + image + vae)
            self.expert = int(transformer + vae + widened)
            self.steps, self.decode = int(self.expert - resting), vae
        elif strategy.offload == "group":
            # The next block comes while one computes. Encoders nest their blocks too deep to be parted.
            parted = min(vae, _GROUPS_TOGETHER * 4 * model.vae.largest_layer) if model.vae.is_parted_by_layer else vae
            self.texts, self.encode, self.decode = text, max(image, parted), parted
            self.expert = self.steps = int(weights.largest_blocks(_GROUPS_TOGETHER, number_bytes, storage) + widened)
        else:
            # By single layers: the largest, and where they are fetched ahead another one.
            together = _GROUPS_TOGETHER if strategy.offload == "group-leaf" else 1
            words = model.text_encoder
            self.texts = (words.largest_layer + (together - 1) * words.width * words.ffn_dim) * number_bytes
            self.encode = self.decode = min(vae, together * 4 * model.vae.largest_layer)
            self.expert = self.steps = together * weights.largest_layer * number_bytes


def _latent_bytes(model: ModelMemory, generation: Generation, number_bytes: int) -> int:
    """Latents in float32, and what the transformer is given at each step: them and the condition, joined."""
    channels, *sizes = model.vae.grid.latent_shape(generation.num_frames, generation.height, generation.width)
    places = sizes[0] * sizes[1] * sizes[2]
    return places * (4 * 4 * channels + 3 * model.in_channels * number_bytes * model.batch_size)


def _count(module: nn.Module) -> int:
    """Learned positions are kept as a buffer."""
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
