"""SMPL parameter files of several makers give the same pose."""

import pickle
from collections import defaultdict

import joblib
import numpy as np
import pytest

from fcjax.body.poses import POSES
from fcjax.body.rotations import rotation_matrices
from fcjax.body.smpl import load_smpl
from infer.parameters import camera_of, read_parameters
from tests.test_body_smpl import synthetic_model, synthetic_smplx

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


def test_people_of_one_file(tmp_path):
    """WHAM's own file: a dictionary for each person, by number, written by joblib."""
    rng = np.random.default_rng(0)
    people = defaultdict(dict)
    for number in (0, 3):
        people[number] |= {"pose": rng.normal(size=(2, 72)) * 0.3, "betas": np.full(10, number)}
    path = tmp_path / "wham_output.pkl"
    joblib.dump(people, path)
    read = read_parameters(path, 1, subject="3")
    np.testing.assert_allclose(read.rotations, rotation_matrices(people[3]["pose"][1].reshape(24, 3)), atol=1e-12)
    for subject, expected in (
        (None, "several people: choose one of the subjects 0, 3"),
        ("1", "no subject 1, but 0, 3"),
    ):
        with pytest.raises(ValueError, match=expected):
            read_parameters(path, subject=subject)
    joblib.dump({0: people[0]}, path)
    np.testing.assert_array_equal(read_parameters(path).betas, np.zeros(10))
    path.write_bytes(pickle.dumps(people[0], 2))
    with pytest.raises(ValueError, match="of one person alone: leave the subject 0 out"):
        read_parameters(path, subject="0")
    for wrong in ({"first": {7: np.zeros(72)}}, {"pred_smpl_params": {7: np.zeros(72)}}):
        path.write_bytes(pickle.dumps(wrong))
        with pytest.raises(ValueError, match=r"expected poses, or body_pose and global_orient; it holds .*\b7\b"):
            read_parameters(path)


def test_frames_are_those_of_the_video(tmp_path):
    """WHAM follows a person through some frames of a video, and keeps its people in a defaultdict."""
    path = tmp_path / "wham.pkl"
    people = defaultdict(dict)
    people[2] |= {"pose": np.arange(3 * 72).reshape(3, 72) * 1e-3, "frame_ids": np.arange(40, 43)}
    joblib.dump(people, path)
    expected = rotation_matrices(people[2]["pose"][1].reshape(24, 3))
    np.testing.assert_allclose(read_parameters(path, 41).rotations, expected, atol=1e-12)
    with pytest.raises(ValueError, match="the person is not in frame 0 of the video, but in 3 from 40 to 42"):
        read_parameters(path)
    joblib.dump({2: {**people[2], "frame_ids": np.zeros(0)}}, path)
    with pytest.raises(ValueError, match="frame_ids is empty"):
        read_parameters(path)


def test_frames_of_one_matrix_each(tmp_path):
    np.savez(tmp_path / "pose.npz", body_pose=MATRICES[None, 1:].repeat(2, 0), global_orient=MATRICES[:2])
    np.testing.assert_allclose(read_parameters(tmp_path / "pose.npz", 1).rotations[0], MATRICES[1], atol=1e-9)


@pytest.mark.parametrize("shape", [(32,), (1, 32), (4, 32)])
def test_vposers_code_is_no_pose(shape, tmp_path):
    np.savez(tmp_path / "fit.npz", body_pose=np.zeros(shape), global_orient=np.zeros((1, 3)), jaw_pose=np.zeros((1, 3)))
    with pytest.raises(
        ValueError, match=r"VPoser's code .* decode them .* vposer.decode\(body_pose, output_type='aa'\)"
    ):
        read_parameters(tmp_path / "fit.npz")


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
    ("told", "up"),
    [
        ({}, "y"),
        ({"mocap_framerate": 120.0}, "z"),
        ({"pred_cam": [1.0, 0, 0]}, "-y"),
        ({"trans_world": np.zeros((1, 3))}, "-y"),
        ({"camera_translation": np.zeros(3), "camera_rotation": np.eye(3)}, "-y"),
        ({"camera_translation": np.zeros(3), "camera_rotation": np.diag([1.0, -1, -1])}, "y"),
    ],
)
def test_the_upward_axis_follows_from_the_keys(told, up, tmp_path):
    """AMASS's is z; a camera's y points down, unless the camera is turned."""
    np.savez(tmp_path / "pose.npz", poses=np.random.default_rng(0).normal(size=72), **told)
    found, expected = (read_parameters(tmp_path / "pose.npz", up=axis).rotations for axis in (None, up))
    np.testing.assert_array_equal(found, expected)
    other = read_parameters(tmp_path / "pose.npz", up="z" if up == "y" else "y").rotations
    assert np.abs(found - other).max() > 0.1


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


# ---------------------------------------------------------------------------------------------------------------------
# SMPL-X


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    np.savez(folder / "smpl.npz", **synthetic_model(vertices=60))
    np.savez(folder / "smplx.npz", **synthetic_smplx(vertices=60))
    return {name: load_smpl(folder / f"{name}.npz") for name in ("smpl", "smplx")}


def test_smplx_parameters_move_all_its_joints(models, tmp_path):
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(2, 165)) * 0.3
    np.savez(tmp_path / "amass.npz", poses=whole)
    parts = {
        "global_orient": whole[1, :3],
        "body_pose": whole[1, 3:66],
        "jaw_pose": whole[1, 66:69],
        "leye_pose": whole[1, 69:72],
        "reye_pose": whole[1, 72:75],
        "left_hand_pose": whole[1, 75:120],
        "right_hand_pose": whole[1, 120:],
        "expression": np.arange(10.0),
    }
    np.savez(tmp_path / "parts.npz", **parts)
    together, apart = (read_parameters(tmp_path / name, frame) for name, frame in (("amass.npz", 1), ("parts.npz", 0)))
    expected = rotation_matrices(whole[1].reshape(55, 3))
    for read in (together, apart):
        assert read.model == "SMPL-X"
        np.testing.assert_allclose(read.rotations_for(models["smplx"]), expected, atol=1e-9)
        np.testing.assert_allclose(read.rotations[:22], expected[:22], atol=1e-9)
    np.testing.assert_array_equal(apart.expression, np.arange(10))
    np.savez(tmp_path / "parts.npz", **{**parts, "left_hand_pose": np.ones(6), "right_hand_pose": np.zeros(6)})
    model = models["smplx"]
    hands = read_parameters(tmp_path / "parts.npz").rotations_for(model)[25:]
    np.testing.assert_allclose(hands[:15], rotation_matrices(model.hand(0, np.ones(6))), atol=1e-9)
    np.testing.assert_allclose(hands[15:], rotation_matrices(model.hand_means[1].reshape(15, 3)), atol=1e-6)


def test_parameters_go_to_their_own_model(models, tmp_path):
    for arrays, model, refused in (
        ({"poses": np.zeros(72)}, "smplx", "parameters of SMPL, the model file is SMPL-X"),
        ({"poses": np.zeros(165)}, "smpl", "parameters of SMPL-X, the model file is SMPL"),
        ({"body_pose": np.zeros(63), "jaw_pose": np.zeros(3)}, "smpl", "parameters of SMPL-X"),
        ({"poses": np.zeros(156)}, "smplx", r"parameters of SMPL\+H"),
        ({"poses": np.zeros(156)}, "smpl", None),
        ({"body_pose": np.zeros(63)}, "smpl", None),
        ({"body_pose": np.zeros(63)}, "smplx", None),
    ):
        np.savez(tmp_path / "pose.npz", **arrays)
        read = read_parameters(tmp_path / "pose.npz")
        if refused is None:
            assert len(read.rotations_for(models[model])) == models[model].joint_count
        else:
            with pytest.raises(ValueError, match=refused):
                read.rotations_for(models[model])
    np.savez(tmp_path / "pose.npz", body_pose=np.zeros(63), left_hand_pose=np.zeros(45))
    with pytest.raises(ValueError, match="it holds left_hand_pose but not the other hand's"):
        read_parameters(tmp_path / "pose.npz")


# ---------------------------------------------------------------------------------------------------------------------
# Cameras

POINTS = np.random.default_rng(1).normal(size=(5, 3)) * 0.5 + [0, 0, 0.2]
HEIGHT, WIDTH = 720, 1280


def seen(points, focal, translation, rotation=None):
    """p = K (R X + t)."""
    x, y, z = (points @ (np.eye(3) if rotation is None else rotation).T + translation).T
    return np.stack([focal * x / z + WIDTH / 2, focal * y / z + HEIGHT / 2], axis=1)


def camera_in(tmp_path, arrays, **options):
    np.savez(tmp_path / "pose.npz", **{"poses": WALKING, **arrays})
    return camera_of(read_parameters(tmp_path / "pose.npz"), HEIGHT, WIDTH, **options)


def test_the_camera_of_4d_humans(tmp_path):
    scale, x, y, (across, down), size = 0.9, 0.1, -0.2, (500.0, 300.0), 400.0
    focal, box = 5000 / 256 * WIDTH, size * scale
    translation = x + 2 * (across - WIDTH / 2) / box, y + 2 * (down - HEIGHT / 2) / box, 2 * focal / box
    camera = camera_in(
        tmp_path, {"pred_cam": [[scale, x, y]], "box_center": [[across, down]], "box_size": np.array(size)}
    )
    np.testing.assert_allclose(camera.project(POINTS)[:, :2], seen(POINTS, focal, translation), atol=1e-2)
    with pytest.raises(ValueError, match="box_center, box_size must be there, too"):
        camera_in(tmp_path, {"pred_cam": [scale, x, y]})
    with pytest.raises(ValueError, match="a scale above 0, got 0"):
        camera_in(tmp_path, {"pred_cam": [0, x, y], "box_center": [across, down], "box_size": np.array(size)})
    with pytest.raises(ValueError, match="box_size is a length in pixels above 0, got 0"):
        camera_in(tmp_path, {"pred_cam": [scale, x, y], "box_center": [across, down], "box_size": np.array(0.0)})


TWO = {
    "poses": np.stack([WALKING, WALKING]),
    "pred_cam": np.array([[0.9, 0.1, -0.2], [0.8, 0.0, 0.1]]),
    "box_center": np.array([[500.0, 300.0], [700.0, 350.0]]),
    "box_size": np.array([400.0, 250.0]),
}
"""4D-Humans' batch of two people."""


@pytest.mark.parametrize("frame", [0, 1])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_each_person_of_4d_humans_has_a_box(shape, frame, tmp_path):
    np.savez(tmp_path / "pose.npz", **{**TWO, "box_size": TWO["box_size"].reshape(shape)})
    camera = camera_of(read_parameters(tmp_path / "pose.npz", frame), HEIGHT, WIDTH)
    (scale, x, y), (across, down) = TWO["pred_cam"][frame], TWO["box_center"][frame]
    focal, box = 5000 / 256 * WIDTH, TWO["box_size"][frame] * scale
    translation = x + 2 * (across - WIDTH / 2) / box, y + 2 * (down - HEIGHT / 2) / box, 2 * focal / box
    np.testing.assert_allclose(camera.project(POINTS)[:, :2], seen(POINTS, focal, translation), atol=1e-2)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("box_size", (3,), "box_size is of 3 frames, the pose of 2: expected one for each, or one for all"),
        ("box_size", (3, 1), "box_size is of 3 frames"),
        ("box_size", (2, 2), r"box_size has shape \(2, 2\); expected one number, or one number for each frame"),
        ("pred_cam", (3, 3), "pred_cam is of 3 frames, the pose of 2"),
        ("pred_cam", (4,), r"pred_cam has shape \(4,\); expected 3 numbers, or 3 numbers for each frame"),
        ("box_center", (3, 2), "box_center is of 3 frames"),
        ("focal_length", (3,), "focal_length is of 3 frames"),
        ("focal_length", (3, 2), "focal_length is of 3 frames"),
        ("focal_length", (2, 3), r"focal_length has shape \(2, 3\)"),
        ("camera_rotation", (3, 3, 3), "camera_rotation is of 3 frames"),
    ],
)
def test_cameras_of_another_number_of_frames_are_refused(key, shape, message, tmp_path):
    given = np.broadcast_to(np.eye(3), shape) if key == "camera_rotation" else np.ones(shape)
    np.savez(tmp_path / "pose.npz", **{**TWO, key: given})
    for frame in (0, 1):
        with pytest.raises(ValueError, match=message):
            read_parameters(tmp_path / "pose.npz", frame)


@pytest.mark.parametrize(
    ("focal_length", "expected"),
    [
        (np.array(900.0), [900, 900]),
        ([900.0], [900, 900]),
        ([[900.0]], [900, 900]),
        ([900.0, 700.0], [900, 700]),
        ([[900.0], [700.0]], [900, 700]),
        ([[900.0, 900.0]], [900, 900]),
        ([[900.0, 900.0], [700.0, 700.0]], [900, 700]),
    ],
)
def test_focal_lengths_of_two_frames(focal_length, expected, tmp_path):
    """One for all or each, or x and y of all or each."""
    translations = np.array([[0.1, 0.3, 12.0], [0.2, 0.1, 9.0]])
    arrays = {"poses": TWO["poses"], "camera_translation": translations, "camera_rotation": np.eye(3)}
    np.savez(tmp_path / "pose.npz", focal_length=focal_length, **arrays)
    for frame in (0, 1):
        camera = camera_of(read_parameters(tmp_path / "pose.npz", frame), HEIGHT, WIDTH)
        points = seen(POINTS, expected[frame], translations[frame])
        np.testing.assert_allclose(camera.project(POINTS)[:, :2], points, atol=1e-2)


@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_a_camera_has_one_focal_length(shape, tmp_path):
    arrays = {"camera_translation": np.array([0.1, 0.3, 12.0])}
    np.testing.assert_allclose(
        camera_in(tmp_path, {**arrays, "focal_length": np.full(shape, 900.0)}).project(POINTS)[:, :2],
        seen(POINTS, 900, arrays["camera_translation"]),
        atol=1e-2,
    )
    arrays["focal_length"] = np.reshape([900.0, 700.0], shape)
    with pytest.raises(ValueError, match="focal_length is 900 along x and 700 along y, .* give it as focal"):
        camera_in(tmp_path, arrays)
    camera_in(tmp_path, arrays, focal=800.0)


def test_parameters_of_4d_humans_lie_under_a_name(tmp_path):
    under = {"global_orient": MATRICES[None, :1], "body_pose": MATRICES[None, 1:], "betas": np.arange(10.0)[None]}
    np.savez(tmp_path / "flat.npz", **{f"pred_smpl_params.{key}": array for key, array in under.items()})
    (tmp_path / "nested.pkl").write_bytes(pickle.dumps({"pred_smpl_params": under}, 2))
    for name in ("flat.npz", "nested.pkl"):
        np.testing.assert_allclose(read_parameters(tmp_path / name, up="y").rotations, MATRICES, atol=1e-9)
        read = read_parameters(tmp_path / name)
        np.testing.assert_array_equal(read.betas, np.arange(10))


def test_parameters_of_4d_humans_stand_upright_without_their_camera(tmp_path):
    """Its bodies are in a camera's axes, whether or not that camera was saved with them."""
    under = {"global_orient": np.diag([1.0, -1, -1])[None, None], "body_pose": MATRICES[None, 1:]}
    camera = {"pred_cam": np.array([[0.9, 0.1, -0.2]])}
    flat = {f"pred_smpl_params.{key}": array for key, array in under.items()}
    np.savez(tmp_path / "flat.npz", **flat)
    np.savez(tmp_path / "camera.npz", **flat, **camera)
    (tmp_path / "nested.pkl").write_bytes(pickle.dumps({"pred_smpl_params": under}, 2))
    for name in ("flat.npz", "camera.npz", "nested.pkl"):
        np.testing.assert_allclose(read_parameters(tmp_path / name).rotations[0], np.eye(3), atol=1e-9)


def test_the_camera_of_smplify_x(tmp_path):
    rotation, translation = rotation_matrices(np.array([0.1, 0.2, -0.1])), np.array([0.1, 0.3, 12.0])
    arrays = {"camera_rotation": rotation[None], "camera_translation": translation[None]}
    camera = camera_in(tmp_path, arrays)
    np.testing.assert_allclose(camera.project(POINTS)[:, :2], seen(POINTS, 5000, translation, rotation), atol=1e-2)
    nearer = camera_in(tmp_path, arrays, focal=900.0)
    np.testing.assert_allclose(nearer.project(POINTS)[:, :2], seen(POINTS, 900, translation, rotation), atol=1e-2)


def test_the_camera_of_wham(tmp_path):
    camera = camera_in(tmp_path, {"trans": np.zeros((1, 3)), "trans_world": np.zeros((1, 3))})
    points = POINTS + np.array([0, 0, 4])
    np.testing.assert_allclose(camera.project(points)[:, :2], seen(points, np.hypot(HEIGHT, WIDTH), 0), atol=1e-2)


def test_no_camera(tmp_path):
    with pytest.raises(ValueError, match="focal is a length in pixels: it must be finite and above 0, got -50"):
        camera_in(tmp_path, {"trans": np.zeros((1, 3)), "trans_world": np.zeros((1, 3))}, focal=-50.0)
    with pytest.raises(ValueError, match="must be finite and above 0, got inf"):
        camera_in(tmp_path, {"trans": np.zeros((1, 3)), "trans_world": np.zeros((1, 3))}, focal=np.inf)
    with pytest.raises(ValueError, match="the parameters tell no camera: expected pred_cam"):
        camera_in(tmp_path, {})
