"""Colours as people see them: sRGB to CIE L*a*b* (D65), and the CIEDE2000 colour difference."""

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

# IEC 61966-2-1: linear sRGB to XYZ, and the white that it is seen under.
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _XYZ.sum(axis=1)


def lab(image: Shaped[ndarray, "*n 3"]) -> Float[ndarray, "*n 3"]:
    """L* in 0..100, a*, b* of sRGB colours: uint8 of 0..255, or floats of 0..1."""
    encoded = np.asarray(image, np.float64) / (255.0 if image.dtype == np.uint8 else 1.0)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((np.maximum(encoded, 0.0) + 0.055) / 1.055) ** 2.4)
    ratio = linear @ (_XYZ / _WHITE[:, None]).T
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def ciede2000(
    first: Float[ndarray, "*n 3"], second: Float[ndarray, "*n 3"], lightness_scale: float = 1.0
) -> Float[ndarray, "*n"]:
    """CIEDE2000 differences of L*a*b* colours that broadcast; about 1 is just noticeable, black to white is 100.

    lightness_scale: the parametric factor k_L. 1 is the reference condition; textiles are judged with 2, which counts
    lightness (folds, shading) half. Symbols and equations: Sharma, Wu, Dalal 2005.
    """
    l1, a1, b1 = np.moveaxis(np.asarray(first, np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(second, np.float64), -1, 0)
    mean_c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    grey = c1 * c2 == 0
    dh = h2 - h1
    dh = np.where(grey, 0.0, dh - 360 * (dh > 180) + 360 * (dh < -180))
    dl, dc = l2 - l1, c2 - c1
    dh_chroma = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh / 2))
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    far, total = np.abs(h1 - h2) > 180, h1 + h2
    mean_h = np.where(grey, total, np.where(far, (total + np.where(total < 360, 360, -360)) / 2, total / 2))
    t = (
        1
        - 0.17 * np.cos(np.radians(mean_h - 30))
        + 0.24 * np.cos(np.radians(2 * mean_h))
        + 0.32 * np.cos(np.radians(3 * mean_h + 6))
        - 0.20 * np.cos(np.radians(4 * mean_h - 63))
    )
    turn = 30 * np.exp(-(((mean_h - 275) / 25) ** 2))
    r_c = 2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7))
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    r_t = -np.sin(np.radians(2 * turn)) * r_c
    light, chroma, hue = dl / (lightness_scale * s_l), dc / s_c, dh_chroma / s_h
    return np.sqrt(np.maximum(light**2 + chroma**2 + hue**2 + r_t * chroma * hue, 0.0))
