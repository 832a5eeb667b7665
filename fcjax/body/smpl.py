"""SMPL and SMPL-X: licensed body models that users bring as files, read safely and skinned in NumPy.

Loper et al., "SMPL: A Skinned Multi-Person Linear Model", 2015; Pavlakos et al., "Expressive Body Capture", 2019. The
files come from smpl.is.tue.mpg.de and smpl-x.is.tue.mpg.de under their own licences; nothing of them ships here.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from fcjax.body.pickles import load_pickle
from fcjax.body.rotations import as_rotation_matrices

MODELS = {24: "SMPL", 55: "SMPL-X"}
"""By their number of joints. The first 22 are the same in both; pose and shape numbers of one mean nothing to the
other."""
KEYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
OTHER_MODELS = {52: "SMPL+H", 16: "MANO", 35: "SMAL"}
HAND_KEYS = ("hands_meanl", "hands_meanr", "hands_componentsl", "hands_componentsr")
HAND_NUMBERS = 45  # axis-angle of a hand's 15 joints
# SMPL-X's joints by the one of SMPL that they belong to: jaw and eyes to the head, fingers to their hand.
_BODY_JOINTS, _HEAD, _LEFT_HAND, _RIGHT_HAND = 22, 15, 22, 23
_LEFT_FINGERS, _RIGHT_FINGERS = range(25, 40), range(40, 55)
_LEFT_KNUCKLE, _RIGHT_KNUCKLE = 28, 43  # the middle fingers' first joints, near which SMPL has its hands


class SMPLOutput(NamedTuple):
    """Posed bodies, in metres."""

    vertices: Float[ndarray, "b v 3"]
    joints: Float[ndarray, "b j 3"]


@dataclass(frozen=True, eq=False)
class SMPL:
    """The model's arrays, float32 (get one from `load_smpl`), and the posing of them. 24 joints: SMPL; 55: SMPL-X."""

    template: Float[ndarray, "v 3"]  # metres, T-pose
    shape_directions: Float[ndarray, "v 3 s"] = field(repr=False)  # s is 10 or 300
    pose_directions: Float[ndarray, "v 3 p"] = field(repr=False)  # p is 9 (j - 1)
    joint_regressor: Float[ndarray, "j v"] = field(repr=False)
    weights: Float[ndarray, "v j"] = field(repr=False)
    parents: Int[ndarray, "j"]  # -1 for the root
    faces: Int[ndarray, "f 3"] = field(repr=False)
    # SMPL-X alone: expressions, and both hands' (left, right) mean pose and principal components.
    expression_directions: Float[ndarray, "v 3 e"] | None = field(default=None, repr=False)
    hand_means: Float[ndarray, "2 45"] | None = field(default=None, repr=False)
    hand_components: Float[ndarray, "2 45 45"] | None = field(default=None, repr=False)

    @property
    def joint_count(self) -> int:
        """24 or 55."""
        return len(self.parents)

    @property
    def name(self) -> str:
        """SMPL or SMPL-X."""
        return MODELS[self.joint_count]

    @property
    def shape_count(self) -> int:
        """How many betas the file knows."""
        return self.shape_directions.shape[2]

    def rest(
        self, betas: ndarray | None = None, expression: ndarray | None = None
    ) -> tuple[Float[ndarray, "b v 3"], Float[ndarray, "b j 3"]]:
        """Vertices and joints of shaped bodies in the T-pose, in metres.

        `betas` is (s,) or (b, s) in standard deviations from the mean shape, with s up to `shape_count`; left-out ones
        are zero, None is the mean shape, b = 1.
        `expression` (SMPL-X) alike. Raises ValueError for more numbers than the file has directions, and for numbers
        that are not finite.
        """
        shaped = self.template + _offsets("betas", betas, self.shape_directions)
        if expression is not None:
            if self.expression_directions is None:
                raise ValueError("this model file has no expressions: they belong to SMPL-X")
            shaped = shaped + _offsets("expression", expression, self.expression_directions)
        return shaped, np.einsum("jv,bvc->bjc", self.joint_regressor, shaped, optimize=True)

    def hand(self, side: int, numbers: ndarray) -> Float[ndarray, "15 3"]:
        """A hand's rotations, axis-angle, of SMPL-X's numbers for it (side 0 left, 1 right).

        45 are the rotations themselves, fewer are principal components about the mean pose. ValueError where the file
        has no components, or for another shape.
        """
        numbers = np.asarray(numbers, np.float64).reshape(-1)
        if len(numbers) == HAND_NUMBERS:
            # Choice: whole rotations hold the mean pose already, as AMASS and VPoser's users write them.
            return numbers.reshape(-1, 3)
        if self.hand_means is None or self.hand_components is None or not 0 < len(numbers) < HAND_NUMBERS:
            raise ValueError(
                f"a hand's pose has {len(numbers)} numbers; expected {HAND_NUMBERS}, or fewer principal components "
                f"with a model file that holds {', '.join(HAND_KEYS)}"
            )
        return (self.hand_means[side] + numbers @ self.hand_components[side, : len(numbers)]).reshape(-1, 3)

    def on_smpl_joints(self) -> tuple[Float[ndarray, "v 24"], Float[ndarray, "24 3"]]:
        """Skinning weights and rest positions over SMPL's 24 joints, from which charts follow: SMPL-X's jaw and eyes
        belong to the head there, its fingers to their hand.
        """
        joints = self.rest()[1][0]
        if self.joint_count != 55:
            return self.weights, joints
        weights = np.zeros((len(self.weights), 24), self.weights.dtype)
        weights[:, :_BODY_JOINTS] = self.weights[:, :_BODY_JOINTS]
        weights[:, _HEAD] += self.weights[:, _BODY_JOINTS : _LEFT_FINGERS.start].sum(axis=1)
        weights[:, _LEFT_HAND] = self.weights[:, list(_LEFT_FINGERS)].sum(axis=1)
        weights[:, _RIGHT_HAND] = self.weights[:, list(_RIGHT_FINGERS)].sum(axis=1)
        return weights, np.concatenate([joints[:_BODY_JOINTS], joints[[_LEFT_KNUCKLE, _RIGHT_KNUCKLE]]])

    def __call__(
        self,
        rotations: ndarray | None = None,
        betas: ndarray | None = None,
        translation: ndarray | None = None,
        expression: ndarray | None = None,
    ) -> SMPLOutput:
        """Pose bodies by linear blend skinning.

        Args:
            rotations: axis-angle in radians (j, 3), (3 j,) or matrices (j, 3, 3) of all joints, relative to each
                parent, with or without a leading batch; None is the T-pose.
            betas: (s,) or (batch, s), see `rest`.
            translation: (3,) or (batch, 3) metres, added at the end. The root turns about its own joint, so this is
                not where the pelvis ends up.
            expression: (e,) or (batch, e) of SMPL-X's face.

        A batch of 1 is repeated to fit the others. Raises ValueError for shapes that do not fit and for NaN.
        """
        count = self.joint_count
        matrices = as_rotation_matrices(np.zeros((1, count, 3)) if rotations is None else rotations, count)
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
        shaped, rest_joints = self.rest(betas, expression)
        counts = {"rotations": len(matrices), "betas": len(shaped), "translation": len(shifts)}
        batch = max(counts.values())
        if any(count not in (1, batch) for count in counts.values()):
            sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"batch sizes differ: {sizes}; each must be 1 or the same")

        feature = (matrices[:, 1:] - np.eye(3)).reshape(len(matrices), -1).astype(np.float32)
        flat = self.pose_directions.reshape(-1, feature.shape[1])
        shaped = shaped + (feature @ flat.T).reshape(len(matrices), -1, 3)
        matrices = np.broadcast_to(matrices, (batch, count, 3, 3))
        rest_joints = np.broadcast_to(rest_joints.astype(np.float64), (batch, count, 3))
        turned, posed_joints = self._chain(matrices, rest_joints)

        # Each joint's transform takes rest positions to posed ones: x -> turned (x - rest) + posed.
        offset = posed_joints - np.einsum("bjkl,bjl->bjk", turned, rest_joints)
        transforms = np.concatenate([turned, offset[..., None]], axis=-1).astype(np.float32)
        blended = (self.weights @ transforms.transpose(1, 0, 2, 3).reshape(count, -1)).reshape(-1, batch, 3, 4)
        vertices = np.einsum("vbkl,bvl->bvk", blended[..., :3], np.broadcast_to(shaped, (batch, *shaped.shape[1:])))
        vertices += blended[..., 3].transpose(1, 0, 2)
        shifts = shifts[:, None]
        return SMPLOutput(vertices + shifts.astype(np.float32), (posed_joints + shifts).astype(np.float32))

    def _chain(
        self, matrices: Float[ndarray, "b j 3 3"], rest_joints: Float[ndarray, "b j 3"]
    ) -> tuple[Float[ndarray, "b j 3 3"], Float[ndarray, "b j 3"]]:
        """World rotations and positions of the joints, from the root outwards."""
        turned, posed = np.empty_like(matrices), np.empty_like(rest_joints)
        turned[:, 0], posed[:, 0] = matrices[:, 0], rest_joints[:, 0]
        for joint, parent in enumerate(self.parents[1:], start=1):
            turned[:, joint] = turned[:, parent] @ matrices[:, joint]
            step = rest_joints[:, joint] - rest_joints[:, parent]
            posed[:, joint] = posed[:, parent] + np.einsum("bkl,bl->bk", turned[:, parent], step)
        return turned, posed


def _offsets(name: str, numbers: ndarray | None, directions: Float[ndarray, "v 3 s"]) -> Float[ndarray, "b v 3"]:
    """What shape or expression numbers add to the template."""
    known = directions.shape[2]
    coefficients = np.zeros((1, 0)) if numbers is None else np.asarray(numbers, np.float64)
    if coefficients.ndim == 1:
        coefficients = coefficients[None]
    if coefficients.ndim != 2 or coefficients.shape[1] > known:
        raise ValueError(
            f"{name} have shape {coefficients.shape}; expected (s,) or (batch, s), s at most {known}: "
            "this model file has no more directions for them"
        )
    if not np.isfinite(coefficients).all():
        raise ValueError(f"{name} hold NaN or infinite numbers")
    chosen = directions[..., : coefficients.shape[1]]
    return np.einsum("bs,vcs->bvc", coefficients.astype(np.float32), chosen, optimize=True)


def load_smpl(path: str | Path) -> SMPL:
    """Read an SMPL or SMPL-X model file, `.npz` or the official `.pkl`; its number of joints tells which it is.

    No code in the file runs (see `pickles.load_pickle`).

    Raises:
        ValueError: arrays missing or of wrong shape, another model (SMPL+H, MANO), a broken or hostile file.
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
            f"{path} is {OTHER_MODELS[joints]} ({joints} joints); give an SMPL file with 24 or an SMPL-X file with 55. "
            "Pose and shape numbers of one model mean nothing to the other"
        )
    if joints not in MODELS:
        raise ValueError(
            f"{path} is not an SMPL model: kintree_table {kinematic.shape} instead of (2, 24), or (2, 55) of SMPL-X"
        )
    template = arrays["v_template"]
    vertices = template.shape[0] if template.ndim == 2 else 0
    shape_count = arrays["shapedirs"].shape[-1] if arrays["shapedirs"].ndim == 3 else 0
    expected = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, shape_count),
        "posedirs": (vertices, 3, (joints - 1) * 9),
        "J_regressor": (joints, vertices),
        "weights": (vertices, joints),
        "kintree_table": (2, joints),
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
    if (parents[1:] < 0).any() or (parents[1:] >= np.arange(1, joints)).any():
        raise ValueError(f"{path}: kintree_table is no chain of joints, parents are {parents.tolist()}")
    unity = np.abs(arrays["weights"].sum(axis=1) - 1).max()
    if unity > 1e-2:
        raise ValueError(f"{path}: skinning weights of a vertex must sum to 1, they miss it by {unity:.2g}")
    shapes, expressions = arrays["shapedirs"], None
    if joints == 55 and shape_count in (20, 400):
        # Behind 10 or 300 betas stand as many directions, or 100, of expressions.
        split = {20: 10, 400: 300}[shape_count]
        shapes, expressions = shapes[..., :split], shapes[..., split:]
    means, components = _hands(data, path) if joints == 55 else (None, None)
    return SMPL(
        template=template,
        shape_directions=shapes,
        pose_directions=np.ascontiguousarray(arrays["posedirs"]),
        joint_regressor=arrays["J_regressor"],
        weights=arrays["weights"],
        parents=parents,
        faces=faces.astype(np.int32),
        expression_directions=expressions,
        hand_means=means,
        hand_components=components,
    )


def _hands(data: dict[str, Any], path: Path) -> tuple[ndarray | None, ndarray | None]:
    """Mean poses and principal components of both hands, where the file has them."""
    if any(key not in data for key in HAND_KEYS):
        return None, None
    left, right, left_components, right_components = (np.asarray(data[key], np.float32) for key in HAND_KEYS)
    shapes = {array.shape for array in (left, right)}, {array.shape for array in (left_components, right_components)}
    if shapes != ({(HAND_NUMBERS,)}, {(HAND_NUMBERS, HAND_NUMBERS)}):
        raise ValueError(f"{path}: {', '.join(HAND_KEYS)} have shapes {shapes}; expected (45,) and (45, 45)")
    return np.stack([left, right]), np.stack([left_components, right_components])


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
        except Exception as error:  # NumPy and zipfile raise almost anything for a damaged file
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
