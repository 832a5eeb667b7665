"""The composer: seeds, drivers, compilations and warnings."""

import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from fcjax.album import make_album
from fcjax.assets import Asset
from fcjax.body import Body
from fcjax.composer import Composer, sampling_of
from fcjax.preparation import prepare
from fcjax.sampling import SamplingCancelledError
from train.examples import prompt_tokens

PROMPT = "a woman in a red shirt and blue jeans"
COMPILATION = "/jax/core/compile/backend_compile_duration"


def flat(color: tuple[int, int, int], height: int = 12, width: int = 10) -> np.ndarray:
    """A cut-out of one colour."""
    return np.full((height, width, 4), (*color, 255), np.uint8)


SHIRT = Asset(flat((200, 20, 30)), "a red shirt")
JEANS = Asset(flat((30, 40, 160), 16, 8), "blue jeans")


@pytest.fixture(scope="module")
def composer(tiny_model_folder: Path) -> Composer:
    return Composer.load(tiny_model_folder)


def test_prompts_are_as_long_as_the_text_encoder_reads(composer: Composer) -> None:
    short = dataclasses.replace(composer.config.text_encoder, max_position_embeddings=20)
    config = dataclasses.replace(composer.config, text_encoder=short)
    arrays = prepare(config, composer.tokenizer, PROMPT, [SHIRT]).arrays
    assert arrays["ids"].shape[1] == arrays["spans"].shape[2] == len(arrays["empty_ids"]) == 20
    sample = {"caption": PROMPT, "phrases": [SHIRT.phrase]}
    assert np.array_equal(prompt_tokens(composer.tokenizer, sample, config).ids, arrays["ids"][0])


def pixels(composition) -> np.ndarray:
    return np.asarray(composition.image)


def picture(composer: Composer, **settings) -> np.ndarray:
    settings = {"steps": 3, "progress": lambda done, steps: None} | settings
    [made] = composer.compose(PROMPT, [SHIRT, JEANS], **settings)
    return pixels(made)


def test_a_seed_makes_the_same_image_again(composer: Composer) -> None:
    image = picture(composer, seed=5)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and image.std() > 1
    np.testing.assert_array_equal(image, picture(composer, seed=5))
    assert np.abs(image - picture(composer, seed=6).astype(int)).max() > 3


def test_eta_adds_noise_of_the_seed(composer: Composer) -> None:
    ancestral = picture(composer, eta=1.0)
    assert np.array_equal(ancestral, picture(composer, eta=1.0))
    assert not np.array_equal(ancestral, picture(composer)) and not np.array_equal(
        ancestral, picture(composer, eta=0.5)
    )


def test_image_i_of_a_call_is_the_image_of_its_seed(composer: Composer) -> None:
    several = composer.compose(PROMPT, [SHIRT, JEANS], seed=5, steps=3, num_images=3, progress=lambda done, steps: None)
    assert [made.seed for made in several] == [5, 6, 7]
    for made in several:
        np.testing.assert_array_equal(pixels(made), picture(composer, seed=made.seed))


@pytest.mark.slow
def test_batches_differ_by_rounding_alone(composer: Composer) -> None:
    alone = composer.compose(PROMPT, [SHIRT], steps=3, num_images=3, progress=lambda done, steps: None)
    calls = []
    together = composer.compose(
        PROMPT, [SHIRT], steps=3, num_images=3, batch_size=2, progress=lambda *call: calls.append(call)
    )
    assert len(together) == 3 and calls == [(done, 6) for done in range(1, 7)]
    for one, other in zip(alone, together, strict=True):
        assert one.seed == other.seed
        np.testing.assert_allclose(pixels(one).astype(int), pixels(other).astype(int), atol=1)


def test_assets_text_body_and_guidance_all_matter(composer: Composer) -> None:
    image = picture(composer)
    others = {
        "guidance": picture(composer, guidance=4.0),
        "body": picture(composer, body=Body(pose="arms_raised")),
        "layout": picture(composer, boxes=[(0, 0, 16, 16), (16, 16, 32, 32)]),
    }
    [fewer] = composer.compose(PROMPT, [SHIRT], steps=3, progress=lambda done, steps: None)
    [words] = composer.compose(
        "a man in a red shirt and blue jeans", [SHIRT, JEANS], steps=3, progress=lambda done, steps: None
    )
    [swapped] = composer.compose(
        PROMPT,
        [Asset(SHIRT.image, "blue jeans"), Asset(JEANS.image, "a red shirt")],
        boxes=[SHIRT_BOX, JEANS_BOX],
        steps=3,
        progress=lambda done, steps: None,
    )
    [placed] = composer.compose(
        PROMPT, [SHIRT, JEANS], boxes=[SHIRT_BOX, JEANS_BOX], steps=3, progress=lambda done, steps: None
    )
    for name, other in {**others, "assets": pixels(fewer), "prompt": pixels(words)}.items():
        assert np.abs(image.astype(int) - other).max() > 0, name
    assert np.abs(pixels(placed).astype(int) - pixels(swapped)).max() > 0, "phrases"


SHIRT_BOX, JEANS_BOX = (0, 0, 16, 16), (16, 16, 32, 32)


def test_guidance_and_steps_are_the_models_own_unless_a_request_says(composer: Composer) -> None:
    own = dataclasses.replace(composer.config, guidance=4.0, steps=3)
    other = Composer(own, composer.params, composer.tokenizer, composer.dtype)
    np.testing.assert_array_equal(picture(other, steps=None), picture(composer, guidance=4.0, steps=3))
    np.testing.assert_array_equal(picture(other, guidance=1.5), picture(composer))
    for function in (Composer.compose, Composer.try_on, make_album):
        for name in ("guidance", "steps"):
            assert inspect.signature(function).parameters[name].default is None
    sampling = sampling_of(own, 0, None, "ddim", None, 2.0, 0.0, 1, 1)
    np.testing.assert_allclose(sampling.mixing.weights, [4.0, -2.0, -1.0])
    assert int(sampling.table.steps) == 3


def test_guidance_leads_away_from_the_negative_prompt(composer: Composer) -> None:
    plain = picture(composer, guidance=4.0)
    np.testing.assert_array_equal(plain, picture(composer, guidance=4.0, negative_prompt=" "))
    assert not np.array_equal(plain, picture(composer, guidance=4.0, negative_prompt="a man in a green coat"))
    # Away from itself leads nowhere, as far as text goes.
    nowhere = picture(composer, guidance=4.0, reference_guidance=1.0, negative_prompt=PROMPT)
    np.testing.assert_allclose(nowhere.astype(int), picture(composer, guidance=1.0), atol=1)


def test_without_assets(composer: Composer) -> None:
    [made] = composer.compose("a woman in blue jeans", steps=2, progress=lambda done, steps: None)
    assert made.canvas.image.min() == 255 and not made.canvas.masks.any() and made.tokens.spans.max() == 0


def test_maps_stand_for_the_body_that_drew_them(composer: Composer) -> None:
    body = Body(pose="walking", view=30)
    np.testing.assert_array_equal(picture(composer, body=body), picture(composer, body=body.render(32, 32)))
    with pytest.raises(ValueError, match="maps are 64x48, the picture is 32x32"):
        picture(composer, body=body.render(64, 48))


@pytest.mark.slow
def test_another_size(composer: Composer) -> None:
    assert picture(composer, size=(48, 32)).shape == (48, 32, 3)


def test_a_size_that_the_levels_do_not_divide(composer: Composer) -> None:
    with pytest.raises(ValueError, match="multiples of 8 for this model, got 50x32; 48x32 would do"):
        picture(composer, size=(50, 32))


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """What JAX compiles while a test runs."""
    compiled: list[str] = []

    def listen(event: str, _: float, **others: object) -> None:
        if event == COMPILATION:
            compiled.append(str(others.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("progress", [None, lambda done, steps: None], ids=["one program", "step by step"])
def test_data_does_not_recompile(composer: Composer, compilations: list[str], progress) -> None:
    """New requests run the programs that are there, whatever they ask for."""
    jax.jit(lambda number: number * 2.5)(1.0)
    assert compilations, "the event that tells of a compilation has another name in this JAX"
    composer.compose(PROMPT, [SHIRT], steps=2, progress=progress)
    compilations.clear()
    settings = {"steps": 4, "seed": 9, "guidance": 3.0, "sampler": "dpmpp_2m", "layout_seed": 2}
    composer.compose(PROMPT, [SHIRT, JEANS], progress=progress, **settings)
    composer.compose("a man", body=Body(pose="walking", gender=1), steps=3, eta=1.0, progress=progress)
    Composer(composer.config, composer.params, composer.tokenizer).compose("a man", steps=1, progress=progress)
    assert not compilations


def test_progress_can_cancel(composer: Composer) -> None:
    calls = []

    def stop(done: int, steps: int) -> bool:
        calls.append((done, steps))
        return done < 2

    with pytest.raises(SamplingCancelledError, match="step 2 of 3"):
        composer.compose(PROMPT, steps=3, progress=stop)
    assert calls == [(1, 3), (2, 3)]


def test_what_is_not_shown_is_warned_of(composer: Composer) -> None:
    with pytest.warns(UserWarning, match="never learnt: xylophone, brocade$"):
        composer.compose("a xylophone in brocade on a xylophone", steps=1, progress=lambda done, steps: None)
    with pytest.warns(UserWarning, match="added to its end: 'a red shirt'$"):
        composer.compose("a woman", [SHIRT], steps=1, progress=lambda done, steps: None)
    with pytest.warns(UserWarning, match="its end is not read: 'man in"):
        composer.compose("woman man " * 37 + "woman man in a shirt", steps=1, progress=lambda done, steps: None)
    for negative, guidance, message in (
        ("a xylophone", 2.0, "never learnt: xylophone$"),
        ("woman man " * 38, 2.0, "the negative prompt is too long, its end is not read: 'man'$"),
        ("a man", 1.0, "the negative prompt changes nothing, as guidance is off"),
    ):
        with pytest.warns(UserWarning, match=message):
            composer.compose("a woman", steps=1, guidance=guidance, negative_prompt=negative, progress=lambda *_: None)


def test_no_warning_without_reason(composer: Composer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture(composer)


def test_one_program_makes_what_steps_from_python_make(optimised, composer: Composer) -> None:
    settings = {"steps": 4, "seed": 3, "guidance": 3.0}
    whole, steps = (
        pixels(composer.compose(PROMPT, [SHIRT, JEANS], progress=progress, **settings)[0])
        for progress in (None, lambda done, steps: None)
    )
    # Two programs may round the last bit of a pixel apart.
    assert np.abs(whole.astype(int) - steps.astype(int)).max() <= 1 and whole.std() > 5
