"""The one attention: every kernel equals the equation, gradients included, and which one is picked."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax.models import attend as kernels
from fcjax.models import tpu_attention
from fcjax.models.attend import attend, attention_kernel
from fcjax.models.tpu_attention import blocks
from tests import oracles


def plainly(query, key, value, mask):
    scores = jnp.einsum("bqnd,bknd->bnqk", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask if mask.ndim == 4 else mask[:, None, None], scores, -jnp.inf)
    return jnp.einsum("bnqk,bknd->bqnd", jax.nn.softmax(scores, -1), value)


def make_mask(kind: str, queries: int, keys: int) -> jax.Array | None:
    return {
        "none": None,
        "keys": jnp.asarray(np.random.default_rng(0).random((2, keys)) < 0.6).at[:, 0].set(True),
        "causal": jnp.tril(jnp.ones((queries, keys), bool))[None, None],
    }[kind]


def errors(function, queries: int, keys: int, size: int, mask) -> list[float]:
    """Of the output's sum of sines and of its gradients, each relative to its scale."""
    tokens = [oracles.normal(seed, 2, length, 3, size) for seed, length in enumerate((queries, keys, keys))]

    def values_and_gradients(function):
        return jax.jit(jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(function(*args, mask))), (0, 1, 2)))(*tokens)

    pairs = zip(
        jax.tree.leaves(values_and_gradients(function)), jax.tree.leaves(values_and_gradients(plainly)), strict=True
    )
    return [oracles.relative_error(ours, theirs) for ours, theirs in pairs]


@pytest.mark.parametrize("mask_kind", ["none", "keys", "causal"])
@pytest.mark.parametrize("most_scores", [2**24, 30, 12, 1])
def test_the_portable_form_equals_its_equation(mask_kind: str, most_scores: int, monkeypatch) -> None:
    """In one chunk, in several, in chunks that do not divide the queries, and query by query."""
    monkeypatch.setattr(kernels, "_SCORES_ON_CPU", most_scores)
    assert max(errors(attend, 7, 6, 4, make_mask(mask_kind, 7, 6))) <= 1e-5


@pytest.mark.parametrize(("dtype", "roundings"), [("bfloat16", 2**-7), ("float16", 2**-10)])
@pytest.mark.parametrize("most_scores", [2**24, 2**12])
def test_the_portable_form_in_half_precision(most_scores: int, dtype: str, roundings: float, monkeypatch) -> None:
    """Within a few roundings of what float32 makes of the same numbers, gradients included."""
    monkeypatch.setattr(kernels, "_SCORES_ON_CPU", most_scores)
    halves = [oracles.normal(seed, 2, length, 3, 32).astype(dtype) for seed, length in enumerate((64, 512, 512))]
    mask = make_mask("keys", 64, 512)

    def values_and_gradients(function, tokens):
        return jax.vjp(lambda *args: function(*args, mask), *tokens)

    y, back = values_and_gradients(attend, halves)
    expected, back_expected = values_and_gradients(plainly, [tokens.astype(jnp.float32) for tokens in halves])
    seed = oracles.normal(7, *y.shape).astype(dtype)
    for ours, theirs in zip((y, *back(seed)), (expected, *back_expected(seed.astype(jnp.float32))), strict=True):
        assert ours.dtype == dtype
        assert oracles.relative_error(ours.astype(jnp.float32), theirs) <= roundings


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_of_many_values_are_finite(dtype: str) -> None:
    """Before they are divided by their total: 8,192 tens are more than float16 holds."""
    query, key = jnp.zeros((1, 4, 1, 8), dtype), jnp.zeros((1, 8192, 1, 8), dtype)
    np.testing.assert_array_equal(attend(query, key, jnp.full_like(key, 10)).astype(jnp.float32), 10)


def test_chunks_bound_the_memory() -> None:
    """Scores of 4096 x 8192 keys would take 128 MiB a head."""
    tokens = [jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32) for length in (4096, 8192, 8192)]
    compiled = jax.jit(attend).lower(*tokens).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None and analysis.temp_size_in_bytes < 128 * 2**20


@pytest.mark.parametrize(
    ("mask_kind", "queries", "keys", "size"),
    [
        # Keys in one block of the forward pass, in several parts of it in either.
        ("keys", 256, 1536, 40),
        ("none", 256, 1536, 40),
        # Several blocks of queries and of keys in both passes; one of any length; the prompt's keys.
        ("keys", 1536, 4096, 8),
        ("keys", 192, 384, 24),
        ("none", 128, 77, 20),
    ],
)
def test_the_tpu_kernel_equals_its_equation(mask_kind: str, queries: int, keys: int, size: int) -> None:
    """Interpreted on this host, with the scaling that `attend` does before."""
    mask = make_mask(mask_kind, queries, keys)

    def ours(query, key, value, mask):
        return kernels._pallas(query * query.shape[-1] ** -0.5, key, value, mask, interpret=True)

    assert max(errors(ours, queries, keys, size, mask)) <= 1e-4


def test_the_tpu_kernel_in_half_precision() -> None:
    """Weights and gradients of scores are rounded for their products, as the portable form rounds them."""
    tokens = [
        oracles.normal(seed, 2, length, 3, 40).astype(jnp.bfloat16) for seed, length in enumerate((256, 512, 512))
    ]
    mask = make_mask("keys", 256, 512)

    def gradients(kernel):
        return jax.grad(lambda *given: jnp.sum(jnp.sin(kernel(*given, mask).astype(jnp.float32))), (0, 1, 2))(*tokens)

    ours = gradients(functools.partial(kernels._pallas, interpret=True))
    for one, other in zip(ours, gradients(kernels._portable), strict=True):
        assert one.dtype == jnp.bfloat16
        assert oracles.relative_error(one.astype(jnp.float32), other.astype(jnp.float32)) <= 0.02


def test_gradients_of_more_queries_than_a_core_holds(monkeypatch) -> None:
    monkeypatch.setattr(tpu_attention, "_QUERY_SUMS", 4 * 8 * 256)

    def ours(query, key, value, mask):
        return kernels._pallas(query * query.shape[-1] ** -0.5, key, value, mask, interpret=True)

    assert max(errors(ours, 640, 256, 8, make_mask("keys", 640, 256))) <= 1e-4


def test_a_hidden_key_is_a_further_number() -> None:
    """What the flash kernels are given needs no mask: the plain equation without one gives the masked result."""
    query, key, value = (oracles.normal(seed, 2, 6, 3, 40) for seed in range(3))
    mask = make_mask("keys", 6, 6)
    *widened, size = kernels._hide(query * 40**-0.5, key, value, mask)
    assert size == 40 and {tokens.shape[-1] for tokens in widened} == {48}
    unmasked = plainly(widened[0] * 48**0.5, *widened[1:], None)[..., :size]
    assert oracles.relative_error(unmasked, plainly(query, key, value, mask)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "queries", "keys", "size", "dtype", "expected"),
    [
        ("auto", 3072, 6144, 40, "bfloat16", "portable"),
        ("cudnn", 3072, 6144, 40, "bfloat16", "cudnn"),
        ("cudnn", 3072, 6144, 40, "float32", "portable"),
        ("cudnn", 192, 384, 160, "bfloat16", "portable"),
        ("cudnn", 12288, 12288, 512, "bfloat16", "portable"),
        ("cudnn", 3072, 77, 40, "bfloat16", "portable"),
        ("cudnn", 3072, 6144, 36, "bfloat16", "cudnn"),
        ("pallas", 3072, 6144, 40, "bfloat16", "pallas"),
        ("pallas", 768, 1536, 80, "float32", "pallas"),
        ("pallas", 3072, 77, 40, "bfloat16", "pallas"),
        ("pallas", 192, 384, 160, "bfloat16", "pallas"),
        ("pallas", 48, 96, 160, "bfloat16", "portable"),
        ("pallas", 3072, 6144, 40, "float16", "portable"),
        ("pallas", 1100, 1100, 40, "bfloat16", "portable"),
        ("pallas", 12288, 12288, 512, "bfloat16", "pallas"),
        ("pallas", 3072, 3072, 520, "bfloat16", "portable"),
        ("pallas", 3072, 3072, 512, "float32", "portable"),
        ("portable", 3072, 6144, 40, "bfloat16", "portable"),
    ],
)
def test_which_kernel_is_picked(name: str, queries: int, keys: int, size: int, dtype: str, expected: str) -> None:
    query, key = (jax.ShapeDtypeStruct((2, length, 8, size), jnp.dtype(dtype)) for length in (queries, keys))
    picked = []

    def pick(query, key):
        picked.append(kernels.kernel_of(query, key, jnp.ones((2, keys), bool)))
        picked.append(kernels.kernel_of(query, key, jnp.ones((1, 1, queries, keys), bool)))
        return query

    with attention_kernel(name):
        jax.eval_shape(pick, query, key)
    assert picked == [expected, "portable"]


@pytest.mark.parametrize(
    ("backend", "capability", "expected"),
    [
        ("gpu", "8.0", "cudnn"),
        ("gpu", "10.0", "cudnn"),
        ("gpu", "7.5", "portable"),
        ("gpu", "gfx90a", "portable"),
        ("gpu", None, "portable"),
        ("tpu", None, "pallas"),
        ("cpu", None, "portable"),
    ],
)
def test_what_suits_the_default_device(
    monkeypatch: pytest.MonkeyPatch, backend: str, capability: str | None, expected: str
) -> None:
    device = SimpleNamespace() if capability is None else SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    tokens = jax.ShapeDtypeStruct((2, 3072, 8, 40), jnp.bfloat16)
    assert kernels.kernel_of(tokens, tokens, None) == expected


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("cudnn", 40, "cudnn"),
        ("cudnn", 36, "portable"),
        ("cudnn", 128, "cudnn"),
        ("cudnn", 136, "portable"),
        ("pallas", 36, "pallas"),
        ("pallas", 512, "pallas"),
        ("pallas", 513, "portable"),
    ],
)
def test_which_heads_suit_a_kernel_without_a_mask(name: str, size: int, expected: str) -> None:
    """cuDNN refuses heads that are no multiples of 8; with a mask they are brought to one."""
    tokens = jax.ShapeDtypeStruct((1, 3072, 1, size), jnp.bfloat16)
    with attention_kernel(name):
        assert kernels.kernel_of(tokens, tokens, None) == expected


def test_blocks_divide_the_tokens_and_wide_heads_have_small_ones() -> None:
    assert blocks(3072, 6144, 2 * 40) == ((768, 3072, 1024), (1024, 2048, 256))
    assert blocks(768, 1536, 2 * 80) == ((768, 1536, 768), (768, 1536, 256))
    assert blocks(4096, 8192, 2 * 40) == ((512, 2048, 1024), (1024, 2048, 256))
    assert blocks(192, 384, 2 * 40) == ((192, 384, 384), (192, 384, 128))
    assert blocks(3072, 3072, 2 * 160) == ((512, 1024, 1024), (512, 1024, 256))
    # The VAE's heads.
    assert blocks(2304, 2304, 2 * 512) == ((256, 384, 384), (256, 256, 256))


def test_the_kernel_is_part_of_what_is_compiled(monkeypatch) -> None:
    """The same jitted function is traced anew for another kernel, and a name that is none is refused."""
    picked = []

    def remember(name, query, key, value, mask):
        picked.append(name)
        return query

    for name in ("portable", "pallas"):
        monkeypatch.setattr(kernels, f"_{name}", functools.partial(remember, name))
    jitted = jax.jit(lambda *tokens: attend(*tokens))
    tokens = [oracles.normal(seed, 1, 256, 1, 8) for seed in range(3)]
    jitted(*tokens)
    with attention_kernel("pallas"):
        jitted(*tokens)
        jitted(*tokens)
    assert picked == ["portable", "pallas"]
    with attention_kernel("flash"), pytest.raises(ValueError, match="must be one of auto, portable, cudnn, pallas"):
        jitted(*tokens)
