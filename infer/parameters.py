"""SMPL parameter files as motion capture and body estimators write them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.body.embedded import SMPL_JOINTS
from fcjax.body.rotations import as_rotation_matrices
from fcjax.body.smpl import load_arrays

# Joints of a whole pose: SMPL, its body without hands, SMPL+H, SMPL-X. The first 22 are the same in all.
POSE_JOINTS = (24, 22, 52, 55)
BODY_JOINTS = (23, 21)  # the same without the root
SHARED_JOINTS = 22

# World axes of the source's "up" turned to y up.
UPRIGHT = {
    "y": np.eye(3),
    "-y": np.diag([1.0, -1.0, -1.0]),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}


@dataclass(frozen=True, eq=False)
class Parameters:
    """One frame of SMPL parameters, y up."""

    rotations: Float[ndarray, "24 3 3"]
    betas: Float[ndarray, "s"] | None = None
    translation: Float[ndarray, "3"] | None = None  # metres


def read_parameters(path: Path, frame: int = 0, up: str = "y") -> Parameters:
    """Read one frame of an `.npz` or `.pkl` (the latter without running what it holds).

    Keys: `poses` or `pose`, or else `body_pose` with `global_orient` (no turn where it is absent); `betas`; `transl` or
    `trans`. Rotations may be axis-angle or matrices, with or without a leading axis of frames. The hands of SMPL+H and
    SMPL-X are left out.

    Args:
        frame: which frame, where there are several.
        up: the file's upward axis, "y", "-y" (cameras) or "z" (AMASS).

    Raises ValueError for keys, shapes and numbers that are no SMPL parameters.
    """
    arrays = load_arrays(path)
    try:
        whole = next((key for key in ("poses", "pose") if key in arrays), None)
        rotations = np.tile(np.eye(3), (len(SMPL_JOINTS), 1, 1))
        if whole is not None:
            joints = _joints(arrays, whole, POSE_JOINTS, frame)
        elif "body_pose" in arrays:
            joints = _joints(arrays, "body_pose", BODY_JOINTS, frame)
            root = _joints(arrays, "global_orient", (1,), frame) if "global_orient" in arrays else np.eye(3)[None]
            joints = np.concatenate([root, joints])
        else:
            raise ValueError(
                f"expected poses, or body_pose and global_orient; it holds {', '.join(arrays) or 'nothing'}"
            )
        count = len(joints) if len(joints) == len(SMPL_JOINTS) else SHARED_JOINTS
        rotations[:count] = joints[:count]
        rotations[0] = UPRIGHT[up] @ rotations[0]
        betas = _vector(arrays, "betas", frame) if "betas" in arrays else None
        where = next((key for key in ("transl", "trans") if key in arrays), None)
        translation = UPRIGHT[up] @ _vector(arrays, where, frame, 3) if where is not None else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Parameters(rotations, betas, translation)


def _numbers(arrays: dict[str, Any], key: str) -> ndarray:
    try:
        array = np.asarray(arrays[key], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} is not an array of numbers ({error})") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{key} holds NaN or infinite numbers")
    return array


def _joints(arrays: dict[str, Any], key: str, counts: tuple[int, ...], frame: int) -> Float[ndarray, "j 3 3"]:
    """One frame of a pose of any of these joint counts, as matrices."""
    array = _numbers(arrays, key)
    for count in counts:
        for form in ((count, 3, 3), (count, 3), (count * 3,)):
            if array.shape[-len(form) :] == form and array.ndim - len(form) <= 1 and not _one_matrix(array, count):
                frames = array.reshape(-1, *form)
                return as_rotation_matrices(_frame(frames, frame, key), count)
        if _one_matrix(array, count):
            return as_rotation_matrices(array[None], 1)
    expected = " or ".join(f"{count} joints" for count in counts)
    raise ValueError(f"{key} has shape {array.shape}; expected axis-angle vectors or matrices of {expected}")


def _one_matrix(array: ndarray, count: int) -> bool:
    """Whether a (3, 3) array is one rotation matrix, and not three frames of axis-angle vectors."""
    return count == 1 and array.shape == (3, 3) and bool(np.abs(array @ array.T - np.eye(3)).max() < 1e-3)


def _vector(arrays: dict[str, Any], key: str, frame: int, size: int | None = None) -> Float[ndarray, "n"]:
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
