"""Clips per second of an expert's training, and how long steps wait for data: `python -m benchmarks.training_speed`.

The built-in model of tiny is trained further on videos that are written to a folder first. Every contestant computes
the same loss of the same network with the same optimiser, in two-way attention as the released experts have it, except
the last two:

official                the released loop: one target and one reference a step; both are decoded and encoded in the
                        step (clips, first frames and captions), one after the other, with no worker beside it; each
                        block is computed again on the way back, so that its activations need not be kept
official, blocks once   the same with activations kept
online                  several pairs a step, decoded and encoded in threads ahead of the steps
precomputed             the same pairs, read from a cache in threads ahead of the steps
precomputed, one-way    one-way attention, in which a reference serves several targets, as recipes of tiny have it
compiled, one-way       the same with compiled blocks

A clip is a target that was learned from. `wait` is the share of the time in which a step waits for its batch, and
`utilisation` the rate of floating-point operations over that of the device in matrix products. It counts forward and
backward once, and encoders not at all.
"""

import argparse
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import RESULTS, describe_run, write_result
from sememe.backbones.autoencoder import Autoencoder, encode_video
from sememe.backbones.first_frame import encode_cached_first_frame
from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache
from sememe.data.cache_index import ClipItem
from sememe.data.manifest import MANIFEST_NAME, VideoSample, write_manifest
from sememe.training.clips import ClipCollection, render_item, world_item
from sememe.training.config import TrainingConfig
from sememe.training.dataset_clips import open_clips
from sememe.training.networks import choose_attention, read_video
from sememe.training.recipes import LatentsRecipe, WorldData
from sememe.training.stage import BatchSource, step_generator
from sememe.training.step_cost import CPU_ATTENTION, measure_rate
from sememe.training.text_source import CachedText, EncodedText, TextSource
from sememe.video import write_clip
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.recipes import tiny_expert, tiny_latents
from sememe.video_as_prompt.stage_expert import ExpertBatch, ExpertStage
from sememe.video_as_prompt.stages import LatentSource
from sememe.workflows.precompute import precompute_latents

GAIN = 3.0
"""Clips per second of the fastest loop over those of the official one, as they should be."""
MOST_WAIT = 0.05
_MODEL, _SEED, _NUM_CONDITIONS = "video-as-prompt/tiny", 0, 8


@dataclass(frozen=True)
class Contestant:
    """A way to train.

    Attributes:
        name: Its name.
        attention_mode: "joint" (two-way) or "cached" (one-way).
        num_references: References in a step.
        targets_per_reference: Targets of each.
        is_precomputed: Whether latents and text embeddings come from a cache.
        num_ahead: Batches that are made ahead, in as many threads.
        recompute: Whether blocks are computed again in the backward pass (activation checkpointing).
        compiled: Whether blocks are compiled.
    """

    name: str
    attention_mode: str
    num_references: int
    targets_per_reference: int
    is_precomputed: bool
    num_ahead: int
    recompute: bool = False
    compiled: bool = False


CONTESTANTS = (
    Contestant("official", "joint", 1, 1, is_precomputed=False, num_ahead=0, recompute=True),
    Contestant("official, blocks once", "joint", 1, 1, is_precomputed=False, num_ahead=0),
    Contestant("online", "joint", 16, 1, is_precomputed=False, num_ahead=2),
    Contestant("precomputed", "joint", 16, 1, is_precomputed=True, num_ahead=2),
    Contestant("precomputed, one-way", "cached", 4, 4, is_precomputed=True, num_ahead=2),
    Contestant("compiled, one-way", "cached", 4, 4, is_precomputed=True, num_ahead=2, compiled=True),
)


class OnlineLatents:
    """Latents that are encoded from videos whenever they are asked for; a batch decodes each video once."""

    def __init__(self, clips: ClipCollection, vae: Autoencoder, device: torch.device) -> None:
        self._clips, self._vae, self._device = clips, vae, device
        items: list[ClipItem] = [clips.item(index) for index in range(len(clips))]
        self.conditions = tuple(item.condition for item in items)
        self.scenes = tuple(item.scene for item in items)
        self.captions = tuple(item.caption for item in items)
        self.full_captions = tuple(item.full_caption for item in items)
        self.buckets, self.references = ("",) * len(items), ((),) * len(items)
        self._decoded = threading.local()  # of the batch that a thread makes

    @torch.no_grad()
    def select(self, name: str, indices: Tensor) -> Tensor:
        """Encode items; the clean latents are asked for first."""
        if name == "clean":
            self._decoded.video = read_video(self._clips, indices.tolist()).to(self._device)
            return encode_video(self._vae, self._decoded.video)
        video = self._decoded.video
        return encode_cached_first_frame(self._vae, video[:, :, 0], video.shape[2], "repeat")


def write_videos(folder: Path, count: int, size: int) -> None:
    """Write clips of the world as files, larger than they are trained on, as videos are."""
    samples = []
    for number in range(count):
        item = world_item(number, WorldData(clips_per_scene=_NUM_CONDITIONS))
        shot = render_item(item, num_frames=17, size=size)
        write_clip(shot.clip, folder / f"{number}.mp4")
        samples.append(
            VideoSample(
                path=f"{number}.mp4",
                caption=shot.caption,
                condition=f"condition {number % _NUM_CONDITIONS}",
                scene=str(item.scene),
            )
        )
    write_manifest(samples, folder / MANIFEST_NAME)


def load_text(device: torch.device) -> EncodedText:
    """The text encoder of the built-in model."""
    encoder = load_component("text_encoder", find_part(_MODEL, "text_encoder")).requires_grad_(False)
    return EncodedText(load_component("tokenizer", find_part(_MODEL, "tokenizer")), encoder.to(device))


def make_recipe(folder: Path) -> LatentsRecipe:
    """Videos of a folder, encoded by the built-in model, with the embeddings of their captions."""
    return replace(tiny_latents(), autoencoder=_MODEL, text_encoder=_MODEL, dataset=folder)


def make_stage(contestant: Contestant, latents: LatentSource, text: TextSource, device: torch.device) -> ExpertStage:
    """An expert on the built-in backbone, with what the contestant shows it."""
    transformer = WanVideoAsPromptTransformer.from_backbone(
        load_component("transformer", find_part(_MODEL, "transformer")),
        attention_mode=contestant.attention_mode,
        reference_timestep=0.0,
        first_frame_fill="repeat",
    ).to(device)
    choose_attention(transformer, device.type)
    settings = replace(
        tiny_expert().settings,
        num_references=contestant.num_references,
        targets_per_reference=contestant.targets_per_reference,
        same_scene_share=0.0,
    )
    return ExpertStage(transformer, text, latents, settings)


def count_operations(stage: ExpertStage, batch: ExpertBatch, device: torch.device) -> int:
    """Floating-point operations of a step on this batch, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        stage.loss(batch, step_generator(_SEED, 0, 0, "loss", device)).total.backward()
    stage.transformer.zero_grad()
    return int(counter.get_total_flops())


def measure(
    contestant: Contestant, stage: ExpertStage, num_steps: int, device: torch.device, rate: float
) -> dict[str, Any]:
    """Train for some steps, of which the first two are left out, and return a row of the result.

    Args:
        contestant: What is measured.
        stage: Its stage.
        num_steps: Measured steps.
        device: Where it is trained.
        rate: Operations per second of the device in matrix products.
    """
    optimizer = torch.optim.AdamW([each for each in stage.transformer.parameters() if each.requires_grad], lr=1e-5)
    num_all = num_steps + 3  # one is counted, and the next two take longer than others
    config = TrainingConfig(num_steps=num_all, seed=_SEED, prefetch_batches=contestant.num_ahead)
    batches = BatchSource(stage, config, shares=range(1), device=device, start=0, stop=num_all)
    waits, steps, num_clips, num_tokens = [], [], 0, 0
    patch = math.prod(stage.transformer.config.patch_size)
    try:
        operations = count_operations(stage, batches.take(), device)
        if contestant.recompute:
            stage.transformer.enable_gradient_checkpointing()
        if contestant.compiled:
            stage.transformer.compile_repeated_blocks()
        for step in range(1, num_all):
            begin = time.perf_counter()
            batch = batches.take()
            ready = time.perf_counter()
            loss = stage.loss(batch, step_generator(_SEED, step, 0, "loss", device))
            (loss.total / loss.divisor).backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if step > 2:
                waits.append(ready - begin)
                steps.append(time.perf_counter() - begin)
                num_clips += loss.num_samples
                num_tokens += batch.targets.clean[:, 0].numel() // patch
    finally:
        batches.close()
    return {
        "name": contestant.name,
        "clips_per_step": num_clips / num_steps,
        "median_step_seconds": statistics.median(steps),
        "clips_per_second": num_clips / sum(steps),
        "wait": sum(waits) / sum(steps),
        "tokens_per_second": num_tokens / sum(steps),
        "utilisation": operations * num_steps / sum(steps) / rate,
        "step_seconds": steps,
        "wait_seconds": waits,
    }


def run(folder: Path, num_videos: int, num_steps: Mapping[str, int], size: int, device: torch.device) -> list[Any]:
    """Measure all contestants on the same videos."""
    (folder / "videos").mkdir()
    write_videos(folder / "videos", num_videos, size)
    recipe = replace(make_recipe(folder / "videos"), device=device.type)
    start = time.perf_counter()
    precompute_latents(recipe, folder / "latents")
    seconds = time.perf_counter() - start
    print(f"  precomputing {num_videos} clips once: {seconds:.1f} s")
    clips = open_clips(recipe.clips, WorldData(), recipe.dataset)
    vae = load_component("vae", find_part(_MODEL, "vae")).to(device)
    cache = ArrayCache.open(folder / "latents", device)
    rows: list[Any] = [{"name": "precompute, once", "clips_per_second": num_videos / seconds}]
    rate = measure_rate(device, torch.float32)
    for contestant in CONTESTANTS:
        latents: LatentSource = cache if contestant.is_precomputed else OnlineLatents(clips, vae, device)
        text: TextSource = CachedText(cache) if contestant.is_precomputed else load_text(device)
        stage = make_stage(contestant, latents, text, device)
        rows.append(measure(contestant, stage, num_steps[contestant.name], device, rate))
        row = rows[-1]
        print(
            f"  {contestant.name}: {row['clips_per_second']:.2f} clips/s, {row['tokens_per_second']:.0f} tokens/s, "
            f"waits {row['wait']:.1%} of the time, utilisation {row['utilisation']:.1%}"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__)
    parser.add_argument("--videos", type=int, default=64, help="videos in the folder")
    parser.add_argument("--size", type=int, default=128, help="their height and width in pixels; 64 are trained on")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of 16 clips; the official loop takes 4 x")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument(
        "--output", type=Path, help="file to write; benchmarks/results/training-DEVICE.json if left out"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    num_steps = {each.name: options.steps * (4 if each.num_references == 1 else 1) for each in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), options.videos, num_steps, options.size, device)
    speeds = {row["name"]: row["clips_per_second"] for row in rows}
    ours = {each.name: speeds[each.name] for each in CONTESTANTS if each.is_precomputed}
    gains = {name: speed / speeds["official"] for name, speed in ours.items()}
    once = {name: speed / speeds["official, blocks once"] for name, speed in ours.items()}
    waits = {row["name"]: row["wait"] for row in rows if row["name"] in ours}
    record = {
        "format": 1,
        "run": describe_run(options.device),
        "videos": {"count": options.videos, "size": options.size, "num_frames": 17},
        "gain_over_official": gains,
        "gain_over_official_blocks_once": once,
        "expectations": {
            "gain": {"least": GAIN, "holds": max(gains.values()) >= GAIN},
            "wait": {"most": MOST_WAIT, "holds": all(wait < MOST_WAIT for wait in waits.values())},
        },
        "rows": rows,
    }
    output = options.output or RESULTS / f"training-{device.type}.json"
    write_result(output, record)
    print(f"gains: {gains}; if the official loop keeps activations: {once}; written to {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
