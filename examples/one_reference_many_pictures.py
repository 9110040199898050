"""Encode a reference once, and use it for many pictures and seeds.

The built-in model is one-way: the keys and values of a reference are computed once and read at every step.
"""

from pathlib import Path

import torch

from sememe import SheetRow, VideoAsPromptPipeline, contact_sheet, write_image
from sememe.world import random_scene, render


def main(folder: Path, num_inference_steps: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    reference = render(random_scene(1), "inflate_and_float").clip
    images = [render(random_scene(seed), None).clip.frames[0] for seed in (2, 3, 4)]

    pipe = VideoAsPromptPipeline.from_pretrained("tiny")
    encoded = pipe.encode_reference([reference])
    out = pipe(
        image=images,  # a batch
        references=encoded,
        num_inference_steps=num_inference_steps,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(images))],
    )
    rows = [SheetRow("reference", reference), *(SheetRow(f"seed {seed}", clip) for seed, clip in enumerate(out.clips))]
    write_image(contact_sheet(rows), folder / "many.png")


if __name__ == "__main__":
    main(Path("outputs"))
