"""The texture loss: right textures out of place are forgiven, blurs are not."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import composing_task, prepared
from train.step import composing_loss
from train.texture import texture_loss

KEY = jax.random.key(0)
EVERYWHERE = np.ones((1, 16, 24), bool)


def stripes(phase: int) -> np.ndarray:
    """(1, 16, 24, 3): four tokens of 1, four of -1, down the picture."""
    rows = np.where((np.arange(16) + phase) // 4 % 2, 1.0, -1.0)
    return np.broadcast_to(rows[None, :, None, None], (1, 16, 24, 3)).astype(np.float32)


@jax.jit
def averaged(*given: jax.Array) -> jax.Array:
    """Over draws."""
    return jnp.mean(jax.vmap(lambda key: texture_loss(*given, key))(jax.random.split(KEY, 64)))


def loss(restored: np.ndarray, clean: np.ndarray, foreground: np.ndarray = EVERYWHERE, emphasis: float = 0.0) -> float:
    return float(averaged(jnp.asarray(restored), jnp.asarray(clean), jnp.asarray(foreground), 1.0, emphasis))


def test_a_texture_out_of_place_is_nearer_than_a_blur():
    clean = stripes(0)
    shifted, blurred = stripes(4), np.zeros_like(clean)
    assert np.mean((shifted - clean) ** 2) == 4 * np.mean((blurred - clean) ** 2)
    assert loss(clean, clean) == 0.0
    assert loss(shifted, clean) < 0.15 * loss(blurred, clean)


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_the_weight_says_how_much_contrast_a_pattern_of_unknown_place_has(weight: float):
    contrasts = np.linspace(0.0, 1.0, 13)
    places = [stripes(phase) for phase in (0, 2, 4, 6)]

    def total(contrast: float) -> float:
        guess = contrast * places[0]
        return np.mean([np.mean((guess - clean) ** 2) + weight * loss(guess, clean) for clean in places])

    best = contrasts[np.argmin([total(contrast) for contrast in contrasts])]
    assert best == pytest.approx(weight / (1.0 + weight), abs=0.1)


def test_it_is_at_most_the_squared_error():
    rng = np.random.default_rng(0)
    clean, restored = rng.standard_normal((2, 1, 16, 24, 3)).astype(np.float32)
    assert 0.0 < loss(restored, clean) < np.mean((restored - clean) ** 2)
    # A constant difference is no texture to be found elsewhere: all of it counts, by the draws' expectation.
    assert loss(clean + 0.5, clean) == pytest.approx(0.25, rel=0.3)


def test_foreground_and_background_are_held_apart_and_count_by_their_emphasis():
    clean = stripes(0)
    # The colours of a person and of what is behind it exchanged: the same colours in every window.
    assert loss(-clean, clean, clean[..., 0] > 0) > 5 * loss(-clean, clean)
    inside = np.broadcast_to(np.arange(24) < 12, (1, 16, 24))
    wrong = np.where(inside[..., None], clean + 1.0, clean)
    # But for the tokens beside the person that filters of three by three reach.
    assert loss(wrong, clean, inside, emphasis=4.0) == pytest.approx(loss(wrong, clean, inside) * 5 / 3, rel=0.1)


def test_gradients_lead_from_faint_stripes_to_full_ones_where_they_are():
    clean = jnp.asarray(stripes(0))
    guess = 0.1 * jnp.asarray(stripes(2))

    @jax.jit
    def step(guess, key):
        def value(guess):
            return jnp.sum(texture_loss(guess, clean, jnp.asarray(EVERYWHERE), 1.0, 0.0, key))

        return guess - 200.0 * jax.grad(value)(guess)

    for key in jax.random.split(KEY, 100):
        guess = step(guess, key)
    assert float(jnp.std(guess)) == pytest.approx(float(jnp.std(clean)), rel=0.15)
    # Where they were, not where the squared error would have them.
    assert float(jnp.mean(guess * stripes(2))) > 0.9


def test_predictions_in_half_precision_are_sorted_in_single():
    clean = 0.1 * stripes(0)
    half = jnp.asarray(clean, jnp.bfloat16)
    value = texture_loss(half, jnp.asarray(clean), jnp.asarray(EVERYWHERE), 1.0, 0.0, KEY)
    assert value.dtype == jnp.float32 and float(value[0]) < 1e-5


def test_latents_of_any_size_from_a_window_on():
    clean = stripes(0)[:, :11, :17]
    assert loss(np.zeros_like(clean), clean, EVERYWHERE[:, :11, :17]) > 0.5
    small = jnp.asarray(clean[:, :7])
    with pytest.raises(ValueError, match="loss.texture needs latents of at least 8 tokens a side, got 7x17: leave"):
        texture_loss(small, small, jnp.zeros((1, 7, 17), bool), 1.0, 0.0, KEY)


def test_the_composing_loss_adds_it_by_its_weight(tmp_path: Path):
    config, task, batch = composing_task(prepared(tmp_path))

    def value(channels: np.ndarray | float = 1.0, **changes: float) -> tuple[float, dict[str, jax.Array]]:
        given = dataclasses.replace(config.loss, **changes)
        total, metrics = jax.jit(composing_loss(config.model, given, jnp.float32, channels))(
            task.parameters, batch, KEY
        )
        return float(total), metrics

    without, metrics = value()
    assert "texture" not in metrics
    total, metrics = value(texture=2.0)
    texture = float(metrics["texture"])
    assert texture > 0.0 and total - without == pytest.approx(2.0 * texture, rel=1e-4)
    # Channels and the person count in it as they do in the squared error.
    assert float(value(4.0, texture=2.0)[1]["texture"]) == pytest.approx(4.0 * texture, rel=1e-4)
    emphasised = value(texture=2.0, foreground_weight=config.loss.foreground_weight + 50.0)[1]
    assert float(emphasised["texture"]) != pytest.approx(texture, rel=1e-3)
