"""Recipes that every system shares: clips, autoencoders, latents and whole models. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sememe.data.buckets import Bucket
from sememe.records import Count, Positive, Range, Record, Whole
from sememe.training.config import AutoencoderSettings, TrainingConfig, check_setting


class Recipe(Record):
    """The settings of one run.

    Attributes:
        name: Name of the recipe on the command line.
        description: What it makes, in one line.
    """

    name: str
    description: str


class TrainingRecipe(Recipe):
    """The settings of one training run."""

    training: TrainingConfig


class ClipFormat(Record):
    """Length and size of clips from any source.

    The world renders `fps` frames a second. Videos of a dataset are sampled as `sampling` says (see `video.resizing`;
    at `fps` with "fps"), scaled to cover the size, and cropped.
    `buckets` are several lengths and sizes in place of the one, written as frames x height x width, such as "17x64x96".
    Each video goes to the bucket that crops it least, among those that it is long enough for (see `data.buckets`), each
    scene of the world to one by its number, and a batch holds clips of one bucket. With several lengths "even" would
    change the speed and is refused.
    """

    num_frames: Count = 17
    height: Count = 64
    width: Count = 64
    fps: Positive = 8.0
    sampling: Literal["even", "fps", "first"] = "even"
    buckets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {bucket.num_frames for bucket in self.list_buckets()}
        check_setting(
            len(lengths) == 1 or self.sampling != "even",
            "clips.sampling must be fps or first for clips.buckets of several lengths, got even",
        )

    def list_buckets(self) -> tuple[Bucket, ...]:
        """Return the buckets; one of `num_frames`, `height` and `width` where none are given."""
        given = tuple(Bucket.parse(text) for text in self.buckets)
        return given or (Bucket(self.num_frames, self.height, self.width),)

    def describe(self) -> str:
        """Identifies clips of these lengths and sizes, for caches."""
        shapes = [f"{each.num_frames} frames of {each.width}x{each.height}" for each in self.list_buckets()]
        return " or ".join(shapes)


class WorldData(Record):
    """Which clips of the procedural world are used.

    `kind` "conditions" films one condition at a time, each scene under `clips_per_scene` of them (see
    `training.clips.world_item`); "scripts" films stories of several, each with a scene of its own (see
    `world.random_script`); "looks" films each scene in `clips_per_scene` looks (see `world.repaint`), moving or under a
    moving camera. `num_random` adds that many random conditions (see `world.random_conditions`), each about as
    frequent as one of the catalogue.
    """

    num_clips: Count = 40_000
    clips_per_scene: Count = 8
    kind: Literal["conditions", "scripts", "looks"] = "conditions"
    num_random: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(
            self.kind == "conditions" or not self.num_random,
            f"data.num_random has no effect on {self.kind}, got {self.num_random}; use 0",
        )
        check_setting(
            self.kind != "scripts" or self.clips_per_scene == 1,
            f"data.clips_per_scene has no effect on scripts, got {self.clips_per_scene}; use 1",
        )


class LinearNetwork(Record):
    """A `LinearVideoAutoencoder`: a linear code of blocks, and a small network that refines decoded videos.

    A block is `patch_size` pixels in height and width, and as many frames, or `temporal_patch_size`: 1 for images.
    The code is the principal components of `num_start_clips` clips. `noise_level` is the standard deviation of the
    error that the decoder assumes in latents.
    """

    latent_channels: Count = 48
    patch_size: Annotated[int, Range(least=2, multiple_of=2)] = 8
    temporal_patch_size: Count | None = None
    hidden_channels: Annotated[int, Range(least=8, multiple_of=8)] = 64
    num_layers: Count = 2
    noise_level: float = 0.4
    num_start_clips: Count = 900
    whitening: float = 0.5


class TextNetwork(Record):
    """A `UMT5EncoderModel` and the tokenizer of its captions, which is trained on every `caption_stride`-th of them."""

    vocab_size: Annotated[int, Range(least=64)] = 1200
    d_model: Count = 192
    d_kv: Count = 32
    d_ff: Count = 384
    num_layers: Count = 2
    num_heads: Count = 6
    max_tokens: Count = 32
    caption_stride: Count = 3


class AutoencoderRecipe(TrainingRecipe):
    """Trains an autoencoder on clips of the world, or on those of `dataset` if it is given (see `ArraysRecipe`).

    `generations` is a cache of latents that a model generated from the first of these clips (see `Regeneration`), so
    that the decoder learns to correct that model's errors.
    """

    clips: ClipFormat = ClipFormat()
    data: WorldData = WorldData()
    dataset: Path | None = None
    generations: Path | None = None
    network: LinearNetwork = LinearNetwork()
    settings: AutoencoderSettings = AutoencoderSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_grid(self.clips, self.network)


class Regeneration(Record):
    """How latents with a model's errors are made: noise is added to true ones, and the model denoises them.

    As in SDEdit, only the last shares `min_strength` to `max_strength` of `num_inference_steps` steps are taken, so
    that results still show the true clip. References are other clips of the same condition.
    """

    model: str
    num_inference_steps: Count = 6
    min_strength: float = 0.25
    max_strength: float = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(
            0 < self.min_strength <= self.max_strength <= 1,
            f"regeneration strengths must rise within 0 and 1, got {self.min_strength} and {self.max_strength}",
        )


class ArraysRecipe(Recipe):
    """Keeps named arrays of the clips of the world, or of those of `dataset`: a dataset's folder, or a cache of frames.

    The system defines the arrays. Videos of a dataset whose score (VAP-Data's `reference_alignment_score`, 0 to
    100) is not above `min_score` are left out; those without a score stay.
    """

    # "module:function" that returns the encoders of arrays, given recipe, clips and device.
    more_arrays: ClassVar[str | None] = None

    clips: ClipFormat = ClipFormat()
    data: WorldData = WorldData()
    dataset: Path | None = None
    min_score: Annotated[float, Range(least=0, most=100)] = 0.0
    batch_size: Count = 32
    dtype: Literal["float16", "bfloat16", "uint8"] = "float16"
    num_threads: Whole = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(
            self.dataset is not None or not self.min_score,
            f"min_score has no effect on clips of the world, got {self.min_score}; give a dataset, or 0",
        )


class LatentsRecipe(ArraysRecipe):
    """Encodes clips once.

    `first_frame_fill` says what follows the first frame in the backbone's first-frame latents: mid-grey frames
    ("grey", as Wan has it), the same frame ("repeat"), or zeros in place of latents ("zeros", as CogVideoX has it).
    With none there are no such latents.
    With `regeneration` the cache holds what a model generates from the noised latents of the clips, and nothing else.
    `text_encoder` is a model whose embeddings of the captions are kept too, so that a training with a frozen text
    encoder needs none; none leaves them out. `text_length` and `reads_padding` are how its backbone reads texts.
    `first_frame_encoder` is a model whose CLIP embeddings of first frames are kept, for backbones that read them.
    """

    autoencoder: str
    first_frame_fill: Literal["grey", "repeat", "zeros"] | None = "repeat"
    regeneration: Regeneration | None = None
    text_encoder: str | None = None
    text_length: int | None = None
    reads_padding: bool = False
    first_frame_encoder: str | None = None


class SchedulerSettings(Record):
    """The flow-matching scheduler of a model.

    `kind` "euler" is `FlowMatchEulerDiscreteScheduler`, "unipc" `UniPCMultistepScheduler` in its flow-matching form.
    "euler_trailing", for models of few steps (at most 50), takes Euler steps at nested noise levels: n steps use every
    k-th level of n * k steps (UniPC of order 1 without its corrector). `shift` moves the steps towards the noisy end,
    as in training.
    """

    kind: Literal["euler", "unipc", "euler_trailing"] = "euler"
    shift: Positive = 3.0


class ModelRecipe(Recipe):
    """Assembles a whole model from the runs of its parts; a system adds the parts, and its scheduler.

    `precision` is that of the tensors in the files, whose size is at most `max_shard_size` each.
    """

    precision: Literal["bfloat16", "float32"] = "bfloat16"
    # Hosts of code and packages refuse or slow down large files; this is below what is usual.
    max_shard_size: str = "15MB"


def _check_grid(clips: ClipFormat, network: LinearNetwork) -> None:
    check_setting(not clips.buckets, "an autoencoder is trained on clips of one size; leave out clips.buckets")
    patch_size = network.patch_size
    length = network.temporal_patch_size or patch_size
    check_setting(
        (clips.num_frames - 1) % length == 0,
        f"clips.num_frames must be 1 more than a multiple of {length}, got {clips.num_frames}",
    )
    for name in ("height", "width"):
        pixels = getattr(clips, name)
        check_setting(pixels % patch_size == 0, f"clips.{name} must be a multiple of {patch_size}, got {pixels}")
