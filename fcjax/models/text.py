"""The CLIP text encoder, with the structure and the names of transformers' CLIPTextModel."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fcjax.models.attend import attend, split_heads
from fcjax.models.layers import FLOAT32, Dense, Dtype, Embedding, LayerNorm
from fcjax.network_config import TextConfig


def _activate(x: Float[Array, "*shape"], name: str) -> Float[Array, "*shape"]:
    return x * nn.sigmoid(1.702 * x) if name == "quick_gelu" else nn.gelu(x, approximate=False)


class _Embeddings(nn.Module):
    config: TextConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, ids: Int[Array, "b k"]) -> Float[Array, "b k e"]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tokens = Embedding(config.vocab_size, config.hidden_size, name="token_embedding", **dtypes)(ids)
        table = Embedding(config.max_position_embeddings, config.hidden_size, name="position_embedding", **dtypes)
        return tokens + table(jnp.arange(ids.shape[1]))


class _SelfAttention(nn.Module):
    heads: int
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        width, dtypes = x.shape[-1], {"dtype": self.dtype, "param_dtype": self.param_dtype}
        query, key, value = (
            split_heads(Dense(width, name=name, **dtypes)(x), self.heads) for name in ("q_proj", "k_proj", "v_proj")
        )
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
        y = attend(query, key, value, causal).reshape(x.shape)
        return Dense(width, name="out_proj", **dtypes)(y)


class _MLP(nn.Module):
    config: TextConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = Dense(self.config.intermediate_size, name="fc1", **dtypes)(x)
        return Dense(x.shape[-1], name="fc2", **dtypes)(_activate(hidden, self.config.hidden_act))


class _Layer(nn.Module):
    config: TextConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        normed = LayerNorm(config.layer_norm_eps, name="layer_norm1", **dtypes)(x)
        x = x + _SelfAttention(config.num_attention_heads, name="self_attn", **dtypes)(normed)
        normed = LayerNorm(config.layer_norm_eps, name="layer_norm2", **dtypes)(x)
        return x + _MLP(config, name="mlp", **dtypes)(normed)


class _Layers(nn.Module):
    config: TextConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b k e"]) -> Float[Array, "b k e"]:
        for index in range(self.config.num_hidden_layers):
            x = _Layer(self.config, name=f"layers_{index}", dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return x


class TextEncoder(nn.Module):
    """Token ids to embeddings: causal attention, no padding mask (as Stable Diffusion uses CLIP)."""

    config: TextConfig
    dtype: Dtype = FLOAT32
    param_dtype: Dtype = FLOAT32

    @nn.compact
    def __call__(self, ids: Int[Array, "b k"]) -> Float[Array, "b k e"]:
        config, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if ids.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"the text encoder has {config.max_position_embeddings} positions, got {ids.shape[1]} tokens: cut the "
                "prompt"
            )
        x = _Embeddings(config, name="embeddings", **dtypes)(ids)
        x = _Layers(config, name="encoder", **dtypes)(x)
        return LayerNorm(config.layer_norm_eps, name="final_layer_norm", **dtypes)(x)
