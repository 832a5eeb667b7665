"""SMPL: a licensed body model that users bring as a file, read safely and skinned in NumPy.

Loper et al., "SMPL: A Skinned Multi-Person Linear Model", 2015. The files come from smpl.is.tue.mpg.de under their own
licence; nothing of them ships here.
"""

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from fcjax.body.pickles import load_pickle
from fcjax.body.rotations import as_rotation_matrices

JOINTS = 24
POSE_FEATURES = (JOINTS - 1) * 9
KEYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
OTHER_MODELS = {52: "SMPL+H", 55: "SMPL-X", 16: "MANO", 35: "SMAL"}


class SMPLOutput(NamedTuple):
    """Posed bodies, in metres."""

    vertices: Float[ndarray, "b v 3"]
    joints: Float[ndarray, "b 24 3"]


@dataclass(frozen=True, eq=False)
class SMPL:
    """The model's arrays, float32 (get one from `load_smpl`), and the posing of them."""

    template: Float[ndarray, "v 3"]  # metres, T-pose
    shape_directions: Float[ndarray, "v 3 s"] = field(repr=False)  # s is 10 or 300
    pose_directions: Float[ndarray, "v 3 207"] = field(repr=False)
    joint_regressor: Float[ndarray, "24 v"] = field(repr=False)
    weights: Float[ndarray, "v 24"] = field(repr=False)
    parents: Int[ndarray, "24"]  # -1 for the root
    faces: Int[ndarray, "f 3"] = field(repr=False)

    @property
    def shape_count(self) -> int:
        """How many betas the file knows."""
        return self.shape_directions.shape[2]

    def rest(self, betas: ndarray | None = None) -> tuple[Float[ndarray, "b v 3"], Float[ndarray, "b 24 3"]]:
        """Vertices and joints of shaped bodies in the T-pose.

        `betas` is (s,) or (b, s) with s up to `shape_count`, left-out ones are zero; None is the mean shape, b = 1.
        Raises ValueError for more betas than the file has, and for numbers that are not finite.
        """
        coefficients = np.zeros((1, 0)) if betas is None else np.asarray(betas, np.float64)
        if coefficients.ndim == 1:
            coefficients = coefficients[None]
        if coefficients.ndim != 2 or coefficients.shape[1] > self.shape_count:
            raise ValueError(
                f"betas have shape {coefficients.shape}; expected (s,) or (batch, s), s at most {self.shape_count}: "
                "this model file has no more shape directions"
            )
        if not np.isfinite(coefficients).all():
            raise ValueError("betas hold NaN or infinite numbers")
        directions = self.shape_directions[..., : coefficients.shape[1]]
        shaped = self.template + np.einsum("bs,vcs->bvc", coefficients.astype(np.float32), directions, optimize=True)
        return shaped, np.einsum("jv,bvc->bjc", self.joint_regressor, shaped, optimize=True)

    def __call__(
        self, rotations: ndarray | None = None, betas: ndarray | None = None, translation: ndarray | None = None
    ) -> SMPLOutput:
        """Pose bodies by linear blend skinning.

        Args:
            rotations: axis-angle (24, 3), (72,) or matrices (24, 3, 3), relative to each parent, with or without a
                leading batch; None is the T-pose.
            betas: (s,) or (batch, s), see `rest`.
            translation: (3,) or (batch, 3) metres, added at the end. The root turns about its own joint, so this is
                not where the pelvis ends up.

        A batch of 1 is repeated to fit the others. Raises ValueError for shapes that do not fit and for NaN.
        """
        matrices = as_rotation_matrices(np.zeros((1, JOINTS, 3)) if rotations is None else rotations, JOINTS)
        if matrices.ndim == 3:
            matrices = matrices[None]
        if matrices.ndim != 4:
            raise ValueError(f"rotations have {matrices.ndim - 3} batch dimensions; expected at most one")
        shifts = np.zeros(3) if translation is None else np.asarray(translation, np.float64)
        if shifts.shape[-1:] != (3,) or shifts.ndim > 2:
            raise ValueError(f"translation has shape {shifts.shape}; expected (3,) or (batch, 3)")
        shifts = shifts.reshape(-1, 3)
        if not np.isfinite(shifts).all():
            raise ValueError("translation holds NaN or infinite numbers")
        shaped, rest_joints = self.rest(betas)
        counts = {"rotations": len(matrices), "betas": len(shaped), "translation": len(shifts)}
        batch = max(counts.values())
        if any(count not in (1, batch) for count in counts.values()):
            sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"batch sizes differ: {sizes}; each must be 1 or the same")

        feature = (matrices[:, 1:] - np.eye(3)).reshape(len(matrices), POSE_FEATURES).astype(np.float32)
        flat = self.pose_directions.reshape(-1, POSE_FEATURES)
        shaped = shaped + (feature @ flat.T).reshape(len(matrices), -1, 3)
        matrices = np.broadcast_to(matrices, (batch, JOINTS, 3, 3))
        rest_joints = np.broadcast_to(rest_joints.astype(np.float64), (batch, JOINTS, 3))
        turned, posed_joints = self._chain(matrices, rest_joints)

        # Each joint's transform takes rest positions to posed ones: x -> turned (x - rest) + posed.
        offset = posed_joints - np.einsum("bjkl,bjl->bjk", turned, rest_joints)
        transforms = np.concatenate([turned, offset[..., None]], axis=-1).astype(np.float32)
        blended = (self.weights @ transforms.transpose(1, 0, 2, 3).reshape(JOINTS, -1)).reshape(-1, batch, 3, 4)
        vertices = np.einsum("vbkl,bvl->bvk", blended[..., :3], np.broadcast_to(shaped, (batch, *shaped.shape[1:])))
        vertices += blended[..., 3].transpose(1, 0, 2)
        shifts = shifts[:, None]
        return SMPLOutput(vertices + shifts.astype(np.float32), (posed_joints + shifts).astype(np.float32))

    def _chain(
        self, matrices: Float[ndarray, "b 24 3 3"], rest_joints: Float[ndarray, "b 24 3"]
    ) -> tuple[Float[ndarray, "b 24 3 3"], Float[ndarray, "b 24 3"]]:
        """World rotations and positions of the joints, from the root outwards."""
        turned, posed = np.empty_like(matrices), np.empty_like(rest_joints)
        turned[:, 0], posed[:, 0] = matrices[:, 0], rest_joints[:, 0]
        for joint, parent in enumerate(self.parents[1:], start=1):
            turned[:, joint] = turned[:, parent] @ matrices[:, joint]
            step = rest_joints[:, joint] - rest_joints[:, parent]
            posed[:, joint] = posed[:, parent] + np.einsum("bkl,bl->bk", turned[:, parent], step)
        return turned, posed


def load_smpl(path: str | Path) -> SMPL:
    """Read an SMPL model file, `.npz` or the official `.pkl`. No code in the file runs (see `pickles.load_pickle`).

    Raises:
        ValueError: arrays missing or of wrong shape, another model (SMPL-X, SMPL+H), a broken or hostile file.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    data = load_arrays(path)
    missing = [key for key in KEYS if key not in data]
    if missing:
        raise ValueError(
            f"{path} is not an SMPL model: it lacks {', '.join(missing)}; it holds {', '.join(data) or 'nothing'}"
        )
    try:
        arrays = {key: np.asarray(data[key], np.int64 if key in ("kintree_table", "f") else np.float32) for key in KEYS}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an SMPL model: {error}") from error

    kinematic = arrays["kintree_table"]
    joints = kinematic.shape[-1] if kinematic.ndim == 2 else 0
    if joints in OTHER_MODELS:
        raise ValueError(
            f"{path} is {OTHER_MODELS[joints]} ({joints} joints); give an SMPL file with {JOINTS}. Pose and shape "
            "numbers of one model mean nothing to the other"
        )
    template = arrays["v_template"]
    vertices = template.shape[0] if template.ndim == 2 else 0
    shape_count = arrays["shapedirs"].shape[-1] if arrays["shapedirs"].ndim == 3 else 0
    expected = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, shape_count),
        "posedirs": (vertices, 3, POSE_FEATURES),
        "J_regressor": (JOINTS, vertices),
        "weights": (vertices, JOINTS),
        "kintree_table": (2, JOINTS),
        "f": (arrays["f"].shape[0] if arrays["f"].ndim else 0, 3),
    }
    wrong = [
        f"{key} {arrays[key].shape} instead of {shape}" for key, shape in expected.items() if arrays[key].shape != shape
    ]
    if wrong or not vertices or not shape_count:
        raise ValueError(f"{path} is not an SMPL model: {'; '.join(wrong) or 'empty arrays'}")
    for key in KEYS[:5]:
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{path}: {key} holds NaN or infinite numbers")
    faces = arrays["f"]
    if faces.size and (faces.min() < 0 or faces.max() >= vertices):
        raise ValueError(f"{path}: faces name vertices up to {faces.max()}, but there are {vertices}")
    # The root's parent is -1, written as the largest unsigned integer.
    parents = np.concatenate([[-1], kinematic[0, 1:]])
    if (parents[1:] < 0).any() or (parents[1:] >= np.arange(1, JOINTS)).any():
        raise ValueError(f"{path}: kintree_table is no chain of joints, parents are {parents.tolist()}")
    unity = np.abs(arrays["weights"].sum(axis=1) - 1).max()
    if unity > 1e-2:
        raise ValueError(f"{path}: skinning weights of a vertex must sum to 1, they miss it by {unity:.2g}")
    return SMPL(
        template=template,
        shape_directions=arrays["shapedirs"],
        pose_directions=np.ascontiguousarray(arrays["posedirs"]),
        joint_regressor=arrays["J_regressor"],
        weights=arrays["weights"],
        parents=parents,
        faces=faces.astype(np.int32),
    )


def load_arrays(path: str | Path) -> dict[str, Any]:
    """Arrays of an `.npz`, or of a `.pkl` through the restricted unpickler. Raises as `load_smpl` does.

    An `.npz` can hold pickled objects too (SMPL-X's has tables of names): they are left out, never unpickled.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file itself")
    if path.suffix == ".pkl":
        return load_pickle(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a file ending in .npz or .pkl")
    arrays = {}
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        array = _read_array(member)
                    if array is not None:
                        arrays[name.removesuffix(".npy")] = array
        except (ValueError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a readable .npz of number arrays: {error}") from error
    return arrays


def _read_array(file: Any) -> ndarray | None:
    """One `.npy` member, None for an array of objects."""
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" in str(error):
            return None
        raise
