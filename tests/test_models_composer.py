"""The composer: what must hold whatever the weights, its conditions and its start."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import trees
from fcjax.config import ComposerConfig
from fcjax.models import composer
from fcjax.models.binder import Binder
from fcjax.models.parameters import abstract_binder, abstract_parameters, init_parameters
from fcjax.network_config import BindingVariant
from fcjax.presets import mini, sd15, tiny
from tests import oracles
from tests.dual_unet import composing, denoised, features_of, inputs_of

# ---------------------------------------------------------------------------------------------------------------------
# Behaviour


@pytest.fixture(scope="module")
def all_bound() -> tuple[ComposerConfig, dict[str, Any], Any]:
    config = tiny("all")
    return config, oracles.random_parameters(abstract_parameters(config)), composing(config)


@pytest.mark.parametrize("variant", ["conv_in", "smallest", "all"])
def test_a_binder_at_its_start_adds_nothing(variant: BindingVariant) -> None:
    config = tiny(variant)
    started = init_parameters(config, jax.random.key(0))["binder"]
    inputs = inputs_of(config)
    phrases = composer.phrase_vectors(inputs["text"], inputs["spans"])
    masks = composer.level_masks(config, inputs["masks"])
    bound = Binder(config.binder, config.unet).apply({"params": started}, phrases, masks)
    assert set(bound) == (
        {"conv_in"} if variant == "conv_in" else {name for name, _ in config.binder.blocks(config.unet)}
    )
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(bound))


def test_zero_initialised_binding_equals_none(all_bound) -> None:
    config, params, _ = all_bound
    inputs = inputs_of(config)
    started = {**params, "binder": init_parameters(config, jax.random.key(0))["binder"]}
    unbound = {name: tree for name, tree in params.items() if name != "binder"}
    with_binder = jax.jit(lambda p: features_of(p, config, inputs))(started)
    without = jax.jit(lambda p: features_of(p, tiny("none"), inputs))(unbound)
    for bound, plain in zip(jax.tree.leaves(with_binder), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(bound, plain)


def test_binding_depends_on_the_phrase_and_only_on_covered_tokens(all_bound) -> None:
    config, params, _ = all_bound
    inputs = inputs_of(config)
    swapped = {**inputs, "spans": inputs["spans"][:, jnp.asarray([1, 0, 2])]}
    features = jax.jit(lambda inputs: features_of(params, config, inputs))
    first, other = features(inputs), features(swapped)
    # Layer 0 sees nothing but its own input: its keys differ where an asset is, and nowhere else.
    changed = np.abs(np.asarray(first.layers[0][0] - other.layers[0][0])).max(-1) > 1e-6
    np.testing.assert_array_equal(changed, np.asarray(first.masks[0]))


def test_an_asset_that_no_token_sees_changes_nothing(all_bound) -> None:
    """The padding of the asset axis may hold any phrase: with an empty mask it is out of the picture."""
    config, params, compose = all_bound
    inputs = inputs_of(config)
    phrased = {**inputs, "spans": inputs["spans"].at[:, 2].set(1 / 9)}
    np.testing.assert_array_equal(compose(params, inputs), compose(params, phrased))
    seen = {**phrased, "masks": inputs["masks"].at[:, 2, :4, 20:].set(1.0)}
    assert oracles.relative_error(compose(params, seen), compose(params, inputs)) > 1e-4


def test_zero_assets_are_the_plain_denoiser(all_bound) -> None:
    """Without assets and with blank tokens hidden nothing is injected: the reference cannot be felt at all."""
    config, params, compose = all_bound
    inputs = inputs_of(config)
    nothing = {**inputs, "masks": jnp.zeros_like(inputs["masks"])}
    plain = jax.jit(lambda p: denoised(p, config, inputs))(params)
    # Not to the last bit: the sums over twice as many keys are taken in another order.
    assert oracles.relative_error(compose(params, nothing), plain) <= 1e-5
    hidden = jax.jit(
        lambda p: denoised(p, config, inputs, composer.keep_assets(features_of(p, config, inputs), jnp.zeros(2, bool)))
    )(params)
    assert oracles.relative_error(hidden, plain) <= 1e-5


def test_attend_blank_shows_the_empty_canvas(all_bound) -> None:
    config, params, compose = all_bound
    seeing = dataclasses.replace(config, attend_blank=True)
    inputs = inputs_of(config)
    shape = jax.eval_shape(lambda p: features_of(p, seeing, inputs), params)
    assert [mask.shape[1] for mask in shape.masks] == [64 >> (2 * level) for level in config.unet.attention_levels]
    assert oracles.relative_error(composing(seeing)(params, inputs), compose(params, inputs)) > 1e-4


def test_samples_of_a_batch_do_not_mix(all_bound) -> None:
    config, params, compose = all_bound
    inputs = inputs_of(config)
    alone = compose(params, jax.tree.map(lambda leaf: leaf[1:], inputs))
    assert oracles.relative_error(alone, compose(params, inputs)[1:]) <= 1e-5


def test_repeated_reference_serves_several_images(all_bound) -> None:
    config, params, _ = all_bound
    features = jax.eval_shape(lambda p: composer.repeat_features(features_of(p, config, inputs_of(config)), 3), params)
    assert all(leaf.shape[0] == 6 for leaf in jax.tree.leaves(features))


def test_gradients_reach_everything_that_is_used(all_bound) -> None:
    """All of the denoiser and the binder; of the reference UNet all but what lies behind its last keys and values."""
    config, params, _ = all_bound
    inputs = inputs_of(config)
    target = oracles.normal(9, *inputs["noisy"].shape)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.mean((denoised(params, config, inputs, features_of(params, config, inputs)) - target) ** 2)

    flat = trees.flatten(gradient(params))
    unused = {path for path, leaf in flat.items() if not np.any(np.asarray(leaf))}
    last = "reference_unet/up_blocks_1/attentions_1"
    for path in unused:
        assert path.startswith(("reference_unet/conv_", "vae/", "text_encoder/", last)), path
    assert f"{last}/transformer_blocks_0/attn1/to_k/kernel" not in unused
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in flat.values())


def test_bfloat16_stays_close(all_bound) -> None:
    config, params, compose = all_bound
    inputs = inputs_of(config)

    @jax.jit
    def roughly(params):
        names = ("canvas", "text", "spans", "masks")
        features = composer.appearance_features(params, config, *(inputs[n] for n in names), dtype=jnp.bfloat16)
        names = ("noisy", "timesteps", "text", "condition")
        return composer.denoise(params, config, *(inputs[n] for n in names), features, dtype=jnp.bfloat16)

    rough = roughly(params)
    assert rough.dtype == jnp.float32
    assert 1e-6 < oracles.relative_error(rough, compose(params, inputs)) < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Conditions, images, parameters


def _with_pose(patch: int, octaves: int) -> ComposerConfig:
    """`tiny` with 8x8 tokens and other channels of the pose."""
    config = tiny()
    unet = dataclasses.replace(config.unet, in_channels=4 + 2 * patch**2 + 6 * octaves)
    return dataclasses.replace(config, unet=unet, pose_patch=patch, pose_octaves=octaves)


def test_pose_channels_take_the_nearest_pixel_of_each_point() -> None:
    uv = jnp.stack(jnp.meshgrid(jnp.arange(32.0), jnp.arange(32.0)), -1)[None]
    nowhere = jnp.zeros((1, 32, 32, 3))
    paper = composer.pose_channels(_with_pose(1, 0), uv, nowhere)
    assert paper.shape == (1, 8, 8, 2)
    np.testing.assert_array_equal(paper[0, 1, 2], [10, 6])
    fine = composer.pose_channels(_with_pose(4, 0), uv, nowhere)
    assert fine.shape == (1, 8, 8, 32)
    np.testing.assert_array_equal(fine[0, 2, 3].reshape(4, 4, 2), uv[0, 8:12, 12:16])
    with pytest.raises(ValueError, match="smaller than the 32x32 points"):
        composer.pose_channels(_with_pose(4, 0), uv[:, :31], nowhere[:, :31])


def test_pose_channels_tell_where_on_a_resting_body_a_token_lies() -> None:
    uv = jnp.full((1, 16, 16, 2), -1.0).at[:, :2, :2].set(0.5).at[:, 2, 0].set(0.1)
    places = jnp.where(uv[..., :1] < 0, 0.0, jnp.asarray([1.0, 0.5, -1.0]))
    channels = np.asarray(composer.pose_channels(_with_pose(2, 2), uv, places))[0, ..., 8:]
    root = 0.5**0.5
    whole = [1, 0, root, 1, -1, 0, 0, -1, root, 0, 0, -1]
    np.testing.assert_allclose(channels[0, 0], whole, atol=1e-6)
    # One of this token's four points is on the body; the others add nothing.
    np.testing.assert_allclose(channels[1, 0], np.divide(whole, 4), atol=1e-6)
    assert not channels[2:].any()


def test_asset_channels_span_each_box() -> None:
    masks = np.zeros((1, 2, 4, 8), np.float32)
    masks[0, 0, 1:3, 0:4], masks[0, 1, 3, 6] = 1, 0.5
    found = np.asarray(composer.asset_channels(jnp.asarray(masks), 1))[0]
    sines, cosines = found[..., :2], found[..., 2:]
    np.testing.assert_allclose(sines[1, 0:4, 0], np.sin(np.pi / 2 * np.array([-0.75, -0.25, 0.25, 0.75])), rtol=1e-5)
    np.testing.assert_allclose(cosines[1:3, 0, 1], [0.5**0.5] * 2, rtol=1e-5)
    np.testing.assert_allclose(found[3, 6], [0, 0, 0.5, 0.5])
    assert not found[0].any() and not found[:, 4:6].any()
    assert composer.asset_channels(jnp.asarray(masks), 5).shape == (1, 4, 8, 20)


def test_level_masks_keep_every_asset_at_every_level() -> None:
    config = tiny()
    masks = np.zeros((1, config.max_assets, 32, 32), np.float32)
    masks[0, 0, 9, 9] = 1
    for level in composer.level_masks(config, jnp.asarray(masks)):
        assert np.count_nonzero(level[0, 0]) == 1 and not np.any(level[0, 1:])
    with pytest.raises(ValueError, match="do not divide"):
        composer.area_average(jnp.zeros((1, 1, 30, 32)), 8, 8)


def test_try_on_channels_join_the_latent() -> None:
    config = tiny(condition="tryon")
    masks = jnp.zeros((1, 32, 32)).at[:, :16].set(1.0)
    condition = composer.tryon_channels(oracles.normal(0, 1, 8, 8, 4), masks)
    assert condition.shape[-1] == config.condition_channels == 5
    np.testing.assert_array_equal(condition[0, :, 0, 4], [1, 1, 1, 1, 0, 0, 0, 0])


def test_latents_are_scaled_and_images_clipped() -> None:
    config = tiny()
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, scaling_factor=0.25, shift_factor=0.5))
    params = oracles.random_parameters(abstract_parameters(config))
    images = jnp.clip(oracles.normal(0, 1, 32, 32, 3), -1, 1)
    encode = jax.jit(composer.encode_images, static_argnums=1)
    latents, raw = encode(params, config, images), encode(params, tiny(), images)
    np.testing.assert_allclose(latents, (raw - 0.5) * 0.25, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(composer.unscale_latents(config.vae, latents), raw, rtol=1e-5, atol=1e-5)
    decoded = jax.jit(composer.decode_latents, static_argnums=1)(params, config, 100 * latents)
    assert decoded.shape == images.shape and float(jnp.abs(decoded).max()) == 1.0
    drawn = encode(params, config, images, jax.random.key(0))
    assert not np.allclose(drawn, latents)


def test_start_of_training_is_reproducible_and_finite() -> None:
    config = tiny()
    params = init_parameters(config, jax.random.key(3))
    again = trees.flatten(init_parameters(config, jax.random.key(3)))
    other = trees.flatten(init_parameters(config, jax.random.key(4)))
    flat = trees.flatten(params)
    assert flat.keys() == trees.flatten(abstract_parameters(config)).keys()
    assert all(np.array_equal(leaf, again[path]) for path, leaf in flat.items())
    assert not np.array_equal(flat["unet/conv_in/kernel"], other["unet/conv_in/kernel"])
    assert not np.array_equal(flat["unet/conv_in/kernel"][:, :, :4], flat["reference_unet/conv_in/kernel"][:, :, :4])
    kernel = flat["vae/decoder/mid_block/resnets_0/conv1/kernel"]
    assert float(jnp.std(kernel)) == pytest.approx(np.prod(kernel.shape[:3]) ** -0.5, rel=0.1)


def test_sizes_of_the_presets() -> None:
    """The UNets, the VAE and the text encoder of sd15 are counted against their checkpoints elsewhere."""
    full = sd15()
    assert trees.count(abstract_binder(full.binder, full.unet)) == 12_993_024
    assert trees.count(abstract_parameters(mini())) <= 13_000_000
    assert abstract_binder(tiny("none").binder, tiny().unet) == {}
