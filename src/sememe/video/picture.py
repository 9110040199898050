"""Single pictures: reading, writing, and what people give as one."""

import io
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL import ImageCms

from sememe.errors import InputError, OutputError, VideoError, tell_reason
from sememe.files import atomic_path, check_writable
from sememe.video.clip import Clip, Image, VideoLimits
from sememe.video.colors import over_white
from sememe.video.source import check_frame_size, checked_path

if TYPE_CHECKING:
    Picture = PIL.Image.Image | np.ndarray | Clip
    """What people give as a picture; an array is uint8 (height, width, 3), and a clip has one frame."""
else:
    Picture = Any  # anything else is refused in words, see `to_picture`

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

_EXPECTED = "expected a picture (png, jpeg, webp, bmp, gif, tiff or avif)"
_OTHER_FORMATS = {
    "a JPEG 2000 picture": b"\x00\x00\x00\x0cjP",
    "a Photoshop file": b"8BPS",
    "an OpenEXR picture": b"\x76\x2f\x31\x01",
    "a JPEG XL picture": b"\xff\x0a",
    "a PDF": b"%PDF",
    "an SVG drawing": b"<svg",
    "an XML file, such as an SVG drawing": b"<?xml",
}
WRITTEN_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats by Pillow's names, by the endings of files that `write_image` writes."""


def read_image(path: str | Path, *, enough: int | None = None, limits: VideoLimits | None = None) -> Image:
    """Read a picture as a uint8 array (height, width, 3), RGB, upright as its EXIF data say.

    What is transparent becomes white. Colour profiles are applied; palettes, grey, 16 bits a channel and CMYK are
    converted; of an animation the first frame is taken. HEIC is read where the extra `heic` is installed.

    Args:
        path: Path of the file.
        enough: Pixels that are enough for the shorter side: a picture that has them twice, three times, ... is scaled
            down by that number, and then takes far less memory. None keeps its size.
        limits: What the file is held to, `VideoLimits()` if None.

    Raises:
        VideoError: The file is missing, is no picture, is damaged, or is not within the limits
            (`VideoLimits.max_image_pixels` and `min_image_side`, and `max_pixels` of an animated WebP; checked before
            pixels are decoded).
    """
    limits = limits or VideoLimits()
    path = checked_path(path, _EXPECTED)
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes that our own limit allows, and about damaged metadata, which is not used.
            warnings.simplefilter("ignore")
            with PIL.Image.open(path, formats=_list_formats()) as image:
                _check_image_size(path, image.height, image.width, limits)
                if enough is not None:
                    image.draft(None, (enough, enough))  # JPEG can be decoded at a half or less
                still = _decode_webp(path, image, limits) if image.format == "WEBP" else image
                PIL.ImageOps.exif_transpose(still, in_place=True)
                return _to_rgb(str(path), still, enough)
    except VideoError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise VideoError(
            f"expected a picture of at most {limits.max_image_pixels / 1e6:.4g} megapixels, but {path} is larger; "
            f"scale it down"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise VideoError(f"{_EXPECTED}, but {path} is {_name_format(path)}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise VideoError(
            f"{path} cannot be decoded ({tell_reason(error)}); the file is damaged or incomplete"
        ) from error


@cache
def _list_formats() -> tuple[str, ...]:
    """Return the formats that are read, by Pillow's names."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _name_format(path: Path) -> str:
    """Return what a file is that is read by none of the decoders, by how it begins."""
    with path.open("rb") as file:
        start = file.read(64)
    for name, magic in _OTHER_FORMATS.items():
        if start.startswith(magic):
            return f"{name}, which is not read; convert it to png or jpeg first"
    brands = start[8:32] if start[4:8] == b"ftyp" else b""
    if b"avif" not in brands and any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"mif1")):
        is_read = _list_formats() != FORMATS
        return "a HEIC picture, " + (
            "and is damaged" if is_read else "which needs pip install 'sememe[heic]'; install it or export it as jpeg"
        )
    return "none, or is damaged"


def check_picture_output(path: Path) -> None:
    """Raise `OutputError` if `write_image` cannot write `path`, before any work is spent on the picture."""
    if path.suffix.lower() not in WRITTEN_PICTURES:
        raise OutputError(f"expected a file name ending in {', '.join(WRITTEN_PICTURES)}, got {path.name}")
    check_writable(path)


def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write a uint8 array (height, width, 3) as PNG, JPEG or WebP (by the suffix), atomically.

    Raises:
        VideoError: The array is no picture.
        OutputError: The suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise VideoError(f"expected a uint8 picture of shape (height, width, 3), got {image.dtype} {image.shape}")
    check_picture_output(path)
    with atomic_path(path) as part:
        PIL.Image.fromarray(image).save(part, format=WRITTEN_PICTURES[path.suffix.lower()], quality=95)


def to_picture(image: Any) -> np.ndarray:
    """Return a uint8 picture (height, width, 3) from a PIL image, such an array or a one-frame Clip, on white.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(image, Clip):
        if image.num_frames != 1:
            raise InputError(f"expected one picture as image, got a clip of {image.num_frames} frames; give one frame")
        return image.frames[0]
    if isinstance(image, PIL.Image.Image):
        return _to_rgb("the given picture", PIL.ImageOps.exif_transpose(image))
    if isinstance(image, np.ndarray):
        return Clip.from_image(image).frames[0]
    raise InputError(f"expected a PIL image, a uint8 array or a one-frame Clip as image, got {type(image).__name__}")


def _check_image_size(path: Path, height: int, width: int, limits: VideoLimits) -> None:
    if height * width > limits.max_image_pixels:
        raise VideoError(
            f"expected a picture of at most {limits.max_image_pixels / 1e6:.4g} megapixels, but {path} is "
            f"{width}x{height} (width x height); scale it down"
        )
    if min(height, width) < limits.min_image_side:
        raise VideoError(
            f"expected a picture of at least {limits.min_image_side} pixels a side, but {path} is {width}x{height} "
            f"(width x height); choose a larger one"
        )


def _decode_webp(path: Path, image: PIL.Image.Image, limits: VideoLimits) -> PIL.Image.Image:
    """Decode a still. Pillow takes it for an animation, of which it keeps four copies (0.8 GB of 50 megapixels)."""
    if getattr(image, "is_animated", False):
        check_frame_size(path, image.height, image.width, limits)
        return image
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return image  # Pillow says what is wrong
    cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB, dst=pixels)
    decoded = PIL.Image.fromarray(pixels)
    decoded.info = image.info
    return decoded


def _to_rgb(name: str, image: PIL.Image.Image, enough: int | None = None) -> np.ndarray:
    if image.mode == "F":
        raise VideoError(f"expected 8 or 16 bits a channel, but {name} holds floating-point values; convert it first")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow keeps in one of several wide modes
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        grey += 128
        grey //= 257
        image = PIL.Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    elif image.mode in {"P", "1"}:
        image = image.convert("RGB")
    if enough is not None and min(image.size) >= 2 * enough:
        image = image.reduce(min(image.size) // enough)
    if image.info.get("icc_profile"):
        image = _to_srgb(image, image.info["icc_profile"])
    if image.has_transparency_data:
        return over_white(np.asarray(image))
    return np.array(image.convert("RGB"))


def _to_srgb(image: PIL.Image.Image, profile: bytes) -> PIL.Image.Image:
    """Apply a colour profile; leave the picture as it is where the profile is damaged or is sRGB already."""
    if image.mode not in {"RGB", "RGBA", "CMYK", "L"}:
        image = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError):
        return image
