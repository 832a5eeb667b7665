"""The autoencoder between images and latents, with the structure and the names of diffusers' AutoencoderKL.

With `linear_encoder` the encoder is one matrix over the pixels of each latent (`principal_components` makes one).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fcjax.models.attend import attend, split_heads
from fcjax.models.layers import FLOAT32, Conv, Dense, Downsample, Dtype, GroupNorm, ResnetBlock, Upsample
from fcjax.models.layout import GRID, lay_out
from fcjax.network_config import VAEConfig

EPSILON = 1e-6


class _Block(nn.Module):
    """Resnets of one level, then the change of resolution."""

    features: int
    resnets: int
    num_groups: int
    resample: str | None = None
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for index in range(self.resnets):
            x = ResnetBlock(self.features, self.num_groups, EPSILON, name=f"resnets_{index}", **dtypes)(x)
        if self.resample == "down":
            x = Downsample(self.features, padding=((0, 1), (0, 1)), name="downsamplers_0", **dtypes)(x)
        elif self.resample == "up":
            x = Upsample(self.features, name="upsamplers_0", **dtypes)(x)
        return lay_out(x, *GRID)


class _GridAttention(nn.Module):
    """Single-head attention over the grid's tokens behind a group norm, with a residual."""

    num_groups: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        normed = GroupNorm(self.num_groups, EPSILON, name="group_norm", **dtypes)(x)
        channels, tokens = x.shape[-1], normed.reshape(x.shape[0], -1, x.shape[-1])
        query, key, value = (
            split_heads(Dense(channels, name=name, **dtypes)(tokens), 1) for name in ("to_q", "to_k", "to_v")
        )
        y = attend(query, key, value).reshape(tokens.shape)
        return x + Dense(channels, name="to_out_0", **dtypes)(y).reshape(x.shape)


class _MidBlock(nn.Module):
    features: int
    num_groups: int
    attention: bool
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = ResnetBlock(self.features, self.num_groups, EPSILON, name="resnets_0", **dtypes)(x)
        if self.attention:
            x = _GridAttention(self.num_groups, name="attentions_0", **dtypes)(x)
        return lay_out(ResnetBlock(self.features, self.num_groups, EPSILON, name="resnets_1", **dtypes)(x), *GRID)


class Encoder(nn.Module):
    """Image to the mean and log variance of the latent, before `quant_conv`."""

    config: VAEConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 moments"]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        groups, widths = config.norm_num_groups, config.block_out_channels
        x = lay_out(Conv(widths[0], name="conv_in", **dtypes)(x), *GRID)
        for level, width in enumerate(widths):
            resample = "down" if level < len(widths) - 1 else None
            x = _Block(width, config.layers_per_block, groups, resample, name=f"down_blocks_{level}", **dtypes)(x)
        x = _MidBlock(widths[-1], groups, config.mid_block_add_attention, name="mid_block", **dtypes)(x)
        x = nn.silu(GroupNorm(groups, EPSILON, name="conv_norm_out", **dtypes)(x))
        return Conv(2 * config.latent_channels, name="conv_out", **dtypes)(x)


class Decoder(nn.Module):
    """Latent (behind `post_quant_conv`) to image."""

    config: VAEConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        groups, widths = config.norm_num_groups, config.block_out_channels[::-1]
        x = lay_out(Conv(widths[0], name="conv_in", **dtypes)(x), *GRID)
        x = _MidBlock(widths[0], groups, config.mid_block_add_attention, name="mid_block", **dtypes)(x)
        for index, width in enumerate(widths):
            resample = "up" if index < len(widths) - 1 else None
            x = _Block(width, config.layers_per_block + 1, groups, resample, name=f"up_blocks_{index}", **dtypes)(x)
        x = nn.silu(GroupNorm(groups, EPSILON, name="conv_norm_out", **dtypes)(x))
        return Conv(config.out_channels, name="conv_out", **dtypes)(x)


def patches(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c2"]:
    """size x size pixels side by side as channels, ordered (row, column, colour)."""
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // size, size, width // size, size, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, -1)


def _pixels(patches: Float[Array, "b h2 w2 c2"], size: int) -> Float[Array, "b h w c"]:
    """The reverse of `patches`."""
    batch, height, width, channels = patches.shape
    cells = patches.reshape(batch, height, width, size, size, channels // size**2)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * size, width * size, -1)


def principal_components(images: Float[Array, "b h w c"], config: VAEConfig) -> dict[str, dict[str, np.ndarray]]:
    """Parameters `linear_encoder` and `linear_decoder` from images in [-1, 1]: the best linear code.

    Components are divided by the square root of their standard deviation, half-way between pixels' own weights, where
    a denoiser hardly sees texture, and equal ones, where it sees little else. Latents have mean 0 and variance 1.
    """
    cells = np.asarray(patches(images, config.factor), np.float64).reshape(-1, 3 * config.factor**2)
    mean, covariance = cells.mean(axis=0), np.cov(cells, rowvar=False)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = (part[..., ::-1][..., : config.latent_channels] for part in (variances, directions))
    deviations = np.sqrt(np.maximum(variances, 1e-12))
    # A component's standard deviation becomes its square root; one number then brings their mean variance to 1.
    scale = 1.0 / np.sqrt(deviations * deviations.mean())
    encoder, decoder = directions * scale, (directions / scale).T
    return {
        "linear_encoder": {"kernel": encoder.astype(np.float32), "bias": (-mean @ encoder).astype(np.float32)},
        "linear_decoder": {"kernel": decoder.astype(np.float32), "bias": mean.astype(np.float32)},
    }


class VAE(nn.Module):
    """Encoder and decoder; latents here are NOT scaled by `scaling_factor` (models.composer does that)."""

    config: VAEConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    def setup(self) -> None:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.decoder = Decoder(config, **dtypes)
        if config.linear_encoder:
            self.linear_encoder = Dense(config.latent_channels, param_dtype=self.param_dtype)
            self.linear_decoder = Dense(3 * config.factor**2, param_dtype=self.param_dtype)
            return
        self.encoder = Encoder(config, **dtypes)
        if config.use_quant_conv:
            self.quant_conv = Conv(2 * config.latent_channels, kernel_size=1, **dtypes)
        if config.use_post_quant_conv:
            self.post_quant_conv = Conv(config.latent_channels, kernel_size=1, **dtypes)

    def encode(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h2 w2 latent"], Float[Array, "b h2 w2 latent"]]:
        """Mean and log variance (clipped to [-30, 20]) of the latents of images in [-1, 1], in float32.

        A linear encoder's log variance is -30, none.
        """
        if self.config.linear_encoder:
            mean = self.linear_encoder(patches(images, self.config.factor))
            return mean, jnp.full_like(mean, -30.0)
        moments = self.encoder(patches(images, self.config.patch_size))
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(FLOAT32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: Float[Array, "b h2 w2 latent"]) -> Float[Array, "b h w c"]:
        """Images in about [-1, 1] (not clipped), in float32."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        images = _pixels(self.decoder(latents).astype(FLOAT32), self.config.patch_size)
        if self.config.linear_encoder:
            images += _pixels(self.linear_decoder(latents), self.config.factor)
        return images

    def __call__(
        self, images: Float[Array, "b h w c"], key: Array | None = None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h2 w2 latent"], Float[Array, "b h2 w2 latent"]]:
        """Reconstruction from a latent drawn with `key` (the mean when None), with mean and log variance."""
        mean, log_variance = self.encode(images)
        latents = mean
        if key is not None:
            latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)
        return self.decode(latents), mean, log_variance
