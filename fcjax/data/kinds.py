"""Where the kinds of assets that data sets and Wardrobe name are worn."""

from collections.abc import Mapping

KINDS: Mapping[str, tuple[str, ...]] = {
    "upper": ("top", "upper", "upper_body", "shirt", "jacket", "coat", "outer"),
    "lower": ("bottom", "lower", "lower_body", "trousers", "pants", "skirt", "leggings", "shorts"),
    "dress": ("dress", "dresses", "jumpsuit", "rompers"),
}
"""By the categories of `fcjax.agnostic.agnostic_mask`."""
CATEGORY_OF: Mapping[str, str] = {kind: category for category, kinds in KINDS.items() for kind in kinds}
