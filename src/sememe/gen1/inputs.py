"""Inputs of a generation, checked and in one form: clips of the result's shape, structure, masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sememe.backbones.autoencoder import LatentGrid
from sememe.errors import InputError
from sememe.gen1.content import ContentEmbedding, Keyframe
from sememe.gen1.mask import Mask, read_mask
from sememe.gen1.settings import KINDS, Settings, StructureSettings
from sememe.gen1.shapes import StructureVideo
from sememe.gen1.structure import StructureEstimator, estimate_structure, read_structure
from sememe.video import Clip, Picture, resize_clip

# What may be given. `make_request` refuses anything else with a message, before a check of types could.
if TYPE_CHECKING:
    Clips = Clip | list[Clip]
    GivenContent = str | Picture | ContentEmbedding | list[Keyframe]
    GivenContents = GivenContent | list[GivenContent]
    Masks = Picture | list[Picture]
else:
    Clips = GivenContent = GivenContents = Masks = Any


@dataclass(frozen=True)
class Request:
    """A batch of generations.

    Attributes:
        sources: Sources at the shape of the result.
        contents: Content of each, as it was given.
        structures: Structure clip of each, or None to estimate it.
        masks: Where each is edited, or None for everywhere.
    """

    sources: list[Clip]
    contents: list[Any]
    structures: list[Clip | None]
    masks: list[Mask] | None

    @property
    def num_frames(self) -> int:
        """Frames of each source."""
        return self.sources[0].num_frames


def make_request(
    grid: LatentGrid, settings: Settings, source: Any, content: Any, structure: Any = None, mask: Any = None
) -> Request:
    """Bring what was given into one form.

    Args:
        grid: Which sizes the model can make.
        settings: Shape of the result.
        source: A clip, or a list of clips of one shape for a batch.
        content: Content of all sources, or a list with one for each of several.
        structure: Structure clip of the source, or a list with one for each.
        mask: Mask of all sources, or a list with one for each.

    Raises:
        InputError: Something is missing, of the wrong kind, or does not fit.
    """
    given = source if isinstance(source, list) else [source]
    if not given or not all(isinstance(each, Clip) for each in given):
        raise InputError(f"expected source as a Clip, or a list of Clips, got {_name_types(given)}; see read_clip")
    if content is None:
        raise InputError("expected content as a text or a picture, got none")
    cut = [_cut(each, settings.size.num_frames) for each in given]
    if len({(each.num_frames, each.size, each.fps) for each in cut}) > 1:
        raise InputError("expected sources of one size, length and frame rate in a batch; generate them one by one")
    shape = settings.size
    size = (shape.height or grid.nearest_size(cut[0].height), shape.width or grid.nearest_size(cut[0].width))
    grid.latent_shape(cut[0].num_frames, *size)
    sources = [resize_clip(each, *size) for each in cut]
    structures: list[Clip | None] = [None] * len(given)
    if structure is not None:
        structures = _spread(structure, len(given), "structure")
        if not all(isinstance(each, Clip) for each in structures):
            raise InputError(f"expected structure as a Clip, got {_name_types(structures)}")
    masks = None
    if mask is not None:
        masks = [read_mask(each, cut[0].num_frames, cut[0].size, size) for each in _spread(mask, len(given), "mask")]
    elif settings.mask.mask_feather:
        raise InputError("mask_feather has an effect only with a mask; give both or neither")
    # Keyframes are one content, which all sources then share.
    is_one = not isinstance(content, list) or all(isinstance(each, Keyframe) for each in content)
    contents = _spread([content] * len(given) if is_one else content, len(given), "content")
    return Request(sources, contents, structures, masks)


def find_structure(
    request: Request, settings: StructureSettings, estimators: Mapping[str, StructureEstimator]
) -> StructureVideo:
    """Return the structure of each source: as given, or estimated by the estimators of its kinds.

    Raises:
        InputError: A kind is unknown, or has no estimator where one is needed; or a structure clip is too short.
    """
    settings.check_kinds({*KINDS, *estimators})
    kinds, pairs = settings.structure_kinds, zip(request.sources, request.structures, strict=True)
    return torch.stack(
        [
            estimate_structure(source, kinds, estimators) if given is None else read_structure(given, source)
            for source, given in pairs
        ]
    )


def _cut(clip: Clip, num_frames: int | None) -> Clip:
    if num_frames is None:
        return clip
    if clip.num_frames < num_frames:
        raise InputError(f"expected a source of at least num_frames {num_frames}, got {clip.num_frames} frames")
    return Clip(clip.frames[:num_frames], clip.fps)


def _spread(given: Any, num_sources: int, name: str) -> list[Any]:
    entries: Sequence[Any] = given if isinstance(given, list) else [given] * num_sources
    if len(entries) != num_sources:
        raise InputError(f"expected one {name} per source, got {len(entries)} for {num_sources}")
    return list(entries)


def _name_types(entries: Sequence[Any]) -> str:
    return ", ".join(sorted({type(each).__name__ for each in entries})) or "an empty list"
