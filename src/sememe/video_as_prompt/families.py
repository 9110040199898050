"""Which family a pipeline's backbone belongs to."""

from dataclasses import dataclass
from typing import Any

from sememe.errors import ModelError
from sememe.video_as_prompt.backbone_family import BackboneFamily
from sememe.video_as_prompt.family_cogvideox import CogVideoXFamily
from sememe.video_as_prompt.family_wan import WanFamily

_BY_TRANSFORMER: dict[str, type[BackboneFamily]] = {
    "WanVideoAsPromptTransformer": WanFamily,
    "CogVideoXVideoAsPromptTransformer": CogVideoXFamily,
}


@dataclass(frozen=True)
class TransformerAlone:
    """What a family needs in training, where latents and text embeddings come from elsewhere than a pipeline."""

    transformer: Any


def choose_family(pipeline: Any) -> BackboneFamily:
    """The family of the transformer of a pipeline, or of a `TransformerAlone`.

    Raises:
        ModelError: for a transformer of another class.
    """
    name = type(pipeline.transformer).__name__
    if name not in _BY_TRANSFORMER:
        raise ModelError(f"expected one of {', '.join(_BY_TRANSFORMER)} as the transformer, got {name}")
    return _BY_TRANSFORMER[name](pipeline)
