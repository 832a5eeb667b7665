"""Charts: DensePose's conventions, one place one (u, v), mirroring, the atlas, and charts that users bring."""

import sys

import numpy as np
import pytest

from fcjax.body import (
    Body,
    atlas_uv,
    charts_from_skinning,
    embedded_model,
    flip_iuv,
    load_densepose_charts,
    load_densepose_symmetry,
    mesh_maps,
    rest_places,
)
from fcjax.body.charts import MIRRORED_PARTS, NOSE_V, PART_NAMES, embedded_charts, place_in_atlas
from fcjax.body.embedded import BONE_OF_JOINT, SMPL_JOINTS
from fcjax.body.poses import mirror_rotations
from fcjax.body.poses import pose as named_pose
from fcjax.body.rotations import rotation_matrices
from tests import miniatures

HEIGHT, WIDTH = 256, 192


@pytest.fixture(scope="module")
def skin_faces():
    return embedded_model().faces["body"]


@pytest.fixture(scope="module")
def middles(skin_faces):
    """Part, u, v and T-pose place of every face's middle."""
    place = Body(pose="t_pose").posed()[skin_faces].mean(axis=1)
    count = len(skin_faces)
    return *embedded_charts().locate(np.arange(count), np.full((count, 3), 1 / 3, np.float32)), place


def test_every_part_exists_on_its_side_of_the_body(middles):
    part, u, v, place = middles
    assert set(np.unique(part)) == set(range(1, 25))
    np.testing.assert_array_equal(part, embedded_charts().part)
    assert min(u.min(), v.min()) >= 0 and max(u.max(), v.max()) <= 1
    for number, name in enumerate(PART_NAMES):
        x, z = place[part == number, 0], place[part == number, 2]
        if name.startswith("left"):
            assert x.min() > -1e-3, name
        if name.startswith("right"):
            assert x.max() < 1e-3, name
        if name.endswith("front"):
            back = PART_NAMES.index(name.replace("front", "back"))
            assert z.mean() > place[part == back, 2].mean() + 0.02, name


def test_parts_lie_along_the_body_in_order(middles):
    part, _, _, place = middles
    height = {name: place[part == number, 1].mean() for number, name in enumerate(PART_NAMES) if number}
    reach = {name: place[part == number, 0].mean() for number, name in enumerate(PART_NAMES) if number}
    order = ["left foot", "left lower leg front", "left upper leg front", "torso front", "left half of the head"]
    assert np.all(np.diff([height[name] for name in order]) > 0.1)
    order = ["torso front", "left upper arm front", "left lower arm front", "left hand"]
    assert np.all(np.diff([reach[name] for name in order]) > 0.1)


def test_the_axes_that_densepose_states(middles):
    part, u, v, place = middles
    front = part == 2
    assert np.corrcoef(u[front], place[front, 1])[0, 1] < -0.95  # u grows downwards
    assert np.corrcoef(v[front], place[front, 0])[0, 1] < -0.9  # v from the subject's left to the right
    for side, nose_u in ((23, 1.0), (24, 0.0)):
        half = np.flatnonzero(part == side)
        assert np.corrcoef(v[half], place[half, 1])[0, 1] > 0.95
        nose = half[place[half, 2].argmax()]
        assert abs(u[nose] - nose_u) < 0.03 and abs(v[nose] - NOSE_V) < 0.02
        ear = half[np.abs(place[half, 0]).argmax()]
        assert abs(u[ear] - (0.45 if side == 23 else 0.55)) < 0.1 and abs(v[ear] - 0.49) < 0.1


@pytest.mark.parametrize("limb", ["hand", "foot", "upper leg front", "lower leg back", "upper arm back"])
def test_v_grows_towards_the_trunk(middles, limb):
    part, _, v, place = middles
    for side in ("left", "right"):
        chosen = part == PART_NAMES.index(f"{side} {limb}")
        if "foot" in limb:
            towards = -place[chosen, 2]
        else:
            towards = place[chosen, 1] if "leg" in limb else -np.abs(place[chosen, 0])
        assert np.corrcoef(v[chosen], towards)[0, 1] > 0.9


def test_equal_uv_is_the_same_place_of_every_body(skin_faces):
    """Pixels of unlike bodies, poses and views that share part and uint8 (u, v) lie together on one reference body."""
    reference = Body(pose="t_pose").posed()
    keys, places = [], []
    for body in (
        Body(pose="walking"),
        Body(pose="sitting", gender=1, weight=0.9, view=30),
        Body(pose="arms_raised", gender=0.5, muscle=1, view=200, distance=3.0),
        Body(pose="hands_on_hips", age=1, view=-75),
    ):
        maps = body.render(512, 384)
        keys.append(maps.iuv[maps.foreground].astype(np.int64) @ (1 << 16, 1 << 8, 1))
        places.append(maps.fragments.interpolate(reference, skin_faces)[maps.foreground])
    key, place = np.concatenate(keys), np.concatenate(places)
    _, index, count = np.unique(key, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(index, place[:, axis]) for axis in range(3)], axis=1) / count[:, None]
    shared = count[index] > 1
    distance = np.linalg.norm(place - mean[index], axis=1)[shared]
    assert shared.sum() > 20000
    assert np.percentile(distance, 99) < 0.02  # metres
    assert np.median(distance) < 0.003


def test_seams_are_smooth():
    """Parts meet between vertices: a finer picture of the same body changes hardly any part."""
    body = Body(pose="walking", view=60)
    coarse, fine = body.render(128, 96), body.render(384, 288)
    same = coarse.part == fine.part[1::3, 1::3]
    assert same.mean() > 0.999


def mirrored_pair(pose, view, **shape):
    """IUV of a person and of the mirrored person, seen from the mirrored side."""
    rotations = named_pose(pose).rotations
    body = Body(joint_rotations=rotations, view=view, **shape)
    mirror = Body(joint_rotations=mirror_rotations(rotations), view=-view, **shape)
    return body.render(HEIGHT, WIDTH).iuv, mirror.render(HEIGHT, WIDTH).iuv


@pytest.mark.parametrize(
    ("pose", "view", "shape"),
    [("walking", 0, {}), ("sitting", 40, {"gender": 1.0, "weight": 0.8}), ("waving", 160, {"age": 1.0})],
)
def test_flip_is_the_map_of_the_mirrored_person(pose, view, shape):
    """Tolerance: 99 % of the foreground has the same part, and on 98 % of that u and v differ by at most 3 of 255.

    Measured: 99.4 to 99.7 % and 98.8 to 99.6 %. The rest is the body's own asymmetry: vertices lie up to 3 mm off their
    mirror image, and knees and ankles have skinning weights that differ by up to 0.26 between left and right.
    """
    iuv, mirror = mirrored_pair(pose, view, **shape)
    flipped = flip_iuv(iuv).astype(int)
    foreground = (mirror[..., 0] > 0) | (flipped[..., 0] > 0)
    same = (flipped[..., 0] == mirror[..., 0]) & foreground
    assert same.sum() > 0.99 * foreground.sum()
    difference = np.abs(flipped - mirror)[same][:, 1:].max(axis=1)
    assert (difference <= 3).mean() > 0.98
    # It is no small matter: without the mirroring inside the charts hardly any pixel agrees.
    permuted = iuv[:, ::-1].astype(int)
    permuted[..., 0] = MIRRORED_PARTS[permuted[..., 0]]
    assert (np.abs(permuted - mirror)[same][:, 1:].max(axis=1) <= 3).mean() < 0.2


def test_flip_twice_is_the_same_and_batches_flip_alike():
    iuv, mirror = mirrored_pair("walking", 20)
    batch = np.stack([iuv, mirror])
    np.testing.assert_array_equal(flip_iuv(flip_iuv(batch)), batch)
    np.testing.assert_array_equal(flip_iuv(batch)[1], flip_iuv(mirror))
    assert flip_iuv(iuv).dtype == np.uint8


def test_mirrored_ids():
    assert MIRRORED_PARTS[:7].tolist() == [0, 1, 2, 4, 3, 6, 5]
    np.testing.assert_array_equal(MIRRORED_PARTS[MIRRORED_PARTS], np.arange(25))
    for part, mirrored in enumerate(MIRRORED_PARTS):
        swapped = PART_NAMES[part].replace("left", "*").replace("right", "left").replace("*", "right")
        assert PART_NAMES[mirrored] == swapped


def test_atlas_cells_do_not_touch():
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    cells = np.stack([place_in_atlas(np.full(4, part), corners) for part in range(1, 25)])
    assert cells.min() > 0 and cells.max() < 1
    low, high = cells.min(axis=1), cells.max(axis=1)
    for one in range(24):
        for other in range(one):
            gap = np.maximum(low[one] - high[other], low[other] - high[one])
            assert gap.max() > 0.01, f"charts {one + 1} and {other + 1} touch"


def test_atlas_background_is_a_value_of_no_place():
    iuv = np.array([[[0, 0, 0], [1, 0, 0], [24, 255, 255]]], np.uint8)
    uv = atlas_uv(iuv)
    assert uv.dtype == np.float32 and uv.shape == (1, 3, 2)
    assert (uv[0, 0] == -1).all() and (uv[0, 1:] >= 0).all() and (uv[0, 1:] <= 1).all()


@pytest.mark.parametrize(
    ("iuv", "message"),
    [
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\(\.\.\., 3\)"),
        (np.full((4, 4, 3), 25, np.uint8), "part ids 0..24"),
    ],
)
def test_what_is_no_iuv_image_is_refused(iuv, message):
    for function in (atlas_uv, flip_iuv):
        with pytest.raises(ValueError, match=message):
            function(iuv)


def smpl_like():
    """The embedded skin as if it were an SMPL: T-pose, weights over 24 joints, joints."""
    model = embedded_model()
    vertices = Body(pose="t_pose").posed()
    joints = np.zeros((24, 3))
    weights = np.zeros((len(vertices), 24), np.float32)
    heads = model.posed_joints(model.shape())
    bones = {**BONE_OF_JOINT, "left_hand": "middle_01_l", "right_hand": "middle_01_r"}
    for joint, name in enumerate(SMPL_JOINTS):
        joints[joint] = heads[model.bone_index[bones[name]]]
    owner = {bone: SMPL_JOINTS.index(joint) for joint, bone in bones.items()}
    for bone, column in model.bone_index.items():
        joint = owner.get(bone, 0 if bone == "Root" else 22 + bone.endswith("_r"))
        weights[:, joint] += model.weights[: len(vertices), column]
    return vertices, model.faces["body"], weights, joints


def test_charts_of_another_mesh_with_smpl_joints():
    """Any unit, any order of faces, any place: charts follow the mesh."""
    vertices, faces, weights, joints = smpl_like()
    order = np.random.default_rng(0).permutation(len(faces))
    shift = np.array([3.0, 20.0, -5.0])
    moved = charts_from_skinning(vertices * 100 + shift, faces[order], weights, joints * 100 + shift)
    charts = charts_from_skinning(vertices, faces, weights, joints)
    assert (moved.part == charts.part[order]).mean() > 0.999
    agrees = (charts.part == embedded_charts().part).mean()  # differs by the fingers' curl alone
    assert agrees > 0.97
    maps = mesh_maps(vertices, faces, charts, Body(pose="t_pose").camera(HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert len(np.unique(maps.part)) >= 16


def test_weights_that_are_not_smpls_are_refused():
    vertices, faces, weights, joints = smpl_like()
    with pytest.raises(ValueError, match=r"weights \(13380, 24\)"):
        charts_from_skinning(vertices, faces, weights[:, :20], joints)
    with pytest.raises(ValueError, match="no vertex follows the head"):
        charts_from_skinning(vertices, faces, weights * (np.arange(24) != 15) * (np.arange(24) != 12), joints)


@pytest.fixture
def densepose_files(tmp_path):
    """Files laid out as DensePose's: one quad for each part, its corners at (u, v) = (0, 0), (1, 0), (1, 1), (0, 1)."""
    savemat = pytest.importorskip("scipy.io").savemat
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    quads = np.arange(96).reshape(24, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    savemat(
        tmp_path / "UV_Processed.mat",
        {
            "All_Faces": faces + 1,
            "All_FaceIndices": np.tile(np.arange(1, 25), 2)[:, None],
            "All_vertices": (np.arange(96) * 3 + 1)[None],
            "All_U_norm": np.tile(corners[:, :1], (24, 1)),
            "All_V_norm": np.tile(corners[:, 1:], (24, 1)),
        },
    )
    miniatures.symmetry(tmp_path / "UV_symmetry_transforms.mat")
    return tmp_path


def test_a_users_own_charts(densepose_files):
    charts, faces = load_densepose_charts(densepose_files / "UV_Processed.mat")
    assert faces.shape == (48, 3) and faces.max() == 95 * 3  # SMPL's vertex ids, from 0
    part, u, v = charts.locate(np.array([5, 29]), np.array([[0.5, 0.25, 0.25], [0, 0, 1]], np.float32))
    assert part.tolist() == [6, 6]
    np.testing.assert_allclose(u, [0.5, 0])
    np.testing.assert_allclose(v, [0.25, 1])


def test_mirroring_a_users_own_charts_needs_its_table(densepose_files):
    iuv = Body(pose="walking").render(128, 96).iuv
    charts, _ = load_densepose_charts(densepose_files / "UV_Processed.mat")
    with pytest.raises(ValueError, match=r"UV_symmetry_transforms\.mat"):
        flip_iuv(iuv, charts)
    table = densepose_files / "UV_symmetry_transforms.mat"
    charts, _ = load_densepose_charts(densepose_files / "UV_Processed.mat", table)
    # In 255ths, by the table of the part p that is mirrored, (u + 2 v + 3 p, 3 u + v + 5 p) less whole turns of 256.
    seen = np.array([[[1, 0, 255], [2, 200, 100], [3, 10, 20], [0, 7, 7], [4, 10, 20], [24, 255, 0]]], np.uint8)
    expected = [[[23, 71, 117], [3, 62, 70], [0, 0, 0], [4, 59, 65], [2, 150, 198], [1, 1, 4]]]
    for one in (charts, load_densepose_symmetry(table)):
        np.testing.assert_array_equal(flip_iuv(seen, one), expected)
        mirrored, ruled = flip_iuv(iuv, one), flip_iuv(iuv)
        np.testing.assert_array_equal(mirrored[..., 0], ruled[..., 0])
        assert (mirrored != ruled).any(axis=-1)[ruled[..., 0] > 0].mean() > 0.9


def test_wrong_mat_files_are_refused(densepose_files, tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    uv, symmetry = densepose_files / "UV_Processed.mat", densepose_files / "UV_symmetry_transforms.mat"
    with pytest.raises(ValueError, match=r"no UV_Processed.mat: it lacks All_Faces"):
        load_densepose_charts(symmetry)
    with pytest.raises(ValueError, match="U_transforms with 24 tables"):
        load_densepose_charts(uv, uv)
    with pytest.raises(ValueError, match="U_transforms with 24 tables"):
        load_densepose_symmetry(uv)
    with pytest.raises(ValueError, match="no such file"):
        load_densepose_charts(tmp_path / "absent.mat")
    (tmp_path / "text.mat").write_bytes(b"hello, this is a text and not a file of that kind" * 9)
    with pytest.raises(ValueError, match=r"not a readable .mat file"):
        load_densepose_charts(tmp_path / "text.mat")
    (tmp_path / "text.mat").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a readable .mat file"):
        load_densepose_charts(tmp_path / "text.mat")
    empty = {**scipy_io.loadmat(uv), "All_Faces": np.zeros((0, 3)), "All_FaceIndices": np.zeros((0, 1))}
    scipy_io.savemat(
        tmp_path / "empty.mat", {name: array for name, array in empty.items() if not name.startswith("__")}
    )
    with pytest.raises(ValueError, match="expected a part for each triangle"):
        load_densepose_charts(tmp_path / "empty.mat")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"needs scipy: pip install 'fcjax\[densepose\]'"):
        load_densepose_charts(uv)


def test_rotations_as_the_pose_library_gives_them():
    """Vectors and matrices ask for the same map."""
    vectors = named_pose("walking").rotations
    one = Body(joint_rotations=vectors).render(64, 48).iuv
    np.testing.assert_array_equal(one, Body(joint_rotations=rotation_matrices(vectors)).render(64, 48).iuv)
    np.testing.assert_array_equal(one, Body(pose="walking").render(64, 48).iuv)


def test_places_at_rest_follow_from_the_uv_map():
    """Whatever the pose and the shape, a place of the skin is told where it lies on the resting body."""
    model = embedded_model()
    vertices = model.shape().vertices[model.ranges["body"]]
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    resting = (2 * vertices - low - high) / (high - low)[1]
    maps = Body(pose="walking", weight=0.8).render(256, 192)
    places = rest_places(maps.uv)
    assert places.dtype == np.float32 and not places[~maps.foreground].any()
    truth = maps.fragments.interpolate(resting, maps.faces)[maps.foreground]
    distance = np.linalg.norm(places[maps.foreground] - truth, axis=-1)
    # Units of half a body's height, about 0.85 m.
    assert np.median(distance) < 0.015 and np.quantile(distance, 0.99) < 0.06
