"""Clips: read, write, resample, resize and lay out. The only package that knows PyAV."""

from sememe.video.clip import Clip, Frames, Image, VideoLimits
from sememe.video.picture import Picture, read_image, to_picture, write_image
from sememe.video.reader import read_clip
from sememe.video.resizing import Fit, Sampling, pick_frames, resample_clip, resize_clip, resize_image
from sememe.video.sheet import SheetRow, contact_sheet, put_side_by_side
from sememe.video.writer import write_clip, write_clips

__all__ = [
    "Clip",
    "Fit",
    "Frames",
    "Image",
    "Picture",
    "Sampling",
    "SheetRow",
    "VideoLimits",
    "contact_sheet",
    "pick_frames",
    "put_side_by_side",
    "read_clip",
    "read_image",
    "resample_clip",
    "resize_clip",
    "resize_image",
    "to_picture",
    "write_clip",
    "write_clips",
    "write_image",
]
