"""SMPL against the smplx package on synthetic model files of the right shapes, and what is refused."""

import pickle
import sys
import types

import numpy as np
import pytest

from fcjax.body.embedded import SMPL_JOINTS
from fcjax.body.poses import POSES
from fcjax.body.rotations import rotation_matrices
from fcjax.body.smpl import load_smpl

PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)


def synthetic_model(vertices=6890, shapes=10, seed=0):
    """Random arrays with the layout, the sizes and about the magnitudes of an SMPL file."""
    rng = np.random.default_rng(seed)
    weights = rng.random((vertices, 24)) ** 8
    regressor = rng.random((24, vertices)) * (rng.random((24, vertices)) < 0.01)
    regressor[:, 0] += 1e-3
    return {
        "v_template": rng.normal(size=(vertices, 3)) * 0.4,
        "shapedirs": rng.normal(size=(vertices, 3, shapes)) * 0.01,
        "posedirs": rng.normal(size=(vertices, 3, 207)) * 0.003,
        "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "kintree_table": np.array([[4294967295, *PARENTS[1:]], range(24)], np.uint32),
        "f": rng.integers(0, vertices, (13776, 3)).astype(np.uint32),
    }


# SMPL-X's joints: the body's 22, jaw, eyes, and five fingers of three joints on either hand.
FINGERS = [
    joint for start in (25, 40) for finger in range(5) for joint in range(start + 3 * finger, start + 3 * finger + 3)
]
PARENTS_X = (*PARENTS[:22], 15, 15, 15, *((20 if j < 40 else 21) if (j - 25) % 3 == 0 else j - 1 for j in FINGERS))


def synthetic_smplx(vertices=600, shapes=20, seed=0):
    """The same of an SMPL-X file: 10 betas and 10 expressions, or 300 and 100."""
    rng = np.random.default_rng(seed)
    weights = rng.random((vertices, 55)) ** 8
    regressor = rng.random((55, vertices)) * (rng.random((55, vertices)) < 0.1)
    regressor[:, 0] += 1e-3
    return {
        "v_template": rng.normal(size=(vertices, 3)) * 0.4,
        "shapedirs": rng.normal(size=(vertices, 3, shapes)) * 0.01,
        "posedirs": rng.normal(size=(vertices, 3, 486)) * 0.003,
        "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "kintree_table": np.array([[4294967295, *PARENTS_X[1:]], range(55)], np.uint32),
        "f": rng.integers(0, vertices, (900, 3)).astype(np.uint32),
        "hands_meanl": rng.normal(size=45) * 0.1,
        "hands_meanr": rng.normal(size=45) * 0.1,
        "hands_componentsl": rng.normal(size=(45, 45)) * 0.1,
        "hands_componentsr": rng.normal(size=(45, 45)) * 0.1,
    }


@pytest.fixture(scope="module")
def full_arrays():
    return synthetic_model()


@pytest.fixture
def small(tmp_path):
    """Write a small model with some arrays replaced, and return its path."""

    def write(name="model.npz", **changes):
        arrays = {**synthetic_model(vertices=60), **changes}
        np.savez(tmp_path / name, **{key: value for key, value in arrays.items() if value is not None})
        return tmp_path / name

    return write


@pytest.mark.parametrize("shapes", [10, 300])
def test_equal_to_smplx(shapes, tmp_path, full_arrays):
    torch = pytest.importorskip("torch")
    smplx = pytest.importorskip("smplx")
    arrays = full_arrays if shapes == 10 else synthetic_model(shapes=300)
    np.savez(tmp_path / "model.npz", **arrays)
    ours = load_smpl(tmp_path / "model.npz")
    assert ours.shape_count == shapes

    rng = np.random.default_rng(3)
    pose, betas, translation = rng.normal(size=(4, 72)) * 0.6, rng.normal(size=(4, shapes)), rng.normal(size=(4, 3))
    theirs = smplx.SMPL("", data_struct=types.SimpleNamespace(**arrays), num_betas=shapes, batch_size=4)
    numbers = {
        "global_orient": pose[:, :3], "body_pose": pose[:, 3:], "betas": betas, "transl": translation,
    }  # fmt: skip
    with torch.no_grad():
        expected = theirs(**{key: torch.tensor(value, dtype=torch.float32) for key, value in numbers.items()})

    for rotations in (pose, pose.reshape(4, 24, 3), rotation_matrices(pose.reshape(4, 24, 3))):
        output = ours(rotations, betas, translation)
        np.testing.assert_allclose(output.vertices, expected.vertices.numpy(), atol=1e-5)
        np.testing.assert_allclose(output.joints, expected.joints.numpy()[:, :24], atol=1e-5)
    assert output.vertices.dtype == output.joints.dtype == np.float32


@pytest.mark.parametrize("shapes", [20, 400])
def test_smplx_files_equal_the_smplx_package(shapes, tmp_path):
    torch = pytest.importorskip("torch")
    smplx = pytest.importorskip("smplx")
    # The package looks up landmarks of the face at fixed vertices.
    arrays = synthetic_smplx(vertices=10475, shapes=shapes)
    np.savez(tmp_path / "model.npz", **arrays, part2num=np.array({"head": 1}, object))
    ours = load_smpl(tmp_path / "model.npz")
    betas_known, expressions_known = {20: (10, 10), 400: (300, 100)}[shapes]
    assert (ours.name, ours.shape_count, ours.expression_directions.shape[2]) == (
        "SMPL-X", betas_known, expressions_known,
    )  # fmt: skip

    rng = np.random.default_rng(3)
    sizes = {"global_orient": 3, "body_pose": 63, "jaw_pose": 3, "leye_pose": 3, "reye_pose": 3}
    sizes |= {
        "left_hand_pose": 6,
        "right_hand_pose": 6,
        "betas": betas_known,
        "expression": expressions_known,
        "transl": 3,
    }
    given = {key: rng.normal(size=(2, size)) * 0.5 for key, size in sizes.items()}
    extra = {"lmk_faces_idx": np.zeros(51, np.int64), "lmk_bary_coords": np.full((51, 3), 1 / 3)}
    # The package reads files of this kind by their path.
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", **arrays, **extra)
    theirs = smplx.SMPLX(
        str(tmp_path), ext="npz", num_betas=betas_known, num_expression_coeffs=expressions_known, num_pca_comps=6,
        use_pca=True, batch_size=2, use_face_contour=False,
    )  # fmt: skip
    with torch.no_grad():
        expected = theirs(**{key: torch.tensor(value, dtype=torch.float32) for key, value in given.items()})
    for row in range(2):
        hands = [ours.hand(side, given[f"{name}_hand_pose"][row]) for side, name in enumerate(("left", "right"))]
        body = [
            given[key][row].reshape(-1, 3)
            for key in ("global_orient", "body_pose", "jaw_pose", "leye_pose", "reye_pose")
        ]
        output = ours(np.concatenate([*body, *hands]), *(given[key][row] for key in ("betas", "transl", "expression")))
        np.testing.assert_allclose(output.vertices[0], expected.vertices[row].numpy(), atol=1e-5)
        np.testing.assert_allclose(output.joints[0], expected.joints[row, :55].numpy(), atol=1e-5)


def test_what_smplx_alone_has(small, tmp_path):
    np.savez(tmp_path / "x.npz", **synthetic_smplx())
    expressive, plain = load_smpl(tmp_path / "x.npz"), load_smpl(small())
    np.testing.assert_array_equal(expressive.hand(0, np.arange(45.0)), np.arange(45.0).reshape(15, 3))
    with pytest.raises(ValueError, match="no expressions: they belong to SMPL-X"):
        plain(expression=np.ones(3))
    with pytest.raises(ValueError, match="a hand's pose has 6 numbers; expected 45"):
        plain.hand(0, np.ones(6))
    with pytest.raises(ValueError, match="expected .*55"):
        expressive(np.zeros(72))
    with pytest.raises(ValueError, match=r"expression have shape \(1, 11\)"):
        expressive(expression=np.ones(11))
    np.savez(tmp_path / "x.npz", **{**synthetic_smplx(), "hands_meanl": np.zeros(3)})
    with pytest.raises(ValueError, match=r"hands_meanl.* have shapes .* expected \(45,\)"):
        load_smpl(tmp_path / "x.npz")


def test_smplx_joints_as_smpls(small, tmp_path):
    np.savez(tmp_path / "x.npz", **synthetic_smplx())
    model = load_smpl(tmp_path / "x.npz")
    weights, joints = model.on_smpl_joints()
    assert joints.shape == (24, 3)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    # A raised left arm moves its hand, and nothing of the right one.
    pose = np.zeros((55, 3))
    pose[16] = 0, 0, 1
    moved = np.linalg.norm(model(pose).joints[0] - model().joints[0], axis=1) > 1e-6
    assert moved[[18, 20, 25, 39]].all() and not moved[[19, 21, 40, 54]].any()
    plain = load_smpl(small())
    np.testing.assert_array_equal(plain.on_smpl_joints()[0], plain.weights)


def test_batches(small):
    model = load_smpl(small())
    rng = np.random.default_rng(0)
    pose, betas, translation = rng.normal(size=(3, 72)), rng.normal(size=(3, 10)), rng.normal(size=(3, 3))
    together = model(pose, betas, translation)
    for index in range(3):
        alone = model(pose[index], betas[index], translation[index])
        assert alone.vertices.shape == (1, 60, 3) and alone.joints.shape == (1, 24, 3)
        np.testing.assert_allclose(alone.vertices[0], together.vertices[index], atol=1e-6)
    repeated = model(pose[0], betas)
    np.testing.assert_allclose(repeated.vertices[2], model(pose[0], betas[2]).vertices[0], atol=1e-6)
    np.testing.assert_allclose(model(pose, betas[0]).vertices[1], model(pose[1], betas[0]).vertices[0], atol=1e-6)


def test_rest_pose_and_fewer_betas(small):
    model = load_smpl(small())
    np.testing.assert_allclose(model().vertices[0], model.template, atol=1e-6)
    padded = np.concatenate([np.ones(4), np.zeros(6)])
    np.testing.assert_allclose(model(betas=np.ones(4)).vertices, model(betas=padded).vertices, atol=1e-6)


def test_the_root_turns_about_its_own_joint(small):
    model = load_smpl(small())
    pose = np.zeros(72)
    pose[:3] = 0.3, 1.0, -0.5
    np.testing.assert_allclose(model(pose).joints[0, 0], model().joints[0, 0], atol=1e-6)


def test_named_poses_drive_it(small):
    model = load_smpl(small())
    assert len(SMPL_JOINTS) == len(model.parents) == 24
    assert np.isfinite(model(POSES["walking"].rotations).vertices).all()


def test_official_pickle_layout(tmp_path, small, monkeypatch):
    """chumpy arrays, a scipy regressor and a pickle of protocol 2, read without either package."""
    arrays = synthetic_model(vertices=60)
    kinds = {}
    for module, name in (("chumpy.ch", "Ch"), ("scipy.sparse.csc", "csc_matrix")):
        kinds[name] = type(name, (), {"__module__": module})
        fake = types.ModuleType(module)
        setattr(fake, name, kinds[name])
        monkeypatch.setitem(sys.modules, module, fake)
        for parent in ("chumpy", "scipy", "scipy.sparse"):
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    content = dict(arrays, bs_type="lrotmin", bs_style="lbs")
    for key in ("v_template", "shapedirs", "posedirs", "weights"):
        content[key] = kinds["Ch"]()
        content[key].__dict__.update(x=arrays[key], _dirty_vars=set(), _itr=None)
    sparse = kinds["csc_matrix"]()
    vertex, joint = np.nonzero(arrays["J_regressor"].T)
    starts = np.searchsorted(vertex, np.arange(61)).astype(np.int32)
    sparse.__dict__.update(
        _shape=(24, 60), data=arrays["J_regressor"].T[vertex, joint], indices=joint.astype(np.int32), indptr=starts
    )
    content["J_regressor"] = sparse
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, 2))
    pose = np.random.default_rng(0).normal(size=72)
    expected = load_smpl(small())(pose, np.ones(10))
    np.testing.assert_array_equal(load_smpl(tmp_path / "model.pkl")(pose, np.ones(10)).vertices, expected.vertices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None, "f": None}, "it lacks weights, f; it holds v_template"),
        ({"posedirs": np.zeros((60, 3, 93))}, r"posedirs \(60, 3, 93\) instead of \(60, 3, 207\)"),
        ({"v_template": np.full((60, 3), np.nan)}, "v_template holds NaN"),
        ({"v_template": np.zeros(3)}, "is not an SMPL model"),
        ({"v_template": np.array("text")}, "is not an SMPL model"),
        ({"kintree_table": np.zeros((2, 52))}, r"is SMPL\+H \(52 joints\); give an SMPL file with 24 or an SMPL-X"),
        ({"kintree_table": np.zeros((2, 9))}, r"kintree_table \(2, 9\) instead of \(2, 24\), or \(2, 55\) of SMPL-X"),
        ({"kintree_table": np.zeros((2, 55))}, r"posedirs \(60, 3, 207\) instead of \(60, 3, 486\)"),
        ({"kintree_table": np.full((2, 24), 9)}, "kintree_table is no chain"),
        ({"f": np.full((5, 3), 60)}, "faces name vertices up to 60, but there are 60"),
        ({"weights": np.ones((60, 24))}, "must sum to 1"),
    ],
)
def test_files_that_are_no_smpl_model(changes, message, small):
    with pytest.raises(ValueError, match=message):
        load_smpl(small(**changes))


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.npz"):
        load_smpl(tmp_path / "missing.npz")
    with pytest.raises(FileNotFoundError, match="missing.pkl"):
        load_smpl(tmp_path / "missing.pkl")
    with pytest.raises(ValueError, match="is a folder"):
        load_smpl(tmp_path)
    (tmp_path / "model.obj").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a file ending in \.npz or \.pkl"):
        load_smpl(tmp_path / "model.obj")
    (tmp_path / "broken.npz").write_bytes(b"PK but not a zip")
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load_smpl(tmp_path / "broken.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotations": np.zeros(66)}, r"joint rotations have shape \(66,\)"),
        ({"rotations": np.full(72, np.nan)}, "NaN"),
        ({"rotations": np.ones((24, 3, 3))}, "not rotations"),
        ({"rotations": np.zeros((2, 2, 72))}, "expected at most one"),
        ({"betas": np.zeros(11)}, r"betas have shape \(1, 11\).* at most 10"),
        ({"betas": np.array([np.inf])}, "betas hold NaN"),
        ({"translation": np.zeros(2)}, r"translation has shape \(2,\)"),
        ({"translation": np.array([0, 0, np.nan])}, "translation holds NaN"),
        ({"rotations": np.zeros((3, 72)), "betas": np.zeros((2, 10))}, "rotations 3, betas 2, translation 1"),
    ],
)
def test_parameters_that_do_not_fit(arguments, message, small):
    with pytest.raises(ValueError, match=message):
        load_smpl(small())(**arguments)
