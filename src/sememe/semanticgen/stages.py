"""From recipes to stages: the networks and data of SemanticGen's trainings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from sememe.checkpoints.components import load_component, load_strictly
from sememe.checkpoints.headers import CONFIG_NAME, read_json
from sememe.data.array_cache import ArrayCache
from sememe.errors import RecipeError
from sememe.evaluation.reader import PART, VOCABULARY, SceneReader
from sememe.semanticgen.arrays import ARRAY, WORDS_ARRAY, check_frames, read_clock
from sememe.semanticgen.clocks import LatentClock, SliceClock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.encoders import QwenEncoder, load_encoder, make_built_in_tower
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.shapes import EncoderFeatures
from sememe.semanticgen.stage_encoder import EncoderStage
from sememe.semanticgen.stage_planner import PlannerStage
from sememe.semanticgen.stage_reader import ReaderStage
from sememe.semanticgen.stage_renderer import RendererStage, fit_semantic_embedding
from sememe.semanticgen.stage_settings import (
    CompressorNetwork,
    EncoderRecipe,
    PlannerNetwork,
    PlannerRecipe,
    ReaderRecipe,
    RendererRecipe,
)
from sememe.training.array_encoders import find_text
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.networks import choose_attention, make_scheduler
from sememe.training.preparation import CachedPreparation
from sememe.training.recipes import SchedulerSettings
from sememe.training.samples import find_sampler
from sememe.training.stage import Announce
from sememe.training.text_source import EncodedText

_TEXT_PARTS = ("text_encoder", "tokenizer")


class ScriptsPreparation(CachedPreparation):
    """Scripts of the world.

    Raises:
        InputError: The frames are something else.
    """

    source, arrays = "frames", (FRAMES_ARRAY, WORDS_ARRAY)

    def __init__(self, recipe: EncoderRecipe | ReaderRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        check_frames(self._cache, recipe.frames)


class EncoderPreparation(ScriptsPreparation):
    """Scripts of the world, for the training of the built-in semantic encoder."""

    _recipe: EncoderRecipe

    def begin(self, folder: Path) -> None:
        recipe = self._recipe
        torch.manual_seed(recipe.training.seed)
        make_built_in_tower(recipe.network).save_pretrained(folder / "semantic_encoder")
        encoder = load_encoder(folder / "semantic_encoder", recipe.fps)
        compressor = make_compressor(recipe.compressor, encoder.feature_dim, encoder.clock, encoder.fingerprint)
        compressor.save_pretrained(folder / "compressor")

    def build(self, start: Path) -> EncoderStage:
        encoder = load_encoder(start / "semantic_encoder", self._recipe.fps)
        if not isinstance(encoder, QwenEncoder):
            raise RecipeError(f"only the tower of Qwen2.5-VL is trained, got {encoder.tower_class.__name__}")
        _, height, width, _ = self._cache.arrays[FRAMES_ARRAY].shape
        size = encoder.choose_size(height, width)
        if size != (height, width):
            raise RecipeError(
                f"expected frames of a size that the encoder need not resize, got {height}x{width}; use "
                f"{size[0]}x{size[1]}"
            )
        compressor = load_strictly(SemanticCompressor, start / "compressor", torch.float32)
        return EncoderStage(encoder, compressor, self._cache, self._recipe.settings)


class ReaderPreparation(ScriptsPreparation):
    """Scripts of the world, for the training of the reader.

    Raises:
        RecipeError: They are not square, or smaller than what the reader sees.
    """

    _recipe: ReaderRecipe
    device = "cpu"  # because the stage takes but a part of it to its own

    def __init__(self, recipe: ReaderRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        _, height, width, _ = self._cache.arrays[FRAMES_ARRAY].shape
        if height != width or height < recipe.network.size:
            raise RecipeError(
                f"expected square frames of at least network.size {recipe.network.size} pixels, got {height}x{width}"
            )

    def make(self) -> Mapping[str, Any]:
        network = self._recipe.network
        return {PART: SceneReader(VOCABULARY, network.width, network.feature_dim, network.fps, network.size)}

    def build(self, start: Path) -> ReaderStage:
        network = load_strictly(SceneReader, start / PART, torch.float32)
        return ReaderStage(network, self._cache, self._recipe.settings)


class RendererPreparation(CachedPreparation):
    """Cached arrays and a backbone, for the training of the renderer.

    Raises:
        ModelError: The backbone is not whole.
        RecipeError: The arrays do not fit the backbone.
    """

    arrays = ("clean", ARRAY)
    _recipe: RendererRecipe

    def make(self) -> Mapping[str, Any]:
        recipe, cache, clock = self._recipe, self._cache, read_clock(self._cache)
        backbone = load_component("transformer", self._parts["transformer"])
        if not isinstance(backbone, WanTransformer3DModel):
            raise RecipeError(f"only Wan backbones can render plans, got {type(backbone).__name__}")
        if recipe.encoder is None:
            described = cache.describe(ARRAY)
            feature_dim, encoder = cache.arrays[ARRAY].shape[-1], described["semantic_encoder"]
            compressor = make_compressor(recipe.compressor, feature_dim, clock, encoder)
        else:
            compressor = load_strictly(SemanticCompressor, self._parts["compressor"], torch.float32)
        compressor.fit_statistics(_read_features(cache))
        described = cache.describe("first_frame") if "first_frame" in cache.arrays else {}
        renderer = SemanticGenTransformer.from_backbone(
            backbone,
            semantic_dim=compressor.config.semantic_dim,
            first_frame_fill=described.get("first_frame_fill", "grey"),
        )
        fit_semantic_embedding(renderer, compressor, cache, LatentClock(recipe.temporal_ratio, recipe.fps))
        names = () if "text" in cache.arrays else _TEXT_PARTS
        texts = {name: load_component(name, self._parts[name]) for name in names}
        return {"transformer": renderer, "compressor": compressor, **texts}

    def build(self, start: Path) -> RendererStage:
        recipe, cache = self._recipe, self._cache
        transformer = load_strictly(SemanticGenTransformer, start / "transformer", torch.float32)
        compressor = load_strictly(SemanticCompressor, start / "compressor", torch.float32)
        compressor.check_encoder(cache.describe(ARRAY)["semantic_encoder"])
        compressor.requires_grad_(recipe.encoder is None)
        _check_channels(transformer, cache)
        choose_attention(transformer, recipe.training.device)
        is_frozen = "text" in cache.arrays
        text = (
            find_text(self._parts, cache)
            if is_frozen
            else EncodedText(*(load_component(name, start / name) for name in ("tokenizer", "text_encoder")))
        )
        clock, frozen = LatentClock(recipe.temporal_ratio, recipe.fps), _TEXT_PARTS if is_frozen else ()
        copied = {name: self._parts[name] for name in frozen}
        sampler = find_sampler(self._parts, make_scheduler(SchedulerSettings()))
        return RendererStage(transformer, compressor, text, cache, recipe.settings, clock, copied, sampler)


class PlannerPreparation(CachedPreparation):
    """Cached features and the renderer's frozen parts, for the planner.

    Raises:
        ModelError: A part is not whole, or the compressor is one of another encoder.
    """

    arrays = (ARRAY,)
    _recipe: PlannerRecipe

    def __init__(self, recipe: PlannerRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        self._compressor = load_strictly(SemanticCompressor, parts["compressor"], torch.float32)
        self._compressor.check_encoder(self.inputs["semantic_encoder"])

    def make(self) -> Mapping[str, Any]:
        text_dim = read_json(self._parts["text_encoder"] / CONFIG_NAME)["d_model"]
        semantic_dim = self._compressor.config.semantic_dim
        return {"planner": make_planner(self._recipe.network, semantic_dim, text_dim)}

    def build(self, start: Path) -> PlannerStage:
        recipe, parts = self._recipe, self._parts
        planner = load_strictly(SemanticGenTransformer, start / "planner", torch.float32)
        choose_attention(planner, recipe.training.device)
        return PlannerStage(planner, self._compressor, find_text(parts, self._cache), self._cache, recipe.settings)


def _read_features(cache: ArrayCache) -> Iterator[EncoderFeatures]:
    """Yield semantic features, those of up to 1,024 clips, which is enough for statistics."""
    count = min(len(cache), 1024)
    for start in range(0, count, 64):
        yield cache.select(ARRAY, range(start, min(start + 64, count))).float().cpu()


def make_compressor(
    network: CompressorNetwork, feature_dim: int, clock: SliceClock, encoder: str
) -> SemanticCompressor:
    """Return a compressor with random weights, for features of an encoder of that fingerprint."""
    return SemanticCompressor(
        feature_dim=feature_dim,
        semantic_dim=network.semantic_dim,
        hidden_dim=network.hidden_dim,
        num_layers=network.num_layers,
        fps=clock.fps,
        frames_per_slice=clock.frames_per_slice,
        encoder=encoder,
    )


def make_planner(network: PlannerNetwork, semantic_dim: int, text_dim: int) -> SemanticGenTransformer:
    """Return a planner with random weights; the slices of plans stand in the place of latent frames."""
    return SemanticGenTransformer(
        patch_size=(1, 1, 1),
        num_attention_heads=network.num_attention_heads,
        attention_head_dim=network.attention_head_dim,
        in_channels=semantic_dim,
        out_channels=semantic_dim,
        text_dim=text_dim,
        freq_dim=network.freq_dim,
        ffn_dim=network.ffn_dim,
        num_layers=network.num_layers,
        semantic_dim=None,
    )


def _check_channels(transformer: SemanticGenTransformer, cache: ArrayCache) -> None:
    expected, channels = transformer.config.out_channels, cache.arrays["clean"].shape[0]
    if channels != expected:
        raise RecipeError(f"the backbone needs latents of {expected} channels, got {channels}; take its own latents")
    if transformer.config.in_channels not in (expected, 2 * expected) and "first_frame" not in cache.arrays:
        raise RecipeError("the backbone reads first pictures, but the cache has no first_frame; precompute it")
