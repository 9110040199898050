"""SemanticGen for the shared processes: its stages, recipes and pipeline."""

from sememe.semanticgen import recipes
from sememe.semanticgen.generation import SemanticGenInputs
from sememe.semanticgen.settings import Settings
from sememe.semanticgen.stage_settings import (
    EncoderRecipe,
    PlannerRecipe,
    ReaderRecipe,
    RendererRecipe,
    SemanticGenModelRecipe,
)
from sememe.system import GenerationSpec, ModelSpec, StageSpec, System, list_recipes

_TEXT_PARTS = ("text_encoder", "tokenizer")
_RENDERER_PARTS = ("transformer", "compressor", *_TEXT_PARTS)

SEMANTICGEN = System(
    name="semanticgen",
    title="SemanticGen",
    settings=Settings,
    generation=GenerationSpec(
        summary="Plan a video of any length in a semantic space, and render it.",
        inputs=SemanticGenInputs,
        flags=("guidance.guidance_scale", "guidance.plan_guidance_scale", "plan.plan_noise"),
        arguments=("prompt",),
        rare=("span",),
    ),
    pipeline="sememe.semanticgen.pipeline:SemanticGenPipeline",
    stages={
        "semantic_encoder": StageSpec(
            recipe=EncoderRecipe,
            makes=("semantic_encoder", "compressor"),
            preparation="sememe.semanticgen.stages:EncoderPreparation",
        ),
        "renderer": StageSpec(
            recipe=RendererRecipe,
            makes=_RENDERER_PARTS,
            preparation="sememe.semanticgen.stages:RendererPreparation",
            needs={"backbone": ("transformer", *_TEXT_PARTS), "encoder": ("compressor",), "autoencoder": ("vae",)},
        ),
        "planner": StageSpec(
            recipe=PlannerRecipe,
            makes=("planner",),
            preparation="sememe.semanticgen.stages:PlannerPreparation",
            needs={"renderer": ("compressor", *_TEXT_PARTS)},
        ),
        "reader": StageSpec(
            recipe=ReaderRecipe,
            makes=("reader",),
            preparation="sememe.semanticgen.stages:ReaderPreparation",
        ),
    },
    model=ModelSpec(
        recipe=SemanticGenModelRecipe,
        needs={
            "autoencoder": ("vae",),
            "encoder": ("semantic_encoder",),
            "renderer": _RENDERER_PARTS,
            "planner": ("planner",),
        },
        build="sememe.semanticgen.pipeline:build_pipeline",
        use="research on planning videos in a semantic space",
        task="text-to-video",
    ),
    evaluation="sememe.semanticgen.evaluation:build_rows",
    evaluation_options=("reader",),
    workload="sememe.semanticgen.memory_plan:list_phases",
    demo="sememe.semanticgen.demo:make_demo",
    recipes=list_recipes(recipes),
)
