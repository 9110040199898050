"""Predictions of a generation for the denoising loop: variants of guidance, over windows of frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from sememe.errors import InputError
from sememe.gen1.content import ContentEmbedding
from sememe.gen1.guidance import Content, Detail, Variant
from sememe.gen1.models import Conditions, FrameContents, Model
from sememe.gen1.shapes import Latents
from sememe.gen1.windows import Window, predict_windows


@dataclass(frozen=True)
class Predictor:
    """Predicts under variants; see `sememe.diffusion.denoise.Predict`.

    Attributes:
        model: Network.
        structures: Conditioning by structure, for all frames, at each detail.
        contents: Content of all frames, for each choice of it.
        windows: Runs of frames that the video model predicts together.
        batch_frames: Frames of a clip that the image model predicts at once, each alone.
    """

    model: Model
    structures: Mapping[Detail, Conditions]
    contents: Mapping[Content, FrameContents]
    windows: tuple[Window, ...]
    batch_frames: int

    def __call__(
        self, latents: Latents, timestep: Num[Tensor, ""], variants: tuple[Variant, ...]
    ) -> Float[Tensor, "variant batch channel frame latent_height latent_width"]:
        """Predict under variants that are all of the video model, or all of the image model.

        Windows of one frame are predicted by the image model.
        """
        together = variants[0].frames == "together"
        assert all((each.frames == "together") == together for each in variants), "variants of one model"
        together = together and any(len(window.weights) > 1 for window in self.windows)
        num_frames = latents.shape[2]
        stacked = latents.repeat(len(variants), 1, 1, 1, 1)
        structure = torch.cat([self.structures[variant.structure] for variant in variants])
        content = join_contents([self.contents[variant.content] for variant in variants])

        def predict(frames: slice) -> Tensor:
            return self.model.predict(
                stacked[:, :, frames], timestep, structure[:, :, frames], content[frames], together=together
            ).float()

        if together:
            predicted = predict_windows(self.windows, predict, num_frames)
        else:
            starts = range(0, num_frames, self.batch_frames)
            predicted = torch.cat([predict(slice(start, start + self.batch_frames)) for start in starts], dim=2)
        return predicted.unflatten(0, (len(variants), -1))


def join_contents(contents: list[FrameContents]) -> FrameContents:
    """Join contents of several batches to one batch."""
    images = [each.images for each in contents if each.images is not None]
    assert len(images) in (0, len(contents)), "all contents are for an IP-Adapter, or none"
    return FrameContents(torch.cat([each.tokens for each in contents]), torch.cat(images) if images else None)


def stack_contents(contents: Sequence[Sequence[ContentEmbedding]], device: torch.device) -> FrameContents:
    """Stack the content of each frame of each clip.

    Raises:
        InputError: A picture for an IP-Adapter changes within a clip, which motion models do not take.
    """
    tokens = torch.stack([torch.stack([each.tokens for each in frames]) for frames in contents]).to(device)
    if contents[0][0].image is None:
        return FrameContents(tokens)
    images = torch.stack(
        [torch.stack([each.image for each in frames if each.image is not None]) for frames in contents]
    )
    if not torch.equal(images, images[:, :1].expand_as(images)):
        raise InputError("an IP-Adapter takes one picture for the whole clip; give keyframes of texts, or one picture")
    return FrameContents(tokens, images.to(device))
