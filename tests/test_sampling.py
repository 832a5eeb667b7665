"""The sampling loop: its two drivers agree, guidance and seeds mean what they say, and data does not recompile."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import samplers, sampling
from fcjax.config import DiffusionConfig
from fcjax.sampling import FULL, REFERENCE_ONLY, UNCONDITIONAL

SAMPLE_JITTED = jax.jit(sampling.sample, static_argnames="denoise")
CONFIG = DiffusionConfig(
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    rescale_betas_zero_snr=True,
    set_alpha_to_one=True,
)
GOLDEN_NOISE = [1.1140472, 0.14163129, -0.5224542, -0.43304625]
SAMPLERS = {"ddim": 0.0, "ddim ancestral": 1.0, "euler": 0.0, "dpmpp_2m": 0.0, "dpmpp_2m_sde": 0.0, "lcm": 0.0}


def table_of(name: str, steps: int) -> samplers.SamplerTable:
    return samplers.sampler_table(CONFIG, steps, name.split()[0], max_steps=32, eta=SAMPLERS[name])


def denoise(conditions: dict, latents: jax.Array, timestep: jax.Array) -> jax.Array:
    """A branch is a shift and a scale of each image's own latents: nonlinear, and different in every branch."""
    shifts = conditions["shifts"][:, None, None, None, None]
    return jnp.tanh(conditions["scale"] * latents[None] + shifts) + 0.1 * jnp.cos(timestep / 100.0)


def conditions_for(branches: int) -> dict:
    return {"shifts": jnp.asarray([0.3, -0.2, 0.1][:branches]), "scale": jnp.float32(0.8)}


def run(driver, name="ddim", steps=6, seed=3, images=2, branches=1, weights=None, **extra) -> np.ndarray:
    table, keys = table_of(name, steps), sampling.image_keys(seed, images)
    guidance = sampling.Guidance(jnp.asarray(weights or [1.0]), jnp.float32(0.0))
    latents = sampling.initial_latents(table, keys, 4, 3, 2)
    return np.asarray(driver(denoise, conditions_for(branches), table, guidance, keys, latents, **extra))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_program_equals_steps_driven_from_python(name: str) -> None:
    whole = run(SAMPLE_JITTED, name)
    stepped = run(sampling.sample_stepwise, name)
    assert np.all(np.isfinite(whole))
    np.testing.assert_allclose(whole, stepped, rtol=1e-5, atol=1e-5)
    assert np.abs(whole - run(SAMPLE_JITTED, name, steps=7)).max() > 1e-3


def test_padding_is_never_read() -> None:
    table = table_of("ddim ancestral", 6)
    poisoned = dataclasses.replace(
        table,
        **{
            field.name: getattr(table, field.name).at[6:].set(jnp.nan)
            for field in dataclasses.fields(table)
            if getattr(table, field.name).ndim
        },
    )
    keys = sampling.image_keys(0, 1)
    latents = sampling.initial_latents(table, keys, 4, 3, 2)
    arguments = (sampling.make_guidance((FULL,), 1.0), keys, latents)
    np.testing.assert_array_equal(
        SAMPLE_JITTED(denoise, conditions_for(1), poisoned, *arguments),
        SAMPLE_JITTED(denoise, conditions_for(1), table, *arguments),
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_depends_on_its_seed_alone(name: str) -> None:
    batch = run(SAMPLE_JITTED, name, seed=10, images=3)
    for index in range(3):
        alone = run(SAMPLE_JITTED, name, seed=10 + index, images=1)
        np.testing.assert_allclose(batch[index], alone[0], rtol=1e-6, atol=1e-6)
    assert np.abs(batch[0] - batch[1]).max() > 0.1
    np.testing.assert_array_equal(batch, run(SAMPLE_JITTED, name, seed=10, images=3))


def test_initial_noise_is_the_same_bits_in_any_batch() -> None:
    table = table_of("ddim", 5)
    batch = sampling.initial_latents(table, sampling.image_keys(2**32 - 4, 4), 32, 24, 4)
    alone = sampling.initial_latents(table, sampling.image_keys(2**32 - 2, 1), 32, 24, 4)
    np.testing.assert_array_equal(batch[2], alone[0])
    assert abs(float(batch.mean())) < 0.04 and abs(float(batch.std()) - 1.0) < 0.03


def test_what_a_seed_means_is_fixed() -> None:
    """If this fails, every stored request gives another picture: say so in the changelog."""
    latents = sampling.initial_latents(table_of("ddim", 5), sampling.image_keys(7, 1), 1, 1, 4)
    np.testing.assert_allclose(latents.ravel(), GOLDEN_NOISE, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim ancestral", "dpmpp_2m_sde"])
def test_no_setting_of_jax_changes_what_a_seed_means(name: str) -> None:
    """Neither of the noise that sampling starts from nor of what steps add, in programs as outside of them."""
    before = run(SAMPLE_JITTED, name), run(sampling.sample_stepwise, name)
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        latents = sampling.initial_latents(table_of("ddim", 5), sampling.image_keys(7, 1), 1, 1, 4)
        after = run(SAMPLE_JITTED, name), run(sampling.sample_stepwise, name)
    np.testing.assert_allclose(latents.ravel(), GOLDEN_NOISE, atol=1e-6)
    np.testing.assert_array_equal(before, after)


def test_seeds_and_step_noise_differ() -> None:
    """Noise that a step adds must not repeat the start or another step."""
    keys = sampling.image_keys(0, 1)
    draws = [np.asarray(sampling._noise(keys, use, (4, 4, 2))) for use in range(4)]
    for first in range(4):
        for second in range(first):
            assert abs(np.corrcoef(draws[first].ravel(), draws[second].ravel())[0, 1]) < 0.6


def test_guidance_is_the_stated_sum() -> None:
    full, reference, neither = np.random.default_rng(0).standard_normal((3, 5))
    outputs = {FULL: full, REFERENCE_ONLY: reference, UNCONDITIONAL: neither}
    for scale, reference_scale, expected_branches in (
        (1.0, None, (FULL,)),
        (3.0, None, (FULL, UNCONDITIONAL)),
        (3.0, 1.0, (FULL, REFERENCE_ONLY)),
        (3.0, 3.0, (FULL, UNCONDITIONAL)),
        (3.0, 1.5, (FULL, REFERENCE_ONLY, UNCONDITIONAL)),
        (1.0, 2.0, (FULL, REFERENCE_ONLY, UNCONDITIONAL)),
        (1.0, 1.0, (FULL,)),
    ):
        branches = sampling.guidance_branches(scale, reference_scale)
        assert branches == expected_branches
        guidance = sampling.make_guidance(branches, scale, reference_scale)
        stacked = jnp.asarray([outputs[branch] for branch in branches], jnp.float32)[:, None, None, None]
        guided = sampling.guide(guidance, stacked)[0, 0, 0]
        second = scale if reference_scale is None else reference_scale
        expected = neither + second * (reference - neither) + scale * (full - reference)
        np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-5)
        assert guidance.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_rescale_equals_diffusers(rescale: float) -> None:
    torch = pytest.importorskip("torch")
    stable_diffusion = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    full, neither = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    expected = stable_diffusion.rescale_noise_cfg(
        torch.from_numpy(neither + 7.5 * (full - neither)), torch.from_numpy(full), guidance_rescale=rescale
    )
    guidance = sampling.make_guidance((FULL, UNCONDITIONAL), 7.5, rescale=rescale)
    np.testing.assert_allclose(sampling.guide(guidance, jnp.stack([full, neither])), expected, rtol=1e-5, atol=1e-5)
    silent = jnp.zeros((2, 3, 4, 4, 2))
    np.testing.assert_array_equal(sampling.guide(guidance, silent), silent[0])


def test_guidance_of_one_is_the_full_branch() -> None:
    plain = run(SAMPLE_JITTED)
    unused = run(SAMPLE_JITTED, branches=3, weights=[1.0, 0.0, 0.0])
    guided = run(SAMPLE_JITTED, branches=2, weights=[2.0, -1.0])
    np.testing.assert_allclose(plain, unused, rtol=1e-5, atol=1e-5)
    assert np.abs(plain - guided).max() > 0.1


def test_steps_guidance_seed_and_sampler_do_not_recompile() -> None:
    """Counted by the traces of a fresh denoiser: one a compiled program."""
    traces = []

    def counted(conditions, latents, timestep):
        traces.append(1)
        return denoise(conditions, latents, timestep)

    def call(driver, name, steps, scale, seed, rescale=0.0):
        table, keys = table_of(name, steps), sampling.image_keys(seed, 2)
        guidance = sampling.make_guidance((FULL, UNCONDITIONAL), scale, rescale=rescale)
        latents = sampling.initial_latents(table, keys, 4, 3, 2)
        driver(counted, conditions_for(2), table, guidance, keys, latents).block_until_ready()

    for driver in (SAMPLE_JITTED, sampling.sample_stepwise):
        traces.clear()
        call(driver, "ddim", 4, 2.0, 0)
        first = len(traces)
        assert first >= 1
        for other in (
            ("ddim", 9, 2.0, 0),
            ("ddim ancestral", 4, 1.0, 5),
            ("dpmpp_2m", 32, 7.5, 1, 0.5),
            ("lcm", 3, 2.0, 0),
        ):
            call(driver, *other)
        assert len(traces) == first


def test_progress_is_reported_and_can_cancel() -> None:
    seen = []

    def progress(done: int, steps: int, denoised: jax.Array) -> bool:
        seen.append((done, steps, denoised.shape))
        return done < 4

    with pytest.raises(sampling.SamplingCancelledError, match="after step 4 of 6"):
        run(sampling.sample_stepwise, progress=progress)
    assert seen == [(done, 6, (2, 4, 3, 2)) for done in range(1, 5)]
    finished = run(sampling.sample_stepwise, progress=lambda *_: None)
    np.testing.assert_array_equal(finished, run(sampling.sample_stepwise))


def test_bad_arguments_are_refused() -> None:
    for make, message in (
        (lambda: sampling.image_keys(-1, 1), "seeds must lie between 0 and 4294967295"),
        (lambda: sampling.image_keys(2**32 - 1, 2), "seeds must lie"),
        (lambda: sampling.image_keys(0, 0), "num_images must be at least 1"),
        (lambda: sampling.make_guidance((FULL,), 2.0), "cannot carry guidance 2.0"),
        (lambda: sampling.make_guidance((FULL, UNCONDITIONAL), float("nan")), "guidance must be a finite number"),
        (lambda: sampling.make_guidance((FULL,), 1.0, rescale=1.5), "guidance_rescale must lie between 0"),
        (lambda: run(sampling.sample, branches=2), "guidance branches"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
