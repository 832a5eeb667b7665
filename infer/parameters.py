"""SMPL and SMPL-X parameter files as motion capture and body estimators write them, with their cameras.

Read are AMASS, 4D-Humans, WHAM, SMPLify-X, and whatever has the same keys: `poses` or `pose`, or `body_pose` with
`global_orient` (and `jaw_pose`, `leye_pose`, `reye_pose`, `left_hand_pose`, `right_hand_pose`); `betas`, `expression`;
`transl` or `trans`. Rotations may be axis-angle or matrices, with or without a leading axis of frames.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from fcjax.body.camera import Camera
from fcjax.body.embedded import SMPL_JOINTS
from fcjax.body.rotations import as_rotation_matrices, rotation_matrices
from fcjax.body.smpl import SMPL, load_arrays

# Joints of a whole pose, and whose it is. The first 22 are the same in all.
POSE_JOINTS = {24: "SMPL", 22: None, 52: "SMPL+H", 55: "SMPL-X"}
BODY_JOINTS = (23, 21)  # the same without the root
SHARED_JOINTS = 22
VPOSER_CODE = 32
"""Numbers of a pose in VPoser's latent space, which SMPLify-X writes where it fitted with it."""
FACE_KEYS = ("jaw_pose", "leye_pose", "reye_pose")
HANDS = ("left_hand_pose", "right_hand_pose")
AMASS_KEYS = {"mocap_framerate", "mocap_frame_rate"}
SMPLX_KEYS = (*FACE_KEYS, *HANDS, "expression")

# World axes of the source's "up" turned to y up.
UPRIGHT = {
    "y": np.eye(3),
    "-y": np.diag([1.0, -1.0, -1.0]),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}
SMPLIFYX_FOCAL = 5000.0
HUMANS_FOCAL, HUMANS_CROP = 5000.0, 256.0
HUMANS_KEY = "pred_smpl_params"
"""4D-Humans keeps parameters under it, as a dictionary or behind a point."""
CAMERA_KEYS = {"pred_cam": 3, "box_center": 2, "box_size": 1, "camera_translation": 3, "cam_t": 3}
"""How many numbers a frame has of each; of focal_length it has one, or two along x and y."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """One frame of parameters.

    model: whose they are, "SMPL", "SMPL+H" or "SMPL-X"; None where the file does not tell.
    joints: 22 or more of that model's. hands: what the file has for the left and the right hand of SMPL-X.
    """

    joints: Float[ndarray, "j 3 3"]
    model: str | None = None
    betas: Float[ndarray, "s"] | None = None
    translation: Float[ndarray, "3"] | None = None  # metres
    expression: Float[ndarray, "e"] | None = None
    face: Float[ndarray, "3 3 3"] | None = None  # jaw and eyes
    hands: tuple[ndarray, ndarray] | None = None
    # What the file says of its camera, see `camera_of`.
    source: Mapping[str, ndarray] = field(default_factory=dict)

    @property
    def rotations(self) -> Float[ndarray, "24 3 3"]:
        """SMPL's joints; the hands of other models are left out."""
        rotations = np.tile(np.eye(3), (len(SMPL_JOINTS), 1, 1))
        count = len(self.joints) if len(self.joints) == len(SMPL_JOINTS) else SHARED_JOINTS
        rotations[:count] = self.joints[:count]
        return rotations

    def rotations_for(self, model: SMPL) -> ndarray:
        """All joints of that model (j, 3, 3). ValueError where the parameters are another model's."""
        if self.model not in (None, model.name) and (self.model, model.name) != ("SMPL+H", "SMPL"):
            raise ValueError(
                f"these are parameters of {self.model}, the model file is {model.name}: numbers of one mean nothing "
                "to the other"
            )
        if model.name == "SMPL":
            return self.rotations
        if len(self.joints) == model.joint_count:
            return self.joints
        rotations = np.tile(np.eye(3), (model.joint_count, 1, 1))
        rotations[:SHARED_JOINTS] = self.joints[:SHARED_JOINTS]
        if self.face is not None:
            rotations[SHARED_JOINTS : SHARED_JOINTS + 3] = self.face
        if self.hands is not None:
            fingers = [model.hand(side, numbers) for side, numbers in enumerate(self.hands)]
            rotations[SHARED_JOINTS + 3 :] = rotation_matrices(np.concatenate(fingers))
        return rotations


def read_parameters(path: Path, frame: int = 0, up: str | None = None, subject: str | None = None) -> Parameters:
    """Read one frame of an `.npz` or `.pkl` (the latter without running what it holds).

    Args:
        frame: which frame, where there are several; of the video, where the file says which those are (WHAM).
        up: the file's upward axis, "y", "-y" (cameras) or "z" (AMASS), by default as its keys tell; y is up in what is
            returned.
        subject: whose, where the file has parameters of several people by name or number (WHAM).

    Raises ValueError for keys, shapes and numbers that are no SMPL parameters.
    """
    arrays: Mapping[Any, Any] = load_arrays(path)
    try:
        arrays = _of_subject(arrays, subject)
        of_humans = any(str(key).split(".")[0] == HUMANS_KEY for key in arrays)
        nested = arrays.get(HUMANS_KEY)
        if isinstance(nested, Mapping):
            arrays = {**arrays, **nested}
        arrays = {str(key).removeprefix(f"{HUMANS_KEY}."): array for key, array in arrays.items()}
        if "frame_ids" in arrays:
            frame = _tracked(_numbers(arrays, "frame_ids"), frame)
        key = next((key for key in ("poses", "pose", "body_pose") if key in arrays), None)
        if key is None:
            raise ValueError(
                f"expected poses, or body_pose and global_orient; it holds {', '.join(arrays) or 'nothing'}"
            )
        counts = BODY_JOINTS if key == "body_pose" else tuple(POSE_JOINTS)
        joints, frames = _joints(arrays, key, counts, frame), len(_poses(arrays, key, counts)[0])
        if key == "body_pose":
            root = _joints(arrays, "global_orient", (1,), frame) if "global_orient" in arrays else np.eye(3)[None]
            joints = np.concatenate([root, joints])
        joints, source = joints.copy(), _source(arrays, frame, frames)
        upright = UPRIGHT[up or ("-y" if of_humans else _upward(arrays, source))]
        joints[0] = upright @ joints[0]
        where = next((key for key in ("transl", "trans") if key in arrays), None)
        return Parameters(
            joints,
            "SMPL-X" if any(key in arrays for key in SMPLX_KEYS) else POSE_JOINTS[len(joints)],
            _vector(arrays, "betas", frame) if "betas" in arrays else None,
            upright @ _vector(arrays, where, frame, 3) if where is not None else None,
            _vector(arrays, "expression", frame) if "expression" in arrays else None,
            _face(arrays, frame),
            _hands(arrays, frame),
            source,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def warn_of_betas(*read: Parameters | None) -> None:
    """Warns, once for all that were read, that their shape is not taken over where fcjax's own body is drawn."""
    if any(one and one.betas is not None and np.abs(one.betas).max(initial=0) > 0 for one in read):
        warnings.warn(
            "betas belong to SMPL and are not used: the body of fcjax takes its shape from height, weight, gender, "
            "age, muscle and proportions",
            stacklevel=2,
        )


def _of_subject(arrays: Mapping[Any, Any], subject: str | None) -> Mapping[Any, Any]:
    """The arrays of one person. ValueError where it is not told whose, and where there is no such person."""
    nested = HUMANS_KEY in arrays or not all(isinstance(value, Mapping) for value in arrays.values())
    if nested or not arrays:
        if subject is not None:
            raise ValueError(f"it holds parameters of one person alone: leave the subject {subject} out")
        return arrays
    people = {str(name): value for name, value in arrays.items()}
    if subject is None and len(people) > 1:
        raise ValueError(f"it holds several people: choose one of the subjects {', '.join(people)}")
    if subject is not None and subject not in people:
        raise ValueError(f"it holds no subject {subject}, but {', '.join(people)}")
    return people[subject] if subject is not None else next(iter(people.values()))


def _tracked(numbers: ndarray, frame: int) -> int:
    """The place of a video's frame among those in which a person was followed. ValueError where it is not there."""
    if not numbers.size:
        raise ValueError("frame_ids is empty: the person is in no frame of the video")
    places = np.flatnonzero(numbers.reshape(-1) == frame)
    if not len(places):
        first, last = (f"{number:.0f}" for number in (numbers.min(), numbers.max()))
        raise ValueError(
            f"the person is not in frame {frame} of the video, but in {numbers.size} from {first} to {last}"
        )
    return int(places[0])


def _face(arrays: Mapping[str, Any], frame: int) -> ndarray | None:
    if not any(key in arrays for key in FACE_KEYS):
        return None
    return np.concatenate(
        [_joints(arrays, key, (1,), frame) if key in arrays else np.eye(3)[None] for key in FACE_KEYS]
    )


def _hands(arrays: Mapping[str, Any], frame: int) -> tuple[ndarray, ndarray] | None:
    given = [key for key in HANDS if key in arrays]
    if not given:
        return None
    if len(given) == 1:
        raise ValueError(f"it holds {given[0]} but not the other hand's pose; give both, or neither")
    left, right = (_vector(arrays, key, frame) for key in HANDS)
    return left, right


# ---------------------------------------------------------------------------------------------------------------------
# Cameras


def _source(arrays: Mapping[str, Any], frame: int, frames: int) -> dict[str, ndarray]:
    """What tells the camera of this frame. frames: how many the pose has."""
    found = {
        key: _camera_numbers(arrays, key, size, frame, frames) for key, size in CAMERA_KEYS.items() if key in arrays
    }
    if "focal_length" in arrays:
        shape = _numbers(arrays, "focal_length").shape
        # Choice: two numbers beside two frames are one for each.
        both = shape[-1:] == (2,) and (len(shape) == 2 or frames != 2)
        found["focal_length"] = _camera_numbers(arrays, "focal_length", 2 if both else 1, frame, frames)
    if "camera_rotation" in arrays:
        rotations, _ = _poses(arrays, "camera_rotation", (1,))
        rotation = _of_camera(rotations, "camera_rotation", frame, frames)
        found["camera_rotation"] = as_rotation_matrices(rotation, 1)[0]
    if "trans_world" in arrays or "pose_world" in arrays:
        found["wham"] = np.ones(1)
    return found


def _camera_numbers(arrays: Mapping[str, Any], key: str, size: int, frame: int, frames: int) -> Float[ndarray, "n"]:
    array = _numbers(arrays, key)
    rows = array.reshape(-1, 1) if size == 1 and array.ndim < 2 else np.atleast_2d(array)
    if rows.ndim != 2 or rows.shape[1] != size:
        what = "one number" if size == 1 else f"{size} numbers"
        raise ValueError(f"{key} has shape {array.shape}; expected {what}, or {what} for each frame")
    return _of_camera(rows, key, frame, frames)


def _of_camera(rows: Shaped[ndarray, "n *s"], key: str, frame: int, frames: int) -> Shaped[ndarray, "*s"]:
    """This frame's, or what is said once for all. ValueError where another number of frames has it than the pose."""
    if len(rows) not in (1, frames):
        raise ValueError(f"{key} is of {len(rows)} frames, the pose of {frames}: expected one for each, or one for all")
    return rows[frame] if len(rows) > 1 else rows[0]


def _upward(arrays: Mapping[str, Any], source: Mapping[str, ndarray]) -> str:
    """The axis that points up in a file which tells of a camera, whose own y points down, or is AMASS's."""
    if source:
        return "-y" if source.get("camera_rotation", np.eye(3))[1, 1] > 0 else "y"
    return "z" if AMASS_KEYS & arrays.keys() else "y"


def camera_of(parameters: Parameters, height: int, width: int, focal: float | None = None) -> Camera:
    """The camera that the file's maker saw a picture of height x width through. Points are as the file stores them.

    4D-Humans: `pred_cam`, `box_center` and `box_size`; SMPLify-X: `camera_translation` and `camera_rotation`; WHAM:
    the body's translation is the camera's already. focal: pixels, where it is not the maker's own. ValueError where
    the file tells no camera.
    """
    source = parameters.source
    if focal is not None and not 0 < focal < np.inf:
        raise ValueError(f"focal is a length in pixels: it must be finite and above 0, got {focal:g}")
    if "pred_cam" in source:
        missing = [key for key in ("box_center", "box_size") if key not in source]
        if missing:
            raise ValueError(f"pred_cam is a camera within a box: {', '.join(missing)} must be there, too")
        scale, x, y = source["pred_cam"]
        if not scale > 0:
            raise ValueError(f"pred_cam starts with a scale above 0, got {scale:g}")
        if not source["box_size"][0] > 0:
            raise ValueError(f"box_size is a length in pixels above 0, got {source['box_size'][0]:g}")
        length = focal or HUMANS_FOCAL / HUMANS_CROP * max(height, width)
        box = float(source["box_size"][0]) * scale
        across, down = source["box_center"]
        translation = x + 2 * (across - width / 2) / box, y + 2 * (down - height / 2) / box, 2 * length / box
        return Camera.pinhole(length, (width / 2, height / 2), translation)
    if "camera_translation" in source:
        length = focal or _focal_of(source)
        x, y, z = map(float, source["camera_translation"])
        return Camera.pinhole(length, (width / 2, height / 2), (x, y, z), source.get("camera_rotation"))
    if "wham" in source:
        # The body stands before the camera by its own translation; a camera of ours needs a distance to something.
        length = focal or float(np.hypot(width, height))
        return Camera(length, (width / 2, height / 2), (0.0, 0.0, 1.0), np.diag([1.0, -1.0, -1.0]), 1.0)
    raise ValueError(
        "the parameters tell no camera: expected pred_cam, box_center and box_size (4D-Humans), camera_translation "
        "(SMPLify-X), or pose_world and trans_world beside pose and trans (WHAM)"
    )


def _focal_of(source: Mapping[str, ndarray]) -> float:
    across, *down = source.get("focal_length", np.array([SMPLIFYX_FOCAL]))
    if down and not np.isclose(across, down[0]):
        raise ValueError(
            f"focal_length is {across:g} along x and {down[0]:g} along y, and the camera here has one for both: give "
            "it as focal"
        )
    return float(across)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


def _numbers(arrays: Mapping[str, Any], key: str) -> ndarray:
    try:
        array = np.asarray(arrays[key], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} is not an array of numbers ({error})") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{key} holds NaN or infinite numbers")
    return array


def _joints(arrays: Mapping[str, Any], key: str, counts: tuple[int, ...], frame: int) -> Float[ndarray, "j 3 3"]:
    """One frame of a pose of any of these joint counts, as matrices."""
    frames, count = _poses(arrays, key, counts)
    return as_rotation_matrices(_frame(frames, frame, key), count)


def _poses(arrays: Mapping[str, Any], key: str, counts: tuple[int, ...]) -> tuple[ndarray, int]:
    """All frames of such a pose as they are written, one at least, and how many joints they have."""
    array = _numbers(arrays, key)
    if counts == (1,) and array.ndim == 3 and array.shape[1:] == (3, 3):
        array = array[:, None]
    for count in counts:
        for form in ((count, 3, 3), (count, 3), (count * 3,)):
            if array.shape[-len(form) :] == form and array.ndim - len(form) <= 1 and not _one_matrix(array, count):
                return array.reshape(-1, *form), count
        if _one_matrix(array, count):
            return array[None, None], 1
    if key == "body_pose" and array.shape[-1:] == (VPOSER_CODE,):
        raise ValueError(
            f"body_pose holds {VPOSER_CODE} numbers a frame, which are VPoser's code of a pose, not the pose: decode "
            "them with the VPoser of the fit (human_body_prior: vposer.decode(body_pose, output_type='aa')) and save "
            "the 63 numbers that it gives as body_pose"
        )
    expected = " or ".join(f"{count} joints" for count in counts)
    raise ValueError(f"{key} has shape {array.shape}; expected axis-angle vectors or matrices of {expected}")


def _one_matrix(array: ndarray, count: int) -> bool:
    """Whether a (3, 3) array is one rotation matrix, and not three frames of axis-angle vectors."""
    return count == 1 and array.shape == (3, 3) and bool(np.abs(array @ array.T - np.eye(3)).max() < 1e-3)


def _vector(arrays: Mapping[str, Any], key: str, frame: int, size: int | None = None) -> Float[ndarray, "n"]:
    array = _numbers(arrays, key)
    if array.ndim not in (1, 2) or (size is not None and array.shape[-1] != size):
        raise ValueError(f"{key} has shape {array.shape}; expected ({size or 's'},) or (frames, {size or 's'})")
    if array.ndim == 1 or len(array) == 1:
        return array.reshape(-1)
    return _frame(array, frame, key)


def _frame(frames: ndarray, frame: int, key: str) -> ndarray:
    if not 0 <= frame < len(frames):
        raise ValueError(f"there is no frame {frame} of {key}, only {len(frames)} (0 to {len(frames) - 1})")
    return frames[frame]
