"""The rival computes what the two-way forward computes, so that comparing their times is fair."""

from dataclasses import replace

import pytest
import torch

from benchmarks.geometry import QUICK, WAN_QUICK, Geometry, make_inputs, make_transformer
from benchmarks.official import OfficialForward

EVERY, HALF = (0, 1, 2, 3), (0, 2)


@pytest.mark.parametrize("expert_blocks", [EVERY, HALF], ids=["every block", "every second block"])
@pytest.mark.parametrize("geometry", [QUICK, WAN_QUICK], ids=["text", "text and picture"])
def test_it_computes_what_ours_does(geometry: Geometry, expert_blocks: tuple[int, ...]) -> None:
    model = make_transformer(geometry, expert_blocks, "joint")
    given = make_inputs(geometry)
    channels = torch.cat([given.latents, given.condition], dim=1)
    timestep = torch.tensor([700.0])
    with torch.no_grad():
        ours = model(
            channels, timestep, given.positive, given.image_embeds, reference=given.reference, return_dict=False
        )[0]
        stock = model(channels, timestep, given.positive, given.image_embeds, return_dict=False)[0]
    rival = OfficialForward(model)(channels, timestep, given.positive, given.image_embeds, given.reference)
    torch.testing.assert_close(rival, ours, atol=1e-4, rtol=0.0)
    assert (ours - stock).abs().max() > 1e-2, "the reference must matter, or this shows nothing"


def test_it_reads_references_of_another_length() -> None:
    model = make_transformer(QUICK, EVERY, "joint")
    given = make_inputs(QUICK)
    longer = make_inputs(replace(QUICK, frames=3), seed=5).reference
    channels = torch.cat([given.latents, given.condition], dim=1)
    timestep = torch.tensor([700.0])
    with torch.no_grad():
        ours = model(channels, timestep, given.positive, reference=longer, return_dict=False)[0]
    rival = OfficialForward(model)(channels, timestep, given.positive, None, longer)
    torch.testing.assert_close(rival, ours, atol=1e-4, rtol=0.0)
