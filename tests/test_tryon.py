"""Trying on: what stays the person's own, any size in and out, and what the model sees."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import pretrained
from fcjax.body import Body
from fcjax.composer import Composer
from fcjax.person import Person
from fcjax.tokenizer import Tokenizer
from tests.tryon_model import PROMPT, SHIRT, a_person


@pytest.fixture(scope="module")
def composer(tryon_model: Path) -> Composer:
    return Composer.load(tryon_model)


@pytest.mark.parametrize(("height", "width"), [(50, 30), (33, 90)])
def test_outside_the_mask_every_pixel_is_the_persons_own(composer: Composer, height: int, width: int):
    person = a_person(height, width)
    [fitting] = composer.try_on(PROMPT, [SHIRT], person, steps=2, seed=3)
    made = np.asarray(fitting.image)
    assert made.shape == person.image.shape and fitting.seed == 3
    np.testing.assert_array_equal(made[~person.mask], person.image[~person.mask])
    assert not np.array_equal(made[person.mask], person.image[person.mask])


def test_raw_is_the_models_own_picture(composer: Composer):
    person = a_person()
    [raw] = composer.try_on(PROMPT, [SHIRT], person, steps=2, raw=True)
    [hard] = composer.try_on(PROMPT, [SHIRT], person, steps=2, feather=0)
    raw, hard = np.asarray(raw.image), np.asarray(hard.image)
    np.testing.assert_array_equal(hard[person.mask], raw[person.mask])
    assert not np.array_equal(raw[~person.mask], person.image[~person.mask])


def test_the_model_sees_the_person_outside_the_mask_alone(composer: Composer):
    # At the model's own size: elsewhere a few pixels mix at the mask's edge.
    person = a_person(32, 32)
    inside, outside = person.image.copy(), person.image.copy()
    inside[person.mask] //= 2
    outside[~person.mask] //= 2
    made = [
        np.asarray(composer.try_on(PROMPT, [SHIRT], Person(image, person.mask), steps=2, raw=True)[0].image)
        for image in (person.image, inside, outside)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_several_seeds_and_garments(composer: Composer):
    person, jeans = a_person(), dataclasses.replace(SHIRT, phrase="blue jeans")
    first, second = composer.try_on(
        "a woman in a red shirt and blue jeans", [SHIRT, jeans], person, steps=2, num_images=2
    )
    assert len(first.canvas.phrases) == 2 and not np.array_equal(first.image, second.image)
    [alone] = composer.try_on("a woman in a red shirt and blue jeans", [SHIRT, jeans], person, steps=2, seed=1)
    np.testing.assert_array_equal(alone.image, second.image)
    [away] = composer.try_on(
        "a woman in a red shirt and blue jeans", [SHIRT, jeans], person, steps=2, seed=1, negative_prompt="a green coat"
    )
    assert not np.array_equal(away.image, second.image)


def test_models_do_what_they_were_made_for(composer: Composer, tiny_model_folder: Path):
    with pytest.raises(ValueError, match="use try_on"):
        composer.compose(PROMPT, [SHIRT], Body())
    with pytest.raises(ValueError, match="it cannot try on: load one whose condition is 'tryon'"):
        Composer.load(tiny_model_folder).try_on(PROMPT, [SHIRT], a_person())


def test_conv_in_of_zeros_sees_nobody(tiny_model_folder: Path):
    read = pretrained.load(tiny_model_folder, condition="tryon")
    fresh = Composer(read.config, read.params, Tokenizer.load(tiny_model_folder / "tokenizer"))
    pictures = [fresh.try_on(PROMPT, [SHIRT], a_person(32, 32, seed), steps=1, raw=True)[0].image for seed in (0, 1)]
    np.testing.assert_array_equal(*pictures)
    assert jnp.asarray(pictures[0]).std() > 0
