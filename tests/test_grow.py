"""Models that compute what they were made from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import folder, presets, trees
from fcjax.cli import run
from fcjax.config import ComposerConfig
from fcjax.models import composer
from fcjax.models.parameters import init_parameters
from fcjax.network_config import CROSS_ATTENTION_UP, PLAIN_UP
from tests.dual_unet import inputs_of
from train import grow


def predict(params: dict[str, Any], config: ComposerConfig) -> jax.Array:
    """The denoiser's prediction with the reference's bound keys and values."""
    given = inputs_of(config)
    text = given["text"]
    features = composer.appearance_features(params, config, given["canvas"], text, given["spans"], given["masks"])
    noisy = given["canvas"][..., : config.vae.latent_channels] * 0.5
    return composer.denoise(params, config, noisy, jnp.asarray([3.0, 700.0]), text, given["condition"], features)


def tiny_with(up_block_types: tuple[str, str]) -> ComposerConfig:
    """The tests' model with other up blocks, the coarser first."""
    tiny = presets.tiny()
    unets = {
        part: dataclasses.replace(getattr(tiny, part), up_block_types=up_block_types)
        for part in ("unet", "reference_unet")
    }
    return dataclasses.replace(tiny, **unets)


@pytest.mark.parametrize(
    ("up_block_types", "layers", "attend"),
    [
        pytest.param((CROSS_ATTENTION_UP, CROSS_ATTENTION_UP), (2, 1), (), marks=pytest.mark.slow),
        ((CROSS_ATTENTION_UP, CROSS_ATTENTION_UP), (1, 3), ()),
        pytest.param((CROSS_ATTENTION_UP, PLAIN_UP), (2, 2), (0,), marks=pytest.mark.slow),
        ((CROSS_ATTENTION_UP, PLAIN_UP), (), (0,)),
    ],
)
def test_a_grown_model_computes_what_it_grew_from(
    up_block_types: tuple[str, str], layers: tuple[int, ...], attend: tuple[int, ...]
):
    config = tiny_with(up_block_types)
    params = init_parameters(config, jax.random.key(0))
    params = trees.map_paths(lambda path, leaf: leaf + 0.02 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), params)
    larger, more = grow.grown(params, config, layers, attend)
    assert trees.count(more["unet"]) > trees.count(params["unet"])
    assert larger.unet.up_block_types == (CROSS_ATTENTION_UP, CROSS_ATTENTION_UP)
    assert len(more["binder"]) == len(params["binder"]) + len(attend)
    before, after = (jax.jit(predict, static_argnums=1)(*given) for given in ((params, config), (more, larger)))
    # The new layers' keys and values stand beside the old ones, but what is read of them counts for nothing.
    np.testing.assert_allclose(after, before, atol=2e-5 * float(np.abs(before).max()))


def test_lower_hidden_values_make_the_same_prediction():
    tiny = presets.tiny()
    # Groups of 16 channels of 48 and 16, and of 8 of 16 and 16: none holds both hidden and skip channels.
    unets = {
        part: dataclasses.replace(getattr(tiny, part), block_out_channels=(16, 48), norm_num_groups=4)
        for part in ("unet", "reference_unet")
    }
    config = dataclasses.replace(tiny, **unets)
    params = init_parameters(config, jax.random.key(0))
    params = trees.map_paths(lambda path, leaf: leaf + 0.02 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), params)
    lower = {part: grow.lowered(params[part], unet, 4.0) for part, unet in unets.items()}
    raised = {part: grow.lowered(params[part], unet, 0.1) for part, unet in unets.items()}
    before, after, other = (predict(given, config) for given in (params, {**params, **lower}, {**params, **raised}))
    scale = float(np.abs(before).max())
    np.testing.assert_allclose(after, before, atol=2e-4 * scale)
    np.testing.assert_allclose(other, before, atol=2e-4 * scale)
    changed = {
        path for path, leaf in trees.flatten(lower["unet"]).items() if leaf is not trees.flatten(params["unet"])[path]
    }
    assert {path.split("/")[0] for path in changed} == {"up_blocks_0", "up_blocks_1"}
    assert "up_blocks_1/attentions_0/proj_out/kernel" in changed and "up_blocks_0/upsamplers_0/conv/kernel" in changed
    with pytest.raises(ValueError, match="a positive number of times smaller, got 0"):
        grow.lowered(params["unet"], config.unet, 0)


def test_the_program_writes_a_model_folder(tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(grow.main, [str(tiny_model_folder), str(tmp_path / "deep"), "--layers", "2", "1", "--lower", "1", "2"])
    config, params = folder.load(tmp_path / "deep")
    assert config.unet.layers_per_block == config.reference_unet.layers_per_block == (2, 1)
    assert "resnets_2" in params["unet"]["up_blocks_1"] and "resnets_2" not in params["unet"]["up_blocks_0"]
    assert "parameters, of" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run(grow.main, [str(tmp_path / "deep"), str(tmp_path / "shallow"), "--layers", "1", "1"])
    assert ended.value.code == 2 and "layers can only be added: unet has 2 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run(grow.main, [str(tmp_path / "deep"), str(tmp_path / "finer"), "--attend", "2"])
    assert ended.value.code == 2 and "attention was asked for at (2,)" in capsys.readouterr().err
