"""The arms of the paper's ablations: like models that differ in one thing, begun from one model without assets."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fcjax import presets
from fcjax.config import ComposerConfig

Variant = Callable[[ComposerConfig], ComposerConfig]


def _bound(variant: Any) -> Variant:
    return lambda model: dataclasses.replace(model, binder=dataclasses.replace(model.binder, variant=variant))


def _encoded(appearance: str) -> Variant:
    return lambda model: presets.encoding_assets(model, appearance, presets.mini_encoder(model))


ARMS: dict[str, Variant] = {
    "none": _bound("none"),
    "conv_in": _bound("conv_in"),
    "smallest": _bound("smallest"),
    "all": _bound("all"),
    "attend_blank": lambda model: dataclasses.replace(_bound("all")(model), attend_blank=True),
    "controlnet": _encoded("controlnet"),
    "image_encoder": _encoded("image_encoder"),
}
"""By name, what each makes of a configuration with a reference UNet."""
TABLES: dict[str, dict[str, str]] = {
    "table3": {
        "image_encoder": "DINOv2-style encoder, trained with the model",
        "controlnet": "ControlNet",
        "none": "reference UNet",
    },
    "table4": {
        "none": "without binding",
        "conv_in": "conv_in",
        "smallest": "Bind(1)",
        "all": "Bind(1,2,3)",
    },
    "blank": {
        "attend_blank": "blank canvas visible",
        "all": "blank canvas hidden",
    },
}
"""The arms of each table, in the paper's order, and what a row calls them.

Others are held against the last. "blank" asks what the paper does not say: whether the denoiser sees the tokens of the
canvas that no asset covers.
"""
