"""Gen-1 for the shared processes: its stages, recipes and pipeline."""

from sememe.gen1 import recipes
from sememe.gen1.generation import Gen1Inputs
from sememe.gen1.settings import Settings
from sememe.gen1.stage_settings import (
    ClipRecipe,
    CustomisationRecipe,
    DepthRecipe,
    Gen1ModelRecipe,
    PriorRecipe,
    UNetRecipe,
)
from sememe.system import AUTOENCODER, GenerationSpec, ModelSpec, StageSpec, System, list_recipes

_DEPTH_PARTS = ("depth_estimator", "depth_processor")
_CLIP_PARTS = ("image_encoder", "image_processor", "text_encoder", "tokenizer")
_PRIOR_PARTS = ("prior", "prior_scheduler")
_UNET_PARTS = ("unet", "scheduler")

GEN1 = System(
    name="gen1",
    title="Gen-1",
    settings=Settings,
    generation=GenerationSpec(
        summary="Keep how a video moves, and give it a new look.",
        inputs=Gen1Inputs,
        flags=("structure.structure_level", "guidance.temporal_guidance_scale", "guidance.guidance_scale"),
        arguments=("source",),
        rare=("save_structure",),
    ),
    pipeline="sememe.gen1.pipeline:Gen1Pipeline",
    stages={
        "autoencoder": AUTOENCODER,
        "depth": StageSpec(recipe=DepthRecipe, makes=_DEPTH_PARTS, preparation="sememe.gen1.stages:DepthPreparation"),
        "clip": StageSpec(recipe=ClipRecipe, makes=_CLIP_PARTS, preparation="sememe.gen1.stages:ClipPreparation"),
        "prior": StageSpec(
            recipe=PriorRecipe,
            makes=_PRIOR_PARTS,
            preparation="sememe.gen1.stages:PriorPreparation",
            needs={"clip": ("image_encoder", "text_encoder", "tokenizer")},
        ),
        "unet": StageSpec(
            recipe=UNetRecipe,
            makes=_UNET_PARTS,
            preparation="sememe.gen1.stages:UNetPreparation",
            needs={"autoencoder": ("vae",)},
        ),
        "customisation": StageSpec(
            recipe=CustomisationRecipe,
            makes=("lora",),
            preparation="sememe.gen1.stages:CustomisationPreparation",
            needs={"model": (*_UNET_PARTS, "vae", *_DEPTH_PARTS, "image_encoder", "image_processor")},
        ),
    },
    model=ModelSpec(
        recipe=Gen1ModelRecipe,
        needs={
            "autoencoder": ("vae",),
            "depth": _DEPTH_PARTS,
            "clip": _CLIP_PARTS,
            "prior": _PRIOR_PARTS,
            "unet": _UNET_PARTS,
        },
        build="sememe.gen1.stages:build_pipeline",
        use="research on keeping the structure of clips",
        task="video-to-video",
    ),
    evaluation="sememe.gen1.evaluation:build_rows",
    evaluation_options=("depth",),
    workload="sememe.gen1.memory_plan:list_phases",
    demo="sememe.gen1.demo:make_demo",
    recipes=list_recipes(recipes),
)
