from pathlib import Path

from sememe.gen1.demo import make_demo
from sememe.gen1.generation import Gen1Inputs
from sememe.gen1.settings import SizeSettings
from sememe.video import read_clip, read_image, write_clip


def test_one_clip_gets_the_look_of_a_picture_and_of_a_text(tmp_path: Path) -> None:
    given: list[Gen1Inputs] = []

    def copy(inputs: Gen1Inputs, output: Path) -> None:
        given.append(inputs)
        write_clip(read_clip(inputs.source), output)

    size = SizeSettings(height=16, width=32, num_frames=2)
    by_picture, by_text = make_demo(tmp_path / "sheet.png", None, 3, size, copy)
    assert read_clip(by_picture.source).frames.shape == (2, 16, 32, 3)
    assert read_image(tmp_path / "look.png").shape == (16, 32, 3)
    assert by_picture.content == str(given[0].content_image) == str(tmp_path / "look.png")
    assert by_text.content == given[1].content
    assert by_text.source == by_picture.source
    assert by_text.result != by_picture.result
    assert (tmp_path / "sheet.png").is_file()
    own = tmp_path / "look.png"
    make_demo(tmp_path / "sheet.png", own, 4, size, copy)
    assert given[2].content_image == own
