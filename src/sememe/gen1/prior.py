"""The prior: image embeddings of texts, by diffusion among CLIP embeddings (arXiv 2204.06125, section 2.2)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, PriorTransformer, SchedulerMixin
from diffusers.utils.torch_utils import get_module_execution_device, randn_tensor
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, PreTrainedModel

from sememe.backbones.text import Tokenizer, tokenize_prompts
from sememe.diffusion.denoise import Predict, denoise
from sememe.diffusion.guidance import Guidance, make_guidance
from sememe.errors import ModelError

ImageEmbeddings = Float[Tensor, "batch dim"]


@dataclass(frozen=True)
class TextVariant:
    """Whether the prior is given the text, or an empty one."""

    is_given: bool

    @property
    def batch_key(self) -> int:
        """The same for all: they share a forward."""
        return 0


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as a prior reads them."""

    pooled: Float[Tensor, "batch dim"]
    tokens: Float[Tensor, "batch token dim"]
    mask: Bool[Tensor, "batch token"]

    def __getitem__(self, places: slice) -> "EncodedTexts":
        return EncodedTexts(self.pooled[places], self.tokens[places], self.mask[places])

    @classmethod
    def join(cls, parts: Sequence["EncodedTexts"]) -> "EncodedTexts":
        """Join texts to one batch."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("pooled", "tokens", "mask")))


@dataclass(frozen=True)
class PriorSampler:
    """Samples image embeddings for texts.

    Attributes:
        prior: `PriorTransformer`, which predicts the clean embedding.
        scheduler: Noise schedule of the prior, as `make_prior_scheduler` returns it.
        tokenizer: Tokenizer of the text encoder.
        text_encoder: `CLIPTextModelWithProjection`.
        guidance_scale: Strength of the text, 1 for off.
        num_inference_steps: Denoising steps.
    """

    prior: PriorTransformer
    scheduler: SchedulerMixin
    tokenizer: Tokenizer
    text_encoder: PreTrainedModel
    guidance_scale: float
    num_inference_steps: int

    @torch.no_grad()
    def sample(self, texts: Sequence[str], generator: torch.Generator | None = None) -> ImageEmbeddings:
        """Sample an embedding for each text; the same for equal texts and noise."""
        device, dtype = get_module_execution_device(self.prior), self.prior.dtype
        noise = randn_tensor(
            (len(texts), self.prior.config.embedding_dim), generator=generator, device=device, dtype=torch.float32
        )
        latents = denoise(
            self.make_predict(texts),
            self.scheduler,
            noise,
            self.guidance,
            self.num_inference_steps,
            batching="batched",
            prediction="sample",
        )
        embeddings: Tensor = self.prior.post_process_latents(latents.to(dtype))
        return embeddings

    @property
    def guidance(self) -> Guidance[TextVariant]:
        """The table of text guidance."""
        scale = self.guidance_scale
        return make_guidance([(TextVariant(False), 1.0 - scale), (TextVariant(True), scale)])

    def make_predict(self, texts: Sequence[str]) -> Predict[TextVariant]:
        """Return a function that predicts clean embeddings for texts, which are encoded once."""
        given, empty = (encode_texts(self.tokenizer, self.text_encoder, each) for each in (texts, [""] * len(texts)))
        device, dtype = get_module_execution_device(self.prior), self.prior.dtype

        def predict(latents: Tensor, timestep: Tensor, variants: tuple[TextVariant, ...]) -> Tensor:
            texts = EncodedTexts.join([given if variant.is_given else empty for variant in variants])
            predicted = self.prior(
                latents.to(dtype).repeat(len(variants), 1),
                timestep,
                texts.pooled.to(device, dtype),
                texts.tokens.to(device, dtype),
                texts.mask.to(device),
            ).predicted_image_embedding
            return predicted.unflatten(0, (len(variants), -1))

        return predict


def encode_texts(tokenizer: Tokenizer, text_encoder: PreTrainedModel, texts: Sequence[str]) -> EncodedTexts:
    """Encode texts by the text encoder of a CLIP, on its device."""
    device = get_module_execution_device(text_encoder)
    ids, mask = tokenize_prompts(tokenizer, list(texts), int(tokenizer.model_max_length))
    encoded = text_encoder(ids.to(device))
    return EncodedTexts(encoded.text_embeds, encoded.last_hidden_state, mask.bool().to(device))


def make_prior_scheduler(scheduler: SchedulerMixin) -> DDIMScheduler:
    """Return the DDIM scheduler of a prior's noise schedule.

    Released priors come with `UnCLIPScheduler`, whose steps need more than a prediction. DDIM walks the same noise
    schedule without drawing noise on the way.

    Raises:
        ModelError: The scheduler is not for predicting the clean embedding.
    """
    if scheduler.config.get("prediction_type") != "sample":
        raise ModelError(
            "expected a prior's scheduler with prediction_type 'sample', got "
            f"{type(scheduler).__name__} with {scheduler.config.get('prediction_type')!r}"
        )
    if isinstance(scheduler, DDIMScheduler):
        return scheduler
    known = ("num_train_timesteps", "clip_sample", "clip_sample_range", "prediction_type")
    settings = {name: scheduler.config[name] for name in known if name in scheduler.config}
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", **settings)


def identify_space(image_encoder: CLIPVisionModelWithProjection) -> str:
    """Return what identifies the space of an image encoder's embeddings: a hash of its projection, 16 digits."""
    weight: Tensor = image_encoder.visual_projection.weight
    data = weight.detach().cpu().float().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def check_pair(
    prior: PriorTransformer,
    text_encoder: PreTrainedModel,
    image_encoder: CLIPVisionModelWithProjection | None,
    declared: str | None,
) -> None:
    """Check that a prior makes embeddings of the kind that the image encoder makes.

    Args:
        prior: `PriorTransformer`.
        text_encoder: Text encoder that it reads.
        image_encoder: Image encoder; None where content is given by text alone, and nothing can be compared.
        declared: Space of the prior's embeddings, as `identify_space` names it.

    Raises:
        ModelError: Their lengths differ, or the prior is declared for another image encoder, or for none.
    """
    dim, text_dim = prior.config.embedding_dim, text_encoder.config.projection_dim
    if text_dim != dim:
        raise ModelError(f"expected a text encoder with embeddings of {dim} numbers for this prior, got {text_dim}")
    if declared is None:
        raise ModelError("a prior needs content_space, which says whose image embeddings it makes; see identify_space")
    if image_encoder is None or image_encoder.device.type == "meta":
        return  # without weights there is nothing to compare
    found_dim, found = image_encoder.config.projection_dim, identify_space(image_encoder)
    if found_dim != dim or found != declared:
        raise ModelError(
            f"expected a prior for this image encoder (space {found}, {found_dim} numbers), got one for space "
            f"{declared} with {dim}; load the prior that was trained with the encoder, or its own encoder"
        )
