"""The models in the package: what whoever installs them may expect."""

import numpy as np
import pytest

from fcjax.assets import Asset
from fcjax.composer import Composer
from fcjax.metrics import Target, asset_palette, score
from fcjax.person import Person
from fcjax.pretrained import MINI, MINI_TRYON
from fcjax.wardrobe import Sample, Wardrobe
from fcjax.wardrobe.undressing import take_off
from infer.sets import DrawnSets


@pytest.fixture(scope="module")
def mini() -> Composer:
    return Composer.load("mini")


def test_it_is_small_enough_for_a_package() -> None:
    size, tryon = (sum(path.stat().st_size for path in folder.rglob("*")) for folder in (MINI, MINI_TRYON))
    assert size <= 26 * 10**6 and size + tryon <= 45 * 10**6


def test_flat_garments_of_another_hand_keep_their_colours(mini: Composer) -> None:
    sets = DrawnSets(0, mini.config.height, mini.config.width)
    found = []
    for index in range(3):
        one = sets[index]
        [made] = mini.compose(one.prompt, one.assets, one.maps, seed=index)
        figures = score(np.asarray(made.image), one.target).figures
        found += figures["binding_accuracy"]
        # Nearer to the own colour than to the other garment's, and near.
        assert np.mean(figures["palette_distance"]) < 0.5 * np.mean(figures["other_palette_distance"])
    assert np.mean(found) > 0.8


def test_a_person_is_dressed_anew() -> None:
    tryon = Composer.load("mini-tryon")
    wardrobe = Wardrobe("heldout", height=tryon.config.height, width=tryon.config.width)
    sample, mask = take_off(next(one for one in map(wardrobe.__getitem__, range(100)) if _in_two_pieces(one)), "outfit")
    # Not the garments taken off, but plain ones of colours that they do not have.
    drawn = DrawnSets(0, 64, 48)[0]
    assets = [Asset(asset.image, asset.phrase) for asset in drawn.assets]
    prompt = f"a person in {assets[0].phrase} and {assets[1].phrase}"
    [fitting] = tryon.try_on(prompt, assets, Person(sample.image, mask, sample.maps.iuv), seed=0)
    made = np.asarray(fitting.image)
    np.testing.assert_array_equal(made[~mask], sample.image[~mask])
    kinds = tuple(asset.kind for asset in sample.assets)
    order = [kinds.index("top") + 1, next(kinds.index(kind) for kind in ("trousers", "skirt") if kind in kinds) + 1]
    regions = np.select([sample.regions == number for number in order], [1, 2], 0).astype(np.int8)
    target = Target(("top", "trousers"), tuple(asset_palette(asset.image) for asset in assets), regions)
    figures = score(made, target).figures
    assert figures["binding_accuracy"] == [1, 1]
    assert np.mean(figures["palette_distance"]) < 0.5 * np.mean(figures["other_palette_distance"])


def _in_two_pieces(sample: Sample) -> bool:
    kinds = [asset.kind for asset in sample.assets if asset.kind != "face"]
    return kinds.count("top") == 1 and len(kinds) == 2 and bool({"trousers", "skirt"} & set(kinds))
