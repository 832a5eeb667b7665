"""The composer that users hold: a model folder in, pictures out.

    composer = fcjax.Composer.load("mini")
    [picture] = composer.compose(
        "a woman in a red striped shirt and blue jeans",
        assets=[fcjax.Asset.open("shirt.png", "a red striped shirt"), fcjax.Asset.open("jeans.png", "blue jeans")],
        body=fcjax.Body(pose="walking"),
        seed=0,
    )
    picture.image.save("out.png")
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fcjax import folder
from fcjax.assets import Asset, AssetCanvas, lay_out
from fcjax.body import Body, BodyMaps
from fcjax.config import ComposerConfig
from fcjax.diffusion import SamplerTable, sampler_table
from fcjax.models import composer as model
from fcjax.models.layers import Dtype
from fcjax.sampling import (
    Branch,
    guidance_branches,
    guidance_weights,
    image_keys,
    initial_latents,
    sample,
    sample_stepwise,
)
from fcjax.tokenizer import PromptTokens, Tokenizer

MINI = Path(__file__).parent / "mini"
Progress = Callable[[int, int], bool | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """One picture and what it was made from. `seed` alone, with the same inputs, makes it again."""

    image: Image.Image
    seed: int
    canvas: AssetCanvas
    maps: BodyMaps
    tokens: PromptTokens


class Composer:
    """A model folder ready to compose. `params` is the plain parameter tree, `config` says how it is built."""

    def __init__(self, config: ComposerConfig, params: dict[str, Any], tokenizer: Tokenizer, dtype: Dtype | None = None):
        if config.condition != "pose":
            raise ValueError(f"a composing model takes a pose at conv_in, this one takes {config.condition!r} channels")
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.dtype = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
        # One object for the life of the composer: compiled programs are kept by it.
        self._denoise = partial(_denoise, config, self.dtype)
        self._conditions = jax.jit(partial(_conditions, config, self.dtype), static_argnames="branches")
        self._decode = jax.jit(partial(_decode, config, self.dtype))
        self._sample = jax.jit(partial(sample, self._denoise))

    @classmethod
    def load(cls, path: str | Path, dtype: Dtype | None = None) -> "Composer":
        """Reads a model folder; "mini" is the model in the package. ValueError for a folder that is none."""
        where = MINI if str(path) == "mini" else Path(path)
        config, params = folder.load(where)
        return cls(config, params, Tokenizer.load(where / "tokenizer"), dtype)

    def compose(
        self,
        prompt: str,
        assets: Sequence[Asset] = (),
        body: Body | None = None,
        *,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 1.5,
        reference_guidance: float | None = None,
        num_images: int = 1,
        sampler: str = "ddim",
        boxes: Sequence[Sequence[int]] | None = None,
        layout_seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Composition]:
        """Pictures of one request; image i has the seed `seed + i`.

        guidance: how far to go from the picture without text and assets (1: not at all); with `reference_guidance`
          the two are scaled apart. boxes, layout_seed: where the assets stand on their canvas.
        progress(done, steps): called after every step; returning False raises SamplingCancelled.
        Warns (UserWarning) of words that the model never learnt. ValueError for bad input.
        """
        config = self.config
        canvas = lay_out(assets, config.height, config.width, layout_seed, boxes, config.max_assets)
        tokens = self.tokenizer.encode_prompt(prompt, canvas.phrases, max_assets=config.max_assets)
        if tokens.unknown:
            warnings.warn(f"the model never learnt: {', '.join(tokens.unknown)}", stacklevel=2)
        maps = (body or Body()).render(config.height, config.width)
        branches = guidance_branches(guidance, reference_guidance)
        weights = guidance_weights(branches, guidance, reference_guidance)
        table = sampler_table(config.diffusion, steps, sampler)
        keys = image_keys(seed, num_images)
        conditions = self._conditions(
            self.params,
            tokens.ids[None],
            self.tokenizer.encode("")[None],
            tokens.spans[None],
            canvas.image[None],
            canvas.masks[None],
            maps.uv[None],
            np.zeros(num_images),
            branches=branches,
        )
        latents = initial_latents(
            table, keys, config.latent_height, config.latent_width, config.vae.latent_channels
        )
        images = self._images(conditions, table, weights, keys, latents, progress)
        return [
            Composition(Image.fromarray(image), seed + index, canvas, maps, tokens)
            for index, image in enumerate(np.asarray(images))
        ]

    def _images(
        self,
        conditions: dict[str, Any],
        table: SamplerTable,
        weights: jax.Array,
        keys: jax.Array,
        latents: jax.Array,
        progress: Progress | None,
    ) -> jax.Array:
        if progress is None:
            latents = self._sample(conditions, table, weights, keys, latents)
        else:
            latents = sample_stepwise(
                self._denoise,
                conditions,
                table,
                weights,
                keys,
                latents,
                lambda done, steps, _: progress(done, steps),
            )
        return self._decode(self.params, latents)


def _conditions(
    config: ComposerConfig,
    dtype: Dtype,
    params: dict[str, Any],
    ids: jax.Array,
    empty_ids: jax.Array,
    spans: jax.Array,
    canvas: jax.Array,
    masks: jax.Array,
    uv: jax.Array,
    images: jax.Array,
    *,
    branches: tuple[Branch, ...],
) -> dict[str, Any]:
    """All that stays the same over the steps, for every image of every guidance branch (branch-major).

    The reference pass runs once, always with the full prompt; `images` gives the number of images by its length.
    """
    count = images.shape[0]
    text = model.encode_prompt(params, config, jnp.concatenate([ids, empty_ids]), dtype=dtype)
    latents = model.encode_images(params, config, canvas.astype(jnp.float32) / 127.5 - 1.0, dtype=dtype)
    features = model.reference_features(params, config, latents, text[:1], spans, masks, dtype=dtype)
    features = model.repeat_reference(features, len(branches) * count)
    kept = jnp.repeat(jnp.asarray([branch.reference for branch in branches]), count)
    pose = model.pose_channels(uv, config.latent_height, config.latent_width, config.pose_patch)
    rows = [0 if branch.text else 1 for branch in branches for _ in range(count)]
    return {
        "params": params["unet"],
        "text": text[jnp.asarray(rows)],
        "pose": jnp.repeat(pose, len(rows), axis=0),
        "features": model.keep_reference(features, kept),
    }


def _denoise(
    config: ComposerConfig, dtype: Dtype, conditions: dict[str, Any], latents: jax.Array, timestep: jax.Array
) -> jax.Array:
    """The denoiser over all branches at once: (p, b, h, w, c)."""
    rows = conditions["text"].shape[0]
    branches = rows // latents.shape[0]
    outputs = model.denoise(
        {"unet": conditions["params"]},
        config,
        jnp.tile(latents, (branches, 1, 1, 1)),
        jnp.full((rows,), timestep),
        conditions["text"],
        conditions["pose"],
        conditions["features"],
        dtype=dtype,
    )
    return outputs.reshape(branches, *latents.shape)


def _decode(config: ComposerConfig, dtype: Dtype, params: dict[str, Any], latents: jax.Array) -> jax.Array:
    """Latents to uint8 pictures."""
    images = model.decode_latents(params, config, latents, dtype=dtype)
    return jnp.round((images + 1.0) * 127.5).astype(jnp.uint8)
