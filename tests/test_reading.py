"""The reading loss: what values hold of the canvas is read, what they do not is not."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax.models.composer import ReferenceFeatures
from tests.training import composing_task, prepared
from train.reading import reading_loss
from train.step import composing_loss

RNG = np.random.default_rng(0)
CANVAS = RNG.standard_normal((2, 16, 12, 3)).astype(np.float32) * [3.0, 1.0, 0.3]
TOKENS = CANVAS.reshape(2, -1, 3)


def loss(*values: np.ndarray, seen: np.ndarray | None = None, weights: np.ndarray | float = 1.0) -> float:
    """Of the values of layers that see the same tokens."""
    masks = [jnp.ones(value.shape[:2], bool) if seen is None else jnp.asarray(seen) for value in values]
    layers = tuple((jnp.zeros_like(value), jnp.asarray(value, jnp.float32)) for value in values)
    return float(reading_loss(ReferenceFeatures(layers, tuple(masks)), jnp.asarray(CANVAS), weights))


def noise(width: int) -> np.ndarray:
    return RNG.standard_normal((*TOKENS.shape[:2], width)).astype(np.float32)


def test_what_values_hold_is_read():
    mixed = TOKENS @ RNG.standard_normal((3, 5)) + 7.0
    assert loss(mixed) < 1e-3 and loss(100.0 * mixed) < 1e-3
    # Nothing but chance: as many directions as may fit that many tokens.
    assert loss(noise(5)) == pytest.approx(1.0, abs=0.05)


def test_channels_count_by_their_weights_and_not_by_their_variance():
    without_last = np.concatenate([TOKENS[..., :2], noise(1)], axis=-1)
    assert loss(without_last) == pytest.approx(1 / 3, abs=0.02)
    assert loss(without_last, weights=np.array([1.0, 1.0, 6.0])) == pytest.approx(6 / 8, abs=0.02)


def test_tokens_that_are_not_seen_do_not_count():
    seen = np.broadcast_to(np.arange(TOKENS.shape[1]) % 3 > 0, TOKENS.shape[:2])
    wrong = np.where(seen[..., None], TOKENS, 50.0 * noise(3))
    assert loss(wrong, seen=seen) < 1e-3 < 0.5 < loss(wrong)


def test_layers_of_the_canvas_size_are_averaged():
    assert loss(TOKENS, noise(4)) == pytest.approx(0.5, abs=0.02)
    assert loss(TOKENS, noise(4)[:, ::4]) < 1e-3
    with pytest.raises(ValueError, match="self-attention on latents of 16x12 tokens, but the UNets' lies on coarser"):
        loss(noise(4)[:, ::4])


def test_its_gradient_is_that_of_the_best_maps_error():
    """Though none flows through the map."""
    values, there = noise(4), RNG.standard_normal((*TOKENS.shape[:2], 4))

    def value(values: jax.Array) -> jax.Array:
        features = ReferenceFeatures(((values, values),), (jnp.ones(values.shape[:2], bool),))
        return reading_loss(features, jnp.asarray(CANVAS), 1.0)

    slope = float(jnp.sum(jax.grad(value)(jnp.asarray(values)) * there))
    assert slope == pytest.approx((loss(values + 0.01 * there) - loss(values - 0.01 * there)) / 0.02, rel=0.05)


def test_the_composing_loss_adds_it_by_its_weight(tmp_path: Path):
    config, task, batch = composing_task(prepared(tmp_path))

    def value(**changes: float) -> tuple[float, dict[str, jax.Array]]:
        given = dataclasses.replace(config.loss, **changes)
        total, metrics = jax.jit(composing_loss(config.model, given, jnp.float32))(
            task.parameters, batch, jax.random.key(0)
        )
        return float(total), metrics

    (without, plain), (total, metrics) = value(), value(reading=2.0)
    assert "reading" not in plain and 0.0 < metrics["reading"] < 1.0
    assert total - without == pytest.approx(2.0 * float(metrics["reading"]), rel=1e-4)
