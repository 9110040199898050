"""Prompts to text embeddings, as Wan reads them."""

import html
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float
from torch import nn

TextEmbeds = Float[torch.Tensor, "batch token text_dim"]

MAX_SEQUENCE_LENGTH = 512


def default_sequence_length(tokenizer: Any) -> int:
    """As many tokens as the tokenizer was made for, at most 512."""
    return min(int(tokenizer.model_max_length), MAX_SEQUENCE_LENGTH)


@torch.no_grad()
def encode_prompts(
    tokenizer: Any, text_encoder: nn.Module, prompts: Sequence[str], max_sequence_length: int | None = None
) -> TextEmbeds:
    """Embeds prompts with a T5-type encoder; positions behind a prompt's end are zero.

    Args:
        tokenizer: of the text encoder.
        text_encoder: a `UMT5EncoderModel` or `T5EncoderModel`.
        prompts: texts; longer ones are cut off.
        max_sequence_length: tokens per prompt; None for `default_sequence_length`.

    Returns:
        Embeddings in the encoder's precision, on its device.
    """
    encoder: Any = text_encoder
    tokens = tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        padding="max_length",
        max_length=max_sequence_length or default_sequence_length(tokenizer),
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    device = get_module_execution_device(text_encoder)
    mask = tokens.attention_mask.to(device)
    embeds = encoder(tokens.input_ids.to(device), mask).last_hidden_state
    return embeds * mask.unsqueeze(-1).to(embeds.dtype)


def clean_prompt(prompt: str) -> str:
    """Repairs mojibake and HTML entities and makes every run of white space one blank, as Wan was trained."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
