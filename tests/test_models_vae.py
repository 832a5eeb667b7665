"""The VAE against diffusers' AutoencoderKL: names and shapes at full size, numbers on random weights (<= 1e-4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import convert, trees
from fcjax.models import vae
from fcjax.models.parameters import abstract_part
from fcjax.models.vae import VAE
from fcjax.network_config import VAEConfig
from fcjax.presets import mini, sd15
from tests import oracles

SMALL = VAEConfig(
    latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=2, norm_num_groups=4, scaling_factor=0.5
)


def test_full_size_has_the_keys_of_the_checkpoint() -> None:
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = {key: tuple(tensor.shape) for key, tensor in oracles.torch_vae(sd15().vae).state_dict().items()}
    abstract = abstract_part(sd15().vae)
    ours = {
        convert.torch_key(path): convert.torch_shape(path, leaf.shape) for path, leaf in trees.flatten(abstract).items()
    }
    assert ours == theirs
    assert trees.count(abstract) == 83_653_863


@pytest.mark.parametrize(
    "config",
    [SMALL, dataclasses.replace(SMALL, use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False)],
    ids=["sd", "plain"],
)
def test_equals_diffusers(config: VAEConfig, parity) -> None:
    torch = pytest.importorskip("torch")
    params = oracles.random_part(config)
    module = oracles.load_into(oracles.torch_vae(config), params)
    images, latents = oracles.normal(1, 2, 24, 16, 3), oracles.normal(2, 2, 6, 4, 4)
    mean, log_variance = VAE(config).apply({"params": params}, images, method=VAE.encode)
    decoded = VAE(config).apply({"params": params}, latents, method=VAE.decode)
    with torch.no_grad():
        posterior = module.encode(oracles.to_tensor(images)).latent_dist
        expected = module.decode(oracles.to_tensor(latents)).sample
    parity(mean, oracles.to_array(posterior.mean), most=1e-4, what="mean")
    parity(log_variance, oracles.to_array(posterior.logvar), most=1e-4, what="log-variance")
    parity(decoded, oracles.to_array(expected), most=1e-4, what="decoded")


def test_gradients_equal_torch_autograd(gradient_parity) -> None:
    """Of every parameter: the mean's reconstruction, and the log-variance."""
    pytest.importorskip("torch")
    params, images = oracles.random_part(SMALL), oracles.normal(1, 1, 16, 8, 3)
    module = oracles.load_into(oracles.torch_vae(SMALL), params)

    @jax.jit
    @jax.grad
    def gradient(params):
        decoded, _, log_variance = VAE(SMALL).apply({"params": params}, images)
        return jnp.sum((decoded - images) ** 2) + jnp.sum(log_variance**2)

    posterior = module.encode(oracles.to_tensor(images)).latent_dist
    decoded = module.decode(posterior.mean).sample
    (((decoded - oracles.to_tensor(images)) ** 2).sum() + (posterior.logvar**2).sum()).backward()
    gradient_parity(convert.state_dict(gradient(params)), oracles.torch_gradients(module))


def test_patches_of_pixels_go_in_and_come_out_in_place() -> None:
    """With patch_size 2 the grid that the convolutions see has 12 channels and half the side."""
    config = dataclasses.replace(SMALL, in_channels=12, out_channels=12, patch_size=2, block_out_channels=(8, 16))
    params = oracles.random_part(config)
    images = oracles.normal(1, 1, 16, 8, 3)
    moments = VAE(config).apply({"params": params}, images, method=VAE.encode)[0]
    assert config.factor == 4 and moments.shape == (1, 4, 2, 4)
    assert VAE(config).apply({"params": params}, moments, method=VAE.decode).shape == images.shape
    assert np.array_equal(vae._pixels(vae.patches(images, 2), 2), images)
    patches = vae.patches(jnp.arange(16.0).reshape(1, 4, 4, 1).repeat(3, -1), 2)
    assert sorted(set(np.asarray(patches[0, 1, 0]).tolist())) == [8.0, 9.0, 12.0, 13.0]


def test_call_draws_from_the_posterior() -> None:
    params = oracles.random_part(SMALL)
    images = oracles.normal(1, 1, 8, 8, 3)
    plain, mean, _ = VAE(SMALL).apply({"params": params}, images)
    drawn = VAE(SMALL).apply({"params": params}, images, jax.random.key(0))[0]
    again = VAE(SMALL).apply({"params": params}, images, jax.random.key(0))[0]
    decoded = VAE(SMALL).apply({"params": params}, mean, method=VAE.decode)
    assert np.array_equal(plain, decoded) and np.array_equal(drawn, again) and not np.allclose(plain, drawn)


def test_bfloat16_computes_close_to_float32_and_returns_float32() -> None:
    params = oracles.random_part(SMALL)
    latents = oracles.normal(2, 1, 4, 4, 4)
    exact = VAE(SMALL).apply({"params": params}, latents, method=VAE.decode)
    rough = VAE(SMALL, dtype=jnp.bfloat16).apply({"params": params}, latents, method=VAE.decode)
    assert rough.dtype == jnp.float32
    assert 1e-6 < oracles.relative_error(rough, exact) < 0.1


def test_the_mini_vae_has_factor_4() -> None:
    assert mini().vae.factor == 4


LINEAR = dataclasses.replace(
    SMALL,
    latent_channels=5,
    scaling_factor=1.0,
    use_quant_conv=False,
    use_post_quant_conv=False,
    mid_block_add_attention=False,
    linear_encoder=True,
)


def smooth(count: int) -> jax.Array:
    """Pictures whose neighbouring pixels are alike, (count, 32, 32, 3) in [-1, 1]."""
    noise = np.random.default_rng(0).standard_normal((count, 9, 9, 3))
    return jnp.asarray(np.clip(0.5 * noise.repeat(4, 1).repeat(4, 2)[:, 2:34, 2:34], -1, 1), jnp.float32)


def test_a_linear_encoder_is_the_best_linear_code_of_the_pixels() -> None:
    images = smooth(16)
    params = {**oracles.random_part(LINEAR), **vae.principal_components(images, LINEAR)}
    params["decoder"]["conv_out"] = jax.tree.map(jnp.zeros_like, params["decoder"]["conv_out"])
    restored, latents, log_variance = VAE(LINEAR).apply({"params": params}, images, jax.random.key(0))
    assert np.all(log_variance == -30.0)
    latents = latents.reshape(-1, 5)
    assert np.allclose(latents.mean(0), 0.0, atol=1e-4)
    assert float(jnp.mean(jnp.var(latents, axis=0))) == pytest.approx(1.0, rel=1e-3)
    # The truncated singular value decomposition has the least squared error of all codes of 5 numbers.
    cells = np.asarray(vae.patches(images, LINEAR.factor)).reshape(-1, 3 * LINEAR.factor**2)
    left, sizes, right = np.linalg.svd(cells - cells.mean(0), full_matrices=False)
    best = (left[:, :5] * sizes[:5]) @ right[:5] + cells.mean(0)
    ours = np.asarray(vae.patches(restored, LINEAR.factor)).reshape(cells.shape)
    np.testing.assert_allclose(ours, best, atol=2e-4)


def test_a_linear_decoder_adds_what_its_network_gives() -> None:
    params, latents = oracles.random_part(LINEAR), oracles.normal(2, 1, 4, 4, 5)
    whole = VAE(LINEAR).apply({"params": params}, latents, method=VAE.decode)
    no_network = {**params, "decoder": jax.tree.map(jnp.zeros_like, params["decoder"])}
    no_line = {**params, "linear_decoder": jax.tree.map(jnp.zeros_like, params["linear_decoder"])}
    parts = [VAE(LINEAR).apply({"params": part}, latents, method=VAE.decode) for part in (no_network, no_line)]
    np.testing.assert_allclose(whole, parts[0] + parts[1], atol=1e-5)
    assert min(float(jnp.std(part)) for part in parts) > 0.1
    with pytest.raises(ValueError, match="set both False"):
        dataclasses.replace(LINEAR, use_quant_conv=True)
