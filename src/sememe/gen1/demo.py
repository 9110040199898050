"""The demonstration: one clip in two other looks, that of a picture and that of a text, and a sheet of them all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sememe.gen1.evaluation import deal_looks
from sememe.gen1.generation import Gen1Inputs
from sememe.gen1.settings import SizeSettings
from sememe.video import Clip, SheetRow, contact_sheet, read_clip, read_image, write_clip, write_image
from sememe.world import RenderedClip, render

_NUM_FRAMES = 8


@dataclass(frozen=True)
class DemoLook:
    """A clip in which something moves, what it should look like (a picture file or a text), and the result."""

    condition: str
    source: Path
    content: str
    result: Path


def make_demo(
    sheet: Path,
    image: Path | None,
    seed: int,
    size: SizeSettings,
    generate: Callable[[Gen1Inputs, Path], None],
) -> tuple[DemoLook, ...]:
    """Render a clip and the picture of another look, and generate from them; see `System.demo`."""
    folder, (first, second) = sheet.parent, deal_looks(2, 2, seed)
    source, picture = folder / "source.mp4", image or folder / "look.png"

    def film(look: int) -> RenderedClip:
        shape = (size.height or 64, size.width or 64)
        return render(first.paint(look), first.condition, num_frames=size.num_frames or _NUM_FRAMES, size=shape)

    write_clip(film(first.first_look).clip, source)
    if image is None:
        write_image(film(first.look).clip.frames[0], picture)
    text = film(second.look).caption
    looks = (
        DemoLook(first.condition, source, str(picture), folder / "result.mp4"),
        DemoLook(first.condition, source, text, folder / "result_2.mp4"),
    )
    generate(Gen1Inputs(source=source, content_image=picture), looks[0].result)
    generate(Gen1Inputs(source=source, content=text), looks[1].result)
    clip = read_clip(source)
    rows = [
        SheetRow(f"source ({first.condition})", clip),
        SheetRow("the look of this picture", Clip(read_image(picture)[None], clip.fps)),
        SheetRow("", read_clip(looks[0].result)),
        SheetRow(f"the look of a text: {text}", read_clip(looks[1].result)),
    ]
    write_image(contact_sheet(rows), sheet)
    return looks
