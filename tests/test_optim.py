"""The optimisers that training chooses from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from fcjax.optim import make_optimizer

PARAMETERS = {
    "conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)},
    "dense": {"kernel": jnp.zeros((12, 6))},
    "token_embedding": {"embedding": jnp.zeros((10, 6))},
}


def first_update(name: str, rate: float = 0.01):
    """What the first step after the warm-up's zero rate does to `PARAMETERS`, given gradients of all ranks."""
    rng = np.random.default_rng(0)
    gradients = {
        group: {leaf: jnp.asarray(rng.normal(size=value.shape), jnp.float32) for leaf, value in leaves.items()}
        for group, leaves in PARAMETERS.items()
    }
    rule = make_optimizer(name, rate, steps=100, warmup_steps=1, clip_norm=1e9)
    state, updates = rule.init(PARAMETERS), None
    for _ in range(2):
        updates, state = rule.update(gradients, state, PARAMETERS)
    assert updates is not None
    return gradients, updates


@pytest.mark.parametrize(("group", "shape"), [("conv", (36, 8)), ("dense", (12, 6))])
def test_muon_moves_kernels_alike_in_every_direction(group: str, shape: tuple[int, int]):
    gradients, updates = first_update("muon")
    update = np.asarray(updates[group]["kernel"]).reshape(shape)
    strengths = np.linalg.svd(update, compute_uv=False)
    spread = np.linalg.svd(np.asarray(gradients[group]["kernel"]).reshape(shape), compute_uv=False)
    # Newton-Schulz leaves singular values between about 0.7 and 1.2; what it was given spreads further.
    expected = 0.01 * 0.2 * np.sqrt(max(shape))
    assert 0.6 * expected < strengths.min() and strengths.max() < 1.3 * expected
    assert spread.max() / spread.min() > 1.5
    assert np.sum(update * np.asarray(gradients[group]["kernel"]).reshape(shape)) < 0


def test_stacks_of_kernels_move_as_each_by_itself_does():
    """Whatever the order of the keys, which a jitted function sorts."""
    rng = np.random.default_rng(1)
    shapes = {"b": (3, 3, 2, 6), "c": (18, 6), "a": (4, 4)}
    parameters, gradients = (
        {name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
        for _ in range(2)
    )
    axes = {
        name: {"kernel": optax.contrib.MuonDimensionNumbers(tuple(range(len(shape) - 1)), (len(shape) - 1,))}
        for name, shape in shapes.items()
    }
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.01, 1, 100, 0.01)
    alone = optax.contrib.muon(
        rate, weight_decay=0.01, adam_b2=0.99, muon_weight_dimension_numbers=axes, consistent_rms=0.2
    )
    together = make_optimizer("muon", 0.01, steps=100, warmup_steps=1, clip_norm=1e9)
    states = [rule.init(parameters) for rule in (alone, together)]
    for turn in range(3):
        given = gradients if turn != 1 else jax.tree.map(lambda leaf: leaf[::-1], gradients)
        expected, states[0] = alone.update(given, states[0], parameters)
        found, states[1] = jax.jit(together.update)(given, states[1], parameters)
        for name in shapes:
            np.testing.assert_allclose(found[name]["kernel"], expected[name]["kernel"], atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-3


def test_muon_leaves_vectors_and_embeddings_to_adamw():
    _, muon = first_update("muon")
    for group, leaf in (("conv", "bias"), ("token_embedding", "embedding")):
        # Adam's first steps are about as long as the rate, whatever the gradient.
        steps = np.abs(muon[group][leaf])
        np.testing.assert_allclose(steps, steps.mean(), rtol=0.01)
        assert 0.005 < steps.mean() < 0.02


def test_adafactor_and_lion_keep_less_than_adamw():
    """Of the large kernel: AdamW two moments, Lion one, Adafactor its row and column means."""
    parameters = {"dense": {"kernel": jnp.zeros((256, 512))}}

    def numbers(name: str) -> int:
        state = make_optimizer(name, 0.1, steps=10).init(parameters)
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    size = 256 * 512
    assert numbers("adamw") // size == 2 and numbers("lion") // size == 1 and numbers("adafactor") < 2000


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "lion"])
def test_a_quadratic_is_minimised(name: str):
    parameters = {"dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    rule = make_optimizer(name, 0.2, steps=200, warmup_steps=5, final_rate=0.01)

    @jax.jit
    def step(parameters, state):
        updates, state = rule.update(parameters, state, parameters)
        return optax.apply_updates(parameters, updates), state

    state = rule.init(parameters)
    for _ in range(200):
        parameters, state = step(parameters, state)
    assert max(float(jnp.abs(parameters["dense"][leaf]).max()) for leaf in ("kernel", "bias")) < 0.05
