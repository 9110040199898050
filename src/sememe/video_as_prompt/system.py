"""Video-As-Prompt for the shared processes: its stages, recipes and pipeline."""

from sememe.system import AUTOENCODER, CheckpointSpec, GenerationSpec, ModelSpec, StageSpec, System, list_recipes
from sememe.video_as_prompt import recipes, recipes_released
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.stage_settings import (
    BackboneRecipe,
    ExpertRecipe,
    FewStepRecipe,
    LoraRecipe,
    OneWayRecipe,
    PreferenceRecipe,
    VideoAsPromptModelRecipe,
)

_BACKBONE_PARTS = ("transformer", "text_encoder", "tokenizer")

VIDEO_AS_PROMPT = System(
    name="video-as-prompt",
    title="Video-As-Prompt",
    settings=Settings,
    generation=GenerationSpec(
        summary="Do to a picture what happens in a reference video.",
        inputs=VideoAsPromptInputs,
        flags=("size.num_frames", "guidance.guidance_scale", "guidance.reference_guidance_scale"),
        rare=("reference_prompts", "last_image", "reference_start", "reference_end", "encoded_reference"),
        each="image",
    ),
    pipeline="sememe.video_as_prompt.pipeline:VideoAsPromptPipeline",
    stages={
        "autoencoder": AUTOENCODER,
        "backbone": StageSpec(
            recipe=BackboneRecipe,
            makes=_BACKBONE_PARTS,
            preparation="sememe.video_as_prompt.stages:BackbonePreparation",
            needs={"autoencoder": ("vae",)},
            shares_tokens=True,
        ),
        "expert": StageSpec(
            recipe=ExpertRecipe,
            makes=("expert",),
            preparation="sememe.video_as_prompt.stage_expert:ExpertPreparation",
            needs={"backbone": _BACKBONE_PARTS, "autoencoder": ("vae",)},
            shares_tokens=True,
        ),
        "one_way": StageSpec(
            recipe=OneWayRecipe,
            makes=("expert",),
            preparation="sememe.video_as_prompt.stage_distillation:OneWayPreparation",
            needs={"backbone": _BACKBONE_PARTS, "teacher": ("expert",), "autoencoder": ("vae",)},
            shares_tokens=True,
        ),
        "few_step": StageSpec(
            recipe=FewStepRecipe,
            makes=("expert",),
            preparation="sememe.video_as_prompt.stage_distillation:FewStepPreparation",
            needs={"backbone": _BACKBONE_PARTS, "teacher": ("expert",), "autoencoder": ("vae",)},
            shares_tokens=True,
        ),
        "lora": StageSpec(
            recipe=LoraRecipe,
            makes=("lora",),
            preparation="sememe.video_as_prompt.stage_lora:AdapterPreparation",
            needs={"backbone": _BACKBONE_PARTS, "expert": ("expert",), "autoencoder": ("vae",)},
            shares_tokens=True,
        ),
        "preference": StageSpec(
            recipe=PreferenceRecipe,
            makes=("lora",),
            preparation="sememe.video_as_prompt.stage_lora:AdapterPreparation",
            needs={"backbone": _BACKBONE_PARTS, "expert": ("expert",), "autoencoder": ("vae",)},
            shares_tokens=True,
        ),
    },
    model=ModelSpec(
        recipe=VideoAsPromptModelRecipe,
        needs={"autoencoder": ("vae",), "backbone": _BACKBONE_PARTS, "expert": ("expert",)},
        build="sememe.video_as_prompt.stages:build_pipeline",
        use="research on following a reference clip",
        task="image-to-video",
    ),
    evaluation="sememe.video_as_prompt.evaluation:build_rows",
    evaluation_options=("negative_reference",),
    regenerator="sememe.video_as_prompt.regenerator:Regenerator",
    recipes=list_recipes(recipes, recipes_released),
    checkpoints=CheckpointSpec(
        released={
            "wan-14b": "ByteDance/Video-As-Prompt-Wan2.1-14B",
            "cogvideox-5b": "ByteDance/Video-As-Prompt-CogVideoX-5B",
        },
        blueprint="sememe.video_as_prompt.blueprint:make_blueprint",
        own_dtype="sememe.video_as_prompt.model_folders:read_own_dtype",
        find_expert="sememe.video_as_prompt.model_folders:find_expert",
    ),
    workload="sememe.video_as_prompt.memory_plan:list_phases",
    demo="sememe.video_as_prompt.demo:make_demo",
)
