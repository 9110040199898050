"""Semantic encoders: clips to features, slice by slice (arXiv 2512.20619, section 3.2).

The paper's is the vision tower of Qwen2.5-VL; it names V-JEPA 2 and VideoMAE as others that would do. All are classes
of transformers; this module alone knows how they are called and what they return. A video autoencoder can take their
place, to measure whether plans have to be semantic (section 4.4).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.utils.torch_utils import get_module_execution_device
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import VideoMAEModel, VJEPA2Model
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from sememe.backbones.autoencoder import clips_to_video, encode_video, latent_grid
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.checkpoints.components import ModelPart, load_component, load_strictly, sketch_network
from sememe.checkpoints.fingerprint import hash_tensors
from sememe.checkpoints.headers import CONFIG_NAME, read_json
from sememe.errors import InputError, ModelError
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.shapes import EncoderFeatures
from sememe.semanticgen.stage_settings import TowerNetwork
from sememe.video import Clip, resize_clip

DEFAULT_FPS = 1.6
"""Frames per second that encoders are given: the paper's, for Qwen2.5-VL; it gives none for others."""
BUILT_IN_FPS = 4.0
"""The same for the built-in encoder: two slices of half a second in each latent frame of the built-in autoencoder."""

SampledFrames = Float[Tensor, "batch 3 sampled_frame height width"]
"""Frames at the encoder's rate and size, values in [-1, 1]."""
Colours = tuple[float, float, float]

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


class TowerEncoder(ABC):
    """A semantic encoder: takes frames, resizes, normalises and encodes them in chunks.

    Args:
        tower: Network of transformers.
        fps: Frames per second that it is given.
        colours: Mean and standard deviation of the colours 0..1 that the network was trained with; None for those
            that the class's released networks have.

    Raises:
        ModelError: The network cannot encode videos as needed.
        InputError: `fps` is not above 0.
    """

    tower_class: ClassVar[Any]
    released_colours: ClassVar[tuple[Colours, Colours]] = (_IMAGENET_MEAN, _IMAGENET_STD)
    # Settings that the shapes of tensors do not show, so they are part of the fingerprint.
    telling_settings: ClassVar[tuple[str, ...]]

    slices_at_once = 8
    """Slices that are encoded together."""

    def __init__(self, tower: Any, fps: float = DEFAULT_FPS, colours: tuple[Colours, Colours] | None = None) -> None:
        self.tower = tower
        self.clock = SliceClock(fps, self.frames_per_slice)
        self.colours = colours or self.released_colours

    @property
    @abstractmethod
    def frames_per_slice(self) -> int:
        """Frames that the network joins to one slice."""

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Numbers per feature."""

    @property
    @abstractmethod
    def feature_side(self) -> int:
        """Side in pixels, as the encoder sees them, of the area of a feature."""

    def choose_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which frames of a size in pixels are stretched.

        They are the nearest multiples of a feature's side, at least one.
        """
        side = self.feature_side
        return max(1, int(height / side + 0.5)) * side, max(1, int(width / side + 0.5)) * side

    @abstractmethod
    def _run(self, pixels: SampledFrames) -> EncoderFeatures:
        """Run the network on normalised frames."""

    def choose_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the features of clips of a size in pixels."""
        height, width = self.choose_size(height, width)
        return height // self.feature_side, width // self.feature_side

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that features depend on: weights, rate, resizing and normalisation."""
        return hash_tensors(self._describe(), self.tower.state_dict().items())

    def _describe(self) -> dict[str, Any]:
        settings = {name: getattr(self.tower.config, name) for name in self.telling_settings}
        return {"class": type(self.tower).__name__, "fps": self.clock.fps, "colours": self.colours} | settings

    @torch.no_grad()
    def encode(self, clips: Sequence[Clip]) -> EncoderFeatures:
        """Encode clips of one shape and rate.

        Frames are taken as `SliceClock.pick_frames` says: a clip shorter than one slice has one slice.

        Raises:
            InputError: There are no clips, or they differ in shape or rate.
        """
        shapes = {(clip.num_frames, *clip.size, clip.fps) for clip in clips}
        if len(shapes) != 1:
            raise InputError(
                f"expected clips of one length, size and rate, got {sorted(shapes)}; encode them one by one"
            )
        num_frames, height, width, fps = shapes.pop()
        picks, size = self.clock.pick_frames(num_frames, fps), self.choose_size(height, width)
        sampled = [resize_clip(Clip(clip.frames[picks], self.clock.fps), *size, "stretch") for clip in clips]
        return self.encode_frames(clips_to_video(sampled))

    def encode_frames(self, video: SampledFrames) -> EncoderFeatures:
        """Encode frames that were taken and resized already, such as those of a training batch; differentiable."""
        mean, std = (
            torch.tensor(values, device=get_module_execution_device(self.tower)).view(3, 1, 1, 1)
            for values in self.colours
        )
        chunks = video.split(self.slices_at_once * self.frames_per_slice, dim=2)
        normalised = (((chunk.to(mean) + 1) / 2 - mean) / std for chunk in chunks)
        return torch.cat([self._run(chunk).float() for chunk in normalised], dim=1)


class QwenEncoder(TowerEncoder):
    """The vision tower of Qwen2.5-VL.

    Its attention stays within a slice of two frames, so that encoding in chunks of slices is exact. A feature's side is
    28 pixels in released towers, and frames with more than `max_features` are made smaller first. The paper does not
    say how frames are resized.
    """

    tower_class: ClassVar[Any] = Qwen2_5_VisionTransformerPretrainedModel
    released_colours: ClassVar[tuple[Colours, Colours]] = (_CLIP_MEAN, _CLIP_STD)
    telling_settings: ClassVar[tuple[str, ...]] = (
        "num_heads",
        "spatial_merge_size",
        "temporal_patch_size",
        "window_size",
        "fullatt_block_indexes",
    )

    max_features = 1280
    """Most features per slice; released processors allow as many."""

    def __init__(self, tower: Any, fps: float = DEFAULT_FPS, colours: tuple[Colours, Colours] | None = None) -> None:
        super().__init__(tower, fps, colours)
        use_all_slices_at_once(tower)

    @property
    def frames_per_slice(self) -> int:
        return int(self.tower.config.temporal_patch_size)

    @property
    def feature_dim(self) -> int:
        return int(self.tower.config.out_hidden_size)

    @property
    def feature_side(self) -> int:
        return int(self.tower.config.patch_size) * int(self.tower.config.spatial_merge_size)

    def choose_size(self, height: int, width: int) -> tuple[int, int]:
        side = self.feature_side
        rows, columns = (pixels // side for pixels in super().choose_size(height, width))
        if rows * columns > self.max_features:
            scale = (self.max_features / (rows * columns)) ** 0.5
            rows, columns = max(1, int(rows * scale)), max(1, int(columns * scale))
        return rows * side, columns * side

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"max_features": self.max_features}

    def _run(self, pixels: SampledFrames) -> EncoderFeatures:
        config = self.tower.config
        axes = {"t": self.frames_per_slice, "mh": config.spatial_merge_size, "mw": config.spatial_merge_size}
        axes |= {"ph": config.patch_size, "pw": config.patch_size}
        # The patches of a feature follow one another, and so do the features of a slice, and the slices of a clip.
        patches = rearrange(pixels, "b c (s t) (h mh ph) (w mw pw) -> (b s h w mh mw) (c t ph pw)", **axes)
        batch, _, frames, height, width = pixels.shape
        num_slices = frames // self.frames_per_slice
        # All clips as one, because slices do not know of each other: its grid is (slice, row, column).
        grid = [batch * num_slices, height // config.patch_size, width // config.patch_size]
        found = self.tower(patches, torch.tensor([grid], device=patches.device))
        # Older releases of transformers return the tensor itself.
        merged = found if isinstance(found, Tensor) else found.pooler_output
        rows, columns = self.choose_grid(height, width)
        return merged.unflatten(0, (batch, num_slices, rows, columns))


class ClipLengthEncoder(TowerEncoder):
    """A network that attends over all frames of a clip, of one size in pixels and of the length it was trained with.

    Longer videos are encoded clip by clip, each without knowledge of the others. Frames are stretched to the network's
    size.
    """

    size_setting: ClassVar[str]
    length_setting: ClassVar[str]

    def __init__(self, tower: Any, fps: float = DEFAULT_FPS, colours: tuple[Colours, Colours] | None = None) -> None:
        num_frames, tubelet = getattr(tower.config, self.length_setting), tower.config.tubelet_size
        if num_frames % tubelet:
            raise ModelError(
                f"expected {self.length_setting} as a multiple of tubelet_size {tubelet}, got {num_frames}"
            )
        super().__init__(tower, fps, colours)
        self.slices_at_once = num_frames // tubelet

    @property
    def frames_per_slice(self) -> int:
        return int(self.tower.config.tubelet_size)

    @property
    def feature_dim(self) -> int:
        return int(self.tower.config.hidden_size)

    @property
    def feature_side(self) -> int:
        return int(self.tower.config.patch_size)

    def choose_size(self, height: int, width: int) -> tuple[int, int]:
        side = int(getattr(self.tower.config, self.size_setting))
        return side, side

    def _run(self, pixels: SampledFrames) -> EncoderFeatures:
        num_frames = pixels.shape[2]
        missing = self.slices_at_once * self.frames_per_slice - num_frames
        last = pixels[:, :, -1:].expand(-1, -1, missing, -1, -1)
        # (batch, 3, frame, height, width) -> (batch, frame, 3, height, width)
        tokens = self._call(torch.cat([pixels, last], dim=2).transpose(1, 2))
        rows, columns = self.choose_grid(*pixels.shape[3:])
        return tokens.unflatten(1, (-1, rows, columns))[:, : num_frames // self.frames_per_slice]

    @abstractmethod
    def _call(self, frames: Float[Tensor, "batch frame 3 height width"]) -> Float[Tensor, "batch token feature_dim"]:
        """Run the network."""


class VJEPA2Encoder(ClipLengthEncoder):
    """The encoder of V-JEPA 2 (arXiv 2506.09985), without its predictor."""

    tower_class: ClassVar[Any] = VJEPA2Model
    telling_settings: ClassVar[tuple[str, ...]] = (
        "num_attention_heads",
        "crop_size",
        "frames_per_clip",
        "tubelet_size",
    )
    size_setting: ClassVar[str] = "crop_size"
    length_setting: ClassVar[str] = "frames_per_clip"

    def _call(self, frames: Float[Tensor, "batch frame 3 height width"]) -> Float[Tensor, "batch token feature_dim"]:
        return self.tower(frames, skip_predictor=True).last_hidden_state


class VideoMAEEncoder(ClipLengthEncoder):
    """The encoder of VideoMAE (arXiv 2203.12602)."""

    tower_class: ClassVar[Any] = VideoMAEModel
    telling_settings: ClassVar[tuple[str, ...]] = ("num_attention_heads", "image_size", "num_frames", "tubelet_size")
    size_setting: ClassVar[str] = "image_size"
    length_setting: ClassVar[str] = "num_frames"

    def _call(self, frames: Float[Tensor, "batch frame 3 height width"]) -> Float[Tensor, "batch token feature_dim"]:
        return self.tower(frames).last_hidden_state


class LatentEncoder(TowerEncoder):
    """A video autoencoder in place of a semantic encoder, for a plan of compressed latents of the same size.

    Each frame is encoded alone; the latents of two frames and 2x2 places are one feature.
    """

    tower_class: ClassVar[Any] = (LinearVideoAutoencoder, AutoencoderKLWan)
    released_colours: ClassVar[tuple[Colours, Colours]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    telling_settings: ClassVar[tuple[str, ...]] = ()

    @property
    def frames_per_slice(self) -> int:
        return 2

    @property
    def feature_dim(self) -> int:
        return self.frames_per_slice * 4 * latent_grid(self.tower).num_channels

    @property
    def feature_side(self) -> int:
        return 2 * latent_grid(self.tower).spatial_ratio

    def _run(self, pixels: SampledFrames) -> EncoderFeatures:
        batch = len(pixels)
        # (batch, 3, frame, height, width) -> (batch * frame, 3, 1, height, width)
        latents = encode_video(self.tower, pixels.transpose(1, 2).flatten(0, 1).unsqueeze(2))
        layout = "(b s t) z 1 (h mh) (w mw) -> b s h w (t z mh mw)"
        return rearrange(latents, layout, b=batch, t=self.frames_per_slice, mh=2, mw=2)


_TOWER_OF_QWEN = ModelPart("vision_config", ("visual.", "model.visual."))
_ENCODERS: dict[str, type[TowerEncoder]] = {
    "qwen2_5_vl": QwenEncoder,
    "qwen2_5_vl_vision": QwenEncoder,
    "vjepa2": VJEPA2Encoder,
    "videomae": VideoMAEEncoder,
    "LinearVideoAutoencoder": LatentEncoder,
    "AutoencoderKLWan": LatentEncoder,
}


def load_encoder(folder: Path, fps: float = DEFAULT_FPS, device: torch.device | None = None) -> TowerEncoder:
    """Load the encoder of a local folder, in evaluation mode.

    Args:
        folder: Holds a vision tower, a Qwen2.5-VL of which only the tower is read, a V-JEPA 2, a VideoMAE, or a video
            autoencoder.
        fps: Frames per second that it is given.
        device: Where the tower goes; None for the CPU. On the meta device it has no weights.

    Raises:
        ModelError: It is none of these, or is not whole.
        InputError: `fps` is not above 0.
    """
    stated = read_json(folder / CONFIG_NAME)
    kind = str(stated.get("model_type", stated.get("_class_name")))
    if kind not in _ENCODERS:
        raise ModelError(f"expected one of {', '.join(_ENCODERS)} as model_type in {folder / CONFIG_NAME}, got {kind}")
    encoder = _ENCODERS[kind]
    if encoder is LatentEncoder:
        tower = load_component("vae", folder, device=device)
    elif device is not None and device.type == "meta":
        tower = sketch_network(encoder.tower_class, folder).to(torch.float32)
    else:
        part = _TOWER_OF_QWEN if kind == "qwen2_5_vl" else None
        tower = load_strictly(encoder.tower_class, folder, torch.float32, part=part).to(device)
    return encoder(tower.requires_grad_(False), fps, colours=_read_colours(folder))


def _read_colours(folder: Path) -> tuple[Colours, Colours] | None:
    """Return mean and standard deviation as the folder's processor states them."""
    for path in (folder / name for name in _PROCESSORS):
        if path.is_file():
            stated = read_json(path)
            mean, std = (np.asarray(stated.get(name) or (), dtype=np.float64) for name in ("image_mean", "image_std"))
            if mean.shape == std.shape == (3,) and (std > 0).all():
                return tuple(mean.tolist()), tuple(std.tolist())
    return None


def wrap_tower(tower: Any, fps: float, colours: tuple[Colours, Colours] | None = None) -> TowerEncoder:
    """Return the encoder of a tower in memory.

    Args:
        tower: Network of one of the classes that `load_encoder` reads.
        fps: Frames per second that it is given.
        colours: As in `TowerEncoder`.

    Raises:
        ModelError: It is of another class.
    """
    for encoder in dict.fromkeys(_ENCODERS.values()):
        if isinstance(tower, encoder.tower_class):
            return encoder(tower, fps, colours=colours)
    raise ModelError(f"expected a network that encodes videos ({', '.join(_ENCODERS)}), got {type(tower).__name__}")


def make_built_in_tower(network: TowerNetwork) -> Qwen2_5_VisionTransformerPretrainedModel:
    """Make the tower of the built-in encoder with random weights; its attention is over whole slices."""
    config = Qwen2_5_VLVisionConfig(
        depth=network.depth,
        hidden_size=network.hidden_size,
        intermediate_size=network.intermediate_size,
        num_heads=network.num_heads,
        patch_size=network.patch_size,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=network.feature_dim,
        fullatt_block_indexes=list(range(network.depth)),
    )
    return Qwen2_5_VisionTransformerPretrainedModel(config)


def use_all_slices_at_once(tower: Qwen2_5_VisionTransformerPretrainedModel) -> None:
    """Let a tower compute slices of one size together; the results are the same but for rounding.

    transformers computes the attention of one slice after another, and embeds patches by a convolution of as many
    places: neither keeps a GPU busy.
    """
    # In the blocks that are named here attention is over whole slices, in others over parts of different sizes.
    for layer in tower.config.fullatt_block_indexes:
        tower.blocks[layer].attn.__class__ = _SliceAttention
    tower.patch_embed.__class__ = _LinearPatchEmbed


class _SliceAttention(Qwen2_5_VLVisionAttention):
    """Attention within slices of one size, all at once; that of transformers takes one after another."""

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        num_slices = len(cu_seqlens) - 1
        # (token, 3 * dim) -> three of (token, head, head_dim)
        queries, keys, values = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        queries, keys = apply_rotary_pos_emb_vision(queries, keys, *position_embeddings)
        # (slice * patch, head, head_dim) -> (slice, head, patch, head_dim)
        split = [part.unflatten(0, (num_slices, -1)).transpose(1, 2) for part in (queries, keys, values)]
        found = functional.scaled_dot_product_attention(*split)
        return self.proj(found.transpose(1, 2).flatten(2).flatten(0, 1))


class _LinearPatchEmbed(Qwen2_5_VisionPatchEmbed):
    """The embedding of patches as the matrix product that it is, which is faster than a convolution on a GPU."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight
        return functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)
