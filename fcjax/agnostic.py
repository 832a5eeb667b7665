"""Cloth-agnostic persons: where a person is repainted, and the person without it."""

import numpy as np
from jaxtyping import Bool, UInt8


def agnostic_image(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with middle grey where it is repainted."""
    return np.where(mask[..., None], np.uint8(128), image)
