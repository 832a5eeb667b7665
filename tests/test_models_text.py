"""The text encoder against transformers' CLIPTextModel: names and shapes at full size, numbers (<= 1e-4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import convert, trees
from fcjax.models.parameters import abstract_part
from fcjax.models.text import TextEncoder
from fcjax.network_config import TextConfig
from fcjax.presets import sd15
from tests import oracles

SMALL = TextConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=11,
    bos_token_id=48,
    eos_token_id=49,
    pad_token_id=49,
)


def _ids(seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, 48, (2, 11))
    ids[:, 0], ids[0, 5:], ids[1, 9:] = 48, 49, 49
    return ids


def test_full_size_has_the_keys_of_the_checkpoint() -> None:
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        state = oracles.torch_text_encoder(sd15().text_encoder).state_dict()
    theirs = {convert.current_key("text_encoder", key): tuple(tensor.shape) for key, tensor in state.items()}
    abstract = abstract_part(sd15().text_encoder)
    ours = {
        convert.torch_key(path): convert.torch_shape(path, leaf.shape) for path, leaf in trees.flatten(abstract).items()
    }
    assert ours == {key: shape for key, shape in theirs.items() if key is not None}
    assert trees.count(abstract) == 123_060_480


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_equals_transformers(act: str, parity) -> None:
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(SMALL, hidden_act=act)
    params = oracles.random_part(config)
    module = oracles.load_into(oracles.torch_text_encoder(config), params)
    ours = TextEncoder(config).apply({"params": params}, jnp.asarray(_ids()))
    with torch.no_grad():
        theirs = module(torch.tensor(_ids())).last_hidden_state
    parity(ours, theirs, most=1e-4)


def test_gradients_equal_torch_autograd(gradient_parity) -> None:
    """Of every parameter."""
    torch = pytest.importorskip("torch")
    params, target = oracles.random_part(SMALL), oracles.normal(1, 2, 11, SMALL.hidden_size)
    module = oracles.load_into(oracles.torch_text_encoder(SMALL), params)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum((TextEncoder(SMALL).apply({"params": params}, jnp.asarray(_ids())) - target) ** 2)

    hidden = module(torch.tensor(_ids())).last_hidden_state
    ((hidden - torch.tensor(np.asarray(target))) ** 2).sum().backward()
    theirs = {convert.current_key("text_encoder", key): grad for key, grad in oracles.torch_gradients(module).items()}
    gradient_parity(convert.state_dict(gradient(params)), theirs)


def test_a_token_sees_none_behind_it() -> None:
    params = oracles.random_part(SMALL)
    ids = _ids()
    changed = ids.copy()
    changed[:, 6] = 7
    one = TextEncoder(SMALL).apply({"params": params}, jnp.asarray(ids))
    other = TextEncoder(SMALL).apply({"params": params}, jnp.asarray(changed))
    assert np.array_equal(one[:, :6], other[:, :6]) and not np.allclose(one[:, 6:], other[:, 6:])


def test_errors() -> None:
    params = oracles.random_part(SMALL)
    with pytest.raises(ValueError, match="11 positions, got 12 tokens"):
        TextEncoder(SMALL).apply({"params": params}, jnp.zeros((1, 12), jnp.int32))
