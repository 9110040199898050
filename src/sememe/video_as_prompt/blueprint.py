"""Pipelines on the meta device: what a model folder, or a released model, would be if it were loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers

from sememe.checkpoints.components import build_network, load_component
from sememe.errors import ModelError, SememeError
from sememe.video_as_prompt.model_folders import (
    EXPERT_FOLDER,
    OWN_CLASS,
    check_whole,
    choose_expert,
    find_component_class,
    read_layout,
    released_defaults,
)
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.transformer_files import FORMATS, open_merged, open_separate

_T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}


def make_blueprint(source: str | Path, expert: Path | None = None) -> VideoAsPromptPipeline:
    """Make the pipeline of a released model, by its name in `RELEASED`, or of a folder; see `read_blueprint`."""
    return make_released(source) if isinstance(source, str) else read_blueprint(source, expert)


def read_blueprint(folder: Path, expert: Path | None = None) -> VideoAsPromptPipeline:
    """Read a model folder, and that of an expert that goes with it, without loading weights.

    Raises:
        ModelError: The folder is not a whole model, or the expert does not go with it.
    """
    layout = read_layout(folder)
    source = choose_expert(layout, OWN_CLASS, expert)
    check_whole(layout, (), needs_expert=source == folder / EXPERT_FOLDER)
    stored = open_merged(folder / "transformer") if source is None else open_separate(folder / "transformer", source)
    parts = {"transformer": stored.skeleton}
    try:
        for name in ("vae", "text_encoder", "image_encoder"):
            found = find_component_class(layout, name)
            if found is not None:
                parts[name] = load_component(name, folder / name, None, found, torch.device("meta"))
        return VideoAsPromptPipeline.from_pretrained(folder, **parts)
    except SememeError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"the configurations in {folder} do not describe a whole model ({reason})") from error


@dataclass(frozen=True)
class _Released:
    """The configurations of a released model, as far as they differ from the defaults of the classes."""

    family: str
    transformer: Mapping[str, Any]
    vae: type
    text_encoder: type
    text_config: Mapping[str, Any]
    image_config: Mapping[str, Any] | None = None


RELEASED: Mapping[str, _Released] = {
    "wan-14b": _Released(
        family="wan",
        transformer={"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
        vae=diffusers.AutoencoderKLWan,
        text_encoder=transformers.UMT5EncoderModel,
        text_config=_T5_XXL | {"vocab_size": 256384},
        image_config={"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
        | {"num_attention_heads": 16, "image_size": 224, "patch_size": 14},
    ),
    "cogvideox-5b": _Released(
        family="cogvideox",
        transformer={"num_attention_heads": 48, "in_channels": 32, "num_layers": 42}
        | {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
        vae=diffusers.AutoencoderKLCogVideoX,
        text_encoder=transformers.T5EncoderModel,
        text_config=_T5_XXL | {"vocab_size": 32128},
    ),
}
"""Video-As-Prompt on Wan2.1-I2V-14B and on CogVideoX-5B-I2V."""


def make_released(name: str) -> VideoAsPromptPipeline:
    """Make a model of `RELEASED` by what is known of it."""
    known = RELEASED[name]
    kind = next(each for each in FORMATS if each.name == known.family)
    settings = kind.released_settings(kind.released_expert_blocks) | dict(known.transformer)
    with torch.device("meta"):
        transformer = kind.transformer(**settings)
    vae = _build(known.vae, {})
    image = known.image_config
    return VideoAsPromptPipeline(
        tokenizer=_BlankTokenizer(),
        text_encoder=_build(known.text_encoder, known.text_config),
        vae=vae,
        transformer=transformer.eval(),
        scheduler=None,
        image_encoder=None if image is None else _build(transformers.CLIPVisionModel, image),
        image_processor=None if image is None else transformers.CLIPImageProcessorPil(),
        generation_defaults=released_defaults(known.family, transformer, vae),
    )


def _build(component: Any, config: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return build_network(component, config)


class _BlankTokenizer:
    """Stands for a tokenizer, of which memory depends on the number of tokens alone."""

    model_max_length = 512

    def __call__(self, text: Any, *, max_length: int = model_max_length, **_: Any) -> Any:
        tokens = torch.zeros(len(text), max_length, dtype=torch.int64)
        return SimpleNamespace(input_ids=tokens, attention_mask=tokens)

    def decode(self, token_ids: Any) -> str:
        return ""
