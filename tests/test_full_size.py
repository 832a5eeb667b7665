"""Stable Diffusion's networks at full size against diffusers and transformers, on torch's own random weights.

Minutes and about 8 GB each: `make test-all`. Programs are optimised as users' are.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import convert, trees
from fcjax.models.parameters import abstract_part
from fcjax.models.text import TextEncoder
from fcjax.models.unet import UNet
from fcjax.models.vae import VAE
from fcjax.network_config import TextConfig, UNetConfig
from fcjax.presets import sd15
from tests import oracles

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]

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


@pytest.mark.parametrize("kind", UNETS)
def test_unet(kind: str, parity) -> None:
    config, count = UNETS[kind]
    torch.manual_seed(0)
    module = oracles.torch_unet(config).eval()
    params = parameters_of(module, "unet", config)
    assert trees.count(params) == count
    # Large enough for a CPU to convolve by tiles.
    sample = oracles.normal(1, 1, 32, 32, config.in_channels)
    text = oracles.normal(2, 1, 77, config.cross_attention_dim)
    with torch.no_grad():
        theirs = module(oracles.to_tensor(sample), torch.tensor([500]), oracles.to_tensor(text)).sample
    del module
    ours = jax.jit(UNet(config).apply)({"params": params}, sample, jnp.asarray([500.0]), text)
    parity(ours, oracles.to_array(theirs), most=2e-4)


def test_vae(parity) -> None:
    config = sd15().vae
    torch.manual_seed(0)
    module = oracles.torch_vae(config).eval()
    params = {"params": parameters_of(module, "vae", config)}
    images, latents = oracles.normal(1, 1, 128, 96, 3), oracles.normal(2, 1, 16, 12, 4)
    encode, decode = (jax.jit(functools.partial(VAE(config).apply, method=way)) for way in (VAE.encode, VAE.decode))
    with torch.no_grad():
        mean = module.encode(oracles.to_tensor(images)).latent_dist.mean
        decoded = module.decode(oracles.to_tensor(latents)).sample
    parity(encode(params, images)[0], oracles.to_array(mean), most=2e-4, what="encode")
    parity(decode(params, latents), oracles.to_array(decoded), most=2e-4, what="decode")


@pytest.mark.parametrize(("kind", "config"), [("ViT-L/14", TextConfig()), ("OpenCLIP-H", OPEN_CLIP_H)])
def test_text_encoder(kind: str, config: TextConfig, parity) -> None:
    torch.manual_seed(0)
    module = oracles.torch_text_encoder(config).eval()
    params = parameters_of(module, "text_encoder", config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size - 2, (2, 77))
    ours = jax.jit(TextEncoder(config).apply)({"params": params}, jnp.asarray(ids))
    with torch.no_grad():
        parity(ours, module(torch.tensor(ids)).last_hidden_state, most=2e-4)
