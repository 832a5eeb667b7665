"""The body that ships with the package: MakeHuman's CC0 base mesh with shape sliders, driven by SMPL's 24 joints.

Units are metres, y up, z towards the viewer, +x the subject's left; the origin lies near the pelvis. The mesh rests in
an A-pose, SMPL in a T-pose: `bone_transforms` corrects for that, so that the same 24 rotations give the same posture on
both.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from fcjax.body.rotations import as_rotation_matrices, rotation_between, rotation_matrices

DATA = Path(__file__).parent / "data" / "body.npz"

SMPL_JOINTS = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand", "right_hand",
)  # fmt: skip

# The bone that each SMPL joint turns. The two hand joints have none: fingers keep a relaxed curl.
BONE_OF_JOINT = dict(
    zip(
        SMPL_JOINTS[:22],
        (
            "pelvis", "thigh_l", "thigh_r", "spine_01", "calf_l", "calf_r", "spine_02", "foot_l", "foot_r", "spine_03",
            "ball_l", "ball_r", "neck_01", "clavicle_l", "clavicle_r", "head", "upperarm_l", "upperarm_r", "lowerarm_l",
            "lowerarm_r", "hand_l", "hand_r",
        ),
        strict=True,
    )
)  # fmt: skip

# Choice: MakeHuman's height targets reach from 1.2 m to 2.5 m; the slider spans this share of them, about 15 cm to
# either side of the average.
HEIGHT_SHARE = 0.4

FINGERS = ("index", "middle", "ring", "pinky", "thumb")
LEVELS = ("min", "average", "max")


@dataclass(frozen=True)
class ShapedBody:
    """A body of one shape in the mesh's own rest pose (arms 47 degrees down), all meshes in one vertex array."""

    vertices: Float[ndarray, "v 3"]  # float32, metres
    joints: Float[ndarray, "53 3"]  # heads of the bones
    correction: Float[ndarray, "53 3 3"] = field(repr=False)  # rest A-pose to SMPL's T-pose, per bone, in world axes


def skin(
    vertices: Float[ndarray, "v 3"], weights: Float[ndarray, "v bones"], transforms: Float[ndarray, "bones 3 4"]
) -> Float[ndarray, "v 3"]:
    """Linear blend skinning: each vertex under the weighted mean of its bones' 3x4 transforms; float32."""
    columns = np.ascontiguousarray(transforms.transpose(2, 0, 1), dtype=np.float32)  # four arrays (bones, 3)
    blended = weights @ columns[3]
    for axis in range(3):
        blended += vertices[:, axis, None] * (weights @ columns[axis])
    return blended


@dataclass(frozen=True, eq=False)
class EmbeddedModel:
    """The embedded body's data; get it from `embedded_model()`."""

    base: Float[ndarray, "v 3"]  # vertices and, behind them, the 53 bone heads
    targets: Float[ndarray, "t v 3"] = field(repr=False)
    target_names: tuple[str, ...] = field(repr=False)
    bone_names: tuple[str, ...]
    bone_parents: Int[ndarray, "53"]
    weights: Float[ndarray, "skinned 53"] = field(repr=False)
    faces: dict[str, Int[ndarray, "f 3"]] = field(repr=False)  # into ShapedBody.vertices, counter-clockwise outside
    ranges: dict[str, slice]  # each mesh's vertices
    masks: dict[str, Float[ndarray, "13380"]] = field(repr=False)  # on the body's vertices, in [0, 1]
    texture_coordinates: Float[ndarray, "uv 2"] = field(repr=False)  # MakeHuman's own UV layout of the body, v upwards
    texture_faces: Int[ndarray, "f 3"] = field(repr=False)  # per triangle of faces["body"], rows of texture_coordinates

    @functools.cached_property
    def bone_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.bone_names)}

    def shape(
        self,
        gender: float = 0.0,
        age: float = 0.0,
        height: float = 0.5,
        weight: float = 0.5,
        muscle: float = 0.5,
        proportions: float = 0.5,
        cup: float = 0.5,
        ethnicity: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> ShapedBody:
        """Shape the body by sliders in [0, 1].

        Args:
            gender: 0 female, 1 male.
            age: 0 young adult, 1 old; there are no children here.
            height: 0.5 is average (1.59 m female, 1.73 m male), 0 and 1 are about 15 cm away from it.
            weight, muscle: 0.5 is average.
            proportions: 0 uncommon, 1 idealised.
            cup: breast size of the female share, 0.5 average.
            ethnicity: shares of MakeHuman's african, asian and caucasian base shapes; any non-negative scale.

        Raises ValueError for a value outside its range or not finite.
        """
        sliders = dict(
            gender=gender, age=age, height=height, weight=weight, muscle=muscle, proportions=proportions, cup=cup
        )
        for name, value in sliders.items():
            if not 0 <= value <= 1:  # False for NaN too
                raise ValueError(f"{name} is {value}; expected a number from 0 to 1")
        shares = np.asarray(ethnicity, dtype=np.float64)
        if shares.shape != (3,) or not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
            raise ValueError(f"ethnicity is {tuple(ethnicity)}; expected three shares >= 0 (african, asian, caucasian)")
        coefficients = self._coefficients(sliders, shares / shares.sum())
        active = np.flatnonzero(coefficients)
        combined = coefficients[active] @ self.targets[active].reshape(len(active), -1)
        shaped = self.base + combined.reshape(self.base.shape)
        joints = shaped[-len(self.bone_names) :]
        return ShapedBody(shaped[: -len(self.bone_names)], joints, self._rest_correction(joints))

    def _coefficients(self, sliders: dict[str, float], shares: Float[ndarray, "3"]) -> Float[ndarray, "t"]:
        """Blend shape weights: products of the sliders' piecewise linear parts, as MakeHuman's macro details are."""

        def parts(value: float) -> dict[str, float]:
            return {"min": max(0.0, 1 - 2 * value), "average": 1 - abs(2 * value - 1), "max": max(0.0, 2 * value - 1)}

        values = dict.fromkeys(self.target_names, 0.0)
        for gender, gender_share in (("female", 1 - sliders["gender"]), ("male", sliders["gender"])):
            for age, age_share in (("young", 1 - sliders["age"]), ("old", sliders["age"])):
                person, share = f"{gender}-{age}", gender_share * age_share
                for origin, origin_share in zip(("african", "asian", "caucasian"), shares, strict=True):
                    values[f"macrodetails/{origin}-{person}"] = share * origin_share
                for muscle, muscle_share in parts(sliders["muscle"]).items():
                    for weight, weight_share in parts(sliders["weight"]).items():
                        name = f"macrodetails/universal-{person}-{muscle}muscle-{weight}weight"
                        values[name] = share * muscle_share * weight_share
                build = f"{person}-averagemuscle-averageweight"
                for end in ("min", "max"):
                    values[f"macrodetails/height/{build}-{end}height"] = (
                        share * HEIGHT_SHARE * parts(sliders["height"])[end]
                    )
                    shape = {"min": "uncommon", "max": "ideal"}[end]
                    values[f"macrodetails/proportions/{build}-{shape}proportions"] = (
                        share * parts(sliders["proportions"])[end]
                    )
                    if gender == "female":
                        values[f"breast/{build}-{end}cup-averagefirmness"] = share * parts(sliders["cup"])[end]
        return np.array([values[name] for name in self.target_names], np.float32)

    def _rest_correction(self, joints: Float[ndarray, "53 3"]) -> Float[ndarray, "53 3 3"]:
        """Per bone, the least rotation from its rest direction to that of SMPL's T-pose; fingers follow their hand.

        Directions of SMPL's legs are those of its published template: hips slightly apart, shins leaning back.
        """
        index = self.bone_index
        correction = np.tile(np.eye(3), (len(joints), 1, 1))
        for side, sign in (("l", 1.0), ("r", -1.0)):
            arm = (sign, 0.0, 0.0)
            directions = {
                "upperarm": ("lowerarm", arm),
                "lowerarm": ("hand", arm),
                "hand": ("middle_01", arm),
                "thigh": ("calf", (sign * np.sin(0.1), -np.cos(0.1), 0.0)),
                "calf": ("foot", (-sign * 0.03, -1.0, -0.06)),
            }
            for bone, (child, direction) in directions.items():
                start, end = joints[index[f"{bone}_{side}"]], joints[index[f"{child}_{side}"]]
                correction[index[f"{bone}_{side}"]] = rotation_between(end - start, np.asarray(direction))
        for name, bone in index.items():
            if name.startswith(FINGERS):
                correction[bone] = correction[index[f"hand_{name[-1]}"]]
        return correction

    def bone_transforms(
        self, shaped: ShapedBody, rotations: ndarray | None = None, finger_curl: float = 0.25
    ) -> Float[ndarray, "53 3 4"]:
        """Transforms of rest positions for SMPL joint rotations, to be blended by `skin`.

        Args:
            rotations: axis-angle (24, 3) or (72,), or matrices (24, 3, 3), in SMPL's T-pose convention; None is the
                T-pose. The last two (hands) move nothing here.
            finger_curl: radians per finger joint.

        The rotations are about joints; the pelvis stays where it is.
        """
        local = np.tile(np.eye(3), (len(self.bone_names), 1, 1))
        if rotations is not None:
            matrices = as_rotation_matrices(rotations, len(SMPL_JOINTS))
            if matrices.ndim != 3:
                raise ValueError(f"bone_transforms takes one pose; got a batch of shape {matrices.shape[:-3]}")
            local[[self.bone_index[bone] for bone in BONE_OF_JOINT.values()]] = matrices[: len(BONE_OF_JOINT)]
        curl = rotation_matrices(np.array([[0.0, 0.0, -finger_curl], [0.0, 0.0, finger_curl]]))
        for name, bone in self.bone_index.items():
            if name.startswith(FINGERS[:-1]):
                local[bone] = curl[0 if name.endswith("_l") else 1]

        joints, correction = shaped.joints.astype(np.float64), shaped.correction
        turned = np.empty_like(local)  # world rotation of each bone's T-pose frame
        total = np.empty_like(local)  # the same from the mesh's rest pose
        transforms = np.empty((len(joints), 3, 4))
        positions = np.empty_like(joints)
        for bone, parent in enumerate(self.bone_parents):
            if parent < 0:
                turned[bone], positions[bone] = local[bone], joints[bone]
            else:
                turned[bone] = turned[parent] @ local[bone]
                positions[bone] = positions[parent] + total[parent] @ (joints[bone] - joints[parent])
            total[bone] = turned[bone] @ correction[bone]
        transforms[..., :3] = total
        transforms[..., 3] = positions - np.einsum("bij,bj->bi", total, joints)
        return transforms.astype(np.float32)

    def pose(self, shaped: ShapedBody, rotations: ndarray | None = None) -> Float[ndarray, "v 3"]:
        """All meshes' vertices in a pose (see `bone_transforms`), float32 metres."""
        return skin(shaped.vertices, self.weights, self.bone_transforms(shaped, rotations))

    def posed_joints(self, shaped: ShapedBody, rotations: ndarray | None = None) -> Float[ndarray, "53 3"]:
        """Bone heads in a pose."""
        transforms = self.bone_transforms(shaped, rotations)
        return np.einsum("bij,bj->bi", transforms[..., :3], shaped.joints) + transforms[..., 3]


@functools.lru_cache(maxsize=1)
def embedded_model() -> EmbeddedModel:
    """Load the embedded body once (about 20 MB of float32 blend shapes in memory)."""
    with np.load(DATA) as archive:
        data = dict(archive)
    low, high = data["targets"]
    targets = (low.astype(np.int16) | (high.view(np.int8).astype(np.int16) << 8)).astype(np.float32) * data["step"]
    weights = np.zeros((len(data["bone_index"]), len(data["bone_names"])), np.float32)
    share = data["bone_weight"].astype(np.float32)
    np.put_along_axis(weights, data["bone_index"].astype(np.int64), share / share.sum(axis=1, keepdims=True), axis=1)
    meshes = [str(name) for name in data["mesh_names"]]
    return EmbeddedModel(
        base=np.ascontiguousarray(data["base"].T),
        targets=np.ascontiguousarray(targets.transpose(0, 2, 1)),
        target_names=tuple(str(name) for name in data["target_names"]),
        bone_names=tuple(str(name) for name in data["bone_names"]),
        bone_parents=data["bone_parents"].astype(np.int64),
        weights=weights,
        faces={mesh: data[f"faces_{mesh}"].astype(np.int32) for mesh in meshes},
        ranges={mesh: slice(int(a), int(b)) for mesh, (a, b) in zip(meshes, data["mesh_ranges"], strict=True)},
        masks={name[5:]: values.astype(np.float32) / 255 for name, values in data.items() if name.startswith("mask_")},
        texture_coordinates=data["texture_coordinates"].astype(np.float32) / 65535,
        texture_faces=data["texture_faces"].astype(np.int32),
    )
