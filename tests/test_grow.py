"""Deeper models that compute what they grew from."""

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


def test_the_program_writes_a_model_folder(tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(grow.main, [str(tiny_model_folder), str(tmp_path / "deep"), "--layers", "2", "1"])
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
