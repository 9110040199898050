"""Render clips of the procedural world: the same scene under several conditions, with depth, mask and captions."""

from pathlib import Path

import numpy as np

from sememe import Clip, SheetRow, contact_sheet, write_clip, write_image
from sememe.world import conditions, random_scene, render


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scene = random_scene(7)
    print(f"{len(conditions(scene=scene))} conditions, such as {', '.join(conditions(family='camera')[:3])}")

    rows = []
    for name in (None, "melt", "jump", "zoom_in"):
        shot = render(scene, name, num_frames=17, size=64)
        print(f"{name}: {shot.full_caption}")
        rows.append(SheetRow(name or "neutral", shot.clip))
    write_image(contact_sheet(rows), folder / "conditions.png")

    # Distances are in scene units; the subject stands at 1.
    shot = render(scene, "dolly_zoom_in", size=(96, 128))
    grey = np.clip(255.0 / np.maximum(shot.depth, 1.0), 0.0, 255.0).astype(np.uint8)
    write_clip(shot.clip, folder / "clip.mp4")
    write_clip(Clip(np.repeat(grey[..., None], 3, axis=-1), shot.clip.fps), folder / "depth.mp4")


if __name__ == "__main__":
    main(Path("outputs"))
