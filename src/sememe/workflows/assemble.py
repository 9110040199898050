"""Putting a model together from the parts that were trained: one folder that `from_pretrained` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import sememe
from sememe.checkpoints.fingerprint import fingerprint_model
from sememe.checkpoints.parts import find_part
from sememe.checkpoints.zoo import resolve_model
from sememe.errors import ModelError, RecipeError
from sememe.files import atomic_folder, write_text
from sememe.training.recipes import SchedulerSettings
from sememe.training.run_record import describe_run, read_run, read_summary
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.stage_settings import VideoAsPromptModelRecipe
from sememe.workflows.model_card import ModelCard, write_card

Precision = Literal["bfloat16", "float32"]

# Hosts of code and packages refuse or slow down large files; this is below what is usual.
MAX_SHARD_SIZE = "15MB"


def assemble_video_as_prompt(
    output: Path | str,
    *,
    vae: Path,
    transformer: Path,
    text_encoder: Path,
    tokenizer: Path,
    expert: Path,
    defaults: Settings,
    scheduler: SchedulerSettings,
    card: ModelCard,
    precision: Precision = "bfloat16",
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Writes a whole Video-As-Prompt model; an older one at `output` is replaced at once, or stays.

    The result is loaded once before it takes its place, so that what is there can be loaded.

    Args:
        output: the folder to write.
        vae: folder of the autoencoder, as diffusers wrote it.
        transformer: folder of the stock backbone.
        text_encoder: folder of the text encoder.
        tokenizer: folder of the tokenizer.
        expert: folder of the expert alone.
        defaults: the model's own settings for generation.
        scheduler: which scheduler it comes with.
        card: what the README says.
        precision: of the tensors in the files.
        max_shard_size: of each file of tensors, such as "15MB".

    Raises:
        ModelError: a part is not there, not whole, or does not fit the others.
        OutputError: the folder cannot be written.
    """
    pipeline = _load_parts(vae, transformer, text_encoder, tokenizer, expert, defaults, scheduler)
    _round_weights(pipeline, precision)
    output = Path(output)
    with atomic_folder(output) as folder:
        pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
        write_text(folder / "README.md", write_card(card, fingerprint_model(folder).files))
        type(pipeline).from_pretrained(folder)
    return output


def assemble_recipe(
    recipe: VideoAsPromptModelRecipe,
    output: Path | str,
    *,
    title: str | None = None,
    evaluation: Mapping[str, str] | None = None,
) -> Path:
    """Writes the model that a recipe puts together from runs (or from parts of other models).

    The card tells the figures of those runs.

    Args:
        recipe: which runs, and what the model makes by default.
        output: the folder to write; see `assemble_video_as_prompt`.
        title: of the card; None for the folder's name.
        evaluation: measured figures for the card.

    Raises:
        ModelError: a run is not complete, or its parts do not fit.
        RecipeError: the parts were trained on latents of another autoencoder.
        OutputError: the folder cannot be written.
    """
    sources = {"autoencoder": recipe.autoencoder, "backbone": recipe.backbone, "expert": recipe.expert}
    vae = find_part(recipe.autoencoder, "vae")
    _check_encoder(vae, {name: sources[name] for name in ("backbone", "expert")})
    return assemble_video_as_prompt(
        output,
        vae=vae,
        transformer=find_part(recipe.backbone, "transformer"),
        text_encoder=find_part(recipe.backbone, "text_encoder"),
        tokenizer=find_part(recipe.backbone, "tokenizer"),
        expert=find_part(recipe.expert, "expert"),
        defaults=recipe.generation,
        scheduler=recipe.scheduler,
        card=ModelCard(
            title=title or Path(output).name,
            description=f"A Video-As-Prompt model: {recipe.description}.",
            source=f"trained by the recipes of sememe {sememe.__version__}",
            training=describe_runs(sources),
            evaluation=evaluation or {},
        ),
        precision=recipe.precision,
        max_shard_size=recipe.max_shard_size,
    )


def describe_runs(sources: Mapping[str, str]) -> dict[str, str]:
    """How each part was trained, for a card; `sources` are the runs by the part's name."""
    return {name: _describe_source(source) for name, source in sources.items()}


def _describe_source(source: str) -> str:
    """The figures of a run, behind those of the runs that it goes on from."""
    try:
        folder = resolve_model(source)
    except ModelError:
        return f"begun from {source}, whose training is not stated here"
    summary, record = read_summary(folder), read_run(folder)
    if summary is None:
        return "not stated"
    own = f"{summary.recipe}: {describe_run(summary)}"
    return own if record is None or record.init_from is None else f"{_describe_source(record.init_from)}; then {own}"


def _check_encoder(vae: Path, runs: Mapping[str, str]) -> None:
    """The backbone and the expert must have been trained on latents of this very encoder."""
    from sememe.checkpoints.components import load_autoencoder
    from sememe.checkpoints.fingerprint import fingerprint_encoder

    known = {
        name: record.inputs["autoencoder"]
        for name, source in runs.items()
        if (record := read_run(resolve_model(source))) is not None and "autoencoder" in record.inputs
    }
    if not known:
        return
    found = fingerprint_encoder(load_autoencoder(vae))
    for name, expected in known.items():
        if expected != found:
            raise RecipeError(
                f"the {name} was trained on latents of autoencoder {expected[:16]}, but {vae} holds {found[:16]}; give "
                "the autoencoder that its latents were made by"
            )


def _load_parts(
    vae: Path,
    transformer: Path,
    text_encoder: Path,
    tokenizer: Path,
    expert: Path,
    defaults: Settings,
    scheduler: SchedulerSettings,
) -> Any:
    import torch

    from sememe.checkpoints.component_files import load_tokenizer
    from sememe.checkpoints.components import load_autoencoder, load_text_encoder
    from sememe.training.networks import make_scheduler
    from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
    from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline

    return VideoAsPromptPipeline(
        tokenizer=load_tokenizer(tokenizer),
        text_encoder=load_text_encoder(text_encoder),
        vae=load_autoencoder(vae),
        transformer=WanVideoAsPromptTransformer.from_folders(transformer, expert, torch.float32),
        scheduler=make_scheduler(scheduler),
        generation_defaults=defaults.to_config(),
    )


def _round_weights(pipeline: Any, precision: Precision) -> None:
    import torch

    for name, component in pipeline.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        # An autoencoder's code must stay the very one that the other parts were trained on.
        kept: Any = getattr(component, "_keep_in_fp32_modules", None) if name == "vae" else None
        for key, tensor in (*component.named_parameters(), *component.named_buffers()):
            if tensor.is_floating_point() and key.split(".")[0] not in (kept or ()):
                tensor.data = tensor.data.to(getattr(torch, precision))
        assert name in {"vae", "text_encoder", "transformer"}, name
