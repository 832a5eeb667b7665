"""Named poses: what the library holds, how a name is looked up, and that arms go where their directions say."""

import numpy as np
import pytest

from fcjax.body.embedded import embedded_model
from fcjax.body.poses import POSES, Arm, arm_rotations, mirror_rotations, pose
from fcjax.body.rotations import rotation_matrices, rotation_vectors


def test_the_library_is_wide_and_well_formed():
    assert len(POSES) >= 16
    assert {"standing", "walking", "hands_on_hips", "arms_raised", "sitting", "t_pose"} <= POSES.keys()
    for name, entry in POSES.items():
        assert entry.name == name and name == name.lower() and " " not in name
        assert entry.rotations.shape == (24, 3) and np.isfinite(entry.rotations).all()
        assert np.linalg.norm(entry.rotations[1:], axis=1).max() < 2.6, f"{name} turns a joint further than a body can"
        with pytest.raises(ValueError, match="read-only"):
            entry.rotations[0] = 1


def test_poses_differ():
    flat = np.array([entry.rotations.ravel() for entry in POSES.values()])
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + 9 * np.eye(len(flat))
    assert distance.min() > 0.3


@pytest.mark.parametrize("spelling", ["hands_on_hips", "hands on hips", "Hands-on-hips", " hands on  hips "])
def test_spelling_of_a_name_is_lenient(spelling):
    assert pose(spelling).name == "hands_on_hips"


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("wakling", "walking"), ("siting", "sitting"), ("hands_on_hip", "hands_on_hips")]
)
def test_unknown_pose_names_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"unknown pose '{wrong}'; did you mean '{nearest}'"):
        pose(wrong)


def test_even_an_unlike_name_gets_the_list():
    with pytest.raises(ValueError, match=r"Known poses: .*walking"):
        pose("")


def test_rotation_vectors_invert_rodrigues():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    vectors *= np.minimum(1, 3.0 / np.linalg.norm(vectors, axis=1, keepdims=True))
    np.testing.assert_allclose(rotation_vectors(rotation_matrices(vectors)), vectors, atol=1e-9)
    np.testing.assert_array_equal(rotation_vectors(np.eye(3)), 0)
    half_turns = np.pi * np.concatenate([np.eye(3), [[0.6, 0.0, 0.8]]])  # as cameras' global orientations have them
    matrices = rotation_matrices(half_turns)
    np.testing.assert_allclose(rotation_matrices(rotation_vectors(matrices)), matrices, atol=1e-9)


@pytest.mark.parametrize("collar", [(0.0, 0.0, 0.0), (0.0, 0.1, 0.35)])
@pytest.mark.parametrize("twist", [0.0, 0.5, 1.0])
def test_an_arm_points_where_it_was_told(collar, twist):
    rng = np.random.default_rng(1)
    for upper, fore in rng.normal(size=(20, 2, 3)):
        upper[0] = abs(upper[0]) + 0.1  # an upper arm never points straight through the chest
        arm = arm_rotations(Arm(tuple(upper), tuple(fore), roll=0.7, collar=collar, twist=twist))
        turned = rotation_matrices(arm["collar"]) @ rotation_matrices(arm["shoulder"])
        np.testing.assert_allclose(turned[:, 0], upper / np.linalg.norm(upper), atol=1e-6)
        turned = turned @ rotation_matrices(arm["elbow"])
        np.testing.assert_allclose(turned[:, 0], fore / np.linalg.norm(fore), atol=1e-6)


def test_a_hinge_that_the_shoulder_turned_bends_about_one_axis():
    elbow = arm_rotations(Arm((0.3, -1, 0.1), (-0.5, -0.2, 0.9), twist=1.0))["elbow"]
    np.testing.assert_allclose(elbow[[0, 2]], 0, atol=1e-9)
    assert elbow[1] < 0


def test_roll_turns_the_thumb():
    """In a T-pose the left thumb points forwards; a positive roll turns it down."""
    elbow = rotation_matrices(arm_rotations(Arm((1, 0, 0), (1, 0, 0), roll=np.pi / 2))["elbow"])
    np.testing.assert_allclose(elbow @ [0, 0, 1], [0, -1, 0], atol=1e-9)


def test_mirroring_a_pose_mirrors_the_body():
    model = embedded_model()
    shaped = model.shape()
    entry = POSES["walking"]
    joints = model.posed_joints(shaped, entry.rotations)
    mirrored = model.posed_joints(shaped, entry.mirrored().rotations)
    names = list(model.bone_names)
    swapped = [
        names.index(name[:-1] + {"l": "r", "r": "l"}[name[-1]]) if name[-2:] in ("_l", "_r") else names.index(name)
        for name in names
    ]
    np.testing.assert_allclose(mirrored[swapped] * [-1, 1, 1], joints, atol=2e-3)
    np.testing.assert_array_equal(mirror_rotations(mirror_rotations(entry.rotations)), entry.rotations)


def test_what_the_names_promise():
    model = embedded_model()
    shaped = model.shape()
    bones = model.bone_index

    def joint(name, bone):
        return model.posed_joints(shaped, POSES[name].rotations)[bones[bone]]

    assert joint("arms_raised", "hand_l")[1] > joint("arms_raised", "head")[1]
    assert abs(joint("sitting", "calf_l")[1] - joint("sitting", "thigh_l")[1]) < 0.12  # level thighs
    assert joint("walking", "foot_l")[2] - joint("walking", "foot_r")[2] > 0.3
    assert joint("hands_on_hips", "lowerarm_l")[0] > joint("hands_on_hips", "hand_l")[0] + 0.05  # elbows stand out
    assert np.linalg.norm(joint("hand_on_chin", "hand_r") - joint("hand_on_chin", "head")) < 0.25
