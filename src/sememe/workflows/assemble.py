"""Putting a model together from the parts that were trained: one folder that `from_pretrained` reads."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sememe.errors import OutputError, SememeError
from sememe.files import describe_write_error, write_text
from sememe.workflows.model_card import ModelCard, write_card
from sememe.zoo import fingerprint_model

if TYPE_CHECKING:
    from sememe.pipelines.defaults import GenerationDefaults

Precision = Literal["bfloat16", "float32"]

# Hosts of code and packages refuse or slow down large files; this is below what is usual.
MAX_SHARD_SIZE = "15MB"


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """The scheduler that a model comes with.

    `kind` "euler" is `FlowMatchEulerDiscreteScheduler`, "unipc" `UniPCMultistepScheduler` in its flow-matching form.
    `shift` moves the steps towards the noisy end, as in training.
    """

    kind: Literal["euler", "unipc"] = "unipc"
    shift: float = 5.0


def make_scheduler(settings: SchedulerSettings) -> Any:
    """The diffusers scheduler of the settings."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if settings.kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=settings.shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=settings.shift, num_train_timesteps=1000
    )


def assemble_video_as_prompt(
    output: Path | str,
    *,
    vae: Path,
    transformer: Path,
    text_encoder: Path,
    tokenizer: Path,
    expert: Path,
    defaults: "GenerationDefaults",
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
    temporary = output.with_name(f".{output.name}.writing-{os.getpid()}")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        pipeline.save_pretrained(temporary, max_shard_size=max_shard_size)
        write_text(temporary / "README.md", write_card(card, fingerprint_model(temporary).files))
        type(pipeline).from_pretrained(temporary)
        _replace_folder(temporary, output)
    except SememeError:
        raise
    except OSError as error:
        raise OutputError(describe_write_error(output, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _load_parts(
    vae: Path,
    transformer: Path,
    text_encoder: Path,
    tokenizer: Path,
    expert: Path,
    defaults: "GenerationDefaults",
    scheduler: SchedulerSettings,
) -> Any:
    import torch
    from diffusers import AutoencoderKLCosmos, AutoencoderKLWan

    from sememe.models.component_files import load_strictly
    from sememe.models.tensor_files import read_json
    from sememe.models.wan import WanVideoAsPromptTransformer
    from sememe.pipelines.video_as_prompt import VideoAsPromptPipeline
    from sememe.workflows.texts import load_text_encoder, load_tokenizer

    classes = {"AutoencoderKLCosmos": AutoencoderKLCosmos, "AutoencoderKLWan": AutoencoderKLWan}
    name = read_json(vae / "config.json").get("_class_name")
    return VideoAsPromptPipeline(
        tokenizer=load_tokenizer(tokenizer),
        text_encoder=load_text_encoder(text_encoder),
        vae=load_strictly(classes.get(str(name), AutoencoderKLCosmos), vae, torch_dtype=torch.float32),
        transformer=WanVideoAsPromptTransformer.from_folders(transformer, expert, torch.float32),
        scheduler=make_scheduler(scheduler),
        generation_defaults=defaults.to_config(),
    )


def _round_weights(pipeline: Any, precision: Precision) -> None:
    import torch

    for name, component in pipeline.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        for tensor in (*component.parameters(), *component.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(getattr(torch, precision))
        assert name in {"vae", "text_encoder", "transformer"}, name


def _replace_folder(new: Path, folder: Path) -> None:
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    if folder.exists():
        folder.rename(replaced)
    new.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
