"""Maps of a body, and the request that a user makes of it."""

import json

import numpy as np
import pytest

from fcjax.body import Body, atlas_uv, body_maps, embedded_model
from fcjax.body.charts import ATLAS_COLUMNS, ATLAS_MARGIN, ATLAS_ROWS
from fcjax.body.poses import pose as named_pose
from fcjax.body.rotations import rotation_matrices, rotation_vectors

HEIGHT, WIDTH = 256, 192
HALF_TURN = np.diag([1.0, -1.0, -1.0])


@pytest.fixture(scope="module")
def maps():
    return Body(pose="walking").render(HEIGHT, WIDTH)


def test_types_and_background(maps):
    assert maps.iuv.dtype == np.uint8 and maps.iuv.shape == (HEIGHT, WIDTH, 3)
    assert maps.uv.dtype == np.float32 and maps.uv.shape == (HEIGHT, WIDTH, 2)
    assert maps.part.dtype == np.uint8 and maps.face_mask.dtype == bool
    assert maps.depth.dtype == np.float32 and maps.normals.dtype == np.float32
    background = maps.part == 0
    np.testing.assert_array_equal(background, ~maps.foreground)
    assert 0.05 < maps.foreground.mean() < 0.5
    assert (maps.iuv[background] == 0).all() and (maps.uv[background] == -1).all()
    assert np.isinf(maps.depth[background]).all() and (maps.normals[background] == 0).all()
    seen = maps.uv[~background]
    assert seen.min() >= 0 and seen.max() <= 1 and np.isfinite(maps.depth[~background]).all()


def test_uint8_and_float_maps_agree(maps):
    """`uv` is exact, `atlas_uv(iuv)` rounds u and v to 255ths: half a step of a cell apart at most."""
    step = (1 - 2 * ATLAS_MARGIN) / 255 / np.array([ATLAS_COLUMNS, ATLAS_ROWS])
    assert (np.abs(atlas_uv(maps.iuv) - maps.uv) <= 0.51 * step).all()


def test_the_face_is_where_the_head_looks(maps):
    rows, columns = np.nonzero(maps.face_mask)
    head_rows = np.nonzero(np.isin(maps.part, (23, 24)))[0]
    assert 0.4 * len(head_rows) < len(rows) < 0.8 * len(head_rows)
    assert abs(columns.mean() - np.nonzero(maps.part == 2)[1].mean()) < 0.05 * WIDTH
    assert np.isin(maps.part[maps.face_mask], (23, 24)).all()
    assert rows.min() > head_rows.min() and rows.max() < head_rows.max()  # neither crown nor neck
    behind = Body(pose="standing", view=180).render(HEIGHT, WIDTH).face_mask.sum()
    assert behind < 0.05 * len(rows)  # no more than the rims of the ears


def test_features_lie_on_the_face():
    model = embedded_model()
    maps = Body(pose="standing", framing="upper").render(HEIGHT, WIDTH)
    for name in ("lips", "eyelids"):
        feature = maps.fragments.interpolate(model.masks[name], model.faces["body"]) > 0.5
        feature &= np.isin(maps.part, (23, 24))
        assert feature.sum() > 5 and maps.face_mask[feature].mean() > 0.99


def test_normals_face_the_viewer(maps):
    seen = maps.foreground
    np.testing.assert_allclose(np.linalg.norm(maps.normals[seen], axis=1), 1, atol=1e-4)
    assert (maps.normals[seen, 2] > -0.2).mean() > 0.99
    rows, columns = np.nonzero(maps.part == 2)
    left, right = columns < np.percentile(columns, 10), columns > np.percentile(columns, 90)
    normals = maps.normals[rows, columns]
    assert normals[left, 0].mean() < -0.2 < 0.2 < normals[right, 0].mean()


def test_normals_and_left_right_follow_the_camera():
    side = Body(pose="standing", view=90).render(HEIGHT, WIDTH)
    assert side.normals[side.foreground, 2].mean() > 0.5
    parts = side.part[side.foreground]  # the camera walks to the person's left
    assert (parts == 24).sum() > 5 * (parts == 23).sum()
    assert (parts == 17).sum() > 5 * (parts == 18).sum()


def test_the_left_arm_is_on_the_pictures_right(maps):
    columns = np.arange(WIDTH)[None] * np.ones((HEIGHT, 1))
    assert columns[maps.part == 15].mean() > WIDTH / 2 > columns[maps.part == 16].mean()


def test_a_finer_picture_shows_the_same_places():
    """Aspect kept, a picture three times as fine has the coarse one's pixel centres."""
    body = Body(pose="sitting", view=20, distance=3.0)
    coarse, fine = body.render(128, 96), body.render(384, 288)
    centres = fine.iuv[1::3, 1::3].astype(int)
    same = centres[..., 0] == coarse.part
    assert same.mean() > 0.998
    assert np.percentile(np.abs(centres - coarse.iuv)[same], 99.9) <= 1


def test_body_maps_of_wardrobe_and_request_are_one():
    body = Body(pose="waving", gender=0.7, view=15)
    maps = body.render(HEIGHT, WIDTH)
    rotations = rotation_matrices(named_pose("waving").rotations)
    other = body_maps(body.shaped(), rotations, body.camera(HEIGHT, WIDTH), HEIGHT, WIDTH)
    np.testing.assert_array_equal(maps.iuv, other.iuv)


def test_framing_keeps_the_body_inside(maps):
    rows = np.nonzero(maps.foreground)[0]
    assert rows.min() > 0.03 * HEIGHT and rows.max() < 0.97 * HEIGHT
    assert rows.max() - rows.min() > 0.85 * HEIGHT
    upper = Body(pose="walking", framing="upper").render(HEIGHT, WIDTH)
    assert upper.foreground.mean() > 1.5 * maps.foreground.mean()
    assert not np.isin(upper.part, range(11, 15)).any() and {1, 2, 23, 24} - {1} <= set(np.unique(upper.part))


def test_perspective_makes_the_near_foot_larger():
    body = {"pose": "walking", "view": 90}
    far, near = (Body(**body, distance=distance).render(HEIGHT, WIDTH) for distance in (30.0, 2.0))
    flat = Body(**body).render(HEIGHT, WIDTH)
    assert (far.part != flat.part).mean() < (near.part != flat.part).mean() / 3


def test_shape_changes_the_map(maps):
    heavy = Body(pose="walking", weight=1.0, muscle=0.0).render(HEIGHT, WIDTH)
    assert heavy.foreground.sum() > 1.15 * maps.foreground.sum()
    tall, short = (np.ptp(Body(height=height).posed()[:, 1]) for height in (1.0, 0.0))
    assert 0.2 < tall - short < 0.5


@pytest.mark.parametrize(
    "body",
    [
        Body(),
        Body(pose="Arms Raised", gender=1, view=-30, framing="upper", distance=3),
        Body(joint_rotations=named_pose("sitting").rotations),
    ],
)
def test_a_request_is_plain_data(body):
    assert Body(**json.loads(json.dumps(body.asdict()))) == body
    assert hash(body) == hash(Body(**body.asdict()))


def test_rotations_may_be_vectors_or_matrices():
    vectors = np.array(named_pose("dancing").rotations)
    for given in (vectors, vectors.ravel(), vectors.tolist(), rotation_matrices(vectors)):
        np.testing.assert_allclose(Body(joint_rotations=given).rotations, vectors, atol=1e-9)


def test_half_turns_survive():
    """What cameras saw upside down turns by exactly half a turn, where a matrix has no unique vector."""
    matrices = np.tile(np.eye(3), (24, 1, 1))
    matrices[0] = HALF_TURN
    np.testing.assert_allclose(rotation_matrices(Body(joint_rotations=matrices).rotations)[0], HALF_TURN, atol=1e-12)
    axes = np.random.default_rng(0).normal(size=(20, 3))
    turns = rotation_matrices(np.pi * axes / np.linalg.norm(axes, axis=1, keepdims=True))
    np.testing.assert_allclose(rotation_matrices(rotation_vectors(turns)), turns, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pose": "wakling"}, "unknown pose 'wakling'; did you mean 'walking'"),
        ({"pose": 3}, "expected a name such as 'walking'"),
        ({"weight": float("nan")}, "weight is nan; expected a number from 0 to 1"),
        ({"gender": 1.2}, "gender is 1.2; expected a number from 0 to 1"),
        ({"muscle": "strong"}, "muscle is 'strong'; expected a number"),
        ({"age": True}, "age is True; expected a number"),
        ({"view": float("inf")}, "view is inf"),
        ({"elevation": 90}, "elevation is 90"),
        ({"distance": 0.1}, "distance is 0.1"),
        ({"framing": "half"}, "framing is 'half'; expected 'full' or 'upper'"),
        ({"joint_rotations": np.full((24, 3), np.nan)}, "NaN or infinite"),
        ({"joint_rotations": np.zeros((22, 3))}, r"shape \(22, 3\); expected axis-angle"),
        ({"joint_rotations": np.zeros((2, 24, 3))}, r"shape \(2, 24, 3\); expected one pose"),
        ({"joint_rotations": 2 * np.tile(np.eye(3), (24, 1, 1))}, "not rotations"),
        ({"joint_rotations": [["a"] * 3] * 24}, "not an array of numbers"),
    ],
)
def test_what_no_body_can_do_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Body(**fields)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (256, 19.5), (256, 100000)])
def test_picture_sizes_are_checked(height, width):
    with pytest.raises(ValueError, match="whole pixels"):
        Body().render(height, width)


def test_a_camera_inside_the_body_is_refused():
    with pytest.raises(ValueError, match="larger distance"):
        Body(pose="t_pose", view=90, distance=0.5).render(HEIGHT, WIDTH)
