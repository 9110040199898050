"""Pixels as a standard screen shows them: transparency over white, and high dynamic range as sRGB.

What phones record as HLG or PQ is shown as a screen of standard range would show it."""

from functools import cache

import numpy as np
from av.video.reformatter import ColorTrc
from jaxtyping import UInt8, UInt16


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Lay a uint8 picture (height, width, 4) with straight alpha over white; returns (height, width, 3)."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


# BT.2408: the luminance of white on paper, which becomes white in sRGB.
_WHITE_NITS = 203.0
# BT.2100 shows HLG on a screen of this peak, with this exponent of its luminance.
_HLG_PEAK_NITS, _HLG_GAMMA = 1000.0, 1.2
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
# BT.2087: linear BT.2020 to linear BT.709, whose primaries are those of sRGB.
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
# Linear light up to here stays as it is; highlights above share what is left below 1.
_KNEE = 0.8
_LEVELS = 4096
# Rows at a time: the float copies of a whole 4K frame would take 300 MB.
_STRIP = 128


def is_hdr(transfer: int) -> bool:
    """Whether frames of this transfer characteristic (`frame.color_trc`) need `tone_map`."""
    return transfer in {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67}


def tone_map(frame: UInt16[np.ndarray, "height width 3"], transfer: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bring a BT.2020 frame with 16 bits a channel, as PQ or HLG, to sRGB."""
    result = np.empty(frame.shape, np.uint8)
    for top in range(0, len(frame), _STRIP):
        rows = slice(top, top + _STRIP)
        result[rows] = _tone_map(frame[rows], transfer)
    return result


def _tone_map(frame: np.ndarray, transfer: int) -> np.ndarray:
    light = _to_linear(transfer)[frame >> 4]
    if transfer == ColorTrc.ARIB_STD_B67:
        light *= (light @ _LUMINANCE)[..., None] ** (_HLG_GAMMA - 1) * (_HLG_PEAK_NITS / _WHITE_NITS)
    light = np.maximum(light @ _TO_BT709.T, 0)
    brightest = light.max(axis=-1, keepdims=True)
    above = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE)
    # One factor for all channels, so that highlights keep their colour.
    light *= np.where(above > 0, _KNEE + (1 - _KNEE) * (1 - np.exp(-above)), brightest) / np.maximum(brightest, 1e-9)
    return _to_srgb()[np.round(np.sqrt(light) * (_LEVELS - 1)).astype(np.uint16)]


@cache
def _to_linear(transfer: int) -> np.ndarray:
    """Tabulate linear light by signal: for PQ in units of white, for HLG of the scene, with a peak of 1."""
    signal = np.linspace(0, 1, _LEVELS)
    if transfer == ColorTrc.SMPTE2084:
        power = signal ** (32 / 2523)
        light = (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)
        light *= 10_000 / _WHITE_NITS
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)


@cache
def _to_srgb() -> np.ndarray:
    """Tabulate levels of sRGB by the square root of linear light, which spends more of the table on the dark."""
    light = np.linspace(0, 1, _LEVELS) ** 2
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * signal).astype(np.uint8)
