"""Training from the files of a data set and from its cache are the same."""

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.training_speed import (
    Contestant,
    OnlineLatents,
    load_text,
    make_recipe,
    make_stage,
    write_videos,
)
from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache
from sememe.training.dataset_clips import open_clips
from sememe.training.recipes import WorldData
from sememe.training.stage import step_generator
from sememe.training.text_source import CachedText, EncodedText, TextSource
from sememe.video_as_prompt.stages import LatentSource
from sememe.workflows.precompute import precompute_latents

CPU = torch.device("cpu")


class RoundedLatents(OnlineLatents):
    """What is encoded, in the precision in which a cache keeps it."""

    def select(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        return super().select(name, indices).half()


class RoundedText(EncodedText):
    """The same for texts."""

    def embed(self, picked: torch.Tensor) -> torch.Tensor:
        return super().embed(picked).half().float()


def train(latents: LatentSource, text: TextSource) -> torch.Tensor:
    """Take two steps, and return the trained weights as one vector."""
    contestant = Contestant("", "joint", 1, 1, is_precomputed=True, num_ahead=0)
    stage = make_stage(contestant, latents, text, CPU)
    trained = [each for each in stage.transformer.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for step in range(2):
        batch = stage.batch(step, step_generator(0, step, 0, "batch"), CPU)
        loss = stage.loss(batch, step_generator(0, step, 0, "loss"))
        optimizer.zero_grad()
        (loss.total / loss.divisor).backward()
        optimizer.step()
    return torch.cat([each.detach().flatten() for each in trained])


def test_training_from_a_cache_is_training_from_files(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_videos(tmp_path / "videos", 16, 72)
    recipe = replace(make_recipe(tmp_path / "videos"), device="cpu")
    precompute_latents(recipe, tmp_path / "latents")
    cache = ArrayCache.open(tmp_path / "latents", CPU)
    clips, text = open_clips(recipe.clips, WorldData(), recipe.dataset), load_text(CPU)
    vae = load_component("vae", find_part("video-as-prompt/tiny", "vae"))
    cached = train(cache, CachedText(cache))
    rounded = train(RoundedLatents(clips, vae, CPU), RoundedText(text.tokenizer, text.text_encoder))
    assert torch.equal(cached, rounded)
