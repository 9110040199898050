"""What becomes of transparent pixels."""

import numpy as np


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Lay a uint8 picture (height, width, 4) with straight alpha over white; returns (height, width, 3)."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
