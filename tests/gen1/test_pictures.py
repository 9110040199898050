from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, DPTImageProcessorPil

from sememe.backbones.pictures import read_pictures

CLIP = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
DPT = DPTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.mark.parametrize("processor", [CLIP, DPT])
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (24, 24)])
def test_pictures_are_those_of_the_processor(processor: Any, size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    expected = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(read_pictures(frames, processor), expected)
