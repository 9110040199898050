"""Customise a model with a handful of pictures: LoRA on the image layers, with preservation of what was known.

The paper fine-tunes the whole model on 15 to 30 images (arXiv 2302.03011, section 4). Here small matrices beside the
attention's are trained (arXiv 2106.09685), and every step also learns from images of the original training, so that
the rest stays as it was (prior preservation, arXiv 2208.12242).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders import PeftAdapterMixin
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BaseImageProcessor, CLIPVisionModelWithProjection

from sememe.backbones.autoencoder import Autoencoder, clips_to_video, encode_video
from sememe.compute.lora import LORA_NAME, without_injection_warnings
from sememe.errors import InputError
from sememe.gen1.content import embed_images
from sememe.gen1.generation import PICTURE_SUFFIXES
from sememe.gen1.settings import MAX_LEVEL
from sememe.gen1.shapes import Latents, StructureVideo
from sememe.gen1.stage_unet import UNetBatch, UNetStage
from sememe.gen1.structure import DepthEstimator
from sememe.training.stage import Stage, StepLoss, make_rng
from sememe.video import Clip, read_image, resize_clip

LORA_FOLDER = "lora"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures as the U-Net is trained on them: latents, structure and content of each, a video of one frame."""

    clean: Latents
    structure: StructureVideo
    content: Float[Tensor, "batch dim"]


@dataclass(frozen=True, eq=False)
class CustomisationBatch:
    """Pictures that are learned, and images whose predictions are preserved."""

    own: UNetBatch
    kept: UNetBatch


class CustomisationStage(Stage[CustomisationBatch]):
    """Training stage of a customisation; see `training.stage.Stage`.

    Args:
        images: Stage of the U-Net, which has a LoRA; its batches are what is preserved.
        pictures: Pictures that are learned.
        batch_size: Pictures per batch.
        preservation_weight: Weight of the preserved images.
    """

    name = "customisation"

    def __init__(self, images: UNetStage, pictures: Pictures, batch_size: int, preservation_weight: float) -> None:
        self._images, self._pictures = images, pictures
        self._batch_size, self._weight = batch_size, preservation_weight
        for name, parameter in images.unet.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def modules(self) -> Mapping[str, nn.Module]:
        return self._images.modules()

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> CustomisationBatch:
        rng = make_rng(generator)
        picked = torch.from_numpy(rng.integers(len(self._pictures.clean), size=self._batch_size))
        levels = torch.from_numpy(rng.integers(MAX_LEVEL + 1, size=self._batch_size))
        found = self._pictures
        own = UNetBatch(
            clean=found.clean[picked].to(device),
            content=found.content[picked].to(device),
            structure=found.structure[picked].to(device),
            levels=levels.to(device),
        )
        return CustomisationBatch(own, self._images.batch(step, generator, device))

    def loss(self, batch: CustomisationBatch, generator: torch.Generator) -> StepLoss:
        own, kept = (self._images.loss(each, generator) for each in (batch.own, batch.kept))
        total = own.total + self._weight * kept.total * (own.divisor / kept.divisor)
        means = {"pictures": own.total.detach() / own.divisor, "preserved": kept.total.detach() / kept.divisor}
        return StepLoss(total=total, num_samples=own.num_samples, weight=own.divisor, metrics=means)

    def export(self, folder: Path) -> None:
        """Write `lora/`."""
        self._images.unet.save_lora_adapter(folder / LORA_FOLDER)


def add_lora(unet: PeftAdapterMixin, rank: int) -> None:
    """Put small matrices beside those of the spatial attention, which change nothing yet."""
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
            exclude_modules=r".*temporal_transformer.*",
        )
    )


def load_lora(unet: PeftAdapterMixin, folder: Path) -> None:
    """Load what a customisation has trained.

    Raises:
        InputError: There is no such folder, or it was made for another model.
    """
    if not (folder / LORA_NAME).is_file():
        raise InputError(f"expected a LoRA ({LORA_NAME}) in {folder}, found none")
    try:
        with without_injection_warnings():
            unet.load_lora_adapter(
                folder, prefix=None, adapter_name="default", use_safetensors=True, local_files_only=True
            )
    except (ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the LoRA in {folder} does not fit this model: {reason}") from error


@torch.no_grad()
def read_folder(
    folder: Path,
    size: tuple[int, int],
    vae: Autoencoder,
    estimator: DepthEstimator,
    image_encoder: CLIPVisionModelWithProjection,
    processor: BaseImageProcessor,
) -> Pictures:
    """Read all pictures of a folder, each resized to cover the size, and cropped.

    Raises:
        InputError: There are none.
        VideoError: One cannot be read.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise InputError(f"expected pictures (png, jpeg, webp ...) in {folder}, found none; 5 to 30 are usual")
    clips = [resize_clip(Clip.from_image(read_image(path)), *size) for path in paths]
    return Pictures(
        clean=encode_video(vae, clips_to_video(clips)).float(),
        structure=torch.stack([estimator(clip) for clip in clips]),
        content=embed_images(image_encoder, processor, [clip.frames[0] for clip in clips]).float(),
    )
