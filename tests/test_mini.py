"""The model in the package: what whoever installs it may expect."""

import numpy as np
import pytest

from fcjax.composer import Composer
from fcjax.metrics import score
from fcjax.pretrained import MINI
from infer.sets import DrawnSets


@pytest.fixture(scope="module")
def mini() -> Composer:
    return Composer.load("mini")


def test_it_is_small_enough_for_a_package() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*")) <= 26 * 10**6


def test_flat_garments_of_another_hand_keep_their_colours(mini: Composer) -> None:
    sets = DrawnSets(0, mini.config.height, mini.config.width)
    found = []
    for index in range(3):
        one = sets[index]
        [made] = mini.compose(one.prompt, one.assets, one.maps, seed=index, steps=8)
        figures = score(np.asarray(made.image), one.target).figures
        found += figures["binding_accuracy"]
        # Nearer to the own colour than to the other garment's, and near.
        assert np.mean(figures["palette_distance"]) < 0.5 * np.mean(figures["other_palette_distance"])
    assert np.mean(found) > 0.8
