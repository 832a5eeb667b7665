"""Flash attention for TPUs, with tokens as the last dimension of all that it reads, computes and writes.

Stable Diffusion's heads are narrow: 40 numbers at the finest level. As the last dimension they would fill a third of a
TPU's 128 lanes, in memory and in the products' results. As rows they cost what they are: weights and scores of a block,
(keys, queries), are loaded into the matrix units, and 40 rows of values, queries or gradients pass through. By the
compiler's schedules for a v5p (`benchmarks.kernels`) a block of 1024 x 1024 scores takes 3,600 cycles forward and 6,200
backward, where JAX's splash attention takes 4,600 and 10,000 at its best; neither gradients of queries for each block
of keys nor 128 copies of every log-sum go through the memory.

The equations are FlashAttention-2's (arXiv 2307.08691): `log_sum` is its log-sum-exp, `mean` its D, and sums fade where
a block has a higher maximum. n counts heads, d their numbers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from fcjax.models.layers import FLOAT32

LANES = 128
_LEAST = -1e30
HIDDEN = -3e4  # added to a hidden key's scores
_QUERY_SUMS = 3 * 2**20  # bytes of the queries' gradients that stay in a core's memory


def blocks(queries: int, keys: int, row: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of the forward and the backward pass: queries and keys of a step, and keys that its products take at once.

    queries: a multiple of 128, or one block; keys: a multiple of 128. row: bytes of a token in a head.
    """

    def of(most_queries: int, most_keys: int, at_once: int) -> tuple[int, int, int]:
        block = _largest_block(keys, most_keys)
        return _largest_block(queries, most_queries), block, _largest_block(block, at_once)

    if row <= 256:
        return of(768, 3072, 1024), of(1024, 2048, 256)
    if row <= 512:
        return of(512, 1024, 1024), of(512, 1024, 256)
    return of(256, 512, 512), of(256, 256, 256)


def _largest_block(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `length`; all of a length that is none."""
    if length % LANES:
        return length
    return next(block for block in range(most, 0, -LANES) if length % block == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def flash_attention(
    query: Float[Array, "b n d q"],
    key: Float[Array, "b n d k"],
    value: Float[Array, "b n d k"],
    mask: Bool[Array, "b k"] | None = None,
    interpret: bool = False,
) -> Float[Array, "b n d q"]:
    """softmax(query^T key) value, the softmax in float32, its weights rounded to the value's dtype for the product.

    Lengths as `blocks` takes them. mask: True where a sample's key may be seen. interpret: by JAX on any platform, to
    be tested.
    """
    return _forward(query, key, value, mask, interpret)[0]


def _kept(query: Array, key: Array, value: Array, mask: Array | None, interpret: bool) -> tuple[Array, tuple]:
    y, log_sum = _forward(query, key, value, mask, interpret)
    return y, (query, key, value, mask, y, log_sum)


def _gradients(interpret: bool, saved: tuple, gradient: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, mask, y, log_sum = saved
    mean = jnp.sum(gradient.astype(FLOAT32) * y.astype(FLOAT32), axis=2, keepdims=True)
    by_query, by_key = (query, gradient.astype(query.dtype), log_sum, mean), (key, value, mask)
    # As many queries at once as have their gradients in a core's memory.
    queries, size = query.shape[3], query.shape[2]
    most = max(_QUERY_SUMS // (4 * size) // LANES, 1) * LANES if queries % LANES == 0 else queries
    parts = [
        _backward(tuple(array[..., start : start + most] for array in by_query), by_key, interpret)
        for start in range(0, queries, most)
    ]
    of_queries, of_keys, of_values = zip(*parts, strict=True)
    return jnp.concatenate(of_queries, axis=3), _sum(of_keys), _sum(of_values), None


def _sum(parts: tuple[Array, ...]) -> Array:
    return sum((part.astype(FLOAT32) for part in parts[1:]), parts[0].astype(FLOAT32)).astype(parts[0].dtype)


flash_attention.defvjp(_kept, _gradients)


def _product(a: Array, b: Array, of_a: int, of_b: int) -> Array:
    """The sum over one dimension of each, in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == FLOAT32 else None
    dimensions = (((of_a,), (of_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=FLOAT32)


def _addends(mask: Array | None, dtype: Any) -> list[Array]:
    """A mask as what 8 further numbers of each key are, (b, 1, k), those of the queries being 1."""
    return [] if mask is None else [jnp.where(mask, 0.0, HIDDEN / 8).astype(dtype)[:, None]]


def _with_mask(keys: Array, rows: Array | None) -> Array:
    """(d, k) with the 8 numbers behind it that hide keys."""
    return keys if rows is None else jnp.concatenate([keys, jnp.broadcast_to(rows, (8, rows.shape[1]))])


def _with_ones(query: Array, masked: bool) -> Array:
    return jnp.concatenate([query, jnp.ones((8, query.shape[1]), query.dtype)]) if masked else query


def _parameters() -> Any:
    # Samples or heads go to the cores of a chip; blocks of one head add up in what stays in a core's memory.
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"))


# ---------------------------------------------------------------------------------------------------------------------
# Forward: for every block of queries all blocks of keys


def _forward(query: Array, key: Array, value: Array, mask: Array | None, interpret: bool) -> tuple[Array, Array]:
    """The output (b, n, d, q), and log(sum(exp(scores))) (b, n, 1, q) in float32."""
    batch, heads, size, queries = query.shape
    (block_q, block_k, at_once), _ = blocks(queries, key.shape[3], size * key.dtype.itemsize)
    of_queries = pl.BlockSpec((None, None, size, block_q), lambda b, n, q, k: (b, n, 0, q))
    of_keys = pl.BlockSpec((None, None, size, block_k), lambda b, n, q, k: (b, n, 0, k))
    of_sums = pl.BlockSpec((None, None, 1, block_q), lambda b, n, q, k: (b, n, 0, q))
    addends = _addends(mask, key.dtype)
    of_mask = [pl.BlockSpec((None, 1, block_k), lambda b, n, q, k: (b, 0, k)) for _ in addends]
    y, log_sum = pl.pallas_call(
        functools.partial(_forward_step, masked=mask is not None, at_once=at_once),
        grid=(batch, heads, queries // block_q, key.shape[3] // block_k),
        in_specs=[of_queries, of_keys, of_keys, *of_mask],
        out_specs=[of_queries, of_sums],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, value.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, queries), FLOAT32),
        ],
        scratch_shapes=[pltpu.VMEM(shape, FLOAT32) for shape in ((1, block_q), (1, block_q), (size, block_q))],
        compiler_params=_parameters(),
        interpret=interpret,
        name="attention_forward",
    )(query, key, value, *addends)
    return y, log_sum


def _forward_step(query_ref: Any, key_ref: Any, value_ref: Any, *others: Any, masked: bool, at_once: int) -> None:
    y_ref, log_sum_ref, highest_ref, total_ref, weighted_ref = others[masked:]

    @pl.when(pl.program_id(3) == 0)
    def begin() -> None:
        highest_ref[...] = jnp.full_like(highest_ref, _LEAST)
        total_ref[...] = jnp.zeros_like(total_ref)
        weighted_ref[...] = jnp.zeros_like(weighted_ref)

    query = _with_ones(query_ref[...], masked)

    def scores(start: int) -> Array:
        some = slice(start, start + at_once)
        return _product(_with_mask(key_ref[:, some], others[0][:, some] if masked else None), query, 0, 0)

    highest, total, weighted = highest_ref[...], total_ref[...], weighted_ref[...]
    length = key_ref.shape[1]
    following = scores(0)
    for start in range(0, length, at_once):
        here = following
        if start + at_once < length:
            # Named before the others are used, so that its products run beside their softmax.
            following = scores(start + at_once)
        before, highest = highest, jnp.maximum(highest, jnp.max(here, axis=0, keepdims=True))
        weights, fade = jnp.exp(here - highest), jnp.exp(before - highest)
        total = total * fade + jnp.sum(weights, axis=0, keepdims=True)
        values = value_ref[:, start : start + at_once]
        weighted = weighted * fade + _product(values, weights.astype(values.dtype), 1, 0)
    highest_ref[...], total_ref[...], weighted_ref[...] = highest, total, weighted

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def end() -> None:
        y_ref[...] = (weighted_ref[...] / total_ref[...]).astype(y_ref.dtype)
        log_sum_ref[...] = highest_ref[...] + jnp.log(total_ref[...])


# ---------------------------------------------------------------------------------------------------------------------
# Backward: for every block of keys all blocks of queries, whose gradients stay until the last block of keys


def _backward(by_query: tuple[Array, ...], by_key: tuple[Array, Array, Array | None], interpret: bool) -> Any:
    """The gradients of queries, keys and values.

    by_query: queries, the output's gradients, log-sums, and means of the gradients of each query's weights, weighted by
      them. by_key: keys, values and mask.
    """
    (query, gradient, log_sum, mean), (key, value, mask) = by_query, by_key
    batch, heads, size, queries = query.shape
    _, (block_q, block_k, at_once) = blocks(queries, key.shape[3], size * key.dtype.itemsize)
    steps = key.shape[3] // block_k
    of_queries = pl.BlockSpec((None, None, size, block_q), lambda b, n, k, q: (b, n, 0, q))
    of_keys = pl.BlockSpec((None, None, size, block_k), lambda b, n, k, q: (b, n, 0, k))
    of_sums = pl.BlockSpec((None, None, 1, block_q), lambda b, n, k, q: (b, n, 0, q))
    addends = _addends(mask, key.dtype)
    of_mask = [pl.BlockSpec((None, 1, block_k), lambda b, n, k, q: (b, 0, k)) for _ in addends]
    # Nothing is written before the last block of keys.
    finished = pl.BlockSpec((None, None, size, block_q), lambda b, n, k, q: (b, n, 0, jnp.where(k == steps - 1, q, 0)))
    return pl.pallas_call(
        functools.partial(_backward_step, masked=mask is not None, at_once=at_once),
        grid=(batch, heads, steps, queries // block_q),
        in_specs=[of_queries, of_keys, of_keys, of_queries, of_sums, of_sums, *of_mask],
        out_specs=[finished, of_keys, of_keys],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (query, key, value)],
        scratch_shapes=[
            pltpu.VMEM((queries // block_q, size, block_q), FLOAT32),
            pltpu.VMEM((size, block_k), FLOAT32),
            pltpu.VMEM((size, block_k), FLOAT32),
        ],
        compiler_params=_parameters(),
        interpret=interpret,
        name="attention_backward",
    )(query, key, value, gradient, log_sum, mean, *addends)


def _backward_step(
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    gradient_ref: Any,
    log_sum_ref: Any,
    mean_ref: Any,
    *others: Any,
    masked: bool,
    at_once: int,
) -> None:
    of_query_ref, of_key_ref, of_value_ref, query_sums, key_sums, value_sums = others[masked:]
    k, q = pl.program_id(2), pl.program_id(3)

    @pl.when(k == 0)
    def begin_queries() -> None:
        query_sums[q] = jnp.zeros_like(query_sums[q])

    @pl.when(q == 0)
    def begin_keys() -> None:
        key_sums[...], value_sums[...] = jnp.zeros_like(key_sums), jnp.zeros_like(value_sums)

    query, gradient, log_sum, mean = query_ref[...], gradient_ref[...], log_sum_ref[...], mean_ref[...]
    of_query, widened = query_sums[q], _with_ones(query, masked)
    for start in range(0, key_ref.shape[1], at_once):
        some = slice(start, start + at_once)
        keys, values = key_ref[:, some], value_ref[:, some]
        hidden = others[0][:, some] if masked else None
        weights = jnp.exp(_product(_with_mask(keys, hidden), widened, 0, 0) - log_sum)
        of_scores = (weights * (_product(values, gradient, 0, 0) - mean)).astype(query.dtype)
        value_sums[:, some] += _product(gradient, weights.astype(gradient.dtype), 1, 1)
        key_sums[:, some] += _product(query, of_scores, 1, 1)
        of_query += _product(keys, of_scores, 1, 0)
    query_sums[q] = of_query

    @pl.when(k == pl.num_programs(2) - 1)
    def end_queries() -> None:
        of_query_ref[...] = query_sums[q].astype(of_query_ref.dtype)

    @pl.when(q == pl.num_programs(3) - 1)
    def end_keys() -> None:
        of_key_ref[...] = key_sums[...].astype(of_key_ref.dtype)
        of_value_ref[...] = value_sums[...].astype(of_value_ref.dtype)
