"""Sampling on 8 simulated devices gives the pictures of one."""

import math
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.sharding import strategy
from fcjax.assets import Asset
from fcjax.body import Body
from fcjax.composer import Composer, Composition

PHRASE = "a red top"


@pytest.fixture(scope="module")
def single(tiny_model_folder: Path) -> tuple[Composer, list[Composition]]:
    composer = Composer.load(tiny_model_folder)
    return composer, compose(composer)


def compose(composer: Composer, num_images: int = 8, batch_size: int | None = None) -> list[Composition]:
    top = Asset(np.full((20, 16, 4), (200, 30, 30, 255), np.uint8), PHRASE)
    batch_size = num_images if batch_size is None else batch_size
    return composer.compose(
        f"a woman in {PHRASE}", [top], Body(pose="walking"), num_images=num_images, batch_size=batch_size, steps=3
    )


@pytest.mark.parametrize("name", ["tensor", pytest.param("fsdp_tensor", marks=pytest.mark.slow)])
def test_pictures_equal_one_device(single: tuple[Composer, list[Composition]], name: str) -> None:
    composer, expected = single
    spread = composer.spread(strategy(name))
    split = [leaf for leaf in jax.tree.leaves(spread.params) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 20 and spread.mesh is not None and spread.mesh.size == 8
    found = compose(spread)
    for one, other in zip(found, expected, strict=True):
        # Rounding to 8 bits turns the last bits of a float into a whole step.
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
    assert len({one.image.tobytes() for one in found}) == 8


def test_loading_gives_no_device_more_than_its_share(tiny_model_folder: Path) -> None:
    """By way of host memory: what lies on a device is what the strategy puts there, and nothing else."""
    plain, before = Composer.load(tiny_model_folder), jax.live_arrays()
    spread = Composer.load(tiny_model_folder, host=True).spread(strategy("tensor"))
    known = set(map(id, before))
    held = Counter[jax.Device]()
    for array in jax.live_arrays():
        if id(array) not in known:
            held.update({shard.device: shard.data.nbytes for shard in array.addressable_shards})
    leaves = jax.tree.leaves(spread.params)
    share = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    assert share < 0.8 * sum(leaf.nbytes for leaf in leaves)
    assert held == dict.fromkeys(jax.devices(), share)
    for one, other in zip(leaves, jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_that_does_not_divide_is_refused(single: tuple[Composer, list[Composition]]) -> None:
    spread = single[0].spread(strategy("data"))
    with pytest.raises(ValueError, match="a batch of 3 over data x fsdp of 8 devices"):
        compose(spread, num_images=3)


def test_a_batch_that_the_pictures_do_not_fill_is_filled_up(single: tuple[Composer, list[Composition]]) -> None:
    composer, expected = single
    found = compose(composer.spread(strategy("data")), num_images=3, batch_size=8)
    assert len(found) == 3
    for one, other in zip(found, expected, strict=False):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1


def test_a_model_that_does_not_suit_the_strategy_is_refused(single: tuple[Composer, list[Composition]]) -> None:
    with pytest.raises(ValueError, match="the 2 heads of unet's level 0 over tensor of 4 devices"):
        single[0].spread(strategy("tensor", tensor=4))
