"""The losses of the first steps of each stage, at the sizes of the smoke recipes and on made-up data."""

import json
from pathlib import Path

import pytest

from semanticgen.renderer_factories import CHANNELS, SEMANTIC_DIM, TEXT_DIM, make_backbone
from semanticgen.semantic_pipelines import make_tower
from sememe.evaluation.reader import VOCABULARY, SceneReader
from sememe.semanticgen.arrays import ARRAY, WORDS_ARRAY
from sememe.semanticgen.clocks import LatentClock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.encoders import QwenEncoder
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.recipes import smoke_planner, smoke_reader, smoke_renderer, smoke_semantic_encoder
from sememe.semanticgen.stage_encoder import EncoderStage
from sememe.semanticgen.stage_planner import PlannerStage
from sememe.semanticgen.stage_reader import ReaderStage
from sememe.semanticgen.stage_renderer import RendererStage
from sememe.semanticgen.stages import make_planner
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.text_source import EncodedText
from training.golden_losses import MadeUpArrays, StageCase, draw_array, draw_levels, measure, print_curves, redraw
from video_as_prompt.pipeline_factories import make_text_encoder, make_tokenizer

CURVES: dict[str, list[float]] = json.loads(Path(__file__).with_name("loss_curves.json").read_text())
NUM_FRAMES, FEATURE_DIM = 16, 12


def make_frames() -> MadeUpArrays:
    """Scripts of two seconds as pictures and as words; what happens changes from frame to frame."""
    num_words = min(len(words) for words in VOCABULARY.values())
    arrays = {
        FRAMES_ARRAY: draw_levels(NUM_FRAMES, 16, 16, 5),
        WORDS_ARRAY: draw_levels(3 + NUM_FRAMES, stop=num_words),
    }
    return MadeUpArrays(arrays, fps="8.0")


def make_features() -> MadeUpArrays:
    """Latents of 17 frames at 8 a second, and features of four slices of half a second."""
    arrays = {"clean": draw_array(CHANNELS, 5, 4, 4), ARRAY: draw_array(4, 2, 2, FEATURE_DIM, seed=1)}
    return MadeUpArrays(arrays, semantic_fps="4.0", frames_per_slice="2")


def make_compressor() -> SemanticCompressor:
    return SemanticCompressor(FEATURE_DIM, SEMANTIC_DIM, hidden_dim=8, num_layers=1, fps=4.0, encoder="made up")


def make_text() -> EncodedText:
    text = EncodedText(make_tokenizer(), make_text_encoder())
    redraw(text.text_encoder)
    return text


def make_encoder_stage() -> EncoderStage:
    encoder, settings = QwenEncoder(make_tower(), fps=4.0), smoke_semantic_encoder().settings
    stage = EncoderStage(encoder, make_compressor(), make_frames(), settings)
    redraw(encoder.tower, stage.compressor, stage.probes)
    return stage


def make_renderer_stage() -> RendererStage:
    transformer = SemanticGenTransformer.from_backbone(make_backbone(), SEMANTIC_DIM)
    compressor, text = make_compressor(), make_text()
    redraw(transformer, compressor)
    clock = LatentClock(temporal_ratio=4, fps=8.0)
    return RendererStage(transformer, compressor, text, make_features(), smoke_renderer().settings, clock)


def make_planner_stage() -> PlannerStage:
    planner, compressor = make_planner(smoke_planner().network, SEMANTIC_DIM, TEXT_DIM), make_compressor()
    redraw(planner, compressor)
    return PlannerStage(planner, compressor, make_text(), make_features(), smoke_planner().settings)


def make_reader_stage() -> ReaderStage:
    network = smoke_reader().network
    reader = SceneReader(VOCABULARY, network.width, network.feature_dim, network.fps, network.size)
    redraw(reader)
    return ReaderStage(reader, make_frames(), smoke_reader().settings)


CASES: dict[str, StageCase] = {
    "encoder": (make_encoder_stage, smoke_semantic_encoder().training),
    "renderer": (make_renderer_stage, smoke_renderer().training),
    "planner": (make_planner_stage, smoke_planner().training),
    "reader": (make_reader_stage, smoke_reader().training),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_that_were_recorded(name: str, tmp_path: Path) -> None:
    assert measure(CASES[name], tmp_path) == pytest.approx(CURVES[name], rel=1e-5)


if __name__ == "__main__":
    print_curves(CASES)
