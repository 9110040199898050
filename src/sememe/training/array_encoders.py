"""The encoders of clips and captions; see `data.array_writer.ArrayEncoder`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sememe.backbones.autoencoder import Autoencoder, encode_video, frames_to_video
from sememe.backbones.first_frame import CachedFill, encode_cached_first_frame
from sememe.backbones.pictures import encode_pictures
from sememe.checkpoints.components import load_component
from sememe.checkpoints.fingerprint import fingerprint_encoder, identify_model
from sememe.data.array_cache import ArrayCache
from sememe.data.array_writer import ClipArray
from sememe.data.cache_index import ClipItem
from sememe.errors import RecipeError
from sememe.training.clips import ClipCollection
from sememe.training.networks import read_video
from sememe.training.recipes import Regeneration
from sememe.training.text_source import CachedText, EncodedText, TextSource

Videos = Float[Tensor, "clip 3 frame height width"]
Latents = Float[Tensor, "clip channel latent_frame latent_height latent_width"]
Tokens = Int[Tensor, "caption 2 token"]
Pictures = UInt8[Tensor, "picture height width 3"]


class CleanLatents(ClipArray):
    """Latents of whole clips."""

    name = "clean"

    def __init__(self, vae: Autoencoder, clips: ClipCollection) -> None:
        self._vae, self._clips = vae, clips
        self.made_by: Mapping[str, str] = {"autoencoder": fingerprint_encoder(vae)}

    def preprocess(self, entries: Sequence[int]) -> Videos:
        """(clip, 3, frame, height, width) in [-1, 1]."""
        return read_video(self._clips, entries)

    def encode(self, inputs: Videos) -> Latents:
        return encode_video(self._vae, inputs)


class FirstFrameLatents:
    """Latents of first frames, which an image-to-video backbone receives as conditioning."""

    name, key = "first_frame", "first_frame"

    def __init__(self, vae: Autoencoder, clips: ClipCollection, fill: CachedFill) -> None:
        self._vae, self._clips, self._fill = vae, clips, fill
        self.made_by: Mapping[str, str] = {"autoencoder": fingerprint_encoder(vae), "first_frame_fill": fill}

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        return list_first_frames(items)

    def preprocess(self, entries: Sequence[int]) -> Videos:
        """(clip, 3, frame, height, width) in [-1, 1]: the first frame in place of all of them, which are not read."""
        frames = np.stack([self._clips.first_frame(index)[None] for index in entries])
        (num_frames,) = {self._clips.count_frames(index) for index in entries}
        return frames_to_video(frames).expand(-1, -1, num_frames, -1, -1)

    def encode(self, inputs: Videos) -> Latents:
        """(clip, channel, frame, height, width), of the shape of the clip's own latents."""
        return encode_cached_first_frame(self._vae, inputs[:, :, 0], inputs.shape[2], self._fill)


def list_first_frames(items: Mapping[int, ClipItem]) -> dict[str, int]:
    """The number of the first clip that shows each first frame, by the frame's key."""
    entries: dict[str, int] = {}
    for index, item in items.items():
        entries.setdefault(item.first_frame, index)
    return entries


class GeneratedLatents(ClipArray):
    """Latents that a model generates from the noised latents of clips."""

    name = "generated"

    def __init__(
        self, vae: Autoencoder, settings: Regeneration, model: Path, generate: Callable[[Sequence[int]], Latents]
    ) -> None:
        self._generate = generate
        about = {name: str(value) for name, value in asdict(settings).items()} | {"model": identify_model(model)}
        self.made_by: Mapping[str, str] = {"autoencoder": fingerprint_encoder(vae), **about}

    def preprocess(self, entries: Sequence[int]) -> Int[Tensor, " clip"]:
        """Numbers of clips, (clip,)."""
        return torch.tensor(entries)

    def encode(self, inputs: Int[Tensor, " clip"]) -> Latents:
        return self._generate(inputs.tolist())


class TextEmbeddings:
    """Embeddings of all captions, and of the empty one."""

    name, key = "text", "caption"

    def __init__(
        self, text_encoder: Path, tokenizer: Path, device: torch.device, length: int | None, *, reads_padding: bool
    ) -> None:
        self.made_by: Mapping[str, str] = describe_text(text_encoder, tokenizer, length, reads_padding=reads_padding)
        encoder, self._device = load_component("text_encoder", text_encoder).to(device), device
        self._text = EncodedText(load_component("tokenizer", tokenizer), encoder, length, reads_padding=reads_padding)

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        captions = [
            text for item in items.values() for text in (item.caption, item.full_caption, *item.segment_captions)
        ]
        return {caption: caption for caption in ("", *captions)}

    def preprocess(self, entries: Sequence[str]) -> Tokens:
        return self._text.pick(entries).to(self._device)

    def encode(self, inputs: Tokens) -> Float[Tensor, "caption token text_dim"]:
        return self._text.embed(inputs)


class ImageEmbeddings:
    """Embeddings of first frames, for backbones that read them beside latents."""

    name, key = "image", "first_frame"

    def __init__(self, image_encoder: Path, image_processor: Path, clips: ClipCollection, device: torch.device) -> None:
        self.made_by: Mapping[str, str] = describe_images(image_encoder, image_processor)
        self._encoder = load_component("image_encoder", image_encoder).to(device)
        self._processor, self._clips = load_component("image_processor", image_processor), clips

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        return list_first_frames(items)

    def preprocess(self, entries: Sequence[int]) -> Pictures:
        """RGB pictures (picture, height, width, 3), uint8."""
        return torch.from_numpy(np.stack([self._clips.first_frame(index) for index in entries]))

    def encode(self, inputs: Pictures) -> Float[Tensor, "picture token dim"]:
        return encode_pictures(self._encoder, self._processor, list(inputs.numpy()))


def describe_images(image_encoder: Path, image_processor: Path) -> dict[str, str]:
    """What image embeddings depend on: the contents of the folders."""
    return {"image_encoder": " ".join(map(identify_model, (image_encoder, image_processor)))}


def check_images(cache: ArrayCache, image_encoder: Path, image_processor: Path) -> None:
    """Check that a cache's image embeddings come from the given image encoder.

    Raises:
        InputError: The cache has none.
        RecipeError: They are those of another one.
    """
    found, expected = cache.describe("image")["image_encoder"], describe_images(image_encoder, image_processor)
    if found != expected["image_encoder"]:
        raise RecipeError(
            f"the image embeddings were made with the image_encoder {found}, but the backbone has "
            f"{expected['image_encoder']}; precompute them with its own"
        )


def describe_text(text_encoder: Path, tokenizer: Path, length: int | None, *, reads_padding: bool) -> dict[str, str]:
    """What text embeddings depend on: the contents of the folders, and how texts are read."""
    hashes = " ".join(map(identify_model, (text_encoder, tokenizer)))
    return {"text_encoder": hashes, "text_length": str(length), "reads_padding": str(reads_padding)}


def find_text(
    parts: Mapping[str, Path], cache: ArrayCache, length: int | None = None, *, reads_padding: bool = False
) -> TextSource:
    """Return the cache's text embeddings where it has them, else a frozen text encoder.

    Args:
        parts: Folders of "text_encoder" and "tokenizer".
        cache: Cache of the clips.
        length: Tokens per caption; None for the tokenizer's own number.
        reads_padding: As in `EncodedText`.

    Raises:
        RecipeError: The cache's embeddings are those of another text encoder, or were made in another way.
    """
    if "text" not in cache.arrays:
        encoder = load_component("text_encoder", parts["text_encoder"]).requires_grad_(False)
        tokenizer = load_component("tokenizer", parts["tokenizer"])
        return EncodedText(tokenizer, encoder, length, reads_padding=reads_padding)
    found = cache.arrays["text"].made_by
    expected = describe_text(parts["text_encoder"], parts["tokenizer"], length, reads_padding=reads_padding)
    if found != expected:
        raise RecipeError(
            f"the text embeddings were made with {found}, but the backbone needs {expected}; precompute them with "
            "its text_encoder, text_length and reads_padding"
        )
    return CachedText(cache)
