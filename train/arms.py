"""The arms of the paper's ablations: like models that differ in one thing, begun from one model without assets."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fcjax import presets, trees
from fcjax.config import ComposerConfig
from fcjax.models.parameters import init_parameters

Tree = dict[str, Any]
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
}
"""The arms of each table in the paper's order, and what a row calls them."""


def arm_start(base: Tree, arm: ComposerConfig, seed: int) -> Tree:
    """Parameters of an arm that begins where the paper's model does: its networks are copies of the denoiser's.

    base: the parameters of a like model that was trained without assets. What has no counterpart in it (of other
    shapes, or new) begins as in training from nothing; new input channels begin at zero.
    """
    fresh = init_parameters(arm, jax.random.key(seed))
    own = {name: base[name] for name in ("vae", "text_encoder")}
    return {
        **fresh,
        **own,
        "unet": _copied(fresh["unet"], base["unet"]),
        arm.appearance: _copied(fresh[arm.appearance], base["unet"], arm.vae.latent_channels),
    }


def _copied(fresh: Tree, source: Tree, shared: int | None = None) -> Tree:
    """`fresh` with the source's values wherever path and shape agree.

    shared: so many of the first convolution's input channels mean the same in both where their number differs.
    """
    given = trees.flatten(source)

    def value(path: str, leaf: jax.Array) -> jax.Array:
        found = given.get(path)
        if found is None:
            return leaf
        if path == "conv_in/kernel" and found.shape != leaf.shape and shared is not None:
            return jnp.zeros_like(leaf).at[:, :, :shared].set(found[:, :, :shared])
        return jnp.asarray(found, leaf.dtype) if found.shape == leaf.shape else leaf

    return trees.map_paths(value, fresh)
