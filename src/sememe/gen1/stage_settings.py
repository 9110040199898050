"""Recipes for the parts of a Gen-1 model, and the settings of their stages. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from sememe.gen1.settings import BUILT_IN, Settings
from sememe.training.config import TrainingConfig, check_setting
from sememe.training.recipes import ArraysRecipe, LatentsRecipe, ModelRecipe

PHASES = ("content", "time", "structure", "levels")
"""Phases of the U-Net's training in the order of the paper (supplement)."""


def _check_counts(record: object, group: str, *names: str) -> None:
    for name in names:
        check_setting(getattr(record, name) >= 1, f"{group}{name} must be 1 or more, got {getattr(record, name)}")


def _check_shares(record: object, *names: str) -> None:
    for name in names:
        check_setting(0 <= getattr(record, name) <= 1, f"{name} must be from 0 to 1, got {getattr(record, name)}")


@dataclass(frozen=True, kw_only=True)
class Gen1FramesRecipe(ArraysRecipe):
    """Renders scenes of the world in several looks once: their frames, and the depth behind them."""

    more_arrays: ClassVar[str | None] = "sememe.gen1.arrays:list_frames"


@dataclass(frozen=True, kw_only=True)
class DepthNetwork:
    """A `DepthAnythingForDepthEstimation`: a Dinov2 of `num_layers` layers, and a head of convolutions."""

    hidden_size: int = 96
    num_layers: int = 4
    num_heads: int = 3
    patch_size: int = 8
    fusion_size: int = 16
    head_size: int = 16

    def __post_init__(self) -> None:
        _check_counts(self, "network.", "hidden_size", "num_heads", "patch_size", "fusion_size", "head_size")
        check_setting(self.num_layers >= 4, f"network.num_layers must be 4 or more, got {self.num_layers}")


@dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """How depth is learned: mean absolute error of the nearness, which is 1 / distance, and of its differences.

    Attributes:
        batch_size: Frames per batch.
        gradient_weight: Weight of the error of differences between neighbouring pixels.
    """

    batch_size: int = 32
    gradient_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_counts(self, "", "batch_size")


@dataclass(frozen=True, kw_only=True)
class DepthRecipe:
    """Trains a depth network on frames of the world and their true depth."""

    name: str
    description: str
    frames: Path
    network: DepthNetwork = field(default_factory=DepthNetwork)
    settings: DepthSettings = field(default_factory=DepthSettings)
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class ClipNetwork:
    """A CLIP: towers for pictures and texts of one width, which is also the length of embeddings.

    The tokenizer is trained on every `caption_stride`-th caption.
    """

    hidden_size: int = 128
    num_image_layers: int = 4
    num_text_layers: int = 3
    num_heads: int = 4
    patch_size: int = 8
    vocab_size: int = 600
    max_tokens: int = 32
    caption_stride: int = 1

    def __post_init__(self) -> None:
        names = ("hidden_size", "num_image_layers", "num_text_layers", "num_heads", "patch_size", "max_tokens")
        _check_counts(self, "network.", *names, "vocab_size", "caption_stride")


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How pictures and texts are brought together: each picks its partner out of the batch (arXiv 2103.00020).

    Attributes:
        num_scenes: Scenes per batch; all looks of each are in it, so that what tells them apart must be read.
        temperature: Divides the cosines.
        trains_images: Whether the tower of pictures learns, too. One that a U-Net has been trained on has to stay as it
            is: texts are then fitted to its embeddings (arXiv 2111.07991).
    """

    num_scenes: int = 32
    temperature: float = 0.05
    trains_images: bool = True

    def __post_init__(self) -> None:
        _check_counts(self, "", "num_scenes")
        check_setting(self.temperature > 0, f"temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """Trains a CLIP on frames of the world and their captions."""

    name: str
    description: str
    frames: Path
    network: ClipNetwork = field(default_factory=ClipNetwork)
    settings: ClipSettings = field(default_factory=ClipSettings)
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Gen1LatentsRecipe(LatentsRecipe):
    """Latents of clips, their structure as the array "structure", and the content of each frame as "content".

    `depth_estimator` and `image_encoder` are models, runs or folders with these parts.
    """

    more_arrays: ClassVar[str | None] = "sememe.gen1.arrays:list_arrays"

    first_frame_fill: Literal["grey", "repeat", "zeros"] | None = None
    depth_estimator: str
    image_encoder: str


@dataclass(frozen=True, kw_only=True)
class PriorNetwork:
    """A `PriorTransformer`."""

    num_layers: int = 3
    num_heads: int = 4
    head_dim: int = 32

    def __post_init__(self) -> None:
        _check_counts(self, "network.", "num_layers", "num_heads", "head_dim")


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """How the prior is trained.

    Attributes:
        batch_size: Embeddings per batch.
        drop_text: Share of texts that are left empty, for guidance.
    """

    batch_size: int = 128
    drop_text: float = 0.1

    def __post_init__(self) -> None:
        _check_counts(self, "", "batch_size")
        _check_shares(self, "drop_text")


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """Trains a prior: an image embedding of a text. `clip` is the run or model of both encoders."""

    name: str
    description: str
    latents: Path
    clip: str
    network: PriorNetwork = field(default_factory=PriorNetwork)
    settings: PriorSettings = field(default_factory=PriorSettings)
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class UNetNetwork:
    """A `Gen1UNet`; `attention_levels` are those of `block_out_channels`, from 0, that have transformers."""

    block_out_channels: tuple[int, ...] = (64, 96, 128)
    attention_levels: tuple[int, ...] = (1, 2)
    layers_per_block: int = 1
    num_heads: int = 4
    norm_num_groups: int = 8
    max_frames: int = 8

    def __post_init__(self) -> None:
        _check_counts(self, "network.", "layers_per_block", "num_heads", "norm_num_groups", "max_frames")
        levels = range(len(self.block_out_channels))
        check_setting(
            len(levels) > 0 and set(self.attention_levels) <= set(levels),
            f"network.attention_levels must be among {', '.join(map(str, levels))}, got {self.attention_levels}",
        )


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """How the U-Net is trained.

    Attributes:
        batch_size: Videos per batch.
        image_batch_size: Images per batch of images.
        image_share: Share of batches that are images, after the first phase, which has images alone. The paper takes
            12.5 %.
        drop_content: Share of samples without content, for guidance. The paper does not give it.
    """

    batch_size: int = 4
    image_batch_size: int = 32
    image_share: float = 0.125
    drop_content: float = 0.1

    def __post_init__(self) -> None:
        _check_counts(self, "", "batch_size", "image_batch_size")
        _check_shares(self, "image_share", "drop_content")


@dataclass(frozen=True, kw_only=True)
class UNetRecipe:
    """Trains the U-Net on cached arrays, in the phases of the paper.

    "content" learns from images and the embedding of their content; "time" adds temporal layers, and learns from
    images and videos; "structure" adds structure in full detail, and "levels" structure at all levels.

    `autoencoder` is the run or model that the latents are of. `image_model` is a folder of Stable Diffusion 1 or 2 to
    begin with; `network` then has no effect but for `max_frames`.
    """

    name: str
    description: str
    latents: Path
    autoencoder: str
    image_model: Path | None = None
    network: UNetNetwork = field(default_factory=UNetNetwork)
    settings: UNetSettings = field(default_factory=UNetSettings)
    training: TrainingConfig

    def __post_init__(self) -> None:
        unknown = [phase.name for phase in self.training.list_phases() if phase.name not in PHASES]
        check_setting(not unknown, f"training.phases must be among {', '.join(PHASES)}, got {', '.join(unknown)}")


@dataclass(frozen=True, kw_only=True)
class CustomisationSettings:
    """How a model is customised.

    Attributes:
        rank: Rank of the LoRA.
        batch_size: Pictures per batch, and as many images that are preserved.
        preservation_weight: Weight of these; 0 forgets them.
    """

    rank: int = 8
    batch_size: int = 4
    preservation_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_counts(self, "", "rank", "batch_size")
        check_setting(
            self.preservation_weight >= 0, f"preservation_weight must be 0 or more, got {self.preservation_weight}"
        )


@dataclass(frozen=True, kw_only=True)
class CustomisationRecipe:
    """Customises a model with the pictures of a folder, and gives a LoRA for it.

    `model` is the model, and `latents` are arrays that it was trained on, whose images are preserved.
    """

    name: str
    description: str
    pictures: Path
    model: str
    latents: Path
    settings: CustomisationSettings = field(default_factory=CustomisationSettings)
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Gen1ModelRecipe(ModelRecipe):
    """Assembles a Gen-1 model from the runs of its parts."""

    autoencoder: str
    depth: str
    clip: str
    prior: str
    unet: str
    generation: Settings = BUILT_IN
