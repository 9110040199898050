"""Training from the files of a data set and from its cache are the same, and a training is measured."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from benchmarks.training_speed import (
    Contestant,
    OnlineLatents,
    load_text,
    make_recipe,
    make_stage,
    measure,
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


class Sources(NamedTuple):
    """Latents and texts of the same videos, encoded when they are asked for and before."""

    online: OnlineLatents
    online_text: EncodedText
    cache: ArrayCache


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "videos").mkdir()
    write_videos(folder / "videos", 16, 72)
    recipe = replace(make_recipe(folder / "videos"), device="cpu")
    precompute_latents(recipe, folder / "latents")
    vae = load_component("vae", find_part("video-as-prompt/tiny", "vae"))
    clips = open_clips(recipe.clips, WorldData(), recipe.dataset)
    return Sources(RoundedLatents(clips, vae, CPU), load_text(CPU), ArrayCache.open(folder / "latents", CPU))


def test_training_from_a_cache_is_training_from_files(sources: Sources) -> None:
    text = RoundedText(sources.online_text.tokenizer, sources.online_text.text_encoder)
    cached = train(sources.cache, CachedText(sources.cache))
    assert torch.equal(cached, train(sources.online, text))


def test_a_training_is_measured(sources: Sources) -> None:
    contestant = Contestant("official", "joint", 1, 1, is_precomputed=False, num_ahead=0, recompute=True)
    stage = make_stage(contestant, sources.online, sources.online_text, CPU)
    row = measure(contestant, stage, num_steps=1, device=CPU, rate=1e12)
    assert row["clips_per_step"] == len(row["step_seconds"]) == 1
    # 17 frames of 64x64 pixels are 3 latent frames of 8x8, and each place a token.
    assert row["tokens_per_second"] / row["clips_per_second"] == pytest.approx(3 * 8 * 8)
    assert row["utilisation"] > 0
