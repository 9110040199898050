"""From recipes to stages: the networks and data of SemanticGen's trainings."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from sememe.checkpoints.components import load_component, load_strictly
from sememe.checkpoints.headers import CONFIG_NAME, read_json
from sememe.compute.devices import choose_device
from sememe.data.array_cache import ArrayCache
from sememe.errors import RecipeError
from sememe.evaluation.reader import NOTHING, PART, VOCABULARY, SceneReader, name_scene
from sememe.semanticgen.arrays import ARRAY, read_clock
from sememe.semanticgen.clocks import LatentClock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.encoders import QwenEncoder, load_encoder, make_built_in_tower
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.stage_encoder import EncoderStage, LabelledClip
from sememe.semanticgen.stage_planner import PlannerStage
from sememe.semanticgen.stage_reader import NarratedClip, ReaderStage
from sememe.semanticgen.stage_renderer import RendererStage
from sememe.semanticgen.stage_settings import (
    EncoderRecipe,
    PlannerNetwork,
    PlannerRecipe,
    ReaderRecipe,
    RendererRecipe,
)
from sememe.training.array_encoders import find_text
from sememe.training.clips import render_item, world_item
from sememe.training.dataset_clips import open_clips
from sememe.training.networks import choose_attention
from sememe.training.recipes import ClipFormat, WorldData
from sememe.training.stage import Announce
from sememe.training.text_source import EncodedText
from sememe.world import WORLD_VERSION, random_scene, random_script, render_script
from sememe.world.scene import BACKDROPS, BODIES, COLORS, CREATURES, OBJECTS, Backdrop

_TEXT_PARTS = ("text_encoder", "tokenizer")


class LabelledWorld:
    """Clips of the world with what it knows of them; see `stage_encoder.LabelledClips`."""

    def __init__(self, clips: ClipFormat, data: WorldData) -> None:
        self._format, self._data, self.fps = clips, data, clips.fps
        self._values = {
            "subject": (*BODIES, *CREATURES, *OBJECTS),
            "subject_colour": tuple(COLORS),
            "backdrop": tuple(BACKDROPS),
        }
        self.label_counts: Mapping[str, int] = {name: len(values) for name, values in self._values.items()}

    def __len__(self) -> int:
        return self._data.num_clips

    def read(self, index: int) -> LabelledClip:
        clips, item = self._format, world_item(index, self._data.clips_per_scene)
        shot = render_item(item, num_frames=clips.num_frames, size=(clips.height, clips.width), fps=clips.fps)
        scene = random_scene(item.scene)
        found: dict[str, str | None] = {
            "subject": None if scene.subject is None else scene.subject.kind,
            "subject_colour": None if scene.subject is None else scene.subject.color_name,
            "backdrop": scene.backdrop.kind if isinstance(scene.backdrop, Backdrop) else None,
        }
        labels = {name: -1 if value is None else self._values[name].index(value) for name, value in found.items()}
        return LabelledClip(shot.clip.frames, shot.mask, shot.depth, labels)


class EncoderPreparation:
    """The world, for the training of the built-in semantic encoder; see `training.stage.Preparation`."""

    def __init__(self, recipe: EncoderRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        assert not parts, parts
        self._recipe = recipe

    @property
    def inputs(self) -> Mapping[str, str]:
        clips = self._recipe.clips
        return {"clips": f"world {WORLD_VERSION}, {clips.num_frames} frames of {clips.width}x{clips.height}"}

    def begin(self, folder: Path) -> None:
        torch.manual_seed(self._recipe.training.seed)
        make_built_in_tower(self._recipe.network).save_pretrained(folder / "semantic_encoder")

    def build(self, start: Path) -> EncoderStage:
        recipe, clips = self._recipe, self._recipe.clips
        encoder = load_encoder(start / "semantic_encoder", recipe.fps)
        if not isinstance(encoder, QwenEncoder):
            raise RecipeError(f"only the tower of Qwen2.5-VL is trained, got {encoder.tower_class.__name__}")
        size = encoder.choose_size(clips.height, clips.width)
        if size != (clips.height, clips.width):
            raise RecipeError(
                f"expected clips of a size that the encoder need not resize, got {clips.height}x{clips.width}; use "
                f"{size[0]}x{size[1]}"
            )
        return EncoderStage(encoder, LabelledWorld(clips, recipe.data), recipe.settings)


class NarratedWorld:
    """Scripts of the world with their labels; see `stage_reader.NarratedClips`."""

    def __init__(self, clips: ClipFormat, data: WorldData) -> None:
        self._format, self._data = clips, data
        self._numbers = {name: {value: i for i, value in enumerate(values)} for name, values in VOCABULARY.items()}

    def __len__(self) -> int:
        return self._data.num_clips

    def read(self, index: int) -> NarratedClip:
        clips, numbers = self._format, self._numbers
        script = random_script(index, seconds=clips.num_frames / clips.fps)
        shot = render_script(script.scene, script.spans, size=clips.height, fps=clips.fps)
        labels = {name: numbers[name][word] for name, word in name_scene(script.scene).items()}
        moments = [
            np.full(round((span.end - span.start) * clips.fps), numbers["condition"][span.condition or NOTHING])
            for span in shot.spans
        ]
        return NarratedClip(shot.clip.frames, shot.mask, labels, np.concatenate(moments))


class ReaderPreparation:
    """Scripts of the world, for the training of the reader; see `training.stage.Preparation`."""

    def __init__(self, recipe: ReaderRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        assert not parts, parts
        self._recipe = recipe

    @property
    def inputs(self) -> Mapping[str, str]:
        return {"clips": open_clips(self._recipe.clips, self._recipe.data, None).version}

    def begin(self, folder: Path) -> None:
        torch.manual_seed(self._recipe.training.seed)
        clips, network = self._recipe.clips, self._recipe.network
        SceneReader(VOCABULARY, network.width, network.feature_dim, clips.fps, clips.height).save_pretrained(
            folder / PART
        )

    def build(self, start: Path) -> ReaderStage:
        network = load_strictly(SceneReader, start / PART, torch.float32)
        return ReaderStage(network, NarratedWorld(self._recipe.clips, self._recipe.data), self._recipe.settings)


class RendererPreparation:
    """Cached arrays and a backbone, for the training of the renderer; see `training.stage.Preparation`.

    Raises:
        InputError: The arrays are not there, or not finished.
        ModelError: The backbone is not whole.
        RecipeError: The arrays do not fit the backbone.
    """

    def __init__(self, recipe: RendererRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        self._recipe, self._parts = recipe, parts
        announce("reading latents")
        self._cache = ArrayCache.open(recipe.latents, choose_device(recipe.training.device))

    @property
    def inputs(self) -> Mapping[str, str]:
        return {**self._cache.describe("clean"), **self._cache.describe(ARRAY)}

    def begin(self, folder: Path) -> None:
        recipe, cache, clock = self._recipe, self._cache, read_clock(self._cache)
        torch.manual_seed(recipe.training.seed)
        backbone = load_component("transformer", self._parts["transformer"])
        if not isinstance(backbone, WanTransformer3DModel):
            raise RecipeError(f"only Wan backbones can render plans, got {type(backbone).__name__}")
        described = cache.describe("first_frame") if "first_frame" in cache.arrays else {}
        renderer = SemanticGenTransformer.from_backbone(
            backbone,
            semantic_dim=recipe.compressor.semantic_dim,
            first_frame_fill=described.get("first_frame_fill", "grey"),
        )
        compressor = SemanticCompressor(
            feature_dim=cache.arrays[ARRAY].shape[-1],
            semantic_dim=recipe.compressor.semantic_dim,
            hidden_dim=recipe.compressor.hidden_dim,
            num_layers=recipe.compressor.num_layers,
            fps=clock.fps,
            frames_per_slice=clock.frames_per_slice,
            encoder=cache.describe(ARRAY)["semantic_encoder"],
        )
        renderer.save_pretrained(folder / "transformer")
        compressor.save_pretrained(folder / "compressor")
        for name in () if "text" in cache.arrays else _TEXT_PARTS:
            load_component(name, self._parts[name]).save_pretrained(folder / name)

    def build(self, start: Path) -> RendererStage:
        recipe, cache = self._recipe, self._cache
        transformer = load_strictly(SemanticGenTransformer, start / "transformer", torch.float32)
        compressor = load_strictly(SemanticCompressor, start / "compressor", torch.float32)
        compressor.check_encoder(cache.describe(ARRAY)["semantic_encoder"])
        _check_channels(transformer, cache)
        choose_attention(transformer, recipe.training.device)
        is_frozen = "text" in cache.arrays
        text = find_text(self._parts, cache) if is_frozen else _load_text(start)
        clock, frozen = LatentClock(recipe.temporal_ratio, recipe.fps), _TEXT_PARTS if is_frozen else ()
        copied = {name: self._parts[name] for name in frozen}
        return RendererStage(transformer, compressor, text, cache, recipe.settings, clock, copied)


class PlannerPreparation:
    """Cached features and the renderer's frozen parts, for the planner; see `training.stage.Preparation`.

    Raises:
        InputError: The arrays are not there, or not finished.
        ModelError: A part is not whole, or the compressor is one of another encoder.
    """

    def __init__(self, recipe: PlannerRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        self._recipe, self._parts = recipe, parts
        announce("reading features")
        self._cache = ArrayCache.open(recipe.latents, choose_device(recipe.training.device))
        self._compressor = load_strictly(SemanticCompressor, parts["compressor"], torch.float32)
        self._compressor.check_encoder(self.inputs["semantic_encoder"])

    @property
    def inputs(self) -> Mapping[str, str]:
        return self._cache.describe(ARRAY)

    def begin(self, folder: Path) -> None:
        torch.manual_seed(self._recipe.training.seed)
        text_dim = read_json(self._parts["text_encoder"] / CONFIG_NAME)["d_model"]
        semantic_dim = self._compressor.config.semantic_dim
        make_planner(self._recipe.network, semantic_dim, text_dim).save_pretrained(folder / "planner")

    def build(self, start: Path) -> PlannerStage:
        recipe, parts = self._recipe, self._parts
        planner = load_strictly(SemanticGenTransformer, start / "planner", torch.float32)
        choose_attention(planner, recipe.training.device)
        return PlannerStage(planner, self._compressor, find_text(parts, self._cache), self._cache, recipe.settings)


def _load_text(folder: Path) -> EncodedText:
    return EncodedText(*(load_component(name, folder / name) for name in ("tokenizer", "text_encoder")))


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
