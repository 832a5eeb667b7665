"""Models whose assets another network than a reference UNet encodes (the paper's Table 3), from one that is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fcjax import presets, trees
from fcjax.config import ComposerConfig
from fcjax.metrics.networks.vit import read_dinov2
from fcjax.models.parameters import Parameters, init_parameters
from fcjax.pretrained import Pretrained


def begun(base: Parameters, config: ComposerConfig, key: Key[Array, ""]) -> Parameters:
    """Parameters of a model that begins where the paper's does: what encodes its assets is a copy of the denoiser.

    base: the parameters of a like model. What has no counterpart in its UNet (of other shapes, or new) begins as in
    training from nothing; new input channels begin at zero. Whatever encoded the base's assets is left out.
    """
    dtype = base["unet"]["conv_in"]["kernel"].dtype
    fresh = init_parameters(config, key, dtype, ("unet", config.appearance, "binder"))
    return {
        **fresh,
        **{name: base[name] for name in ("vae", "text_encoder")},
        "unet": _copied(fresh["unet"], base["unet"]),
        config.appearance: _copied(fresh[config.appearance], base["unet"], config.vae.latent_channels),
    }


def encoded(model: Pretrained, appearance: str, image_encoder: str | Path | None = None) -> Pretrained:
    """A model with a reference UNet as one to be trained, whose assets a "controlnet" or an "image_encoder" encodes.

    image_encoder: a DINOv2 folder of transformers, or its name on the Hugging Face Hub. ValueError for a model that
    has no reference UNet, and for an image encoder without weights or weights without one.
    """
    if model.config.reference_unet is None:
        raise ValueError(f"{model.found} encodes assets by a {model.config.appearance} already")
    if (appearance == "image_encoder") != (image_encoder is not None):
        raise ValueError(
            "an image encoder's weights belong to the appearance image_encoder, which needs them: a DINOv2 folder of "
            "transformers, or a name such as facebook/dinov2-base"
        )
    encoder, read = (None, None) if image_encoder is None else read_dinov2(image_encoder)
    config = presets.encoding_assets(model.config, appearance, encoder)
    params = begun(model.params, config, jax.random.key(0))
    if read is not None:
        dtype = model.params["unet"]["conv_in"]["kernel"].dtype
        params["image_encoder"] = jax.tree.map(lambda leaf: leaf.astype(dtype), read)
    return model._replace(config=config, params=params)


def _copied(fresh: Parameters, source: Mapping[str, Any], shared: int | None = None) -> Parameters:
    """`fresh` with the source's values wherever path and shape agree.

    shared: so many of the first convolution's input channels mean the same in both where their number differs.
    """
    given = trees.flatten(source)

    def value(path: str, leaf: Any) -> Any:
        found = given.get(path)
        if found is None:
            return leaf
        if path == "conv_in/kernel" and found.shape != leaf.shape and shared is not None:
            return jnp.zeros_like(leaf).at[:, :, :shared].set(found[:, :, :shared])
        return jnp.asarray(found, leaf.dtype) if found.shape == leaf.shape else leaf

    return trees.map_paths(value, fresh)
