"""Stable Diffusion's networks at full size against diffusers and transformers, on torch's own random weights.

Minutes and about 8 GB each: `make test-all`. The largest error, relative to the output's scale, is printed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import convert, trees
from fcjax.config import TextConfig, UNetConfig
from fcjax.models.parameters import abstract_part
from fcjax.models.text import TextEncoder
from fcjax.models.unet import UNet
from fcjax.models.vae import VAE
from fcjax.presets import sd15
from tests import oracles

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

UNETS = {
    "sd15": (UNetConfig(), 859_520_964),
    "sd21": (
        UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        865_910_724,
    ),
    "inpainting": (UNetConfig(in_channels=9), 859_535_364),
}
OPEN_CLIP_H = dataclasses.replace(
    TextConfig(),
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)


def parameters_of(module, name: str, config) -> dict:
    state = {key: tensor.detach().numpy() for key, tensor in module.state_dict().items()}
    return convert.from_state_dict(name, state, abstract_part(config))


def check(name: str, ours: jax.Array, theirs: torch.Tensor) -> None:
    error = oracles.relative_error(ours, oracles.to_array(theirs))
    print(f"{name}: {error:.1e}")
    assert error <= 2e-4


@pytest.mark.parametrize("kind", UNETS)
def test_unet(kind: str) -> None:
    config, count = UNETS[kind]
    torch.manual_seed(0)
    module = oracles.torch_unet(config).eval()
    params = parameters_of(module, "unet", config)
    assert trees.count(params) == count
    sample = oracles.normal(1, 1, 16, 16, config.in_channels)
    text = oracles.normal(2, 1, 77, config.cross_attention_dim)
    with torch.no_grad():
        theirs = module(oracles.to_tensor(sample), torch.tensor([500]), oracles.to_tensor(text)).sample
    del module
    ours = jax.jit(UNet(config).apply)({"params": params}, sample, jnp.asarray([500.0]), text)
    check(kind, ours, theirs)


def test_vae() -> None:
    config = sd15().vae
    torch.manual_seed(0)
    module = oracles.torch_vae(config).eval()
    params = {"params": parameters_of(module, "vae", config)}
    images, latents = oracles.normal(1, 1, 128, 96, 3), oracles.normal(2, 1, 16, 12, 4)
    vae = VAE(config)
    with torch.no_grad():
        posterior = module.encode(oracles.to_tensor(images)).latent_dist
        check("encode", vae.apply(params, images, method=VAE.encode)[0], posterior.mean)
        check("decode", vae.apply(params, latents, method=VAE.decode), module.decode(oracles.to_tensor(latents)).sample)


@pytest.mark.parametrize(("kind", "config"), [("ViT-L/14", TextConfig()), ("OpenCLIP-H", OPEN_CLIP_H)])
def test_text_encoder(kind: str, config: TextConfig) -> None:
    torch.manual_seed(0)
    module = oracles.torch_text_encoder(config).eval()
    params = parameters_of(module, "text_encoder", config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size - 2, (2, 77))
    ours = TextEncoder(config).apply({"params": params}, jnp.asarray(ids))
    with torch.no_grad():
        check(kind, ours, module(torch.tensor(ids)).last_hidden_state)
