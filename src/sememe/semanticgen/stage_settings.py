"""Recipes for the parts of a SemanticGen model, and the settings of its stages. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sememe.data.caption_policy import CaptionPolicy
from sememe.records import Count, Positive, Range, Record, Scale, Share, Whole
from sememe.semanticgen.settings import BUILT_IN, Settings
from sememe.training.recipes import ArraysRecipe, LatentsRecipe, ModelRecipe, SchedulerSettings, TrainingRecipe

NoiseLaw = Literal["half_normal", "uniform", "none"]


class NoiseLevels(Record):
    """How noise levels are drawn: logit-normal with `mean` and `std`, then moved towards the noisy end by `shift`."""

    mean: float = 0.0
    std: Positive = 1.3
    shift: Positive = 3.0


class SemanticFramesRecipe(ArraysRecipe):
    """Renders scripts of the world once: frames with mask and nearness of each pixel, and the conditions in time."""

    more_arrays: ClassVar[str | None] = "sememe.semanticgen.arrays:list_frames"

    dtype: Literal["float16", "bfloat16", "uint8"] = "uint8"


class TowerNetwork(Record):
    """The vision tower of the built-in encoder; see `semanticgen.encoders.make_built_in_tower`."""

    feature_dim: Count = 256
    depth: Count = 6
    hidden_size: Count = 128
    intermediate_size: Count = 384
    num_heads: Count = 2
    patch_size: Count = 8


class CompressorNetwork(Record):
    """The compressor of semantic features; see `semanticgen.compressor.SemanticCompressor`."""

    semantic_dim: Count = 8
    hidden_dim: Count = 512
    num_layers: Count = 2


class EncoderSettings(Record):
    """How the built-in semantic encoder is trained.

    Linear probes read the world from its features. At every position: subject coverage, mean colour and nearness, in
    both frames of a slice; with loss weight `label_weight` also kind and colour of the subject, where it is seen, and
    kind of the backdrop, where that is. At 0.06 plans already say much less of where the subject is.

    The compressor is trained with it: further probes read the same from the plans that the compressor samples.
    `kl_weight` is the weight of their KL divergence from a standard Gaussian.

    Each clip of a batch contributes `num_slices` slices, because those of one clip are similar. Half of the clips are
    mirrored, half are resized by up to 1.3, and all are shifted by up to `max_shift` pixels, so that position in the
    patch grid does not matter.
    """

    batch_size: Count = 64
    label_weight: Scale = 0.02
    kl_weight: Scale = 1e-4
    num_slices: Count = 1
    max_shift: Whole = 6


class EncoderRecipe(TrainingRecipe):
    """Trains the built-in semantic encoder and the compressor of its features on scripts of the world.

    `frames` is the cache of a `SemanticFramesRecipe`, and `fps` are the frames per second that the encoder reads.
    """

    frames: Path
    fps: float = 4.0
    network: TowerNetwork = TowerNetwork()
    compressor: CompressorNetwork = CompressorNetwork()
    settings: EncoderSettings = EncoderSettings()


class SemanticLatentsRecipe(LatentsRecipe):
    """Latents of clips, and features of a semantic encoder as the array "semantic".

    `semantic_encoder` is a model, run or folder with one, and `semantic_fps` are the frames per second that it reads
    (1.6 in the paper).
    """

    more_arrays: ClassVar[str | None] = "sememe.semanticgen.arrays:list_arrays"

    semantic_encoder: str
    semantic_fps: float = 1.6


class RendererSettings(Record):
    """How the renderer is trained, and the compressor with it.

    Attributes:
        batch_size: Clips per batch.
        noise: Noise levels of latents.
        captions: Captions that are dropped or say what happens.
        segment_share: Share of batches in which each slice of time reads what happens in it, as in a generation with
            segments, and not all that happens, as in one with a prompt alone; for clips of which it is known.
        drop_plan: Share of batches without a plan, so that the same network also renders without one.
        image_share: Share of clips with their first frame as input, if the backbone takes one.
        kl_weight: Weight of the KL divergence; not stated in the paper.
        plan_noise: Distribution of the strength of noise on plans.
        plan_noise_tau: Scale of that strength, in standard deviations of the plan's features (unit variance).
        window_seconds: Length of the attention windows; none attends over the whole clip.
    """

    batch_size: Count = 32
    noise: NoiseLevels = NoiseLevels()
    captions: CaptionPolicy = CaptionPolicy(drop_target_caption=0.15, drop_reference_caption=0.0, full_share=0.9)
    segment_share: Share = 0.5
    drop_plan: Share = 0.1
    image_share: Share = 0.2
    kl_weight: Scale = 1e-3
    plan_noise: NoiseLaw = "half_normal"
    plan_noise_tau: Scale = 0.4
    window_seconds: Positive | None = 4.0


class RendererRecipe(TrainingRecipe):
    """Trains the renderer and the text encoder on cached arrays (paper section 3.3, stage 1).

    `backbone` is a model or run whose transformer, text encoder and tokenizer it starts from. `encoder` is a run or
    model whose compressor is used, frozen, so that a planner can be trained at the same time; none trains one of the
    size `compressor` with the renderer, as in the paper. `temporal_ratio` is the number of frames per latent frame
    after the first, and `fps` the frames per second of the clips. `autoencoder` is a run or
    model whose autoencoder decodes samples to look at; none makes none.
    """

    latents: Path
    backbone: str
    encoder: str | None = None
    autoencoder: str | None = None
    temporal_ratio: Count = 8
    fps: Positive = 8.0
    compressor: CompressorNetwork = CompressorNetwork()
    settings: RendererSettings = RendererSettings()


class PlannerNetwork(Record):
    """The planner, a `WanTransformer3DModel` over the tokens of plans."""

    num_layers: Count = 8
    num_attention_heads: Count = 4
    attention_head_dim: Count = 64
    ffn_dim: Count = 1024
    freq_dim: Count = 256


class PlannerSettings(Record):
    """How the planner is trained.

    Attributes:
        batch_size: Plans per batch.
        noise: Noise levels of plans.
        captions: Captions that are dropped or say what happens.
        segment_share: As in `RendererSettings`.
        crop_share: Share of batches whose plans are cut after a random number of slices, so that the planner learns all
            lengths up to that of the clips; captions of whole clips still describe all of them.
    """

    batch_size: Count = 64
    noise: NoiseLevels = NoiseLevels(shift=2.0)
    captions: CaptionPolicy = CaptionPolicy(drop_target_caption=0.15, drop_reference_caption=0.0, full_share=1.0)
    segment_share: Share = 0.5
    crop_share: Share = 0.2


class PlannerRecipe(TrainingRecipe):
    """Trains the planner on cached arrays (paper section 3.3, stage 2).

    Encoder, compressor and text encoder are frozen. `renderer` is the run or model that provides compressor, text
    encoder and tokenizer.
    """

    latents: Path
    renderer: str
    network: PlannerNetwork = PlannerNetwork()
    settings: PlannerSettings = PlannerSettings()


class SemanticGenModelRecipe(ModelRecipe):
    """Assembles a SemanticGen model from the runs of its parts."""

    autoencoder: str
    encoder: str
    renderer: str
    planner: str
    scheduler: SchedulerSettings = SchedulerSettings()
    generation: Settings = BUILT_IN


class ReaderNetwork(Record):
    """The network that reads clips in the evaluation; see `evaluation.reader.SceneReader`."""

    width: Annotated[int, Range(least=4, multiple_of=4)] = 32
    feature_dim: Count = 192
    fps: Positive = 4.0
    size: Annotated[int, Range(least=8, multiple_of=8)] = 64


class ReaderSettings(Record):
    """How the reader is trained.

    Attributes:
        batch_size: Clips per batch.
        blurred_share: Share of clips that are blurred by half their pixels.
        max_noise: Largest standard deviation of noise on pixels, which go from -1 to 1.
        max_shift: Largest shift of a clip in pixels, vertically and horizontally.
    """

    batch_size: Count = 8
    blurred_share: Share = 0.3
    max_noise: Scale = 0.15
    max_shift: Whole = 2


class ReaderRecipe(TrainingRecipe):
    """Trains the reader of the evaluation on scripts of the world.

    `frames` is the cache of a `SemanticFramesRecipe`, whose pictures are square and at least of the reader's size.
    """

    frames: Path
    network: ReaderNetwork = ReaderNetwork()
    settings: ReaderSettings = ReaderSettings()
