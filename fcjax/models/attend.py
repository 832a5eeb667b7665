"""The one `attend` that every module uses, and the kernels that it picks from.

"portable"  products and a softmax in plain JAX, chunk by chunk of the queries where all scores at once would be large;
            on a CPU one head at a time, whose scores then stay in the cache; of bfloat16, the products with values,
            and in the backward pass those with queries, keys and gradients, are returned in bfloat16, for which it
            has fast ones, while scores and their gradients are float32. With a backward pass of its own
"cudnn"     cuDNN's flash attention: NVIDIA GPUs from Ampere on, half precision, heads of at most 128 numbers
"pallas"    our flash attention for TPUs, `fcjax.models.tpu_attention`
"auto"      cuDNN's or ours for TPUs where the default device has it and the shapes suit it, else the portable form

A kernel can be set for what is traced within (to compile ahead of time for a platform that this host is not, to export
for several platforms, or to compare):

    with attention_kernel("pallas"):
        lowered = jax.jit(step).lower(...)

Flash kernels take no mask of (queries x keys), which would cost its memory. A hidden key has a further number that adds
-30,000 to its scores: with cuDNN in memory, for which heads grow to the next multiple of 8, on a TPU in its core alone.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fcjax.models.layers import FLOAT32, Dtype
from fcjax.models.layout import attend_on_shards
from fcjax.models.tpu_attention import HIDDEN, LANES, flash_attention
from fcjax.traces import traced_once

KERNELS = ("auto", "portable", "cudnn", "pallas")
attention_kernel = jax.make_user_context("auto")
"""`with attention_kernel(name):` sets the kernel, one of `KERNELS`, for functions traced within."""

# Scores (heads x queries x keys) that the portable form holds at once, 4 bytes each: what fits a core's cache together
# with keys and values, and what is little beside a UNet's other arrays.
_SCORES_ON_CPU = 2**21
_SCORES_ELSEWHERE = 2**26
# With fewer keys (the prompt's) the scores take little, and there is nothing that cuDNN could save. A TPU's own layouts
# of those scores cost more than they.
_CUDNN_KEYS = 256
_CUDNN_CAPABILITY = 8.0
_CUDNN_LARGEST_HEAD = 128  # 256 from Hopper on; wider heads stand where tokens are few
_PALLAS_LARGEST_HEAD = 1024  # bytes: the VAE's in half precision
_PALLAS_ONE_BLOCK = 1024


def attend(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    mask: Bool[Array, "b k"] | Bool[Array, "#b #n q k"] | None = None,
) -> Float[Array, "b q n d"]:
    """softmax(query key^T / sqrt(d)) value with a float32 softmax, in the query's dtype.

    mask: True where a key may be seen, either for all queries (b, k) or for each (b, n, q, k). A query that may see no
      key at all has an output without meaning.
    """
    scaled = (query.astype(FLOAT32) * query.shape[-1] ** -0.5).astype(query.dtype)

    def local(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        kernel = {"portable": _portable, "cudnn": _cudnn, "pallas": _pallas}[kernel_of(query, key, mask)]
        return kernel(query, key, value, mask)

    return attend_on_shards(local, scaled, key, value, mask).astype(query.dtype)


def split_heads(x: Float[Array, "b t c"], heads: int) -> Float[Array, "b t n d"]:
    """Channels into heads, the first d channels being head 0."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def kernel_of(query: Any, key: Any, mask: Any) -> str:
    """The name of the kernel that `attend` takes for arrays of these shapes and dtypes."""
    name = attention_kernel.value
    if name not in KERNELS:
        raise ValueError(f"attention_kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    if name == "auto":
        backend = jax.default_backend()
        name = "pallas" if backend == "tpu" else "cudnn" if backend == "gpu" and _has_cudnn() else "portable"
    queries, keys, size = query.shape[1], key.shape[1], query.shape[3]
    suits = {
        # A hidden key's further number brings heads to a multiple of 8, which cuDNN needs.
        "cudnn": query.dtype in (jnp.bfloat16, jnp.float16)
        and keys >= _CUDNN_KEYS
        and size + (mask is not None) <= _CUDNN_LARGEST_HEAD
        and (mask is not None or size % 8 == 0),
        "pallas": query.dtype in (jnp.bfloat16, jnp.float32)
        and queries >= LANES
        and (queries % LANES == 0 or queries <= _PALLAS_ONE_BLOCK)
        and size * query.dtype.itemsize <= _PALLAS_LARGEST_HEAD,
    }
    by_query = mask is not None and mask.ndim == 4
    return name if not by_query and suits.get(name, False) else "portable"


def _has_cudnn() -> bool:
    """Whether the GPU has cuDNN's flash attention: NVIDIA's from Ampere on. AMD's say "gfx90a" and the like."""
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= _CUDNN_CAPABILITY


# ---------------------------------------------------------------------------------------------------------------------
# Flash kernels


def _cudnn(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    query, key, value, size = _hide(query, key, value, mask)
    return jax.nn.dot_product_attention(query, key, value, scale=1.0, implementation="cudnn")[..., :size]


def _pallas(query: Array, key: Array, value: Array, mask: Array | None, interpret: bool = False) -> Array:
    batch, keys, _, size = key.shape
    if short := -keys % LANES:
        mask = jnp.ones((batch, keys), bool) if mask is None else mask
        key, value, mask = (
            jnp.pad(array, ((0, 0), (0, short)) + ((0, 0),) * (array.ndim - 2)) for array in (key, value, mask)
        )

    def by_head(tokens: Array) -> Array:
        return jnp.pad(tokens, ((0, 0),) * 3 + ((0, -size % 8),)).transpose(0, 2, 3, 1)

    y = cast(Array, flash_attention(by_head(query), by_head(key), by_head(value), mask, interpret))
    return y.transpose(0, 3, 1, 2)[..., :size]


def _hide(query: Array, key: Array, value: Array, mask: Bool[Array, "b k"] | None) -> tuple[Array, Array, Array, int]:
    """The mask as a further number of each head, and the heads' size before."""
    size = query.shape[-1]
    if mask is None:
        return query, key, value, size
    further = -(size + 1) % 8
    hidden = jnp.where(mask, 0.0, HIDDEN).astype(key.dtype)[:, :, None, None]

    def widened(tokens: Array, channel: Array) -> Array:
        channel = jnp.broadcast_to(channel, (*tokens.shape[:-1], 1)).astype(tokens.dtype)
        return jnp.pad(jnp.concatenate([tokens, channel], axis=-1), ((0, 0),) * 3 + ((0, further),))

    one, zero = jnp.ones((), query.dtype), jnp.zeros((), value.dtype)
    return widened(query, one), widened(key, hidden), widened(value, zero), size


# ---------------------------------------------------------------------------------------------------------------------
# The portable form. In what follows m counts the heads of all samples. The backward pass recomputes the weights from
# the forward's log-sum-exp instead of keeping them: (m, q, k) float32 is by far the largest array of a training step.


def _portable(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    batch, _, heads, size = query.shape
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask
        mask = jnp.broadcast_to(mask, (batch, heads, *mask.shape[2:])).reshape(-1, *mask.shape[2:])

    def by_head(tokens: Array) -> Array:
        return tokens.transpose(0, 2, 1, 3).reshape(batch * heads, -1, size)

    y = _kept_attention(by_head(query), by_head(key), by_head(value), mask, (_SCORES_ON_CPU, _SCORES_ELSEWHERE))
    return y.reshape(batch, heads, -1, size).transpose(0, 2, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    query: Float[Array, "m q d"],
    key: Float[Array, "m k d"],
    value: Float[Array, "m k d"],
    mask: Array | None,
    most_scores: tuple[int, int],
) -> Float[Array, "m q d"]:
    """most_scores: that are held at once, on CPUs and elsewhere."""
    return _attention_forward(query, key, value, mask, most_scores)[0]


@traced_once(4)
def _attention_forward(
    query: Array, key: Array, value: Array, mask: Array | None, most_scores: tuple[int, int]
) -> tuple[Array, tuple]:
    y, log_sum = _head_by_head_on_cpu(_forward_in_chunks, (query, key, value, mask), most_scores)
    return y, (query, key, value, mask, y, log_sum)


@traced_once(0)
def _attention_backward(
    most_scores: tuple[int, int], saved: tuple, gradient: Array
) -> tuple[Array, Array, Array, None]:
    return *_head_by_head_on_cpu(_backward_in_chunks, (*saved, gradient), most_scores), None


_attention.defvjp(_attention_forward, _attention_backward)
_kept_attention = traced_once(4)(_attention)


def _head_by_head_on_cpu(function: Callable[..., Any], arguments: tuple, most_scores: tuple[int, int]) -> Any:
    """One head of one sample at a time on CPU; all at once elsewhere."""
    # Not so float16, which sums of values can outgrow before they are divided by their total.
    half = arguments[0].dtype == jnp.bfloat16
    here = functools.partial(function, most_scores=most_scores[0], product_dtype=jnp.bfloat16 if half else FLOAT32)
    elsewhere = functools.partial(function, most_scores=most_scores[1], product_dtype=FLOAT32)
    return jax.lax.platform_dependent(
        *arguments, cpu=lambda *heads: jax.lax.map(lambda head: here(*head), heads), default=elsewhere
    )


def _chunks(query: Array, key: Array, most_scores: int) -> int:
    """How many chunks of queries hold at most so many scores each."""
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return min(-(-scores // most_scores), query.shape[-2])


def _split(tokens: Array, chunks: int, fill: float = 0.0) -> Array:
    """(..., q, d) as (chunks, ..., q / chunks, d), filled up at the end."""
    length = -(-tokens.shape[-2] // chunks)
    pad = [(0, 0)] * (tokens.ndim - 2) + [(0, length * chunks - tokens.shape[-2]), (0, 0)]
    padded = jnp.pad(tokens, pad, constant_values=fill)
    return jnp.moveaxis(padded.reshape(*tokens.shape[:-2], chunks, length, tokens.shape[-1]), -3, 0)


def _join(parts: Array, length: int) -> Array:
    """The reverse of `_split`."""
    tokens = jnp.moveaxis(parts, 0, -3)
    return tokens.reshape(*tokens.shape[:-3], -1, tokens.shape[-1])[..., :length, :]


def _split_mask(mask: Array | None, chunks: int) -> Array | None:
    """A mask that all queries share is repeated, not split."""
    if mask is None:
        return None
    return jnp.broadcast_to(mask, (chunks, *mask.shape)) if mask.shape[-2] == 1 else _split(mask, chunks, True)


def _forward_in_chunks(
    query: Array, key: Array, value: Array, mask: Array | None, *, most_scores: int, product_dtype: Dtype
) -> tuple[Array, Array]:
    chunks = _chunks(query, key, most_scores)
    if chunks == 1:
        return _weighted_values(query, key, value, mask, product_dtype)
    parts = jax.lax.map(
        lambda part: _weighted_values(part[0], key, value, part[1], product_dtype),
        (_split(query, chunks), _split_mask(mask, chunks)),
    )
    y, log_sum = (_join(part, query.shape[-2]) for part in parts)
    return y, log_sum


def _backward_in_chunks(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    y: Array,
    log_sum: Array,
    gradient: Array,
    *,
    most_scores: int,
    product_dtype: Dtype,
) -> tuple[Array, Array, Array]:
    chunks = _chunks(query, key, most_scores)
    if chunks == 1:
        of_query, of_key, of_value = _weighted_values_backward(
            query, key, value, mask, y, log_sum, gradient, product_dtype
        )
    else:

        def add(sums: tuple[Array, Array], part: tuple) -> tuple[tuple[Array, Array], Array]:
            query, mask, y, log_sum, gradient = part
            of_query, of_key, of_value = _weighted_values_backward(
                query, key, value, mask, y, log_sum, gradient, product_dtype
            )
            return (sums[0] + of_key, sums[1] + of_value), of_query.astype(query.dtype)

        # A log-sum of infinity leaves the rows that fill up the last chunk without weights.
        parts = (
            _split(query, chunks),
            _split_mask(mask, chunks),
            _split(y, chunks),
            _split(log_sum, chunks, jnp.inf),
            _split(gradient, chunks),
        )
        nothing = (jnp.zeros(key.shape, FLOAT32), jnp.zeros(value.shape, FLOAT32))
        (of_key, of_value), of_queries = jax.lax.scan(add, nothing, parts)
        of_query = _join(of_queries, query.shape[-2])
    return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype)


def _scores(query: Array, key: Array, mask: Array | None) -> Float[Array, "*m q k"]:
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=FLOAT32)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(FLOAT32).min)


def _weighted_values(
    query: Array, key: Array, value: Array, mask: Array | None, product_dtype: Dtype
) -> tuple[Array, Array]:
    """product_dtype: in which products with the weights are returned, here and below."""
    scores = _scores(query, key, mask)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    # Rounded before they are summed, so that weights add up to 1, and are written once.
    weights = jnp.exp(scores - highest).astype(value.dtype)
    total = jnp.sum(weights, axis=-1, keepdims=True, dtype=FLOAT32)
    y = jnp.einsum("...qk,...kd->...qd", weights, value, preferred_element_type=product_dtype) / total
    return y.astype(value.dtype), highest + jnp.log(total)


def _weighted_values_backward(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    y: Array,
    log_sum: Array,
    gradient: Array,
    product_dtype: Dtype,
) -> tuple[Array, Array, Array]:
    weights = jnp.exp(_scores(query, key, mask) - log_sum).astype(value.dtype)
    mean = jnp.sum(gradient.astype(FLOAT32) * y.astype(FLOAT32), axis=-1, keepdims=True)
    of_weights = jnp.einsum("...qd,...kd->...qk", gradient, value, preferred_element_type=FLOAT32)
    of_scores = (weights * (of_weights - mean)).astype(query.dtype)
    of_query = jnp.einsum("...qk,...kd->...qd", of_scores, key, preferred_element_type=product_dtype)
    of_key = jnp.einsum("...qk,...qd->...kd", of_scores, query, preferred_element_type=product_dtype)
    of_value = jnp.einsum("...qk,...qd->...kd", weights, gradient, preferred_element_type=product_dtype)
    return of_query, of_key, of_value
