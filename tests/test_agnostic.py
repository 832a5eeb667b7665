"""Cloth-agnostic masks: what is covered, what is given back, from each kind of map."""

import numpy as np
import pytest

from fcjax.agnostic import (
    CATEGORIES,
    _filled,
    _hull,
    _largest,
    _pieces,
    _widened,
    agnostic_image,
    agnostic_mask,
    chessboard,
)
from fcjax.body import Body
from fcjax.data.sources.sample import LABELS, Part, to_parts

TORSO, HANDS, FEET, HEAD = (1, 2), (3, 4), (5, 6), (23, 24)
LEGS, ARMS = tuple(range(7, 15)), tuple(range(15, 23))
UPPER, LOWER = (*TORSO, *ARMS), LEGS


@pytest.fixture(scope="module")
def iuv() -> np.ndarray:
    return Body(pose="standing").render(256, 192).iuv


@pytest.fixture(scope="module")
def parse(iuv: np.ndarray) -> np.ndarray:
    """A person in a T-shirt, trousers and shoes, drawn on the body's charts."""
    chart = iuv[..., 0]
    parts = np.zeros(chart.shape, np.uint8)
    for charts, part in (
        ((*TORSO, *range(15, 19)), Part.UPPER), (range(19, 23), Part.LEFT_ARM), (HANDS, Part.LEFT_ARM),
        (LEGS, Part.PANTS), (FEET, Part.LEFT_SHOE), (HEAD, Part.FACE),
    ):  # fmt: skip
        parts[np.isin(chart, charts)] = part
    return parts


def keypoints_of(iuv: np.ndarray) -> np.ndarray:
    """Shoulders, elbows and wrists where the body's charts meet."""
    points = np.zeros((18, 3))
    for joint, (a, b) in {2: (16, 2), 3: (20, 16), 4: (3, 20), 5: (15, 2), 6: (19, 15), 7: (4, 19)}.items():
        near = [np.argwhere(np.isin(iuv[..., 0], (c, c + 2) if 15 <= c < 21 else (c,))) for c in (a, b)]
        gap = np.linalg.norm(near[0][:, None] - near[1][None], axis=-1)
        place = near[0][gap.min(axis=1).argmin()]
        points[joint] = place[1], place[0], 1
    return points


def share(mask: np.ndarray, chart: np.ndarray, charts: tuple[int, ...]) -> float:
    return float(mask[np.isin(chart, charts)].mean())


@pytest.mark.parametrize("maps", ["iuv", "parse", "both"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_what_is_covered_and_what_is_given_back(iuv: np.ndarray, parse: np.ndarray, category: str, maps: str):
    given = {"iuv": iuv} if maps != "parse" else {}
    given |= {"parse": parse, "keypoints": keypoints_of(iuv)} if maps != "iuv" else {}
    mask = agnostic_mask(**given, category=category)
    chart = iuv[..., 0]
    upper, lower = share(mask, chart, TORSO), share(mask, chart, LOWER)
    assert (upper > 0.95) == (category != "lower") and (upper < 0.2) == (category == "lower")
    assert (lower > 0.95) == (category != "upper") and (lower < 0.4) == (category == "upper")
    if category != "lower":
        assert share(mask, chart, ARMS) > 0.8
    assert share(mask, chart, HEAD) < 0.05 and share(mask, chart, FEET) < 0.05
    assert share(mask, chart, HANDS) < 0.35
    # It reaches beyond the body, but not everywhere.
    beyond = mask[chart == 0].mean()
    assert 0 < beyond < 0.3


def test_shoes_and_a_hat_are_taken_off_when_asked(iuv: np.ndarray, parse: np.ndarray):
    hatted = parse.copy()
    top = np.argwhere(parse == Part.FACE)[0, 0]
    hatted[top - 6 : top, 85:105] = Part.HAT
    plain = agnostic_mask(hatted, iuv=iuv, category="outfit")
    whole = agnostic_mask(hatted, iuv=iuv, category="outfit", shoes=True, hat=True)
    for part in (Part.HAT, Part.LEFT_SHOE):
        assert not plain[hatted == part].any() and whole[hatted == part].all()
    assert not whole[hatted == Part.FACE].any()


@pytest.mark.parametrize("category", ["outfit", "dress"])
def test_a_bare_midriff_keeps_neither_top_nor_skirt_on(parse: np.ndarray, category: str):
    """Arms raised, so that nothing joins the two."""
    rows = np.arange(len(parse))[:, None]
    worn = np.flatnonzero((parse == Part.UPPER).any(axis=1))
    middle = worn[0] + 2 * (worn[-1] - worn[0]) // 3
    apart = np.where(
        np.isin(parse, (Part.LEFT_ARM, Part.RIGHT_ARM)) | ((parse == Part.UPPER) & (rows > middle)), 0, parse
    )
    apart = np.where((parse == Part.PANTS) & (rows < worn[-1] + 8), 0, apart).astype(np.uint8)
    mask = agnostic_mask(apart, category=category)
    assert mask[apart == Part.UPPER].mean() > 0.95 and mask[apart == Part.PANTS].mean() > 0.95
    # A speck that the parser took for a garment is not repainted.
    apart[-6:-3, 3:6] = Part.UPPER
    np.testing.assert_array_equal(agnostic_mask(apart, category=category), mask)


def test_sleeves_that_the_person_does_not_wear(iuv: np.ndarray):
    """With bare arms that the parse map does not know, keypoints tell where sleeves may come."""
    parse = np.where(np.isin(iuv[..., 0], TORSO), Part.UPPER, 0).astype(np.uint8)
    without = agnostic_mask(parse)
    strokes = agnostic_mask(parse, keypoints_of(iuv))
    forearms = tuple(range(19, 23))
    assert share(without, iuv[..., 0], forearms) < 0.3 < 0.8 < share(strokes, iuv[..., 0], forearms)
    unseen = keypoints_of(iuv)
    unseen[:, 2] = 0
    np.testing.assert_array_equal(agnostic_mask(parse, unseen), without)


def test_one_arm_is_seen_from_the_side(iuv: np.ndarray):
    parse = np.where(np.isin(iuv[..., 0], TORSO), Part.UPPER, 0).astype(np.uint8)
    both = keypoints_of(iuv)
    rows, columns = np.nonzero(np.isin(iuv[..., 0], TORSO))
    both[[8, 11]] = (both[2, 0], rows.max(), 1), (both[5, 0], rows.max(), 1)
    one = both.copy()
    one[[5, 6, 7, 11], 2] = 0
    left, right = (19, 21), (20, 22)
    mask = agnostic_mask(parse, one)
    assert share(mask, iuv[..., 0], right) > 0.8 and share(mask, iuv[..., 0], left) < 0.3
    # As thick as if both shoulders were seen, to a quarter.
    arm = columns.mean() > np.arange(parse.shape[1])
    thick = [np.median((agnostic_mask(parse, points) & arm)[160:200].sum(axis=1)) for points in (both, one)]
    assert thick[1] == pytest.approx(thick[0], rel=0.25)


@pytest.mark.parametrize("category", ["lower", "dress", "outfit"])
def test_cloth_over_hands_and_feet_is_taken_off(iuv: np.ndarray, parse: np.ndarray, category: str):
    """Hands in pockets, shoes below a hem: the body's map shows them, the picture does not."""
    hidden = np.isin(iuv[..., 0], (3, 5))
    parse = np.where(hidden, np.uint8(Part.DRESS if category == "dress" else Part.PANTS), parse)
    mask = agnostic_mask(parse, iuv=iuv, category=category)
    assert mask[hidden].mean() > 0.9
    assert share(mask, iuv[..., 0], (4, 6)) < 0.35
    # Those of the other half of the body stay on.
    assert share(agnostic_mask(parse, iuv=iuv, category="upper"), iuv[..., 0], (5,)) == 0


def test_legs_are_bare_below_an_open_coat(parse: np.ndarray, iuv: np.ndarray):
    """By a parse map alone, with one label for bare skin."""
    rows = np.arange(len(parse))[:, None]
    legs, feet = np.isin(iuv[..., 0], LEGS), np.flatnonzero(np.isin(iuv[..., 0], FEET).any(axis=1))[0]
    knee = (np.flatnonzero(legs.any(axis=1))[0] + feet) // 2
    dressed = np.where(legs & (rows > knee - 10), np.uint8(Part.SKIN), parse)
    columns = np.flatnonzero(legs.any(axis=0))
    coat = (rows > knee - 40) & (rows < feet) & (dressed == 0)
    coat[:, columns[0] : columns[-1] + 1] = False
    dressed = np.where(coat & (np.arange(parse.shape[1]) < columns[-1] + 8), np.uint8(Part.COAT), dressed)
    bare = legs & (dressed == Part.SKIN)
    assert agnostic_mask(dressed, category="lower")[bare].mean() > 0.9
    assert agnostic_mask(dressed, category="upper")[bare].mean() < 0.4


@pytest.mark.parametrize("charts", [True, False])
def test_bare_skin_is_arm_or_leg(iuv: np.ndarray, parse: np.ndarray, charts: bool):
    """DeepFashion's parse maps have one label for bare skin, VITON-HD's one for each limb."""
    chart = iuv[..., 0]
    thighs = np.isin(chart, (7, 8, 9, 10))
    limbs = np.where(thighs, np.uint8(Part.SKIRT), np.where(np.isin(chart, LEGS), np.uint8(Part.LEFT_LEG), parse))
    skin = np.where(np.isin(limbs, (Part.LEFT_LEG, Part.LEFT_ARM)), np.uint8(Part.SKIN), limbs)
    for category in CATEGORIES:
        masks = [agnostic_mask(worn, iuv=iuv if charts else None, category=category) for worn in (limbs, skin)]
        shins = [share(mask, chart, (11, 12, 13, 14)) for mask in masks]
        assert shins[0] == pytest.approx(shins[1], abs=0.05) and (shins[1] > 0.9) == (category != "upper")
        assert share(masks[1], chart, ARMS) == pytest.approx(share(masks[0], chart, ARMS), abs=0.15)
        if category == "lower":
            assert share(masks[1], chart, HANDS) < 0.05


@pytest.mark.parametrize("maps", ["iuv", "parse", "both"])
def test_hats_and_shoes_for_those_who_wear_none(iuv: np.ndarray, parse: np.ndarray, maps: str):
    chart = iuv[..., 0]
    rows, feet = np.arange(256)[:, None], np.isin(chart, FEET)
    first = np.flatnonzero(np.isin(chart, HEAD).any(axis=1))[0]
    crown = np.isin(chart, HEAD) & (rows < first + 5)
    bare = np.select([crown, np.isin(chart, (*LEGS, *FEET))], [Part.HAIR, Part.LEFT_LEG], parse).astype(np.uint8)
    given = {name: array for name, array in (("iuv", iuv), ("parse", bare)) if maps in (name, "both")}
    plain, hatted, shod = (agnostic_mask(**given, hat=hat, shoes=shoes) for hat, shoes in ((0, 0), (1, 0), (0, 1)))
    assert not plain[crown].any() and hatted[crown].all() and hatted[:first].any()
    assert plain[feet].mean() < 0.05 and shod[feet].mean() > 0.5
    # The face stays, and so does the body between.
    assert share(hatted, chart, HEAD) < 0.6 and not (shod & ~plain & (rows < 200)).any()


def test_margins_grow(iuv: np.ndarray, parse: np.ndarray):
    areas = [agnostic_mask(parse, category="dress", margin=margin).sum() for margin in (0, 0.02, 0.05)]
    assert areas[0] < areas[1] < areas[2]


def test_maps_that_tell_no_mask(iuv: np.ndarray, parse: np.ndarray):
    torso = np.where(np.isin(iuv[..., 0], TORSO), np.uint8(Part.UPPER), np.uint8(0))
    for arguments, expected in (
        ({}, "needs a parse map or a DensePose map"),
        ({"iuv": iuv, "category": "hat"}, "expected one of upper, lower, dress, outfit"),
        ({"iuv": iuv, "margin": 2}, r"margin .* must lie in \[0, 0.5\]"),
        ({"iuv": iuv, "parse": parse[:-1]}, r"the parse map is \(255, 192\), the DensePose map \(256, 192\)"),
        ({"iuv": np.zeros_like(iuv)}, "show nothing of a person to be repainted for category 'upper'"),
        ({"parse": np.full_like(parse, Part.SKIRT), "iuv": iuv}, "is kept for category 'upper': nothing is left"),
        ({"parse": torso, "hat": True}, "a hat is to be put on, but the maps show no head"),
        ({"parse": torso, "shoes": True}, "shoes are to be put on, but the maps show neither feet nor legs"),
    ):
        with pytest.raises(ValueError, match=expected):
            agnostic_mask(**arguments)


def test_the_picture_is_grey_where_it_is_repainted():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    mask = np.zeros((2, 4), bool)
    mask[1, 2] = True
    changed = agnostic_image(image, mask)
    assert (changed[1, 2] == 128).all() and np.array_equal(changed[~mask], image[~mask])


def test_shapes():
    ring = np.zeros((9, 12), bool)
    ring[2:7, 2:7] = True
    ring[3:6, 3:6] = False
    ring[4, 9:11] = True
    assert _filled(ring)[4, 4] and not _filled(ring)[0, 0] and _filled(ring).sum() == 27
    largest = _largest(_pieces(ring), ring)
    assert largest.sum() == 16 and not largest[4, 9]
    # Two arms that meet below are one piece.
    horseshoe = np.zeros((5, 5), bool)
    horseshoe[:, 0] = horseshoe[:, 4] = horseshoe[4] = True
    assert _largest(_pieces(horseshoe), horseshoe).sum() == 13 and not _filled(horseshoe)[0, 2]
    hull = _hull(horseshoe)
    assert hull.all()
    assert _widened(largest, 1).sum() == 48 and not _largest(_pieces(horseshoe), ~horseshoe).any()
    # The piece that counts is not always the larger one.
    assert _largest(_pieces(ring), np.indices(ring.shape)[1] > 8).sum() == 2
    rng = np.random.default_rng(0)
    blobs = rng.random((40, 50)) < 0.55
    ndimage = pytest.importorskip("scipy.ndimage")
    labels, _ = ndimage.label(blobs)
    sizes = np.bincount(labels[blobs])
    np.testing.assert_array_equal(_largest(_pieces(blobs), blobs), labels == sizes.argmax())
    np.testing.assert_array_equal(_filled(blobs), ndimage.binary_fill_holes(blobs))
    few = rng.random((40, 50)) < 0.01
    np.testing.assert_array_equal(chessboard(few), ndimage.distance_transform_cdt(~few, "chessboard"))
    assert (chessboard(np.zeros((4, 5), bool)) == 9).all()


def test_labels_of_data_sets():
    assert len(LABELS["viton-hd"]) == 20 and len(LABELS["atr"]) == 19 and len(LABELS["deepfashion"]) == 24
    np.testing.assert_array_equal(to_parts(np.array([[9, 10, 11, 19]]), "lip"), [[9, Part.JUMPSUIT, 11, 19]])
    np.testing.assert_array_equal(to_parts(np.array([[0, 4, 18]]), "atr"), [[0, Part.UPPER, Part.NECK]])
    np.testing.assert_array_equal(to_parts(np.array([[1, 21, 15]]), "deepfashion"), [[5, Part.JUMPSUIT, Part.SKIN]])
    with pytest.raises(ValueError, match=r"labels 0 to 18; got \(1, 1\) with 19 to 19"):
        to_parts(np.array([[19]]), "atr")
    with pytest.raises(ValueError, match="expected one of viton-hd, lip, atr, deepfashion"):
        to_parts(np.array([[0]]), "coco")
