import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ImageCms, WebPImagePlugin

from sememe.errors import InputError, OutputError, VideoError
from sememe.video import VideoLimits, read_image, to_picture, write_image
from sememe.video.colors import over_white
from video_files import corner_names, quadrants


def refusal(path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_write_and_read(tmp_path: Path, name: str) -> None:
    write_image(quadrants(64, 96), tmp_path / name)
    picture = read_image(tmp_path / name)
    assert picture.shape == (64, 96, 3)
    assert picture.dtype == np.uint8
    assert corner_names(picture) == "rgbw"
    if name == "a.png":
        assert np.array_equal(picture, quadrants(64, 96))
    assert os.listdir(tmp_path) == [name]


# By the EXIF standard: what brings the stored picture upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: np.rot90(stored, 2),
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    image = PIL.Image.fromarray(quadrants(32, 64))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = read_image(tmp_path / "a.jpg")
    expected = UPRIGHT[orientation](quadrants(32, 64))
    assert picture.shape == expected.shape
    assert corner_names(picture) == corner_names(expected)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = (0, 0, 255, 255)
    rgba[12:] = (0, 0, 255, 128)
    PIL.Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    assert picture[2, 2].tolist() == [0, 0, 255]
    assert picture[9, 2].tolist() == [255, 255, 255]
    assert picture[14, 2].tolist() == [127, 127, 255]


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(quadrants(32, 48)).quantize(8)
    corner = image.getpixel((40, 4))
    image.save(tmp_path / "a.png", transparency=corner)
    assert corner_names(read_image(tmp_path / "a.png")) == "rwbw"


def test_grey_sixteen_bits_and_cmyk(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[3, 3].tolist() == [90, 90, 90]
    PIL.Image.fromarray(np.full((16, 16), 90 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[3, 3].tolist() == [90, 90, 90]
    PIL.Image.fromarray(quadrants(32, 48)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert corner_names(read_image(tmp_path / "print.jpg")) == "rgbw"
    PIL.Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "float.tiff")
    assert "floating-point" in refusal(tmp_path / "float.tiff")


def swapped_profile() -> bytes:
    """A profile whose red is sRGB's blue, and whose blue its red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"tXYZ"), (b"bXYZ", b"rXYZ"), (b"tXYZ", b"bXYZ"), (b"\0s\0R\0G\0B", b"\0o\0w\0n\0 ")):
        assert old in profile
        profile = profile.replace(old, new)
    return profile


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_applied(tmp_path: Path, mode: str) -> None:
    image = PIL.Image.fromarray(quadrants(32, 48)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert corner_names(read_image(tmp_path / "a.png")) == "bgrw"
    assert corner_names(to_picture(PIL.Image.open(tmp_path / "a.png"))) == "bgrw"


@pytest.mark.parametrize(
    "profile", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), swapped_profile()[:200], b"none"]
)
def test_srgb_and_damaged_profiles_change_nothing(tmp_path: Path, profile: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


def test_damaged_avif_pictures_are_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "whole.avif")
    content = (tmp_path / "whole.avif").read_bytes()
    (tmp_path / "damaged.avif").write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(tmp_path / "damaged.avif")
    (tmp_path / "damaged.avif").write_bytes(content[:60])
    assert "HEIC" not in refusal(tmp_path / "damaged.avif")


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.png", "P"), ("a.png", "RGBA"), ("a.jpg", "RGB"), ("a.jpg", "CMYK"), ("a.webp", "RGB")],
)
def test_large_pictures_are_scaled_down(tmp_path: Path, name: str, mode: str) -> None:
    PIL.Image.fromarray(quadrants(64, 96)).convert(mode).save(tmp_path / name, quality=95)
    assert read_image(tmp_path / name, enough=33).shape == (64, 96, 3)
    small = read_image(tmp_path / name, enough=16)
    assert small.shape == (16, 24, 3)
    assert corner_names(small) == "rgbw"


def test_grey_of_sixteen_bits_is_scaled_down(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.full((64, 96), 90 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png", enough=16), np.full((16, 24, 3), 90, np.uint8))


def test_heic_is_read_where_its_library_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    heif.from_pillow(PIL.Image.fromarray(quadrants(64, 96))).save(tmp_path / "a.heic", quality=90)
    assert corner_names(read_image(tmp_path / "a.heic")) == "rgbw"


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, name: str) -> None:
    first, second = PIL.Image.fromarray(quadrants(32, 48)), PIL.Image.new("RGB", (48, 32))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert corner_names(read_image(tmp_path / name)) == "rgbw"
    if name == "a.webp":  # its decoder keeps several copies
        with pytest.raises(VideoError, match=r"frames of at most .* 48x32"):
            read_image(tmp_path / name, limits=VideoLimits(max_pixels=32 * 32))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_still_is_decoded_without_pillows_four_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, len(mode)), np.uint8)
    image = PIL.Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.webp", lossless=True, exact=True, exif=exif)
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", None)
    upright = np.rot90(pixels, -1)
    assert np.array_equal(read_image(tmp_path / "a.webp"), upright if mode == "RGB" else over_white(upright))


def png_header(height: int, width: int) -> bytes:
    """A PNG that promises a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7_300, 12_000, 20_000, 60_000])
def test_huge_pictures_are_refused_by_their_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    assert "megapixels" in refusal(tmp_path / "a.png")


def test_a_picture_that_breaks_off(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(100, 100))
    assert "damaged" in refusal(tmp_path / "a.png")
    PIL.Image.fromarray(quadrants(64, 96)).save(tmp_path / "b.jpg")
    data = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) // 2])
    assert "damaged" in refusal(tmp_path / "b.jpg")


def test_tiny_pictures_are_refused(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert "at least 8 pixels" in refusal(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", limits=VideoLimits(min_image_side=1)).shape == (1, 1, 3)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (tmp_path / "empty.png").touch()
    assert "expected a picture" in refusal(tmp_path / "a.png")
    assert "expected a picture" in refusal(tmp_path / "b.png")
    assert "empty" in refusal(tmp_path / "empty.png")
    assert "folder" in refusal(tmp_path)
    assert "no file" in refusal(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"dear diary", "is none, or is damaged"),
    ],
)
def test_formats_that_are_not_read_are_named(start: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(start.ljust(100, b"\0"))
    with pytest.raises(VideoError, match=message):
        read_image(tmp_path / "a.png")


def test_writing_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uint8"):
        write_image(np.zeros((8, 8, 3), np.float32), tmp_path / "a.png")
    with pytest.raises(OutputError, match="ending in"):
        write_image(quadrants(), tmp_path / "a.xyz")
    with pytest.raises(OutputError, match="does not exist"):
        write_image(quadrants(), tmp_path / "nowhere" / "a.png")
