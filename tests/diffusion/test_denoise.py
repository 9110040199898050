"""The denoising loop: it reaches the clean end, runs what the table says and no more, and refuses wrong schedulers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from diffusion.variants import ALONE, Variant, guide
from sememe.diffusion.denoise import denoise
from sememe.diffusion.guidance import Guidance
from sememe.diffusion.objectives import PredictionType, prediction_of
from sememe.errors import InputError
from sememe.records import Batching

CLEAN = torch.tensor([[0.5, -1.0, 2.0]])


class Oracle:
    """Knows the clean latents, so that its velocity is exact; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Variant, ...]] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        self.asked.append(variants)
        velocity = (latents - CLEAN) / (timestep / 1000)
        return torch.stack([velocity] * len(variants))


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ],
)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_an_exact_velocity_leads_to_the_clean_latents(scheduler, num_steps: int) -> None:  # type: ignore[no-untyped-def]
    predict = Oracle()
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    result = denoise(predict, scheduler, noise, guide(a=-2.0, B=-2.0, C=5.0), num_steps)
    torch.testing.assert_close(result, CLEAN.expand(2, -1), atol=0.05, rtol=0.01)
    assert len(predict.asked) == 3 * num_steps


@pytest.mark.parametrize(
    ("guidance", "batching", "num_calls"),
    [
        (ALONE, "sequential", 1),
        (ALONE, "batched", 1),
        (guide(a=-2.0, B=-2.0, C=5.0), "sequential", 3),
        (guide(a=-2.0, B=-2.0, C=5.0), "batched", 2),
    ],
)
def test_a_step_runs_what_the_table_says(guidance: Guidance[Variant], batching: Batching, num_calls: int) -> None:
    predict = Oracle()
    scheduler = FlowMatchEulerDiscreteScheduler()
    denoise(predict, scheduler, torch.randn(1, 3), guidance, 2, batching=batching)
    assert len(predict.asked) == 2 * num_calls


class DiffusionOracle:
    """The same for v-prediction, whatever the noise schedule."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod
        self.letters: list[str] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        self.letters += [variant.letter for variant in variants]
        alpha = self.alphas_cumprod[int(timestep)]
        noise = (latents - alpha.sqrt() * CLEAN) / (1 - alpha).sqrt()
        return torch.stack([alpha.sqrt() * noise - (1 - alpha).sqrt() * CLEAN] * len(variants))


@pytest.mark.parametrize("scheduler_class", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
def test_an_exact_v_leads_to_the_clean_latents(scheduler_class) -> None:  # type: ignore[no-untyped-def]
    scheduler = scheduler_class(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=1.0
    )
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    predict = DiffusionOracle(scheduler.alphas_cumprod)
    guidance = guide(a=-5.0, b=6.0)
    result = denoise(predict, scheduler, noise, guidance, 5, prediction="v", generator=torch.Generator())
    torch.testing.assert_close(result, CLEAN.expand(2, -1), atol=0.05, rtol=0.01)


class Gaussian:
    """Exact predictions where clean latents are normal with a deviation of 0.5, at any level of noise."""

    DEVIATION = 0.5

    def __init__(self, levels: Callable[[float], tuple[float, float]], prediction: PredictionType) -> None:
        self.levels, self.prediction = levels, prediction

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        signal, noise = self.levels(float(timestep))
        variance = (signal * self.DEVIATION) ** 2 + noise**2
        clean = latents * signal * self.DEVIATION**2 / variance
        epsilon = latents * noise / variance
        predicted = epsilon - clean if self.prediction == "flow" else signal * epsilon - noise * clean
        return predicted[None]


def flow_levels(timestep: float) -> tuple[float, float]:
    return 1 - timestep / 1000, timestep / 1000


def diffusion_levels(scheduler: Any) -> Callable[[float], tuple[float, float]]:
    def find(timestep: float) -> tuple[float, float]:
        low = min(int(timestep), 998)
        alphas = scheduler.alphas_cumprod
        # Between two timesteps as schedulers with fractions have them: linear in the noise to signal ratio.
        ratios = ((1 - alphas[low : low + 2]) / alphas[low : low + 2]).sqrt()
        ratio = float(ratios[0] + (timestep - low) * (ratios[1] - ratios[0]))
        return (1 + ratio**2) ** -0.5, ratio * (1 + ratio**2) ** -0.5

    return find


# diffusers converts tensors in a way that numpy 2 warns of.
OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
DIFFUSION: dict[str, Any] = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}


@OLD_NUMPY
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
        (FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
        (UniPCMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
        (
            DPMSolverMultistepScheduler,
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
        (DDIMScheduler, {**DIFFUSION, "clip_sample": False}),
        (CogVideoXDDIMScheduler, DIFFUSION),
        (EulerDiscreteScheduler, DIFFUSION),
        (DPMSolverMultistepScheduler, DIFFUSION),
        (UniPCMultistepScheduler, DIFFUSION),
        (HeunDiscreteScheduler, DIFFUSION),
        (DEISMultistepScheduler, DIFFUSION),
        (KDPM2DiscreteScheduler, DIFFUSION),
        (PNDMScheduler, DIFFUSION),
        (DPMSolverSinglestepScheduler, {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ],
    ids=lambda given: given.__name__ if isinstance(given, type) else given.get("prediction_type", "flow"),
)
def test_schedulers_solve_what_can_be_solved_by_hand(make: Any, settings: dict[str, Any]) -> None:
    """The path of a normal variable only narrows: the result is the noise times the deviation of what is clean."""
    scheduler = make(**settings)
    prediction = prediction_of(scheduler)
    assert prediction is not None
    predict = Gaussian(flow_levels if prediction == "flow" else diffusion_levels(scheduler), prediction)
    noise = torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    result = denoise(predict, scheduler, noise, ALONE, 100, prediction=prediction)
    # A path that begins with less than pure noise is as much narrower.
    torch.testing.assert_close(result / noise, torch.full_like(noise, Gaussian.DEVIATION), atol=0.04, rtol=0)


@OLD_NUMPY
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (DDPMScheduler, {**DIFFUSION, "clip_sample": False}),
        (EulerAncestralDiscreteScheduler, DIFFUSION),
        (KDPM2AncestralDiscreteScheduler, DIFFUSION),
        (SASolverScheduler, DIFFUSION),
        (CogVideoXDPMScheduler, DIFFUSION),
    ],
    ids=lambda given: given.__name__ if isinstance(given, type) else "",
)
def test_schedulers_that_draw_noise_end_with_what_is_clean(make: Any, settings: dict[str, Any]) -> None:
    scheduler = make(**settings)
    predict, random = Gaussian(diffusion_levels(scheduler), "v"), torch.Generator().manual_seed(0)
    noise = torch.randn(1, 2000, generator=random)
    result = denoise(predict, scheduler, noise, ALONE, 100, prediction="v", generator=random)
    assert result.std() == pytest.approx(Gaussian.DEVIATION, abs=0.05)


def test_schedulers_that_do_something_else_are_refused_by_name() -> None:
    for scheduler in (DDIMInverseScheduler(**DIFFUSION), EDMEulerScheduler(prediction_type="v_prediction")):
        with pytest.raises(InputError, match=f"expected one of .*, got a {type(scheduler).__name__}"):
            denoise(Oracle(), scheduler, torch.ones(1, 3), ALONE, 2, prediction="v")


@OLD_NUMPY
def test_schedulers_that_scale_their_input_scale_what_the_network_sees() -> None:
    deviations: list[float] = []
    scheduler = EulerDiscreteScheduler(**DIFFUSION)
    exact = Gaussian(diffusion_levels(scheduler), "v")

    def predict(latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        deviations.append(float(latents.std()))
        return exact(latents, timestep, variants)

    denoise(predict, scheduler, torch.randn(1, 1000), ALONE, 5, prediction="v")
    assert all(0.4 < deviation < 1.1 for deviation in deviations)


def test_guidance_may_follow_the_timestep() -> None:
    asked = []

    def schedule(timestep: float) -> Guidance[Variant]:
        asked.append(timestep)
        return guide(a=1.0 - timestep, b=timestep) if len(asked) > 1 else ALONE

    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    predict = DiffusionOracle(scheduler.alphas_cumprod)
    denoise(predict, scheduler, torch.ones(1, 3), schedule, 3, prediction="v")
    assert asked == [999.0, 666.0, 332.0]
    assert predict.letters == ["a", "a", "b", "a", "b"]


def test_an_interrupted_loop_ends_before_its_next_step() -> None:
    predict, steps = Oracle(), []
    denoise(
        predict,
        FlowMatchEulerDiscreteScheduler(),
        torch.randn(1, 3),
        ALONE,
        5,
        on_step_end=lambda step, timestep, latents: steps.append(step),
        is_interrupted=lambda: len(steps) == 2,
    )
    assert steps == [0, 1]
    assert len(predict.asked) == 2


def test_the_callback_sees_every_step_and_may_replace_the_latents() -> None:
    seen = []

    def replace(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
        seen.append((step, float(timestep)))
        return torch.full_like(latents, 7.0) if step == 2 else None

    result = denoise(
        Oracle(),
        FlowMatchEulerDiscreteScheduler(),
        torch.randn(1, 3),
        ALONE,
        3,
        on_step_end=replace,
    )
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 1000.0
    assert torch.equal(result, torch.full((1, 3), 7.0))


def test_a_generator_reaches_schedulers_that_draw() -> None:
    def run(seed: int) -> torch.Tensor:
        return denoise(
            Oracle(),
            FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
            torch.ones(1, 3),
            ALONE,
            1,
            generator=torch.Generator().manual_seed(seed),
            on_step_end=None,
        )

    assert torch.equal(run(1), run(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_overflows_ends_the_loop(value: float) -> None:
    steps: list[int] = []

    def predict(latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        return torch.full((len(variants), *latents.shape), value if steps else 0.0)

    with pytest.raises(InputError, match="not finite after step 2 of 5"):
        denoise(
            predict,
            FlowMatchEulerDiscreteScheduler(),
            torch.randn(1, 3),
            ALONE,
            5,
            on_step_end=lambda step, timestep, latents: steps.append(step),
        )
    assert steps == [0]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match="flow matching"):
        denoise(Oracle(), DDIMScheduler(), torch.ones(1, 3), ALONE, 2)
    with pytest.raises(InputError, match="v-prediction"):
        denoise(Oracle(), FlowMatchEulerDiscreteScheduler(), torch.ones(1, 3), ALONE, 2, prediction="v")
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(InputError, match=r"CogVideoXDDIMScheduler cannot take num_inference_steps 1001 .* most 1000"):
        denoise(Oracle(), scheduler, torch.ones(1, 3), ALONE, 1001, prediction="v")
    with pytest.raises(InputError, match="use_dynamic_shifting=False"):
        denoise(Oracle(), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), torch.ones(1, 3), ALONE, 2)
    with pytest.raises(InputError, match="at least 1, got 0"):
        denoise(Oracle(), FlowMatchEulerDiscreteScheduler(), torch.ones(1, 3), ALONE, 0)
