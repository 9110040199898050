"""Do to a picture what happens in a reference clip.

The picture and the reference are rendered here; `read_image` and `read_clip` read your own.
"""

from pathlib import Path

import torch

from sememe import SheetRow, VideoAsPromptPipeline, contact_sheet, write_clip, write_image
from sememe.world import random_scene, render


def main(folder: Path, num_inference_steps: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    reference = render(random_scene(1), "melt").clip
    image = render(random_scene(2), None).clip.frames[0]

    pipe = VideoAsPromptPipeline.from_pretrained("tiny")
    out = pipe(
        image=image,
        references=[reference],
        num_inference_steps=num_inference_steps,  # None: the model's own number
        generator=torch.Generator().manual_seed(7),
    )
    write_clip(out.clips[0], folder / "result.mp4")
    rows = [SheetRow("reference", reference), SheetRow("result", out.clips[0])]
    write_image(contact_sheet(rows), folder / "result.png")


if __name__ == "__main__":
    main(Path("outputs"))
