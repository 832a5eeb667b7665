"""The UNet's attention and transformer, with feature injection and subject binding."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fcjax.models.attend import attend, split_heads
from fcjax.models.layers import FLOAT32, Conv, Dense, Dtype, GroupNorm, LayerNorm

# The number of tokens and their width differ from layer to layer.
KeyValue = tuple[Float[Array, "b _ _"], Float[Array, "b _ _"]]


class Correspondence(NamedTuple):
    """Whose keys and values stand for a token's own in the self-attention of albums.

    rows: for every row of the batch the one that it takes them from. tokens: which token of that row, -1 for its own.
    """

    rows: Int[Array, "b"]
    tokens: Int[Array, "b q"]

    def exchanged(self, own: Float[Array, "b q c"]) -> Float[Array, "b q c"]:
        """The keys, or the values, of all rows with those that are taken from others."""
        found = self.tokens[..., None] >= 0
        taken = jnp.take_along_axis(own[self.rows], jnp.maximum(self.tokens, 0)[..., None], axis=1)
        return jnp.where(found, taken, own)


class Attention(nn.Module):
    """The UNet's multi-head attention: no bias but on its output projection."""

    heads: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q c"],
        context: Float[Array, "b k e"] | None = None,
        *,
        bound: KeyValue | None = None,
        injected: KeyValue | None = None,
        injected_mask: Bool[Array, "b k2"] | None = None,
        corresponding: Correspondence | None = None,
        emit: bool = False,
        stop: bool = False,
    ) -> tuple[Any, KeyValue | None]:
        """Attend from x to `context` (x itself when None).

        bound: added to the keys and values (subject binding), before they are used and before they are emitted.
        corresponding: which own keys and values give way to another row's.
        injected: further keys and values put behind the own ones (feature injection), those seen where
          `injected_mask` is True.
        emit: return the (bound) keys and values beside the output (b, q, c); with `stop` the output is not computed
          and None in its place.
        """
        width = x.shape[-1]
        context = x if context is None else context
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        key = Dense(width, use_bias=False, name="to_k", **dtypes)(context)
        value = Dense(width, use_bias=False, name="to_v", **dtypes)(context)
        if bound is not None:
            key, value = key + bound[0].astype(self.dtype), value + bound[1].astype(self.dtype)
        emitted = (key, value) if emit else None
        if stop:
            return None, emitted
        if corresponding is not None:
            key, value = corresponding.exchanged(key), corresponding.exchanged(value)
        mask = None
        if injected is not None:
            if injected_mask is not None:
                own = jnp.ones(key.shape[:2], bool)
                mask = jnp.concatenate([own, injected_mask], axis=1)
            key = jnp.concatenate([key, injected[0].astype(self.dtype)], axis=1)
            value = jnp.concatenate([value, injected[1].astype(self.dtype)], axis=1)
        query = Dense(width, use_bias=False, name="to_q", **dtypes)(x)
        if injected is not None:
            self.sow("queries", "query", query)
        y = attend(*(split_heads(tokens, self.heads) for tokens in (query, key, value)), mask=mask)
        y = y.reshape(x.shape)
        return Dense(width, name="to_out_0", **dtypes)(y), emitted


class GEGLU(nn.Module):
    """x1 * gelu(x2) for the two halves of one projection."""

    features: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch features"]:
        both = Dense(2 * self.features, name="proj", dtype=self.dtype, param_dtype=self.param_dtype)(x)
        hidden, gate = jnp.split(both, 2, axis=-1)
        return hidden * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU, then back to the input's width."""

    ff_mult: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = GEGLU(self.ff_mult * x.shape[-1], name="net_0", **dtypes)(x)
        return Dense(x.shape[-1], name="net_2", **dtypes)(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, each behind a norm and with a residual."""

    heads: int
    ff_mult: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        text: Float[Array, "b k e"],
        *,
        bound: KeyValue | None = None,
        injected: KeyValue | None = None,
        injected_mask: Bool[Array, "b k2"] | None = None,
        corresponding: Correspondence | None = None,
        emit: bool = False,
        stop: bool = False,
    ) -> tuple[Float[Array, "b t c"] | None, KeyValue | None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        normed = LayerNorm(name="norm1", **dtypes)(x)
        y, emitted = Attention(self.heads, name="attn1", **dtypes)(
            normed,
            bound=bound,
            injected=injected,
            injected_mask=injected_mask,
            corresponding=corresponding,
            emit=emit,
            stop=stop,
        )
        if y is None:
            return None, emitted
        x = x + y
        y, _ = Attention(self.heads, name="attn2", **dtypes)(LayerNorm(name="norm2", **dtypes)(x), text)
        x = x + y
        return x + FeedForward(self.ff_mult, name="ff", **dtypes)(LayerNorm(name="norm3", **dtypes)(x)), emitted


class SpatialTransformer(nn.Module):
    """A transformer block over the grid's tokens, between two projections and with a residual."""

    heads: int
    ff_mult: int
    num_groups: int
    use_linear_projection: bool
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], text: Float[Array, "b k e"], **attention
    ) -> tuple[Float[Array, "b h w c"] | None, KeyValue | None]:
        """`attention`: the keywords of `TransformerBlock`."""
        batch, height, width, channels = x.shape
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def project(tokens: Array, name: str) -> Array:
            if self.use_linear_projection:
                return Dense(channels, name=name, **dtypes)(tokens)
            grid = tokens.reshape(batch, height, width, channels)
            grid = Conv(channels, kernel_size=1, name=name, **dtypes)(grid)
            return grid.reshape(batch, height * width, channels)

        tokens = GroupNorm(self.num_groups, 1e-6, name="norm", **dtypes)(x).reshape(batch, height * width, channels)
        tokens = project(tokens, "proj_in")
        block = TransformerBlock(self.heads, self.ff_mult, name="transformer_blocks_0", **dtypes)
        tokens, emitted = block(tokens, text, **attention)
        if tokens is None:
            return None, emitted
        return x + project(tokens, "proj_out").reshape(x.shape), emitted
