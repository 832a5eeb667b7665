"""The composer as pure functions over parameters: what training and sampling call, and jit.

Parameters: {"unet" (the denoiser), "reference_unet" (or what else encodes the assets), "vae", "text_encoder",
"binder"}. `dtype` is the dtype of computation; latents, predictions and images come back in float32. Latents here are
scaled (and shifted) as the denoiser sees them.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from fcjax.config import ComposerConfig
from fcjax.models import dino, layout
from fcjax.models.attention import Correspondence, KeyValue
from fcjax.models.binder import Binder
from fcjax.models.controlnet import ControlNet
from fcjax.models.dino import ImageEncoder
from fcjax.models.layers import FLOAT32, Dtype
from fcjax.models.text import TextEncoder
from fcjax.models.unet import UNet
from fcjax.models.vae import VAE
from fcjax.network_config import VAEConfig


def _apply(module: nn.Module, params: dict[str, Any], *inputs: Any, **options: Any) -> Any:
    """What a module computes; flax's own annotation leaves room for changed variables, of which there are none."""
    return module.apply({"params": params}, *inputs, **options)


class ReferenceFeatures(NamedTuple):
    """Keys and values of every self-attention layer of the reference UNet in forward order, and which may be seen."""

    layers: tuple[KeyValue, ...]
    masks: tuple[Bool[Array, "b _"], ...]


class CanvasFeatures(NamedTuple):
    """For a ControlNet: the canvas as it reads it at every step, and whose is seen."""

    canvas: Float[Array, "b h w c"]
    seen: Bool[Array, "b"]


class ImageTokens(NamedTuple):
    """An image encoder's tokens of the canvas, which stand in the text's place; zeros where the canvas is not seen."""

    tokens: Float[Array, "b k e"]


AppearanceFeatures = ReferenceFeatures | CanvasFeatures | ImageTokens


# ---------------------------------------------------------------------------------------------------------------------
# Text


def encode_prompt(
    params: dict[str, Any], config: ComposerConfig, ids: Int[Array, "b k"], *, dtype: Dtype = FLOAT32
) -> Float[Array, "b k e"]:
    """The text encoder's embeddings of token ids."""
    return _apply(TextEncoder(config.text_encoder, dtype=dtype), params["text_encoder"], ids)


def encode_prompts(
    params: dict[str, Any],
    config: ComposerConfig,
    ids: Int[Array, "b k"],
    empty_ids: Int[Array, "1 k"],
    *,
    dtype: Dtype = FLOAT32,
) -> tuple[Float[Array, "b k e"], Float[Array, "1 k e"]]:
    """The embeddings of prompts, and of the empty one."""
    encode = functools.partial(encode_prompt, params, config, dtype=dtype)
    if layout.is_set():
        # A batch of one more could not be split as the prompts are: every device would encode all of them.
        return encode(ids), encode(empty_ids)
    text = encode(jnp.concatenate([ids, empty_ids]))
    return text[:-1], text[-1:]


def phrase_vectors(text: Float[Array, "b k e"], spans: Float[Array, "b a k"]) -> Float[Array, "b a e"]:
    """P_i: the mean of the prompt's embeddings over each phrase's tokens (`spans`: weights that sum to 1, or 0)."""
    # Choice: the paper feeds the phrase's embeddings (l x c) to the MLP and does not say how they become one vector.
    return jnp.einsum("bak,bke->bae", spans.astype(text.dtype), text)


# ---------------------------------------------------------------------------------------------------------------------
# Conditions


def waves(coordinates: Float[Array, "*grid c"], octaves: int) -> Float[Array, "*grid w"]:
    """Sines, then cosines, of coordinates in [-1, 1] times pi/2, pi, 2 pi ... (Fourier features, arXiv 2006.10739)."""
    angles = 0.5 * jnp.pi * coordinates[..., None] * 2.0 ** jnp.arange(octaves)
    angles = angles.reshape(*coordinates.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def pose_channels(
    config: ComposerConfig, uv: Float[Array, "b H W 2"], places: Float[Array, "b H W 3"]
) -> Float[Array, "b h w p"]:
    """The UV map at `pose_patch` x `pose_patch` points per latent token, nearest pixel, stacked as channels.

    Channel order: row of the patch, column of the patch, (u, v). With patch 1 these are the paper's 2 channels.
    Nearest, never averaged: between two body parts a mean of (u, v) is a place elsewhere on the body.
    Behind them the `waves` of where those points lie on a resting body (`fcjax.body.rest_places`; unused if
    `pose_octaves` is 0), their mean over the token's points, to which points beside the body add nothing.
    """
    # Choice: the paper does not say how the map comes to the latent's resolution.
    patch, (batch, height, width, _) = config.pose_patch, uv.shape
    rows, columns = config.latent_height * patch, config.latent_width * patch
    if height < rows or width < columns:
        raise ValueError(f"a UV map of {height}x{width} is smaller than the {rows}x{columns} points to sample from it")
    row = (jnp.arange(rows) * 2 + 1) * height // (2 * rows)
    column = (jnp.arange(columns) * 2 + 1) * width // (2 * columns)

    def per_token(image: Float[Array, "b H W c"]) -> Float[Array, "b h w n c"]:
        points = image[:, row][:, :, column].reshape(batch, rows // patch, patch, columns // patch, patch, -1)
        return points.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows // patch, columns // patch, patch**2, -1)

    points = per_token(uv)
    on_body = points[..., :1] >= 0
    surface = jnp.mean(on_body * waves(per_token(places), config.pose_octaves), axis=-2)
    return jnp.concatenate([points.reshape(*points.shape[:3], -1), surface], axis=-1)


def condition_arrays(config: ComposerConfig) -> tuple[str, ...]:
    """The names of the arrays that `condition_channels` reads, by `config.condition`."""
    return ("uv", "places") * config.takes_pose + ("person_latents", "person_masks") * config.tries_on


def condition_channels(config: ComposerConfig, given: Mapping[str, Array]) -> Float[Array, "b h w p"]:
    """What joins the noisy latents at conv_in, by `config.condition`: `pose_channels` of `uv` and `places`, and behind
    them, or alone, `tryon_channels` of `person_latents` and `person_masks`.
    """
    parts = []
    if config.takes_pose:
        parts.append(pose_channels(config, given["uv"], given["places"]))
    if config.tries_on:
        parts.append(tryon_channels(given["person_latents"], given["person_masks"]))
    return jnp.concatenate(parts, axis=-1)


def tryon_channels(person_latents: Float[Array, "b h w c"], masks: Float[Array, "b H W"]) -> Float[Array, "b h w c1"]:
    """The cloth-agnostic person's latent and, behind it, the area-averaged mask (1: to be filled)."""
    height, width = person_latents.shape[1:3]
    return jnp.concatenate([person_latents, area_average(masks[:, None], height, width)[:, 0, :, :, None]], axis=-1)


def area_average(masks: Float[Array, "b a H W"], height: int, width: int) -> Float[Array, "b a h w"]:
    """Mean coverage of each cell of a coarser grid that divides the masks' grid."""
    batch, assets, rows, columns = masks.shape
    if rows % height or columns % width:
        raise ValueError(f"masks of {rows}x{columns} do not divide into a grid of {height}x{width}")
    cells = masks.astype(FLOAT32).reshape(batch, assets, height, rows // height, width, columns // width)
    return cells.mean(axis=(3, 5))


def level_masks(config: ComposerConfig, masks: Float[Array, "b a H W"]) -> tuple[Float[Array, "b a _ _"], ...]:
    """Coverage of the tokens at every level of the UNet, the finest first.

    An average is above 0 wherever the asset covers anything of the token, so no asset loses all its tokens at a
    coarse level: it keeps the tokens it touches, with the share it has of them.
    """
    height, width = config.latent_height, config.latent_width
    return tuple(area_average(masks, height >> level, width >> level) for level in range(config.unet.levels))


def asset_channels(masks: Float[Array, "b a h w"], octaves: int) -> Float[Array, "b h w p"]:
    """`waves` of each token's (x, y) in [-1, 1] inside the box of the asset that covers it, weighed by its coverage.

    Zero where no asset is. Boxes are those of the tokens with any coverage.
    """

    # Choice: a small UNet does not work out by itself where on its garment a token lies; off for SD1.5.
    def inside(covered: Bool[Array, "b a t"]) -> Float[Array, "b a t"]:
        length = covered.shape[-1]
        place = jnp.arange(length, dtype=FLOAT32)
        first = jnp.min(jnp.where(covered, place, length), axis=-1, keepdims=True)
        last = jnp.max(jnp.where(covered, place, -1), axis=-1, keepdims=True)
        return jnp.clip(2 * (place + 0.5 - first) / jnp.maximum(last + 1 - first, 1) - 1, -1, 1)

    masks = masks.astype(FLOAT32)
    x, y = inside(jnp.any(masks > 0, axis=-2)), inside(jnp.any(masks > 0, axis=-1))
    x, y = jnp.broadcast_to(x[:, :, None, :], masks.shape), jnp.broadcast_to(y[..., None], masks.shape)
    return jnp.einsum("bahw,bahwp->bhwp", masks, waves(jnp.stack([x, y], axis=-1), octaves))


# ---------------------------------------------------------------------------------------------------------------------
# The networks


def appearance_features(
    params: dict[str, Any],
    config: ComposerConfig,
    canvas: Float[Array, "b h w c"],
    text: Float[Array, "b k e"],
    spans: Float[Array, "b a k"],
    masks: Float[Array, "b a H W"],
    *,
    dtype: Dtype = FLOAT32,
) -> AppearanceFeatures:
    """What `config.appearance` makes of the asset canvas, once per image: for a reference UNet bound keys and values.

    canvas: as `read_canvas` gives it. text: the embeddings of the FULL prompt, also where the denoiser's text is
    dropped. spans: per asset the weights over the prompt's tokens; masks: per asset its coverage, at the latent's
    resolution or a multiple of it. Assets that pad to `max_assets` have zero masks.
    """
    coverage = level_masks(config, masks)
    if config.reference_octaves:
        places = asset_channels(coverage[0], config.reference_octaves)
        canvas = jnp.concatenate([canvas, places.astype(canvas.dtype)], axis=-1)
    if config.controlnet is not None:
        return CanvasFeatures(canvas, jnp.ones(canvas.shape[:1], bool))
    if config.image_encoder is not None:
        return ImageTokens(_apply(ImageEncoder(config.image_encoder, dtype=dtype), params["image_encoder"], canvas))
    assert config.reference_unet is not None
    binder = Binder(config.binder, config.unet, dtype=dtype)
    bound = _apply(binder, params.get("binder", {}), phrase_vectors(text, spans), coverage)
    # Choice: the reference UNet reads the clean latent, at timestep 0.
    timesteps = jnp.zeros(canvas.shape[0])
    unet = UNet(config.reference_unet, dtype=dtype)
    layers = _apply(unet, params["reference_unet"], canvas, timesteps, text, bound=bound, emit=True)
    batch = masks.shape[0]
    if config.attend_blank:
        seen = [jnp.ones((batch, m.shape[2] * m.shape[3]), bool) for m in coverage]
    else:
        seen = [jnp.any(m > 0, axis=1).reshape(batch, -1) for m in coverage]
    return ReferenceFeatures(layers, tuple(seen[level] for level in config.unet.attention_levels))


def keep_assets(features: AppearanceFeatures, keep: Bool[Array, "b"]) -> AppearanceFeatures:
    """Hide the whole canvas from the samples where `keep` is False (guidance, conditioning drop-out)."""
    if isinstance(features, ReferenceFeatures):
        return features._replace(masks=tuple(mask & keep[:, None] for mask in features.masks))
    if isinstance(features, CanvasFeatures):
        return features._replace(seen=features.seen & keep)
    return ImageTokens(jnp.where(keep[:, None, None], features.tokens, 0))


def repeat_features(features: AppearanceFeatures, times: int) -> AppearanceFeatures:
    """Each sample's features `times` times in a row, for several images of one reference."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), features)


def denoising_parameters(params: dict[str, Any]) -> dict[str, Any]:
    """Those of the networks that run at every step."""
    return {name: params[name] for name in ("unet", "controlnet") if name in params}


def denoise(
    params: dict[str, Any],
    config: ComposerConfig,
    noisy: Float[Array, "b h w c"],
    timesteps: Num[Array, "b"],
    text: Float[Array, "b k e"],
    condition: Float[Array, "b h w p"],
    features: AppearanceFeatures | None = None,
    corresponding: Mapping[int, Correspondence] | None = None,
    *,
    dtype: Dtype = FLOAT32,
) -> Float[Array, "b h w c"]:
    """The denoiser's raw prediction (what it is of: `config.diffusion.prediction_type`), in float32.

    params: `denoising_parameters`. condition: `condition_channels`.
    features None: no assets at all.
    corresponding: of albums, per level of the UNet.
    """
    given = (params, config, noisy, timesteps, text, condition, features, corresponding)
    return denoise_with_queries(*given, dtype=dtype)[0]


def denoise_with_queries(
    params: dict[str, Any],
    config: ComposerConfig,
    noisy: Float[Array, "b h w c"],
    timesteps: Num[Array, "b"],
    text: Float[Array, "b k e"],
    condition: Float[Array, "b h w p"],
    features: AppearanceFeatures | None,
    corresponding: Mapping[int, Correspondence] | None = None,
    *,
    dtype: Dtype = FLOAT32,
) -> tuple[Float[Array, "b h w c"], tuple[Float[Array, "b q _"], ...]]:
    """`denoise`, and the queries with which its self-attention layers, in forward order, look at the reference.

    There are none without a reference UNet.
    """
    sample = jnp.concatenate([noisy, condition.astype(noisy.dtype)], axis=-1)
    residuals: tuple[Array, ...] = ()
    if config.image_encoder is not None:
        # Choice: as in the paper's comparison this arm has no text; without assets it attends to a zero.
        nothing = jnp.zeros((noisy.shape[0], 1, config.unet.cross_attention_dim), text.dtype)
        text = features.tokens if isinstance(features, ImageTokens) else nothing
    elif isinstance(features, CanvasFeatures):
        assert config.controlnet is not None
        branch = ControlNet(config.controlnet, dtype=dtype)
        added = _apply(branch, params["controlnet"], sample, timesteps, text, features.canvas)
        residuals = tuple(jnp.where(features.seen[:, None, None, None], grid, 0) for grid in added)
    injected = features if isinstance(features, ReferenceFeatures) else None
    output = UNet(config.unet, dtype=dtype).apply(
        {"params": params["unet"]},
        sample,
        timesteps,
        text,
        reference=None if injected is None else injected.layers,
        reference_mask=None if injected is None else injected.masks,
        corresponding=corresponding,
        residuals=residuals,
        mutable=["queries"],
    )
    prediction, sown = cast(tuple[Array, dict[str, Any]], output)
    if injected is None:
        return prediction, ()
    queries = [
        sown["queries"][name][f"attentions_{index}"]["transformer_blocks_0"]["attn1"]["query"][0]
        for name, _, layers in config.unet.attention_blocks
        for index in range(layers)
    ]
    return prediction, tuple(queries)


# ---------------------------------------------------------------------------------------------------------------------
# Images and latents


def scale_latents(config: VAEConfig, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The VAE's latents as the denoiser sees them."""
    return (latents - (config.shift_factor or 0.0)) * config.scaling_factor


def unscale_latents(config: VAEConfig, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The reverse of `scale_latents`."""
    return latents / config.scaling_factor + (config.shift_factor or 0.0)


def encoding_parameters(vae: dict[str, Any]) -> dict[str, Any]:
    """The VAE's parameters that latents depend on: all but the decoder's."""
    return {name: part for name, part in vae.items() if name not in ("decoder", "post_quant_conv", "linear_decoder")}


def encode_images(
    params: dict[str, Any],
    config: ComposerConfig,
    images: Float[Array, "b H W 3"],
    key: Key[Array, ""] | None = None,
    *,
    dtype: Dtype = FLOAT32,
) -> Float[Array, "b h w c"]:
    """Scaled latents of images in [-1, 1]: the distribution's mean, or a draw from it with `key`."""
    vae = VAE(config.vae, dtype=dtype)
    mean, log_variance = _apply(vae, params["vae"], images, method=VAE.encode)
    if key is not None:
        mean = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)
    return scale_latents(config.vae, mean)


def read_canvas(
    params: dict[str, Any], config: ComposerConfig, canvases: Float[Array, "b H W 3"], *, dtype: Dtype = FLOAT32
) -> Float[Array, "b h w c"]:
    """Asset canvases in [-1, 1] as `config.appearance` reads them: scaled latents, or for an image encoder pixels."""
    if not config.canvas_in_pixels:
        return encode_images(params, config, canvases, dtype=dtype)
    return ((canvases + 1) / 2 - jnp.asarray(dino.MEAN)) / jnp.asarray(dino.DEVIATION)


def show_canvas(canvas: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
    """The reverse of `read_canvas` for a canvas in pixels."""
    return 2 * (canvas * jnp.asarray(dino.DEVIATION) + jnp.asarray(dino.MEAN)) - 1


def decode_latents(
    params: dict[str, Any], config: ComposerConfig, latents: Float[Array, "b h w c"], *, dtype: Dtype = FLOAT32
) -> Float[Array, "b H W 3"]:
    """Images clipped to [-1, 1] of scaled latents; NaN where they are infinite, which clipping would hide."""
    vae = VAE(config.vae, dtype=dtype)
    images = _apply(vae, params["vae"], unscale_latents(config.vae, latents), method=VAE.decode)
    return jnp.where(jnp.isinf(images), jnp.nan, jnp.clip(images, -1.0, 1.0))
