"""Read, resample and write clips.

A `Clip` is uint8 RGB frames (frame, height, width, 3) and a frame rate. Everything in sememe takes and gives clips.
"""

from pathlib import Path

import numpy as np

from sememe import Clip, SheetRow, contact_sheet, read_clip, write_clip, write_image


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    frames = np.zeros((24, 96, 128, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[..., 2] = 96
        frame[32:64, 4 * number : 4 * number + 32] = (255, 200, 0)
    write_clip(Clip(frames, fps=24.0), folder / "square.mp4")

    # Nine frames spread over the whole file, no side longer than 64 pixels.
    clip = read_clip(folder / "square.mp4", num_frames=9, max_size=64)
    print(f"{clip.frames.shape} at {clip.fps:g} frames a second, {clip.duration:.2f} s")

    write_clip(clip, folder / "square.gif")
    write_image(contact_sheet([SheetRow("a square moves", clip)]), folder / "square.png")


if __name__ == "__main__":
    main(Path("outputs"))
