"""SMPL parameter files of several makers give the same pose."""

import pickle

import numpy as np
import pytest

from fcjax.body.poses import POSES
from fcjax.body.rotations import rotation_matrices
from infer.parameters import read_parameters

WALKING = POSES["walking"].rotations
MATRICES = rotation_matrices(WALKING)


def hands(joints):
    """The pose with as many joints; all beyond the body hold nonsense that must not be read."""
    return np.concatenate([WALKING[:22], np.full((joints - 22, 3), 0.7)])


@pytest.mark.parametrize(
    "arrays",
    [
        {"poses": WALKING},
        {"poses": WALKING.ravel()},
        {"pose": WALKING.reshape(1, 72)},
        {"poses": MATRICES},
        {"poses": MATRICES[None]},
        {"poses": hands(52).reshape(1, 156), "trans": np.zeros((1, 3)), "gender": np.array("male")},
        {"poses": hands(55).reshape(1, 165)},
        {"poses": WALKING[:22].ravel()},
        {"global_orient": WALKING[0], "body_pose": WALKING[1:].ravel()},
        {"global_orient": WALKING[:1], "body_pose": WALKING[None, 1:]},
        {"global_orient": MATRICES[0], "body_pose": MATRICES[1:22]},
        {"global_orient": MATRICES[:1], "body_pose": MATRICES[1:]},
        {"global_orient": MATRICES[None, :1], "body_pose": MATRICES[None, 1:]},
        {"global_orient": WALKING[None, 0], "body_pose": WALKING[1:22].reshape(1, 63)},
    ],
)
def test_layouts(arrays, tmp_path):
    np.savez(tmp_path / "pose.npz", **arrays)
    np.testing.assert_allclose(read_parameters(tmp_path / "pose.npz").rotations[:22], MATRICES[:22], atol=1e-12)
    np.testing.assert_allclose(read_parameters(tmp_path / "pose.npz").rotations[22:], MATRICES[22:], atol=1e-12)
    (tmp_path / "pose.pkl").write_bytes(pickle.dumps(arrays, 2))
    np.testing.assert_allclose(read_parameters(tmp_path / "pose.pkl").rotations, MATRICES, atol=1e-12)


def test_frames(tmp_path):
    rng = np.random.default_rng(0)
    poses, roots = rng.normal(size=(3, 69)) * 0.3, rng.normal(size=(3, 3))
    np.savez(tmp_path / "pose.npz", body_pose=poses, global_orient=roots, betas=np.arange(10.0), transl=np.eye(3))
    for frame in range(3):
        read = read_parameters(tmp_path / "pose.npz", frame)
        np.testing.assert_allclose(read.rotations[0], rotation_matrices(roots[frame]), atol=1e-12)
        np.testing.assert_allclose(read.rotations[1:], rotation_matrices(poses[frame].reshape(23, 3)), atol=1e-12)
        np.testing.assert_array_equal(read.betas, np.arange(10))
        np.testing.assert_array_equal(read.translation, np.eye(3)[frame])
    with pytest.raises(ValueError, match=r"there is no frame 3 of body_pose, only 3 \(0 to 2\)"):
        read_parameters(tmp_path / "pose.npz", 3)


@pytest.mark.parametrize(("up", "axis"), [("z", (0, 0, 1)), ("-y", (0, -1, 0)), ("y", (0, 1, 0))])
def test_upward_axis(up, axis, tmp_path):
    """A body that stands along the file's upward axis stands along y, and is not mirrored."""
    root = {"z": (np.pi / 2, 0, 0), "-y": (np.pi, 0, 0), "y": (0, 0, 0)}[up]
    np.testing.assert_allclose(rotation_matrices(np.array(root, float))[:, 1], axis, atol=1e-9)
    np.savez(tmp_path / "pose.npz", poses=np.concatenate([root, np.zeros(69)]), trans=axis)
    read = read_parameters(tmp_path / "pose.npz", up=up)
    np.testing.assert_allclose(read.rotations[0], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(read.translation, [0, 1, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vertices": np.zeros(3)}, "expected poses, or body_pose and global_orient; it holds vertices"),
        ({}, "it holds nothing"),
        (
            {"poses": np.zeros(71)},
            r"poses has shape \(71,\); expected axis-angle vectors or matrices of 24 joints or 22",
        ),
        ({"body_pose": np.zeros(72)}, r"body_pose has shape \(72,\)"),
        ({"poses": np.full(72, np.nan)}, "poses holds NaN"),
        ({"poses": np.zeros((24, 3, 3))}, "not rotations"),
        ({"poses": np.array("walking")}, "poses is not an array of numbers"),
        ({"poses": np.zeros(72), "betas": np.array([np.nan])}, "betas holds NaN"),
        ({"poses": np.zeros(72), "transl": np.zeros(2)}, r"transl has shape \(2,\); expected \(3,\)"),
        ({"poses": np.zeros((0, 72))}, "there is no frame 0"),
    ],
)
def test_files_that_are_no_parameters(arrays, message, tmp_path):
    np.savez(tmp_path / "pose.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        read_parameters(tmp_path / "pose.npz")
    assert "pose.npz" in str(error.value)
