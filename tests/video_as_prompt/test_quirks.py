"""Official habits that are kept on request."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from sememe.video_as_prompt.quirks import set_truncated_timesteps


def test_truncated_timesteps_are_those_of_the_official_code() -> None:
    # (1 - 1/1000) * (3, 2, 1) / 3, shifted by s -> 3 s / (1 + 2 s), times 1000, without fractions.
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    set_truncated_timesteps(unipc, 3, torch.device("cpu"))
    assert unipc.timesteps.tolist() == [999, 856, 599]
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    set_truncated_timesteps(euler, 3, torch.device("cpu"))
    assert float(euler.timesteps[0]) == 1000.0
