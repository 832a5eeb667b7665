"""Keys and layouts between our parameters and torch's."""

import jax
import numpy as np
import pytest

from fcjax import convert, trees
from fcjax.models.parameters import abstract_parameters, abstract_part
from fcjax.presets import tiny
from tests import oracles


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("down_blocks_0/resnets_1/conv1/kernel", "down_blocks.0.resnets.1.conv1.weight"),
        ("time_embedding/linear_1/bias", "time_embedding.linear_1.bias"),
        (
            "attentions_0/transformer_blocks_0/ff/net_0/proj/bias",
            "attentions.0.transformer_blocks.0.ff.net.0.proj.bias",
        ),
        ("mid_block/attentions_0/to_out_0/kernel", "mid_block.attentions.0.to_out.0.weight"),
        ("encoder/layers_11/self_attn/q_proj/kernel", "encoder.layers.11.self_attn.q_proj.weight"),
        ("embeddings/token_embedding/embedding", "embeddings.token_embedding.weight"),
        ("conv_norm_out/scale", "conv_norm_out.weight"),
    ],
)
def test_keys(path: str, key: str) -> None:
    assert convert.torch_key(path) == key


def test_layouts() -> None:
    kernel = np.arange(3 * 3 * 2 * 4).reshape(3, 3, 2, 4)
    assert convert.to_torch("conv/kernel", kernel).shape == convert.torch_shape("conv/kernel", (3, 3, 2, 4))
    assert convert.to_torch("conv/kernel", kernel)[3, 1, 0, 2] == kernel[0, 2, 1, 3]
    assert convert.to_torch("dense/kernel", kernel[0, 0]).shape == (4, 2)
    assert convert.to_torch("a/embedding", kernel[0, 0]).shape == (2, 4)
    for shape in ((3, 3, 2, 4), (5, 7)):
        array = np.random.default_rng(0).normal(size=shape)
        np.testing.assert_array_equal(convert.from_torch("a/kernel", convert.to_torch("a/kernel", array)), array)


def test_every_part_goes_to_torch_and_back() -> None:
    config = tiny("conv_in")
    for name, abstract in abstract_parameters(config).items():
        params = oracles.random_parameters(abstract)
        back = convert.from_state_dict(name, convert.state_dict(params), abstract)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, back)))


def test_all_that_does_not_fit_is_listed_at_once() -> None:
    abstract = abstract_part(tiny().text_encoder)
    state = convert.state_dict(oracles.random_parameters(abstract))
    del state["final_layer_norm.bias"], state["encoder.layers.0.mlp.fc1.weight"]
    state["logit_scale"] = np.ones(())
    state["final_layer_norm.weight"] = np.ones(5)
    with pytest.raises(ValueError) as error:
        convert.from_state_dict("text_encoder", state, abstract)
    message = str(error.value)
    assert "2 keys missing, 1 unused, 1 of another shape" in message
    for line in (
        "    encoder.layers.0.mlp.fc1.weight\n",
        "    final_layer_norm.bias\n",
        "    logit_scale\n",
        "    final_layer_norm.weight: (5,) in the file, (16,) by the config",
    ):
        assert line in message


def test_older_names_are_understood() -> None:
    """Those of Stable Diffusion 1.5's own files."""
    config = tiny()
    text = abstract_part(config.text_encoder)
    state = convert.state_dict(oracles.random_parameters(text))
    older = {f"text_model.{key}": tensor for key, tensor in state.items()}
    older["text_model.embeddings.position_ids"] = np.arange(77)[None]
    assert trees.flatten(convert.from_state_dict("text_encoder", older, text)).keys() == trees.flatten(text).keys()
    vae = abstract_part(config.vae)
    state = convert.state_dict(oracles.random_parameters(vae))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for key, tensor in state.items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        older[key] = tensor
    assert sum(".proj_attn." in key for key in older) == 4
    converted = trees.flatten(convert.from_state_dict("vae", older, vae))
    path = "decoder/mid_block/attentions_0/to_q/kernel"
    np.testing.assert_array_equal(converted[path], older["decoder.mid_block.attentions.0.query.weight"].T)
    with pytest.raises(ValueError, match="are the same parameter"):
        convert.from_state_dict("vae", {**older, **state}, vae)


def test_a_leaf_that_torch_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="ends in none of kernel, scale, embedding, bias"):
        convert.torch_key("unet/conv_in/gamma")
