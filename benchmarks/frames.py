"""What a prediction of Gen-1 costs by the length of a clip: time for each frame, and memory, which windows bound."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.timing import time_in_turns
from sememe.compute.rehearsal import measure_peak
from sememe.gen1.guidance import Variant
from sememe.gen1.models import FrameContents, InflatedModel
from sememe.gen1.network_unet import Gen1UNet, count_channels
from sememe.gen1.predictor import Predictor
from sememe.gen1.stage_settings import UNetNetwork
from sememe.gen1.stage_unet import make_unet
from sememe.gen1.windows import make_windows


@dataclass(frozen=True)
class Lengths:
    """Which clips are predicted, and by what.

    Attributes:
        network: shape of the network, which has random weights.
        num_channels: of latents.
        grid: height and width of latents.
        content_dim: length of an embedding.
        num_frames: lengths.
    """

    network: UNetNetwork
    num_channels: int
    grid: int
    content_dim: int
    num_frames: tuple[int, ...]


OWN = Lengths(UNetNetwork(), 16, 16, 128, (8, 16, 32, 64))
FEW = Lengths(UNetNetwork(block_out_channels=(8, 16), attention_levels=(1,), norm_num_groups=4), 4, 4, 8, (8, 16))


def measure_lengths(lengths: Lengths, num_rounds: int) -> list[dict[str, Any]]:
    """Time one prediction of each length, by the video model and, for the shortest, by the image model.

    Each row has seconds for a frame, and the peak of the tensors that are made on the way, the prediction included.
    """
    unet = make_unet(lengths.network, lengths.num_channels, lengths.content_dim).eval()
    shortest = lengths.num_frames[0]
    calls: dict[str, Callable[[], Any]] = {
        f"video model, {count} frames": _make_call(lengths, unet, count, Variant("together", "given"))
        for count in lengths.num_frames
    }
    calls[f"image model, {shortest} frames"] = _make_call(lengths, unet, shortest, Variant("alone", "none"))
    timings = time_in_turns(calls, num_rounds)
    counts = [*lengths.num_frames, shortest]
    return [
        {
            "name": name,
            "num_frames": count,
            "seconds_per_frame": timings[name].median / count,
            "peak_bytes": measure_peak(call),
        }
        for (name, call), count in zip(calls.items(), counts, strict=True)
    ]


def _make_call(lengths: Lengths, unet: Gen1UNet, num_frames: int, variant: Variant) -> Callable[[], torch.Tensor]:
    window = lengths.network.max_frames
    content = FrameContents(torch.randn(1, num_frames, 1, lengths.content_dim))
    shape = (num_frames, lengths.grid, lengths.grid)
    conditions = count_channels(lengths.num_channels) - lengths.num_channels
    predictor = Predictor(
        InflatedModel(unet),
        {"given": torch.randn(1, conditions, *shape)},
        {"given": content, "none": content},
        make_windows(num_frames, window, window // 2),
        window,
    )
    return partial(predictor, torch.randn(1, lengths.num_channels, *shape), torch.tensor(500), (variant,))
