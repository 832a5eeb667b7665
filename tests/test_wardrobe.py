import pickle
import re

import numpy as np
import pytest

from fcjax.body.poses import POSES, mirror_rotations
from fcjax.wardrobe import POSES_PER_OUTFIT, Alike, Wardrobe, captions, poses, samples, vocabulary
from fcjax.wardrobe.palette import HELD_OUT_PAIRS, PAIRS, PALETTE, contrast, partners
from fcjax.wardrobe.textures import HELD_OUT_VARIANTS, PATTERNS, Grid, draw_fabric, variants

COUNT = 18


@pytest.fixture(scope="module")
def train():
    wardrobe = Wardrobe("train", seed=5, height=128, width=96)
    return [wardrobe[index] for index in range(COUNT)]


@pytest.fixture(scope="module")
def heldout():
    wardrobe = Wardrobe("heldout", seed=5, height=128, width=96)
    return [wardrobe[index] for index in range(COUNT // 2)]


def same(first, second):
    return (
        np.array_equal(first.image, second.image)
        and first.caption == second.caption
        and np.array_equal(first.regions, second.regions)
        and np.array_equal(first.maps.iuv, second.maps.iuv)
        and all(
            np.array_equal(a.image, b.image) and a.phrase == b.phrase
            for a, b in zip(first.assets, second.assets, strict=True)
        )
    )


def test_samples_depend_on_seed_split_and_index_alone(train):
    again = pickle.loads(pickle.dumps(Wardrobe("train", seed=5, height=128, width=96)))
    # Out of order, from a copy such as a worker process receives.
    for index in (7, 2, 8):
        assert same(again[index], train[index])
    assert not np.array_equal(Wardrobe("train", seed=6, height=128, width=96)[7].image, train[7].image)
    assert len({sample.image.tobytes() for sample in train}) == COUNT


def test_the_same_sample_at_another_resolution(train):
    for index in (0, 4):
        large = Wardrobe("train", seed=5, height=256, width=192)[index]
        assert large.caption == train[index].caption
        assert [asset.kind for asset in large.assets] == [asset.kind for asset in train[index].assets]
        reduced = large.image.reshape(128, 2, 96, 2, 3).mean(axis=(1, 3))
        assert np.abs(reduced - train[index].image).mean() < 6


def test_shapes_and_types(train):
    for sample in train:
        assert sample.image.shape == sample.backdrop.shape == (128, 96, 3) and sample.image.dtype == np.uint8
        assert sample.regions.shape == sample.foreground.shape == (128, 96) and sample.regions.dtype == np.int8
        assert sample.maps.iuv.shape == (128, 96, 3)
        assert 1 <= len(sample.assets) <= samples.MOST_GARMENTS + 1
        for asset in sample.assets:
            assert asset.image.dtype == np.uint8 and asset.image.shape[2] == 4


def test_every_asset_is_visible_and_every_phrase_is_in_the_caption(train, heldout):
    for sample in train + heldout:
        counts = np.bincount(sample.regions.ravel(), minlength=len(sample.assets) + 1)
        assert (counts[1 : len(sample.assets) + 1] >= samples.LEAST_REGION * 128 * 96).all()
        assert len(counts) == len(sample.assets) + 1
        assert not sample.regions[~sample.foreground].any()
        for asset in sample.assets:
            assert asset.phrase in sample.caption
        assert sample.background in sample.caption


def test_no_flat_touches_its_border(train, heldout):
    for sample in train + heldout:
        for asset in sample.assets:
            alpha = asset.image[..., 3]
            assert alpha.max() == 255
            border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
            assert border.max() == 0, asset.kind


def test_regions_show_the_colours_of_their_flats(train, heldout):
    checked = 0
    for sample in train + heldout:
        garments = [(i, asset) for i, asset in enumerate(sample.assets) if asset.kind not in ("face",)]
        for place, asset in garments:
            solid = asset.image[..., 3] == 255
            palettes = {i: other.image[other.image[..., 3] == 255][:, :3].astype(float) for i, other in garments}
            own = sample.image[sample.regions == place + 1].astype(float)
            if len(own) < 250 or not solid.any():
                continue

            def distance(colors, wanted):
                # Chromaticity and, weaker, brightness: light changes the second.
                def tone(values):
                    return np.concatenate(
                        [
                            values / (values.sum(axis=1, keepdims=True) + 30) * 3,
                            values.mean(axis=1, keepdims=True) / 512,
                        ],
                        axis=1,
                    )

                colors, wanted = tone(colors[::7]), tone(wanted[::23])
                return np.sqrt(((colors[:, None] - wanted[None]) ** 2).sum(axis=-1)).min(axis=1).mean()

            assert distance(own, palettes[place]) < 0.2
            checked += 1
    assert checked > 15


def test_origins_say_which_pixel_of_a_flat_is_worn_where(train, heldout):
    agreement = []
    for sample in train + heldout:
        shown = sample.origins[..., 0] >= 0
        assert not shown[sample.regions == 0].any() and sample.origins[~shown].max(initial=-1) == -1
        for place, asset in enumerate(sample.assets):
            own = shown & (sample.regions == place + 1)
            if asset.kind in ("swatch", "face", "shoes", "hat", "bag"):
                assert not own.any()
                continue
            # Flats show the front; where only a little cloth is seen, seams and folds are most of it.
            if np.count_nonzero(own) < 300 or "seen from" in sample.caption:
                continue
            column, row = np.moveaxis(sample.origins[own], -1, 0) * np.array(asset.image.shape[1::-1])[:, None]
            flat = asset.image[row.astype(int), column.astype(int)].astype(float)
            solid = flat[:, 3] == 255
            assert solid.mean() > 0.7
            worn = sample.image[own].astype(float)[solid]
            agreement.append(np.corrcoef(worn.ravel(), flat[solid, :3].ravel())[0, 1])
    assert len(agreement) > 8 and np.median(agreement) > 0.75


def test_captions_keep_to_the_vocabulary(train, heldout):
    words = set(vocabulary())
    assert 120 <= len(words) <= 250
    for sample in train + heldout:
        assert set(re.findall(r"[\w'-]+", sample.caption)) <= words


def test_a_share_of_samples_names_no_colour(train, heldout):
    together = train + heldout
    colorless = [sample for sample in together if sample.colorless]
    assert 0.2 < len(colorless) / len(together) < 0.85
    named = {word for words in captions.COLOR_WORDS.values() for word in " ".join(words).split()} | set(PALETTE)
    for sample in colorless:
        for asset in sample.assets:
            assert not set(asset.phrase.split()) & named or asset.kind == "face"


def test_swatches_are_equal_squares_told_apart_by_their_phrases():
    wardrobe = Wardrobe("heldout", seed=1, height=96, width=72)
    found = 0
    for index in range(30):
        sample = wardrobe[index]
        swatches = [asset for asset in sample.assets if asset.kind == "swatch"]
        if not swatches:
            continue
        found += 1
        assert len({asset.image.shape for asset in swatches}) == 1
        assert swatches[0].image.shape[0] == swatches[0].image.shape[1]
        assert all("this fabric" in asset.phrase for asset in swatches)
        assert len({asset.phrase for asset in swatches}) == len(swatches)
        assert sample.colorless
        if found == 3:
            return
    pytest.fail("30 samples held fewer than three with swatches")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_swatches_is_as_asked(share: float):
    """The people stay who they are."""
    asked, usual = (Wardrobe(height=64, width=48, **given) for given in ({"swatches": share}, {}))
    for index in range(6):
        sample = asked[index]
        kinds = {asset.kind for asset in sample.assets} - {"face", "shoes", "hat", "bag"}
        assert kinds <= {"swatch"} if share else "swatch" not in kinds
        np.testing.assert_array_equal(sample.image, usual[index].image)


def test_a_share_of_swatches_beyond_one_is_told():
    with pytest.raises(ValueError, match="swatches is 25; expected a share of the samples, 0 to 1"):
        Wardrobe(swatches=25)


def test_pairs_of_colours_part_the_splits():
    for color in PALETTE:
        assert partners(color, "heldout") and partners(color, "train")
        assert not set(partners(color, "heldout")) & set(partners(color, "train"))
    assert 0.1 < len(HELD_OUT_PAIRS) / len(PAIRS) < 0.25
    assert all(contrast(*pair) >= 0.34 for pair in PAIRS)


def test_fabrics_keep_to_their_split():
    order = list(PALETTE)
    for split in ("train", "heldout"):
        rng, pairs, held = np.random.default_rng(0), 0, 0
        for _ in range(300):
            fabric = draw_fabric(rng, split)
            if len(fabric.colors) == 2:
                pair = tuple(sorted(fabric.colors, key=order.index))
                assert (pair in HELD_OUT_PAIRS) == (split == "heldout")
                pairs += 1
            if any(family == fabric.pattern for family, _ in HELD_OUT_VARIANTS):
                assert ((fabric.pattern, fabric.variant) in HELD_OUT_VARIANTS) == (split == "heldout")
                held += 1
        assert pairs and held
    for pattern in PATTERNS:
        assert variants(pattern, "train") and variants(pattern, "heldout")


def test_outfits_combine_only_pairs_of_their_split():
    order = list(PALETTE)
    for split in ("train", "heldout"):
        wardrobe, pairs = Wardrobe(split, seed=2, height=64, width=48), 0
        for number in range(8):
            main = [wear for wear in wardrobe.outfit(number).wears if wear.cut.kind in ("top", "trousers", "skirt")]
            if len(main) == 2:
                grounds = {wear.fabric.colors[0] for wear in main}
                pair = tuple(sorted(grounds, key=order.index))
                assert len(pair) == 2 and (pair in HELD_OUT_PAIRS) == (split == "heldout")
                pairs += 1
        assert pairs


def test_a_jacket_suits_both_what_is_under_it_and_the_bottom():
    for split in ("train", "heldout"):
        wardrobe, found = Wardrobe(split, seed=0, height=64, width=48), 0
        for number in range(100):
            wears = [wear for wear in wardrobe.outfit(number).wears if wear.main]
            if len(wears) < 3:
                continue
            bottom, top, jacket = (wear.fabric.colors[0] for wear in wears)
            assert wears[2].cut.kind == "jacket"
            assert jacket in partners(top, split) and jacket in (*partners(bottom, "train"), *partners(bottom, split))
            found += 1
        assert found >= 3


def test_a_bag_shows_where_the_right_hand_is():
    """Nothing that a model is given tells in which hand it is."""
    found = 0
    for split in ("train", "heldout"):
        wardrobe = Wardrobe(split, seed=0, height=128, width=96)
        for number in range(60):
            if not any(wear.cut.kind == "bag" for wear in wardrobe.outfit(number).wears):
                continue
            sample = wardrobe[number * POSES_PER_OUTFIT[split]]
            bag = [index for index, asset in enumerate(sample.assets) if asset.kind == "bag"]
            if not bag:
                continue
            region = np.argwhere(sample.regions == bag[0] + 1)
            hands = [np.argwhere(sample.maps.part == part) for part in (3, 4)]
            if all(len(hand) > 3 for hand in hands):
                right, left = (np.abs(region[:, None] - hand[None]).sum(axis=-1).min() for hand in hands)
                assert right < left
                found += 1
    assert found >= 4


def test_poses_part_the_splits(train, heldout):
    assert poses.HELD_OUT_POSES and not set(poses.names("train", False)) & poses.HELD_OUT_POSES
    assert set(poses.names("heldout", False)) == poses.HELD_OUT_POSES
    assert poses.names("heldout", True) and poses.names("train", True)
    assert not {sample.pose for sample in train} & poses.HELD_OUT_POSES
    assert {sample.pose for sample in heldout} <= poses.HELD_OUT_POSES


def test_training_poses_come_near_no_held_out_one():
    rng = np.random.default_rng(0)
    drawn = [poses.draw_pose(rng, "train", False)[0] for _ in range(400)]
    assert min(map(poses.distance_from_held_out, drawn)) >= poses.LEAST_DISTANCE
    named = POSES["contrapposto"].rotations
    assert poses.distance_from_held_out(named) == 0.0
    assert poses.distance_from_held_out(mirror_rotations(named)) == pytest.approx(0.0, abs=1e-6)


def test_a_fabric_looks_the_same_at_any_resolution():
    rng = np.random.default_rng(3)
    for pattern in PATTERNS:
        fabric = draw_fabric(rng, "train", (pattern,), ground="blue")

        def window(density, fabric=fabric):
            line = (np.arange(int(0.3 * density)) + 0.5) / density - 0.15
            return fabric.paint(Grid(line, -line, density), (0.0, 0.0), detail=0.0)

        small, large = window(200), window(800)
        reduced = large.reshape(60, 4, 60, 4, 3).mean(axis=(1, 3))
        assert np.abs(reduced - small).mean() < 0.03, pattern


def test_worn_and_flat_share_the_print():
    """A logo's colour appears on the worn garment's front, in the flat and in neither's back view."""
    wardrobe = Wardrobe("train", seed=0, height=128, width=96)
    for number in range(60):
        outfit = wardrobe.outfit(number)
        for index, wear in enumerate(outfit.wears):
            if wear.fabric.pattern == "logo" and wear.cut.kind == "top":
                texture = outfit.textures[index]
                assert not np.array_equal(texture.front, texture.back)
                second = wear.fabric.shades[1] * 255
                flat = outfit.flats[index][..., :3].astype(float)
                assert (np.abs(flat - second).max(axis=-1) < 70).sum() > 20
                return
    pytest.fail("60 outfits held no logo")


def test_articles_and_lists():
    assert captions.article("orange top") == "an orange top" and captions.article("top") == "a top"
    assert captions.list_words(("a", "b", "c")) == "a, b and c"
    fabric = draw_fabric(np.random.default_rng(0), "train", ("stripes",), ground="red")
    with pytest.raises(ValueError, match="'colors', 'pattern' or 'noun'"):
        captions.garment_phrase(captions.Described("shirt", fabric), np.random.default_rng(0), "all")


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="'test'; expected one of train, heldout"):
        Wardrobe("test")
    with pytest.raises(ValueError, match="at least 64x48"):
        Wardrobe(height=32, width=24)
    with pytest.raises(ValueError, match="backgrounds"):
        Wardrobe(backgrounds=("moonscape",))
    with pytest.raises(IndexError, match="count from 0"):
        Wardrobe()[-1]


def test_alike_sets_differ_in_colours_alone():
    alike = Alike("heldout", seed=5, height=128, width=96)
    for pair in range(3):
        one, other = alike[2 * pair], alike[2 * pair + 1]
        assert same(one, alike[2 * pair]) and not one.colorless
        assert [asset.kind for asset in one.assets] == [asset.kind for asset in other.assets]
        np.testing.assert_array_equal(one.maps.iuv, other.maps.iuv)
        np.testing.assert_array_equal(one.regions, other.regions)
        assert "swatch" not in {asset.kind for asset in one.assets}
        garments = [asset for asset in one.assets if asset.kind in ("top", "jacket", "trousers", "skirt")]
        assert len(garments) > 1 and len({asset.pattern for asset in garments}) == 1
        for asset, again in zip(one.assets, other.assets, strict=True):
            changed = asset.kind in ("top", "trousers", "skirt")
            assert np.array_equal(asset.image, again.image) != changed and (asset.phrase == again.phrase) != changed
            assert asset.phrase in one.caption and again.phrase in other.caption
    with pytest.raises(IndexError, match="count from 0"):
        alike[-1]


def test_alike_garments_exchange_their_colours():
    alike = Alike("heldout", seed=5, height=64, width=48)
    for number in range(3):
        one, other = (alike._dressed_alike(number, exchanged) for exchanged in (False, True))
        mains = [(a, b) for a, b in zip(one.wears, other.wears, strict=True) if a.main]
        (bottom, bottom_after), (top, top_after) = mains[:2]
        for after, before in ((top_after, bottom), (bottom_after, top)):
            np.testing.assert_array_equal(after.fabric.shades, before.fabric.shades)
        assert top.fabric.colors[0] != bottom.fabric.colors[0]
