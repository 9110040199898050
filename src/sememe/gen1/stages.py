"""From recipes to stages, and from their parts to a model: the networks and data of Gen-1's trainings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sememe.backbones.text import default_sequence_length
from sememe.checkpoints.components import load_component, load_strictly
from sememe.checkpoints.fingerprint import fingerprint_encoder
from sememe.checkpoints.zoo import resolve_model
from sememe.errors import RecipeError
from sememe.gen1 import stage_clip, stage_customisation, stage_depth, stage_prior, stage_unet
from sememe.gen1.arrays import CONTENT_ARRAY, STRUCTURE_ARRAY
from sememe.gen1.network_unet import Gen1UNet
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.gen1.prior import identify_space
from sememe.gen1.public_weights import inflate_stable_diffusion
from sememe.gen1.stage_settings import (
    ClipRecipe,
    CustomisationRecipe,
    DepthRecipe,
    Gen1ModelRecipe,
    PriorRecipe,
    UNetRecipe,
    UNetSettings,
)
from sememe.gen1.structure import DepthEstimator
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.networks import train_tokenizer
from sememe.training.preparation import CachedPreparation
from sememe.training.recipes import TextNetwork
from sememe.training.run_record import read_run
from sememe.training.stage import Announce


class FramesPreparation(CachedPreparation):
    """Frames of the world.

    Raises:
        RecipeError: The frames are not square, or have no depth.
    """

    source, arrays = "frames", (FRAMES_ARRAY,)

    def __init__(self, recipe: DepthRecipe | ClipRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        _, height, width, channels = self._cache.arrays[FRAMES_ARRAY].shape
        if height != width or channels != 4:
            raise RecipeError(
                f"expected square frames with their depth, got {width}x{height} with {channels} channels; make them "
                "with sememe precompute tiny-gen1-frames"
            )
        self._size = int(height)


class DepthPreparation(FramesPreparation):
    """Frames with their depth, for the training of a depth network."""

    _recipe: DepthRecipe

    def make(self) -> Mapping[str, Any]:
        model = stage_depth.make_depth_estimator(self._recipe.network, self._size)
        return {"depth_estimator": model, "depth_processor": stage_depth.make_depth_processor(self._size)}

    def build(self, start: Path) -> stage_depth.DepthStage:
        model = load_component("depth_estimator", start / "depth_estimator")
        processor = load_component("depth_processor", start / "depth_processor")
        return stage_depth.DepthStage(model, processor, self._cache, self._recipe.settings)


class ClipPreparation(FramesPreparation):
    """Frames with captions, for the training of a CLIP."""

    _recipe: ClipRecipe

    def make(self) -> Mapping[str, Any]:
        network = self._recipe.network
        text = TextNetwork(
            vocab_size=network.vocab_size, max_tokens=network.max_tokens, caption_stride=network.caption_stride
        )
        tokenizer = train_tokenizer(stage_clip.list_captions(self._cache), text)
        return {
            "image_encoder": stage_clip.make_image_encoder(network, self._size),
            "image_processor": stage_clip.make_image_processor(self._size),
            "text_encoder": stage_clip.make_text_encoder(network, tokenizer),
            "tokenizer": tokenizer,
        }

    def build(self, start: Path) -> stage_clip.ClipStage:
        return stage_clip.ClipStage(
            load_component("image_encoder", start / "image_encoder"),
            load_component("image_processor", start / "image_processor"),
            load_component("text_encoder", start / "text_encoder"),
            load_component("tokenizer", start / "tokenizer"),
            self._cache,
            self._recipe.settings,
        )


class PriorPreparation(CachedPreparation):
    """Cached embeddings and the text encoder, for the training of a prior.

    Raises:
        ModelError: A part is not whole.
        RecipeError: The embeddings are of another encoder than the text encoder's.
    """

    arrays = (CONTENT_ARRAY,)
    _recipe: PriorRecipe

    def __init__(self, recipe: PriorRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        check_space(self.inputs, identify_space(load_component("image_encoder", parts["image_encoder"])), recipe.clip)

    def make(self) -> Mapping[str, Any]:
        tokenizer = load_component("tokenizer", self._parts["tokenizer"])
        dim = self._cache.arrays[CONTENT_ARRAY].shape[-1]
        prior = stage_prior.make_prior(self._recipe.network, dim, default_sequence_length(tokenizer))
        stage_prior.set_statistics(prior, self._cache)
        return {"prior": prior, "prior_scheduler": stage_prior.make_scheduler()}

    def build(self, start: Path) -> stage_prior.PriorStage:
        return stage_prior.PriorStage(
            load_component("prior", start / "prior"),
            load_component("prior_scheduler", start / "prior_scheduler"),
            load_component("tokenizer", self._parts["tokenizer"]),
            load_component("text_encoder", self._parts["text_encoder"]),
            self._cache,
            self._recipe.settings,
        )


class UNetPreparation(CachedPreparation):
    """Cached arrays and the autoencoder, for the training of a U-Net.

    Raises:
        ModelError: A part is not whole, or the image model is of another architecture.
        RecipeError: The arrays do not fit the autoencoder or the network.
    """

    arrays = ("clean", STRUCTURE_ARRAY, CONTENT_ARRAY)
    _recipe: UNetRecipe

    def __init__(self, recipe: UNetRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        self._vae = load_component("vae", parts["vae"])
        found, expected = self.inputs["autoencoder"], fingerprint_encoder(self._vae)
        if found != expected:
            raise RecipeError(
                f"expected latents of the autoencoder {recipe.autoencoder} ({expected[:16]}), got those of {found[:16]}"
            )

    def make(self) -> Mapping[str, Any]:
        recipe, arrays = self._recipe, self._cache.arrays
        content_dim, network = arrays[CONTENT_ARRAY].shape[-1], recipe.network
        if recipe.image_model is None:
            unet = stage_unet.make_unet(network, arrays["clean"].shape[0], content_dim)
            return {"unet": unet, "scheduler": stage_unet.make_scheduler()}
        parts = inflate_stable_diffusion(recipe.image_model, network.max_frames, content_dim)
        return {name: parts[name] for name in ("unet", "scheduler")}

    def build(self, start: Path) -> stage_unet.UNetStage:
        unet = load_strictly(Gen1UNet, start / "unet", torch.float32)
        channels, num_frames, *_ = self._cache.arrays["clean"].shape
        if channels != unet.config.out_channels or num_frames > unet.config.max_frames:
            raise RecipeError(
                f"expected latents of {unet.config.out_channels} channels and at most {unet.config.max_frames} frames "
                f"for this U-Net, got {channels} and {num_frames}; precompute others, or set network.max_frames"
            )
        scheduler = load_component("scheduler", start / "scheduler")
        return stage_unet.UNetStage(unet, self._vae, scheduler, self._cache, self._recipe.settings)


class CustomisationPreparation(CachedPreparation):
    """Pictures, and the parts of a model that read them.

    Raises:
        InputError: There are no pictures.
        ModelError: A part is not whole.
        RecipeError: The arrays are of another autoencoder or image encoder than the model's.
    """

    arrays = ("clean", CONTENT_ARRAY)
    _recipe: CustomisationRecipe

    def __init__(self, recipe: CustomisationRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        super().__init__(recipe, parts, announce)
        self._loaded = {name: load_component(name, folder) for name, folder in parts.items() if name != "unet"}
        self._unet = load_strictly(Gen1UNet, parts["unet"], torch.float32)
        check_space(self.inputs, identify_space(self._loaded["image_encoder"]), recipe.model)
        announce("reading pictures")
        self._pictures = stage_customisation.read_folder(
            recipe.pictures,
            self._cache.arrays[STRUCTURE_ARRAY].shape[1:],  # type: ignore[arg-type]
            self._loaded["vae"],
            DepthEstimator(self._loaded["depth_estimator"], self._loaded["depth_processor"]),
            self._loaded["image_encoder"],
            self._loaded["image_processor"],
        )

    def begin(self, folder: Path) -> None:
        torch.manual_seed(self._recipe.training.seed)
        stage_customisation.add_lora(self._unet, self._recipe.settings.rank)
        self._unet.save_lora_adapter(folder / stage_customisation.LORA_FOLDER)
        self._unet.unload_lora()

    def build(self, start: Path) -> stage_customisation.CustomisationStage:
        settings = self._recipe.settings
        stage_customisation.load_lora(self._unet, start / stage_customisation.LORA_FOLDER)
        kept = UNetSettings(image_batch_size=settings.batch_size, image_share=1.0)
        images = stage_unet.UNetStage(self._unet, self._loaded["vae"], self._loaded["scheduler"], self._cache, kept)
        return stage_customisation.CustomisationStage(
            images, self._pictures, settings.batch_size, settings.preservation_weight
        )


def build_pipeline(recipe: Gen1ModelRecipe, parts: Mapping[str, Path]) -> Gen1Pipeline:
    """Return the pipeline of a model, in float32.

    Raises:
        ModelError: A part is not whole, or does not fit the others.
        RecipeError: Prior or U-Net were trained on embeddings of another image encoder.
    """
    loaded = {name: load_component(name, folder) for name, folder in parts.items() if name != "unet"}
    space = identify_space(loaded["image_encoder"])
    for source in (recipe.prior, recipe.unet):
        record = read_run(resolve_model(source))
        check_space({} if record is None else record.inputs, space, source)
    return Gen1Pipeline(
        **loaded,
        unet=load_strictly(Gen1UNet, parts["unet"], torch.float32),
        generation_defaults=recipe.generation.to_dict(),
        content_space=space,
    )


def check_space(inputs: Mapping[str, str], space: str, source: object) -> None:
    """Check that a run or cache was made from embeddings of an image encoder, by the space that it names.

    Raises:
        RecipeError: It was made from those of another one.
    """
    found = inputs.get("image_encoder", space)
    if found != space:
        raise RecipeError(
            f"expected embeddings of one image encoder, got those of {found} and of {space} beside {source}; "
            "precompute and train with the same one"
        )
