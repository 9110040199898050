"""Prompts to text embeddings, as Wan and CogVideoX read them."""

import html
import logging
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import ftfy
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float, Int
from transformers import PreTrainedModel

TextEmbeds = Float[torch.Tensor, "batch token text_dim"]
TokenIds = Int[torch.Tensor, "prompt token"]

MAX_SEQUENCE_LENGTH = 512
_MOST_SHOWN = 200  # characters of a prompt in a message


@runtime_checkable
class Tokenizer(Protocol):
    """Texts to numbers, as the tokenizers of transformers do it.

    Attributes:
        model_max_length: Tokens per text that it was made for.
    """

    model_max_length: int

    def __call__(self, text: Any, **options: Any) -> Any:
        """Return the `input_ids` of a text or of several, and their `attention_mask`."""

    def decode(self, token_ids: Any) -> str:
        """Return the text of numbers."""


_log = logging.getLogger(__name__)


def default_sequence_length(tokenizer: Tokenizer) -> int:
    """Return the number of tokens that the tokenizer was made for, at most 512."""
    return min(int(tokenizer.model_max_length), MAX_SEQUENCE_LENGTH)


@torch.no_grad()
def encode_prompts(
    tokenizer: Tokenizer, text_encoder: PreTrainedModel, prompts: Sequence[str], max_sequence_length: int | None = None
) -> TextEmbeds:
    """Embed prompts as Wan reads them: cleaned, padding masked in the encoder, zeros after a prompt's end.

    Args:
        tokenizer: Tokenizer of the text encoder.
        text_encoder: A `UMT5EncoderModel` or `T5EncoderModel`.
        prompts: Texts; longer ones are cut off, with a warning that says what is lost.
        max_sequence_length: Tokens per prompt; None for `default_sequence_length`.

    Returns:
        Embeddings in the encoder's precision, on its device.
    """
    length = max_sequence_length or default_sequence_length(tokenizer)
    ids, mask = tokenize_prompts(tokenizer, [clean_prompt(prompt) for prompt in prompts], length)
    device = get_module_execution_device(text_encoder)
    embeds = text_encoder(ids.to(device), mask.to(device)).last_hidden_state
    return embeds * mask.to(device).unsqueeze(-1).to(embeds.dtype)


@torch.no_grad()
def encode_prompts_padded(
    tokenizer: Tokenizer, text_encoder: PreTrainedModel, prompts: Sequence[str], max_sequence_length: int
) -> TextEmbeds:
    """Embed prompts as CogVideoX reads them: as they are, with the padding read like any other token.

    Arguments and result are those of `encode_prompts`.
    """
    ids, _ = tokenize_prompts(tokenizer, list(prompts), max_sequence_length)
    return text_encoder(ids.to(get_module_execution_device(text_encoder))).last_hidden_state


def tokenize_prompts(tokenizer: Tokenizer, prompts: list[str], length: int) -> tuple[TokenIds, TokenIds]:
    """Return token ids and mask, each (prompt, token), padded to `length`; warns where a prompt is cut."""
    tokens = tokenizer(
        prompts,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    for prompt, mask in zip(prompts, tokens.attention_mask, strict=True):
        if bool(mask.all()):
            _warn_of_cut(tokenizer, prompt, length)
    return tokens.input_ids, tokens.attention_mask


def _warn_of_cut(tokenizer: Tokenizer, prompt: str, length: int) -> None:
    ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
    num_special = len(tokenizer("", add_special_tokens=True).input_ids)
    lost = ids[max(0, length - num_special) :]
    if lost:
        text = tokenizer.decode(lost)
        text = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."
        _log.warning("the prompt has %d tokens, but %d are read; not read: %r", len(ids) + num_special, length, text)


def clean_prompt(prompt: str) -> str:
    """Repair mojibake and HTML entities and make every run of white space one blank, as Wan was trained."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
