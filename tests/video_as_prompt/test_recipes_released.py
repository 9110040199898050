"""Recipes at the sizes of released models, built without memory for weights."""

from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.loaders import PeftAdapterMixin

from sememe.compute.lora import restrict_to_expert
from sememe.diffusion.objectives import FLOW
from sememe.training.networks import make_scheduler
from sememe.training.recipes import LatentsRecipe, SchedulerSettings
from sememe.video_as_prompt.blueprint import RELEASED
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.recipes_released import (
    cogvideox_expert,
    cogvideox_few_step,
    cogvideox_latents,
    cogvideox_lora,
    cogvideox_one_way,
    wan_1_3b_expert,
    wan_1_3b_latents,
    wan_14b_expert,
    wan_14b_few_step,
    wan_14b_latents,
    wan_14b_lora,
    wan_14b_one_way,
    wan_14b_preference,
)
from sememe.video_as_prompt.stage_distillation import FewStepStage, OneWayStage
from sememe.video_as_prompt.stage_expert import ExpertStage, PairedStage
from sememe.video_as_prompt.stage_lora import PreferenceStage, make_lora
from sememe.video_as_prompt.stage_settings import ExpertRecipe
from video_as_prompt.stage_data import Latents, Texts

WAN_1_3B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
"""Wan2.1-T2V-1.3B."""
DATA: tuple[Any, Any] = (Texts(), Latents())


def make_backbone(kind: Any, config: Any) -> Any:
    with torch.device("meta"):
        return kind(**config)


def put_expert(kind: Any, backbone: Any, recipe: ExpertRecipe, **changes: Any) -> Any:
    own = {name: getattr(recipe, name) for name in ("attention_mode", "expert_blocks", "reference_timestep")}
    with torch.device("meta"):
        return kind.from_backbone(backbone, **own | changes)


def add_adapter(model: Any, rank: int) -> Any:
    """The same as `add_expert_adapter`, which takes weights on the meta device for offloaded ones."""
    with torch.device("meta"):
        PeftAdapterMixin.add_adapter(model, restrict_to_expert(model, make_lora(rank)))
    return model


def count_trained(stage: PairedStage) -> int:
    trained = [each for each in stage.modules()["transformer"].parameters() if each.requires_grad]
    assert {each.device.type for each in trained} == {"meta"}
    return sum(each.numel() for each in trained)


def check_cache(stage: PairedStage, latents: LatentsRecipe, arrays: tuple[str, ...]) -> None:
    """The recipe of a cache makes what the backbone reads of it."""
    family = stage._family
    assert family.list_arrays() == arrays
    assert (latents.text_length, latents.reads_padding) == (family.text_length, family.reads_padding)
    assert (latents.first_frame_fill is not None, latents.first_frame_encoder is not None) == (
        "first_frame" in arrays,
        "image" in arrays,
    )


def test_wan_14b() -> None:
    """The parameters of the released expert that have an effect; of an adapter, all but those of the last block."""
    sft, one_way, lora, preference = wan_14b_expert(), wan_14b_one_way(), wan_14b_lora(), wan_14b_preference()
    backbone = make_backbone(WanTransformer3DModel, RELEASED["wan-14b"].transformer)
    model = put_expert(WanVideoAsPromptTransformer, backbone, sft)
    stage = ExpertStage(model, *DATA, sft.settings)
    check_cache(stage, wan_14b_latents(), ("first_frame", "image"))
    assert count_trained(stage) == 3_928_023_296
    student = put_expert(WanVideoAsPromptTransformer, backbone, sft, attention_mode="cached")
    assert (
        count_trained(OneWayStage(student, model, *DATA, one_way.settings, one_way.true_share, FLOW)) == 3_928_023_296
    )
    few_step, scheduler = wan_14b_few_step().settings, make_scheduler(SchedulerSettings(kind="euler_trailing"))
    student = put_expert(WanVideoAsPromptTransformer, backbone, sft)
    student.copy_expert(model)
    assert count_trained(FewStepStage(student, model, *DATA, few_step, scheduler)) == 3_928_023_296
    # Eight matrices of width 5120 in each of ten experts, and two of them in the last.
    expected = (9 * 8 + 2) * lora.rank * 2 * 5120
    assert count_trained(ExpertStage(add_adapter(model, lora.rank), *DATA, lora.settings)) == expected
    assert count_trained(PreferenceStage(model, *DATA, preference.settings)) == expected
    assert lora.rank == preference.rank


def test_wan_1_3b() -> None:
    recipe = wan_1_3b_expert()
    model = put_expert(WanVideoAsPromptTransformer, make_backbone(WanTransformer3DModel, WAN_1_3B), recipe)
    stage = ExpertStage(model, *DATA, recipe.settings)
    check_cache(stage, wan_1_3b_latents(), ())
    assert count_trained(stage) == 1_377_187_072


def test_cogvideox_5b() -> None:
    sft, one_way, few_step, lora = cogvideox_expert(), cogvideox_one_way(), cogvideox_few_step(), cogvideox_lora()
    backbone = make_backbone(CogVideoXTransformer3DModel, RELEASED["cogvideox-5b"].transformer)
    model = put_expert(CogVideoXVideoAsPromptTransformer, backbone, sft)
    stage = ExpertStage(model, *DATA, sft.settings)
    check_cache(stage, cogvideox_latents(), ("first_frame",))
    assert count_trained(stage) == 5_331_065_984
    student = put_expert(
        CogVideoXVideoAsPromptTransformer,
        backbone,
        sft,
        attention_mode="cached",
        reference_timestep=one_way.reference_timestep,
    )
    student.copy_expert(model)
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    for taught in (
        OneWayStage(student, model, *DATA, one_way.settings, one_way.true_share, FLOW),
        FewStepStage(student, model, *DATA, few_step.settings, scheduler),
    ):
        assert count_trained(taught) == 5_331_065_984
    assert not any(each.requires_grad for each in model.parameters())
    # Four matrices of width 3072 in each of 41 experts, and two of them in the last.
    expected = (40 * 4 + 2) * lora.rank * 2 * 3072
    assert count_trained(ExpertStage(add_adapter(model, lora.rank), *DATA, lora.settings)) == expected
