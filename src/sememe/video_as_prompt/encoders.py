"""Prompts encoded ahead of generations, after which the text encoder can be unloaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sememe.compute.offload import sends_modules_back
from sememe.errors import InputError
from sememe.video_as_prompt.conditioning import ConditionEncoder
from sememe.video_as_prompt.families import BackboneFamily
from sememe.video_as_prompt.settings import Settings
from sememe.video_as_prompt.shapes import TextEmbeds

Texts = str | tuple[str, ...]


@dataclass(frozen=True)
class EncodedPrompt:
    """Texts that a pipeline has encoded, to be passed as `prompt`.

    Attributes:
        prompt: One text for all pictures, or one each.
        negative_prompt: The same.
        reference_prompts: Captions of the references; None for empty ones.
        embeds: Embeddings (1, token, dim) of each of those texts and of the empty one.
        max_sequence_length: Tokens per text with which they were encoded.
    """

    prompt: Texts
    negative_prompt: Texts
    reference_prompts: Texts | None
    embeds: Mapping[str, TextEmbeds]
    max_sequence_length: int | None


@dataclass(frozen=True)
class TextArguments:
    """Texts of a generation, and the embeddings that are known already."""

    prompt: Any
    negative_prompt: Any
    reference_prompts: Any
    known: Mapping[str, TextEmbeds]


class CachedTextEncoder(ConditionEncoder):
    """Encode conditioning, with the embeddings of some texts cached."""

    def __init__(
        self,
        family: BackboneFamily,
        settings: Settings,
        known: Mapping[str, TextEmbeds],
    ) -> None:
        super().__init__(family, settings)
        self.known = known

    def encode_texts(self, prompts: Sequence[str]) -> TextEmbeds:
        """Encode prompts, each one entry of the batch, unless their embeddings are known.

        Raises:
            InputError: If a text is not known and the text encoder was unloaded.
        """
        unknown = sorted({text for text in prompts if text not in self.known})
        if unknown and self.family.pipeline.text_encoder is None:
            raise InputError(
                f"the text encoder was unloaded, so {unknown[0]!r} cannot be encoded; "
                "name it in encode_prompt before unload_text_encoders"
            )
        if not self.known:
            return super().encode_texts(prompts)
        found = {text: self.known[text] for text in prompts if text in self.known}
        if unknown:
            found |= dict(zip(unknown, super().encode_texts(unknown).split(1), strict=True))
        transformer = self.family.transformer
        return torch.cat([found[text].to(self.family.device, transformer.dtype) for text in prompts])


class PromptEncoding:
    """Methods of a pipeline that encodes texts ahead of generations."""

    @torch.no_grad()
    @sends_modules_back
    def encode_prompt(
        self: Any,
        prompt: Any = "",
        negative_prompt: Any = None,
        reference_prompts: Any = None,
        max_sequence_length: int | None = None,
    ) -> EncodedPrompt:
        """Encode texts once; pass the result as `prompt`, and as `prompts` to `encode_reference`.

        Args:
            prompt: What results show; one text for all pictures, or one each.
            negative_prompt: Text to steer away from; None for the model's own.
            reference_prompts: Captions of the references; None for empty ones.
            max_sequence_length: Tokens per text, as in the generation to come.

        Raises:
            InputError: an argument is not what was expected.
        """
        settings = self.defaults.override(max_sequence_length=max_sequence_length)
        negative = settings.guidance.negative_prompt if negative_prompt is None else negative_prompt
        return encode_texts_once(self.family, settings, prompt, negative, reference_prompts)

    def unload_text_encoders(self: Any) -> None:
        """Drop the text encoder: afterwards only what `encode_prompt` returned can be given as a prompt.

        The tokenizer stays, and so does the image encoder, which reads each new picture.
        """
        self.register_modules(text_encoder=None)
        # The hooks of offload 'model' would keep it alive.
        self.maybe_free_model_hooks()


def encode_texts_once(
    family: BackboneFamily, settings: Settings, prompt: Any, negative_prompt: Any, reference_prompts: Any
) -> EncodedPrompt:
    """Encode each distinct text once.

    Raises:
        InputError: an argument is no text, or the text encoder was unloaded.
    """
    given = [_to_texts("prompt", prompt), _to_texts("negative_prompt", negative_prompt)]
    captions = None if reference_prompts is None else _to_texts("reference_prompts", reference_prompts)
    texts = {"", *(text for group in (*given, captions or "") for text in _listed(group))}
    encoder = CachedTextEncoder(family, settings, {})
    embeds = {text: encoder.encode_texts([text]) for text in sorted(texts)}
    return EncodedPrompt(given[0], given[1], captions, embeds, settings.sampling.max_sequence_length)


def resolve_texts(prompt: Any, negative_prompt: Any, reference_prompts: Any, settings: Settings) -> TextArguments:
    """Return the texts of a generation whose `prompt` may be an `EncodedPrompt`; texts given beside it come first.

    Raises:
        InputError: the prompt was encoded to another length.
    """
    known: Mapping[str, TextEmbeds] = {}
    if isinstance(prompt, EncodedPrompt):
        _check_length(prompt, settings)
        known = prompt.embeds
        negative_prompt = prompt.negative_prompt if negative_prompt is None else negative_prompt
        reference_prompts = prompt.reference_prompts if reference_prompts is None else reference_prompts
        prompt = prompt.prompt
    negative = settings.guidance.negative_prompt if negative_prompt is None else negative_prompt
    return TextArguments(_as_argument(prompt), _as_argument(negative), _as_argument(reference_prompts), known)


def resolve_captions(prompts: Any, settings: Settings) -> TextArguments:
    """Return the captions of references, whose `prompts` may be an `EncodedPrompt`.

    Raises:
        InputError: the prompt was encoded to another length.
    """
    if isinstance(prompts, EncodedPrompt):
        return resolve_texts(prompts, None, None, settings)
    return resolve_texts("", None, prompts, settings)


def _check_length(prompt: EncodedPrompt, settings: Settings) -> None:
    length = settings.sampling.max_sequence_length
    if prompt.max_sequence_length != length:
        raise InputError(
            f"the prompt was encoded with max_sequence_length {prompt.max_sequence_length}, but the generation has "
            f"{length}; use the same for both"
        )


def _to_texts(name: str, texts: Any) -> Texts:
    if isinstance(texts, str):
        return texts
    if isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts):
        return tuple(texts)
    raise InputError(f"expected {name} as a text or a list of texts, got {type(texts).__name__}")


def _listed(texts: Texts) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else texts


def _as_argument(texts: Any) -> Any:
    return list(texts) if isinstance(texts, tuple) else texts
