"""Rotations as axis-angle vectors and matrices, in NumPy."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def rotation_matrices(axis_angle: Float[ndarray, "*batch 3"]) -> Float[ndarray, "*batch 3 3"]:
    """Rodrigues' formula; the vector's length is the angle in radians. float32 stays float32, all else is float64."""
    axis_angle = np.asarray(axis_angle)
    axis_angle = axis_angle.astype(axis_angle.dtype if axis_angle.dtype == np.float32 else np.float64)
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(axis_angle / np.maximum(angle, 1e-12), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    angle = angle[..., None]
    identity = np.eye(3, dtype=axis_angle.dtype)
    return identity + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def rotation_vectors(matrices: Float[ndarray, "*batch 3 3"]) -> Float[ndarray, "*batch 3"]:
    """Axis-angle vectors of rotation matrices, exact for half turns too; float64, lengths in [0, pi]."""
    matrices = np.asarray(matrices, np.float64)
    # A unit quaternion's outer product with itself, times 4 (Bar-Itzhack 2000); its longest row is the safest.
    diagonal = np.diagonal(matrices, axis1=-2, axis2=-1)
    trace = diagonal.sum(axis=-1)
    outer = np.empty((*matrices.shape[:-2], 4, 4))
    outer[..., 0, 0] = 1 + trace
    for axis in range(3):
        after, before = (axis + 1) % 3, (axis + 2) % 3
        outer[..., axis + 1, axis + 1] = 1 + 2 * diagonal[..., axis] - trace
        outer[..., axis + 1, after + 1] = matrices[..., axis, after] + matrices[..., after, axis]
        outer[..., after + 1, axis + 1] = outer[..., axis + 1, after + 1]
        outer[..., 0, axis + 1] = matrices[..., before, after] - matrices[..., after, before]
        outer[..., axis + 1, 0] = outer[..., 0, axis + 1]
    longest = np.linalg.norm(outer, axis=-1).argmax(axis=-1)
    quaternion = np.take_along_axis(outer, longest[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    quaternion *= np.where(quaternion[..., :1] < 0, -1, 1)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    return quaternion[..., 1:] / np.maximum(sine, 1e-300) * 2 * np.arctan2(sine, quaternion[..., :1])


def rotation_between(
    source: Float[ndarray, "*batch 3"], target: Float[ndarray, "*batch 3"]
) -> Float[ndarray, "*batch 3 3"]:
    """The least rotation that turns the direction of `source` into that of `target` (the two must not be opposite)."""
    source = source / np.linalg.norm(source, axis=-1, keepdims=True)
    target = target / np.linalg.norm(target, axis=-1, keepdims=True)
    axis = np.cross(source, target)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, np.sum(source * target, axis=-1, keepdims=True))
    return rotation_matrices(axis / np.maximum(sine, 1e-12) * angle)


def as_rotation_matrices(rotations: ndarray, joints: int) -> Float[ndarray, "*batch j 3 3"]:
    """Axis-angle `(..., joints, 3)` or `(..., joints * 3)`, or matrices `(..., joints, 3, 3)`, as matrices.

    Raises ValueError for another shape, for numbers that are not finite, and for matrices that are not rotations.
    """
    rotations = np.asarray(rotations, dtype=np.float64)
    if not np.isfinite(rotations).all():
        raise ValueError("joint rotations hold NaN or infinite numbers; give finite axis-angle vectors or matrices")
    if rotations.shape[-3:] == (joints, 3, 3):
        error = np.abs(rotations @ np.swapaxes(rotations, -1, -2) - np.eye(3)).max()
        if error > 1e-3 or np.linalg.det(rotations).min() < 0:
            raise ValueError(f"joint matrices are not rotations (R Rᵀ differs from I by {error:.2g})")
        return rotations
    if rotations.shape[-2:] == (joints, 3):
        return rotation_matrices(rotations)
    if rotations.shape[-1:] == (joints * 3,):
        return rotation_matrices(rotations.reshape(*rotations.shape[:-1], joints, 3))
    raise ValueError(
        f"joint rotations have shape {rotations.shape}; expected axis-angle (..., {joints}, 3) or (..., {joints * 3}), "
        f"or matrices (..., {joints}, 3, 3)"
    )
