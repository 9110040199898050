"""Recipes for the parts of a Gen-1 model, and the settings of their stages. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sememe.gen1.settings import BUILT_IN, Settings
from sememe.records import Count, Positive, Range, Record, Scale, Share
from sememe.training.config import check_setting
from sememe.training.recipes import ArraysRecipe, LatentsRecipe, ModelRecipe, TrainingRecipe

PHASES = ("content", "time", "structure", "levels")
"""Phases of the U-Net's training in the order of the paper (supplement)."""


class Gen1FramesRecipe(ArraysRecipe):
    """Renders scenes of the world in several looks once: frames and their depth."""

    more_arrays: ClassVar[str | None] = "sememe.gen1.arrays:list_frames"


class DepthNetwork(Record):
    """A `DepthAnythingForDepthEstimation`: a Dinov2 of `num_layers` layers, and a head of convolutions."""

    hidden_size: Count = 128
    num_layers: Annotated[int, Range(least=4)] = 4
    num_heads: Count = 4
    patch_size: Count = 8
    fusion_size: Count = 16
    head_size: Count = 16


class DepthSettings(Record):
    """How depth is learned: mean absolute error of the nearness, which is 1 / distance, and of its differences.

    Attributes:
        batch_size: Frames per batch.
        gradient_weight: Weight of the error of differences between neighbouring pixels.
    """

    batch_size: Count = 32
    gradient_weight: Scale = 1.0


class DepthRecipe(TrainingRecipe):
    """Trains a depth network on frames of the world and their true depth."""

    frames: Path
    network: DepthNetwork = DepthNetwork()
    settings: DepthSettings = DepthSettings()


class ClipNetwork(Record):
    """A CLIP: towers for pictures and texts of one width, which is also the length of embeddings.

    The tokenizer is trained on every `caption_stride`-th caption.
    """

    hidden_size: Count = 128
    num_image_layers: Count = 4
    num_text_layers: Count = 3
    num_heads: Count = 4
    patch_size: Count = 8
    vocab_size: Count = 600
    max_tokens: Count = 32
    caption_stride: Count = 1


class ClipSettings(Record):
    """How the CLIP is trained: contrastively within the batch (arXiv 2103.00020).

    Attributes:
        num_scenes: Scenes per batch; all looks of each are in it, so that the differences between looks have to be
            encoded.
        temperature: Divisor of cosine similarities.
        trains_images: Whether the image tower is trained. If a U-Net was trained on its embeddings it has to be frozen,
            and texts are fitted to it (arXiv 2111.07991).
    """

    num_scenes: Count = 32
    temperature: Positive = 0.05
    trains_images: bool = True


class ClipRecipe(TrainingRecipe):
    """Trains a CLIP on frames of the world and their captions."""

    frames: Path
    network: ClipNetwork = ClipNetwork()
    settings: ClipSettings = ClipSettings()


class Gen1LatentsRecipe(LatentsRecipe):
    """Latents of clips, their structure as the array "structure", and the content of each frame as "content".

    `depth_estimator` and `image_encoder` are models, runs or folders with these parts.
    """

    more_arrays: ClassVar[str | None] = "sememe.gen1.arrays:list_arrays"

    first_frame_fill: Literal["grey", "repeat", "zeros"] | None = None
    depth_estimator: str
    image_encoder: str


class Gen1ContentRecipe(ArraysRecipe):
    """The content of clips alone, as the array "content". `image_encoder` is a model, run or folder with that part."""

    more_arrays: ClassVar[str | None] = "sememe.gen1.arrays:list_content"

    image_encoder: str


class PriorNetwork(Record):
    """A `PriorTransformer`."""

    num_layers: Count = 3
    num_heads: Count = 4
    head_dim: Count = 32


class PriorSettings(Record):
    """How the prior is trained.

    Attributes:
        batch_size: Embeddings per batch.
        drop_text: Share of texts that are dropped, for classifier-free guidance.
    """

    batch_size: Count = 128
    drop_text: Share = 0.1


class PriorRecipe(TrainingRecipe):
    """Trains a prior, from a text to an image embedding.

    `latents` is a cache with the content of clips; `clip` is the run or model of both encoders.
    """

    latents: Path
    clip: str
    network: PriorNetwork = PriorNetwork()
    settings: PriorSettings = PriorSettings()


class UNetNetwork(Record):
    """A `Gen1UNet`; `attention_levels` are those of `block_out_channels`, from 0, that have transformers."""

    block_out_channels: tuple[int, ...] = (64, 96, 128)
    attention_levels: tuple[int, ...] = (1, 2)
    layers_per_block: Count = 1
    num_heads: Count = 4
    norm_num_groups: Count = 8
    max_frames: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = range(len(self.block_out_channels))
        check_setting(
            len(levels) > 0 and set(self.attention_levels) <= set(levels),
            f"network.attention_levels must be among {', '.join(map(str, levels))}, got {self.attention_levels}",
        )


class UNetSettings(Record):
    """How the U-Net is trained.

    Attributes:
        batch_size: Videos per batch.
        image_batch_size: Images per batch of images.
        image_share: Share of batches that are images after the first phase, which has only images; 12.5 % in the paper.
        drop_content: Share of samples without content, for classifier-free guidance; not stated in the paper.
    """

    batch_size: Count = 4
    image_batch_size: Count = 32
    image_share: Share = 0.125
    drop_content: Share = 0.1


class UNetRecipe(TrainingRecipe):
    """Trains the U-Net on cached arrays, in the phases of the paper.

    "content" learns from images and the embedding of their content; "time" adds temporal layers, and learns from
    images and videos; "structure" adds structure in full detail, and "levels" structure at all levels.

    `autoencoder` is the run or model that made the latents. `image_model` is a folder of Stable Diffusion 1 or 2 to
    begin with; of `network` then only `max_frames` has an effect.
    """

    latents: Path
    autoencoder: str
    image_model: Path | None = None
    network: UNetNetwork = UNetNetwork()
    settings: UNetSettings = UNetSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [phase.name for phase in self.training.list_phases() if phase.name not in PHASES]
        check_setting(not unknown, f"training.phases must be among {', '.join(PHASES)}, got {', '.join(unknown)}")


class CustomisationSettings(Record):
    """How a model is customised.

    Attributes:
        rank: Rank of the LoRA.
        batch_size: Pictures per batch, and equally many preservation images.
        preservation_weight: Weight of the loss on preservation images; 0 leaves them out.
    """

    rank: Count = 8
    batch_size: Count = 4
    preservation_weight: Scale = 1.0


class CustomisationRecipe(TrainingRecipe):
    """Trains a LoRA that customises a model with the pictures of a folder.

    `model` is the model, and `latents` are arrays that it was trained on, for the preservation images.
    """

    pictures: Path
    model: str
    latents: Path
    settings: CustomisationSettings = CustomisationSettings()


class Gen1ModelRecipe(ModelRecipe):
    """Assembles a Gen-1 model from the runs of its parts."""

    autoencoder: str
    depth: str
    clip: str
    prior: str
    unet: str
    generation: Settings = BUILT_IN
