"""Conditions are computed once per image: what the steps and the guidance branches reuse is what each would compute."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import generation, presets
from fcjax.config import ComposerConfig
from fcjax.generation import Inputs, denoiser, make_conditions
from fcjax.models import composer
from fcjax.models.parameters import abstract_parameters
from fcjax.samplers import sampler_table
from fcjax.sampling import guidance_branches, image_keys, initial_latents, make_guidance, sample
from tests import oracles
from tests.dual_unet import inputs_of

FLOAT32 = jnp.float32


@pytest.fixture(scope="module")
def model() -> tuple[ComposerConfig, dict[str, Any], Inputs]:
    config = presets.tiny()
    params, given = oracles.random_parameters(abstract_parameters(config)), inputs_of(config)
    spans = jnp.zeros((2, config.max_assets, 77)).at[:, :, :9].set(given["spans"])
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 60, (2, 77)))
    return config, params, Inputs(ids, ids[0] * 0, spans, given["canvas"], given["masks"], given["condition"])


@pytest.mark.parametrize(
    ("guidance", "reference_guidance"), [pytest.param(2.0, None, marks=pytest.mark.slow), (3.0, 1.5)]
)
def test_the_reference_once_is_the_reference_at_every_step(model, guidance: float, reference_guidance) -> None:
    config, params, inputs = model
    branches = guidance_branches(guidance, reference_guidance)
    table, keys = sampler_table(config.diffusion, 4), image_keys(0, 2)
    mixing = make_guidance(branches, guidance, reference_guidance)
    noise = initial_latents(table, keys, config.latent_height, config.latent_width, config.vae.latent_channels)
    denoise = denoiser(config, FLOAT32)

    def anew(given, latents, timestep):
        """The whole of the conditions within the step, a reference pass for each of the branches' images."""
        params, inputs = given
        return denoise(
            (composer.denoising_parameters(params), make_conditions(params, config, inputs, branches)),
            latents,
            timestep,
        )

    @jax.jit
    def once(params, inputs):
        return sample(
            denoise,
            (composer.denoising_parameters(params), make_conditions(params, config, inputs, branches)),
            table,
            mixing,
            keys,
            noise,
        )

    every_step = jax.jit(lambda params, inputs: sample(anew, (params, inputs), table, mixing, keys, noise))
    reused, recomputed = once(params, inputs), every_step(params, inputs)
    assert np.isfinite(reused).all()
    np.testing.assert_array_equal(reused, recomputed)


def test_the_reference_pass_sees_the_full_prompt_in_every_branch_and_runs_once(model, monkeypatch) -> None:
    config, params, inputs = model
    seen = []
    true_pass = composer.appearance_features

    def watched(params, config, latents, text, *rest, **options):
        seen.append(text)
        return true_pass(params, config, latents, text, *rest, **options)

    monkeypatch.setattr(generation.model, "appearance_features", watched)
    branches = guidance_branches(3.0, 1.5)
    conditions = make_conditions(params, config, inputs, branches)
    [text] = seen
    np.testing.assert_array_equal(text, composer.encode_prompt(params, config, inputs.ids))
    empty = composer.encode_prompt(params, config, inputs.empty_ids[None])[0]
    # Of text guidance, only the denoiser hears.
    for row, expected in zip(conditions.text, [*text, empty, empty, empty, empty], strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-6)
    full, reference_only, neither = np.split(np.asarray(conditions.features.masks[0]), 3)
    np.testing.assert_array_equal(full, reference_only)
    assert full.any() and not neither.any()
    for keys, values in conditions.features.layers:
        np.testing.assert_array_equal(*np.split(np.asarray(keys), 3)[:2])
        np.testing.assert_array_equal(*np.split(np.asarray(values), 3)[:2])


def test_prompt_assets_steps_scales_and_seeds_do_not_recompile(model) -> None:
    """Of the whole of a picture's programs: conditions, sampling, decoding; counted by what was compiled."""
    config, params, inputs = model
    branches = guidance_branches(2.0)
    prepare = jax.jit(lambda params, inputs: make_conditions(params, config, inputs, branches))

    def picture(inputs: Inputs, steps: int, sampler: str, guidance: float, rescale: float, seed: int) -> np.ndarray:
        table, keys = sampler_table(config.diffusion, steps, sampler), image_keys(seed, 2)
        noise = initial_latents(table, keys, config.latent_height, config.latent_width, config.vae.latent_channels)
        mixing = make_guidance(branches, guidance, rescale=rescale)
        conditions = prepare(params, inputs)
        return np.asarray(
            generation.generate(params, conditions, table, mixing, keys, noise, config=config, dtype=FLOAT32)
        )

    def programs() -> int:
        return prepare._cache_size() + generation.generate_unchecked._cache_size() + generation._decode._cache_size()

    first = picture(inputs, 3, "ddim", 2.0, 0.0, 0)
    count = programs()
    assert count >= 2
    fewer = inputs._replace(masks=inputs.masks.at[:, 1:].set(0.0), spans=inputs.spans.at[:, 1:].set(0.0))
    other = inputs._replace(ids=inputs.ids[:, ::-1])
    for changed in (
        (fewer, 3, "ddim", 2.0, 0.0, 0),
        (other, 3, "ddim", 2.0, 0.0, 0),
        (inputs, 30, "dpmpp_2m_karras", 2.0, 0.0, 0),
        (inputs, 3, "lcm", 2.0, 0.0, 0),
        (inputs, 3, "ddim", 9.0, 0.7, 0),
        (inputs, 3, "ddim", 2.0, 0.0, 5),
    ):
        assert not np.array_equal(picture(*changed), first)
        assert programs() == count, changed[1:]


def test_nan_is_no_picture(model) -> None:
    """8 bits would show it as black."""
    config, params, _ = model
    shape = (1, config.latent_height, config.latent_width, config.vae.latent_channels)
    assert generation.decode(params, jnp.zeros(shape), config=config, dtype=FLOAT32).dtype == np.uint8
    broken = jnp.zeros(shape).at[0, 0, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="the model drew NaN or infinite numbers, no pictures"):
        generation.decode(params, broken, config=config, dtype=FLOAT32)
    decoder = params["vae"]["decoder"]
    last = {**decoder["conv_out"], "bias": jnp.full_like(decoder["conv_out"]["bias"], -jnp.inf)}
    infinite = {**params, "vae": {**params["vae"], "decoder": {**decoder, "conv_out": last}}}
    with pytest.raises(ValueError, match="the model drew NaN or infinite numbers, no pictures"):
        generation.decode(infinite, jnp.zeros(shape), config=config, dtype=FLOAT32)
    # While a program is traced, as for exports, there are no numbers to look at.
    traced = jax.jit(lambda latents: generation.decode(params, latents, config=config, dtype=FLOAT32))
    assert traced(jnp.zeros(shape)).shape[-1] == 3
