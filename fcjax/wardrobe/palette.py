"""Named colours, and which pairs of them are kept for the held-out split."""

import colorsys
import itertools

import numpy as np

# Hue, saturation and value of each name's middle, and how far a colour of that name may stray from it.
# The order matters: held-out pairs are neighbours at a fixed distance on this ring.
PALETTE: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "black": ((0.60, 0.08, 0.13), (0.50, 0.06, 0.03)),
    "yellow": ((0.140, 0.78, 0.95), (0.012, 0.10, 0.04)),
    "purple": ((0.770, 0.62, 0.55), (0.020, 0.10, 0.08)),
    "white": ((0.10, 0.02, 0.95), (0.50, 0.02, 0.03)),
    "red": ((0.993, 0.82, 0.76), (0.010, 0.08, 0.07)),
    "navy": ((0.635, 0.66, 0.31), (0.015, 0.08, 0.05)),
    "beige": ((0.105, 0.24, 0.86), (0.015, 0.05, 0.04)),
    "green": ((0.375, 0.70, 0.55), (0.020, 0.10, 0.08)),
    "pink": ((0.935, 0.38, 0.94), (0.015, 0.07, 0.04)),
    "brown": ((0.060, 0.60, 0.38), (0.012, 0.08, 0.05)),
    "turquoise": ((0.480, 0.60, 0.76), (0.015, 0.08, 0.06)),
    "grey": ((0.60, 0.03, 0.56), (0.50, 0.03, 0.06)),
    "orange": ((0.070, 0.84, 0.94), (0.010, 0.08, 0.04)),
    "blue": ((0.595, 0.74, 0.72), (0.015, 0.10, 0.08)),
    "olive": ((0.190, 0.52, 0.45), (0.015, 0.08, 0.05)),
}
COLORS = tuple(PALETTE)
HELD_OUT_STEP = 4
LEAST_CONTRAST = 0.34


def middle(name: str) -> np.ndarray:
    """The colour that a name stands for, RGB in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(*PALETTE[name][0]))


def shade(name: str, rng: np.random.Generator) -> np.ndarray:
    """A colour that goes by this name, RGB float32 in [0, 1]."""
    center, spread = np.array(PALETTE[name])
    hue, saturation, value = center + spread * rng.uniform(-1, 1, 3)
    return np.array(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1)), np.float32)


def contrast(first: str, second: str) -> float:
    """How far apart two names look: a distance in RGB that counts green more and blue less."""
    return float(np.sqrt((((middle(first) - middle(second)) ** 2) * (0.9, 1.5, 0.6)).sum()))


PAIRS = tuple(pair for pair in itertools.combinations(COLORS, 2) if contrast(*pair) >= LEAST_CONTRAST)
"""Every pair of names, in the ring's order, that differ enough to be told apart in a small picture."""

HELD_OUT_PAIRS = frozenset(
    pair
    for pair in PAIRS
    if (COLORS.index(pair[1]) - COLORS.index(pair[0])) % len(COLORS) in (HELD_OUT_STEP, len(COLORS) - HELD_OUT_STEP)
)
"""Pairs that no training outfit combines, in one fabric or between the grounds of its main garments."""


def partners(color: str, split: str, beside: str | None = None) -> tuple[str, ...]:
    """The colours that a fabric or an outfit of this split may combine with `color`.

    beside: a further colour that they must differ from, as all pairs do, and in training not be held out with.
    """
    held_out = split == "heldout"
    found = tuple(
        pair[1] if pair[0] == color else pair[0]
        for pair in PAIRS
        if color in pair and (pair in HELD_OUT_PAIRS) == held_out
    )
    if beside is None:
        return found
    suit = (*partners(beside, "train"), *(partners(beside, "heldout") if held_out else ()))
    return tuple(name for name in found if name in suit)
