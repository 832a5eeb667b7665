"""The embedded body: what its file holds, what the sliders do, and that SMPL's rotations move it as they move SMPL."""

import numpy as np
import pytest

from fcjax.body import POSES, SMPL_JOINTS, embedded_model
from fcjax.body.embedded import BONE_OF_JOINT, DATA, skin
from fcjax.body.poses import mirror_rotations
from fcjax.body.rotations import as_rotation_matrices, rotation_between, rotation_matrices

SLIDERS = ("gender", "age", "height", "weight", "muscle", "proportions", "cup")


@pytest.fixture(scope="module")
def model():
    return embedded_model()


@pytest.fixture(scope="module")
def shaped(model):
    return model.shape()


def stature(model, shaped):
    return np.ptp(shaped.vertices[model.ranges["body"], 1])


def test_the_file_is_small_and_carries_its_licence():
    assert DATA.stat().st_size <= 12e6
    assert "CC0" in (DATA.parent / "NOTICE.md").read_text()
    assert "CC0 1.0 Universal" in (DATA.parent / "LICENSE.md").read_text()


def test_meshes_lie_one_behind_the_other(model, shaped):
    end = 0
    for mesh, faces in model.faces.items():
        span = model.ranges[mesh]
        assert span.start == end
        end = span.stop
        assert faces.min() == span.start and faces.max() == span.stop - 1
    assert end == len(shaped.vertices) == len(model.weights)
    assert {"body", "tights", "skirt", "hair", "eyes"} <= model.faces.keys()


def test_weights_are_shares(model):
    np.testing.assert_allclose(model.weights.sum(axis=1), 1, atol=1e-5)
    assert model.weights.min() >= 0
    assert ((model.weights > 0).sum(axis=1) <= 6).all()


def test_masks_lie_on_the_head_and_the_hands(model, shaped):
    body = shaped.vertices[model.ranges["body"]]
    neck = shaped.joints[model.bone_index["neck_01"], 1]
    for mask in ("lips", "ears", "eyelids"):
        marked = body[model.masks[mask] > 0.5]
        assert len(marked) > 20 and marked[:, 1].min() > neck, mask
    nails = body[model.masks["nails"] > 0.5]
    assert len(nails) > 20 and np.abs(nails[:, 0]).min() > 0.3


@pytest.mark.parametrize("slider", SLIDERS)
def test_every_slider_moves_the_body_and_its_clothes(model, slider):
    low, high = model.shape(**{slider: 0.0}), model.shape(**{slider: 1.0})
    moved = np.linalg.norm(high.vertices - low.vertices, axis=1)
    assert moved[model.ranges["body"]].max() > 0.01
    assert moved[model.ranges["tights"]].max() > 0.01


def test_sliders_mean_what_they_say(model):
    heights = [stature(model, model.shape(height=height)) for height in (0, 0.25, 0.5, 0.75, 1)]
    assert (np.diff(heights) > 0.03).all()
    assert heights[0] > 1.3 and heights[-1] < 2.0
    assert stature(model, model.shape(gender=1)) > stature(model, model.shape(gender=0)) + 0.05

    def waist(weight):
        """Sideways extent of the trunk at the navel."""
        shaped = model.shape(weight=weight)
        body = shaped.vertices[model.ranges["body"]]
        trunk = model.weights[model.ranges["body"]][:, [model.bone_index["spine_01"]]].sum(axis=1) > 0.5
        return np.ptp(body[trunk, 0])

    assert waist(0) < waist(0.5) < waist(1)


def test_the_shape_changes_without_jumps(model):
    for slider in SLIDERS:
        around = [model.shape(**{slider: value}).vertices for value in (0.499, 0.5, 0.501)]
        assert np.abs(np.diff(around, axis=0)).max() < 2e-3


def test_ethnicity_is_a_mixture(model):
    corners = np.stack([model.shape(ethnicity=shares).vertices for shares in np.eye(3)])
    np.testing.assert_allclose(model.shape(ethnicity=(2, 2, 2)).vertices, corners.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": float("nan")}, "weight is nan; expected a number from 0 to 1"),
        ({"age": 1.5}, "age is 1.5"),
        ({"gender": -0.1}, "gender is -0.1"),
        ({"ethnicity": (0, 0, 0)}, "three shares"),
        ({"ethnicity": (1, 1)}, "three shares"),
        ({"ethnicity": (1, -1, 1)}, "three shares"),
    ],
)
def test_shapes_out_of_range_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.shape(**arguments)


def test_skinning_is_the_weighted_mean_of_transforms(model, shaped):
    transforms = model.bone_transforms(shaped, POSES["walking"].rotations)
    rows = np.arange(0, len(shaped.vertices), 97)
    blended = np.einsum("vb,bij->vij", model.weights[rows].astype(np.float64), transforms)
    expected = np.einsum("vij,vj->vi", blended[..., :3], shaped.vertices[rows]) + blended[..., 3]
    np.testing.assert_allclose(skin(shaped.vertices, model.weights, transforms)[rows], expected, atol=1e-5)


def bone_direction(model, shaped, rotations, start, end):
    joints = model.posed_joints(shaped, rotations)
    difference = joints[model.bone_index[end]] - joints[model.bone_index[start]]
    return difference / np.linalg.norm(difference)


def test_no_rotation_is_the_t_pose(model, shaped):
    for side, sign in (("l", 1), ("r", -1)):
        for start, end in (("upperarm", "lowerarm"), ("lowerarm", "hand")):
            direction = bone_direction(model, shaped, np.zeros((24, 3)), f"{start}_{side}", f"{end}_{side}")
            np.testing.assert_allclose(direction, [sign, 0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("joint", "start", "end"),
    [
        ("left_shoulder", "upperarm_l", "lowerarm_l"),
        ("right_elbow", "lowerarm_r", "hand_r"),
        ("left_hip", "thigh_l", "calf_l"),
    ],
)
def test_a_joint_turns_its_bone_from_the_t_pose(model, shaped, joint, start, end):
    rest = bone_direction(model, shaped, None, start, end)
    rotations = np.zeros((24, 3))
    rotations[SMPL_JOINTS.index(joint)] = [0.3, -0.5, 0.7]
    turned = bone_direction(model, shaped, rotations, start, end)
    np.testing.assert_allclose(turned, rotation_matrices(np.array([0.3, -0.5, 0.7])) @ rest, atol=1e-5)


def test_forms_of_one_pose_agree(model, shaped):
    vectors = POSES["sitting"].rotations
    expected = model.bone_transforms(shaped, vectors)
    for same in (vectors.ravel(), rotation_matrices(vectors)):
        np.testing.assert_allclose(model.bone_transforms(shaped, same), expected, atol=1e-6)


def test_the_pelvis_turns_everything_about_itself(model, shaped):
    rotations = np.array(POSES["walking"].rotations)
    rotations[0] = 0
    before = model.pose(shaped, rotations)
    rotations[0] = [0, np.pi / 2, 0]
    after = model.pose(shaped, rotations)
    pelvis = shaped.joints[model.bone_index["pelvis"]]
    # Vertices that the unmoved root bone holds apart from the pelvis stay behind; the body has none.
    body = model.ranges["body"]
    turned = (before - pelvis) @ rotation_matrices(np.array([0, np.pi / 2, 0])).T + pelvis
    np.testing.assert_allclose(after[body], turned[body], atol=1e-5)


def test_mirrored_rotations_give_the_mirrored_body(model, shaped):
    rotations = POSES["one_hand_on_hip"].rotations
    joints = model.posed_joints(shaped, rotations)
    mirrored = model.posed_joints(shaped, mirror_rotations(rotations))
    swap = [
        model.bone_index[n[:-1] + {"l": "r", "r": "l"}[n[-1]] if n[-2:] in ("_l", "_r") else n]
        for n in model.bone_names
    ]
    np.testing.assert_allclose(mirrored[swap] * [-1, 1, 1], joints, atol=2e-3)


def test_every_joint_but_the_hands_has_a_bone(model):
    assert list(BONE_OF_JOINT) == list(SMPL_JOINTS[:22])
    assert set(BONE_OF_JOINT.values()) <= set(model.bone_names)


@pytest.mark.parametrize(
    ("rotations", "message"),
    [
        (np.zeros((23, 3)), "expected axis-angle"),
        (np.full((24, 3), np.nan), "NaN"),
        (np.zeros((24, 3, 3)), "not rotations"),
        (np.tile(np.diag([1.0, 1.0, -1.0]), (24, 1, 1)), "not rotations"),
        (np.zeros((2, 24, 3)), "one pose"),
    ],
)
def test_rotations_that_are_none_are_refused(model, shaped, rotations, message):
    with pytest.raises(ValueError, match=message):
        model.bone_transforms(shaped, rotations)


def test_rotation_between_is_the_least_turn():
    source, target = np.random.default_rng(3).normal(size=(2, 20, 3))
    turn = rotation_between(source, target)
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (source, target)]
    np.testing.assert_allclose(np.einsum("nij,nj->ni", turn, unit[0]), unit[1], atol=1e-9)
    angle = np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))
    np.testing.assert_allclose(angle, np.arccos(np.sum(unit[0] * unit[1], axis=1)), atol=1e-7)


def test_rodrigues_against_the_exponential_series():
    vector = np.array([0.4, -0.9, 1.3])
    cross = np.cross(np.eye(3), vector)  # the matrix of w -> vector x w
    series, term = np.eye(3), np.eye(3)
    for order in range(1, 30):
        term = term @ cross / order
        series = series + term
    np.testing.assert_allclose(rotation_matrices(vector), series, atol=1e-12)
    np.testing.assert_allclose(as_rotation_matrices(np.zeros((24, 3)), 24), np.tile(np.eye(3), (24, 1, 1)))
