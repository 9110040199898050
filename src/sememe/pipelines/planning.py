"""How much memory a generation takes, by arithmetic on a model's configuration: weights, phases, and their peaks.

A generation has phases, and each holds its own: texts and references are encoded, the transformer takes its steps, the
result is decoded. What is on the device in each follows from how modules are offloaded, what each phase computes
from `sememe.pipelines.activations`. 1 GB is 1e9 bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from sememe.errors import InputError
from sememe.models.autoencoder import LatentGrid
from sememe.pipelines.activations import (
    Reading,
    TokenCounts,
    TransformerShape,
    encode_bytes,
    forward_bytes,
    record_bytes,
    text_bytes,
)

GIGABYTE = 1e9
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

# Tensors of full resolution alive at the peak of an autoencoder: numbers of (chunk frames, height, width, first width).
# Wan keeps two frames of every convolution's input beside a residual block's work; CogVideoX normalises in copies
# and interpolates its conditions to full size; Cosmos works on all frames at once.
_VAE_PEAKS: Mapping[str, tuple[float, float]] = {
    "AutoencoderKLWan": (12.7, 9.2),
    "AutoencoderKLCogVideoX": (22.4, 9.4),
    "AutoencoderKLCosmos": (5.0, 5.0),
}
_TILE, _TILE_STRIDE = 256, 192


@dataclass(frozen=True)
class TransformerWeights:
    """Numbers in a transformer's weights.

    Attributes:
        blocks: of each block, with its expert.
        rest: of what is outside the blocks.
        largest_layer: of the largest single layer.
    """

    blocks: tuple[int, ...]
    rest: int
    largest_layer: int

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
class AutoencoderShape:
    """A video autoencoder, which computes in float32.

    Attributes:
        class_name: of diffusers.
        grid: what it makes of a video's shape.
        total: numbers in its weights.
        width: channels at the highest resolution.
        patch: pixels that it folds into channels before anything else, in height and width.
    """

    class_name: str
    grid: LatentGrid
    total: int
    width: int
    patch: int = 1

    @property
    def can_tile(self) -> bool:
        return self.class_name != "AutoencoderKLCosmos"

    @staticmethod
    def tiles_at(height: int, width: int) -> bool:
        """Whether a picture is larger than a tile."""
        return max(height, width) > _TILE

    def decode_bytes(self, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        """The peak of decoding one video, the result included."""
        return self._peak(0, num_frames, height, width, tiled=tiled) + self._result(
            num_frames, height, width, tiled=tiled
        )

    def encode_bytes(self, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        """The peak of encoding one video, which is itself on the device."""
        return self._peak(1, num_frames, height, width, tiled=tiled) + 3 * num_frames * height * width * 4

    def _peak(self, place: int, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        if tiled and self.can_tile:
            height, width = min(height, _TILE), min(width, _TILE)
        chunk = {"AutoencoderKLWan": 4, "AutoencoderKLCogVideoX": 8}.get(self.class_name, num_frames)
        unit = min(chunk, num_frames) * (height // self.patch) * (width // self.patch) * self.width * 4
        return int(_VAE_PEAKS[self.class_name][place] * unit)

    def _result(self, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        """Tiles overlap, and are joined when all are there."""
        if tiled and self.can_tile:
            return self._result(num_frames, _covered(height), _covered(width), tiled=False)
        return 3 * num_frames * height * width * 4


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
    """

    height: int
    width: int
    num_frames: int
    num_references: int = 1
    num_reference_frames: int | None = None
    num_negative_references: int = 0
    keeps_keys: bool = False

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
    """

    dtype: str
    storage: str = "full"
    offload: Placement = "none"
    frees_texts: bool = False
    tiles: bool = False


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
    """The phases of a generation, by name: texts, encode, steps, decode.

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
    # Blocks that come and go have no weights between forwards, so that no text is projected ahead.
    keeps_texts = not strategy.offload.startswith("group")
    record = record_bytes(shape, kept, number_bytes, reading, batch)
    if generation.keeps_keys and reading == "joint":
        record += model.num_readers * record_bytes(shape, counts, number_bytes, "cached")
    texts = text_bytes(shape, kept, number_bytes, reading, num_texts=model.num_texts) if keeps_texts else 0
    way: dict[str, Any] = {"batch_size": batch, "own_forward": keeps_texts and shape.family == "wan"}
    step = forward_bytes(shape, counts, number_bytes, reading, **way)
    latents = _latent_bytes(model, generation, number_bytes)
    encoded = 0
    if reading == "cached":
        # Its own keys are part of it, and of the record.
        encoded = encode_bytes(shape, counts, number_bytes) - record_bytes(shape, counts, number_bytes, reading, batch)
    size = (generation.height, generation.width)
    most = max(generation.num_frames, generation.reference_frames if any(groups) else 0)
    vae_encode = model.vae.encode_bytes(most, *size, tiled=strategy.tiles)
    vae_decode = model.vae.decode_bytes(generation.num_frames, *size, tiled=strategy.tiles)
    resident = _Resident(model, strategy)
    phases = {
        "texts": Phase(resident.texts, model.text_encoder.forward_bytes(model.num_text_tokens, number_bytes)),
        "encode": Phase(resident.encode, vae_encode + latents),
        "steps": Phase(resident.steps, max(step, encoded) + latents, record + texts),
        "decode": Phase(resident.decode, vae_decode + latents, record),
    }
    return MemoryEstimate(phases, 0 if strategy.offload == "none" else int(resident.everything))


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
        arguments = (generation.reference_frames, generation.height, generation.width)
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
    return TransformerWeights(inside, _count(transformer) - sum(inside), largest_layer([transformer]))


def largest_layer(modules: Sequence[nn.Module]) -> int:
    """Numbers of the largest module that has weights of its own."""
    leaves = (leaf for module in modules for leaf in module.modules())
    return max(sum(parameter.numel() for parameter in leaf.parameters(recurse=False)) for leaf in leaves)


class _Resident:
    """Bytes of weights that each phase has on the device under a strategy."""

    def __init__(self, model: ModelMemory, strategy: Strategy) -> None:
        number_bytes, storage = NUMBER_BYTES[strategy.dtype], strategy.storage
        weights = model.transformer
        transformer = weights.bytes_as(number_bytes, storage)
        text = model.text_encoder.total * number_bytes
        image = 0 if model.image_encoder is None else 4 * model.image_encoder.total
        vae = 4 * model.vae.total
        self.everything = transformer + text + image + vae
        # Weights in fewer bits are widened layer by layer.
        widened = 0 if storage == "full" else weights.largest_layer * number_bytes
        if strategy.offload == "none":
            later = transformer + image + vae + (0 if strategy.frees_texts else text)
            self._set(text if strategy.frees_texts else later, later, later + widened, later)
        elif strategy.offload == "model":
            # The autoencoder has no later neighbour that would send it away, and stays during the steps.
            waiting = text + image + vae
            self._set(waiting, waiting, transformer + vae + widened, vae)
        elif strategy.offload == "group":
            # The next block comes while one computes. Encoders nest their blocks too deep to be parted.
            blocks = weights.largest_blocks(2, number_bytes, storage)
            self._set(text, max(image, vae), blocks + widened, vae)
        else:
            # By single layers: the largest, and where they are fetched ahead another one.
            ahead = 2 if strategy.offload == "group-leaf" else 1
            words = model.text_encoder
            text_layers = (words.largest_layer + (ahead - 1) * words.width * words.ffn_dim) * number_bytes
            layers = ahead * weights.largest_layer * number_bytes
            self._set(text_layers, vae, layers, vae)

    def _set(self, texts: float, encode: float, steps: float, decode: float) -> None:
        self.texts, self.encode, self.steps, self.decode = map(int, (texts, encode, steps, decode))


def _latent_bytes(model: ModelMemory, generation: Generation, number_bytes: int) -> int:
    """Latents in float32, and what the transformer is given at each step: them and the condition, joined."""
    channels, *sizes = model.vae.grid.latent_shape(generation.num_frames, generation.height, generation.width)
    places = sizes[0] * sizes[1] * sizes[2]
    return places * (4 * 4 * channels + 3 * model.in_channels * number_bytes * model.batch_size)


def _covered(pixels: int) -> int:
    """Pixels of all tiles along a side, where those that overlap count twice."""
    return sum(min(_TILE, pixels - start) for start in range(0, pixels, _TILE_STRIDE))


def _count(module: nn.Module) -> int:
    """Learned positions are kept as a buffer."""
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
