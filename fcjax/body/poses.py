"""A library of named poses for SMPL's 24 joints (and so for the embedded body).

Trunk and legs are written as axis-angle vectors from SMPL's T-pose, arms as the directions in which the upper arm and
the forearm point, because two directions can be read off a photograph and three coupled shoulder angles cannot.
"""

import difflib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.body.embedded import SMPL_JOINTS
from fcjax.body.rotations import rotation_between, rotation_matrices, rotation_vectors

# SMPL's index permutation under left-right mirroring.
MIRRORED_JOINTS = tuple(
    SMPL_JOINTS.index(name.replace("left", "right") if name.startswith("left") else name.replace("right", "left"))
    for name in SMPL_JOINTS
)

Vector = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Pose:
    """Joint rotations from SMPL's T-pose."""

    name: str
    rotations: Float[ndarray, "24 3"]  # axis-angle, radians

    def mirrored(self) -> "Pose":
        """The pose's mirror image: left and right change places."""
        return Pose(f"{self.name} (mirrored)", mirror_rotations(self.rotations))


def mirror_rotations(rotations: Float[ndarray, "24 3"]) -> Float[ndarray, "24 3"]:
    """Mirror axis-angle rotations at the plane x = 0: rotation vectors are axial, so y and z change sign."""
    return rotations[list(MIRRORED_JOINTS)] * np.array([1.0, -1.0, -1.0])


def pose(name: str) -> Pose:
    """The pose of that name; spaces and hyphens count as underscores, capitals do not matter.

    Raises ValueError naming the nearest pose for a name that the library lacks.
    """
    key = "_".join(str(name).lower().replace("-", " ").replace("_", " ").split())
    if key in POSES:
        return POSES[key]
    near = difflib.get_close_matches(key, POSES, n=1, cutoff=0.0)
    raise ValueError(f"unknown pose {name!r}; did you mean {near[0]!r}? Known poses: {', '.join(sorted(POSES))}")


@dataclass(frozen=True)
class Arm:
    """Where an arm points, relative to the chest: each direction is (outwards, up, forwards), of any length."""

    upper: Vector
    fore: Vector
    roll: float = 0.0  # radians that forearm and hand turn about their length; positive turns a T-pose thumb down
    wrist: Vector = (0.0, 0.0, 0.0)  # axis-angle for a left wrist; the right one is its mirror image
    collar: Vector = (0.0, 0.0, 0.0)  # likewise
    twist: float = 0.5  # share of the upper arm's own turn that the shoulder takes; the elbow takes the rest


def arm_rotations(arm: Arm) -> dict[str, Float[ndarray, "3"]]:
    """Axis-angle of the left collar, shoulder, elbow and wrist for an arm.

    An elbow is a hinge (about y in the T-pose), so the two directions fix how the upper arm turns about its own length.
    Linear blend skinning wrings a shoulder that takes all of that turn; the elbow hides its share better.
    """
    collar = rotation_matrices(np.array(arm.collar))
    upper = np.array(arm.upper) @ collar / np.linalg.norm(arm.upper)
    fore = np.array(arm.fore) @ collar / np.linalg.norm(arm.fore)
    swing = rotation_between(np.array([1.0, 0.0, 0.0]), upper)
    bend = float(np.arccos(np.clip(upper @ fore, -1, 1)))
    hinge = swing.T @ np.cross(upper, fore)  # in the swung frame it lies in the plane x = 0 and rests at -y
    turn = np.arctan2(-hinge[2], -hinge[1]) if bend > 0.02 else 0.0
    shoulder = swing @ rotation_matrices(np.array([arm.twist * turn, 0.0, 0.0]))
    elbow = (
        rotation_matrices(np.array([(1 - arm.twist) * turn, 0.0, 0.0]))
        @ rotation_matrices(np.array([0.0, -bend, 0.0]))
        @ rotation_matrices(np.array([arm.roll - (1 - arm.twist) * turn, 0.0, 0.0]))
    )
    return {
        "collar": np.array(arm.collar),
        "shoulder": rotation_vectors(shoulder),
        "elbow": rotation_vectors(elbow),
        "wrist": np.array(arm.wrist),
    }


def _pose(name: str, left: Arm, right: Arm | None = None, **joints: Vector) -> Pose:
    """A pose from its arms (`right` defaults to the mirror image of `left`) and further joints by SMPL's names."""
    rotations = np.zeros((24, 3))
    for side, arm in (("left", left), ("right", right or left)):
        for joint, vector in arm_rotations(arm).items():
            rotations[SMPL_JOINTS.index(f"{side}_{joint}")] = vector * ((1, 1, 1) if side == "left" else (1, -1, -1))
    for joint, vector in joints.items():
        rotations[SMPL_JOINTS.index(joint)] = vector
    rotations.flags.writeable = False
    return Pose(name, rotations)


# Arms that several poses share.
HANGING = Arm(upper=(0.24, -1, -0.04), fore=(0.10, -1, 0.20))
AKIMBO = Arm(upper=(0.80, -1, -0.42), fore=(-0.62, -0.80, 0.30), roll=-0.3, wrist=(0, 0, 0.5), collar=(0, 0, 0.06))
FORWARD_SWING = Arm(upper=(0.22, -1, 0.35), fore=(0.02, -0.80, 0.75))
BACKWARD_SWING = Arm(upper=(0.26, -1, -0.42), fore=(0.18, -1, -0.12))

_LIBRARY = (
    _pose("t_pose", Arm(upper=(1, 0, 0), fore=(1, 0, 0))),
    _pose("a_pose", Arm(upper=(0.75, -0.7, 0), fore=(0.75, -0.7, 0.05))),
    _pose(
        "standing", HANGING,
        left_hip=(-0.02, 0.08, 0.03), right_hip=(-0.02, -0.08, -0.03), left_knee=(0.04, 0, 0), right_knee=(0.04, 0, 0),
    ),
    _pose(
        "contrapposto", Arm(upper=(0.30, -1, 0.02), fore=(0.10, -1, 0.32)),
        Arm(upper=(0.26, -1, -0.06), fore=(0.06, -1, 0.12)),
        pelvis=(0, 0.15, 0.10), spine1=(0, -0.05, -0.08), spine2=(0, -0.05, -0.08), spine3=(0, 0, -0.04),
        head=(0.02, 0.15, 0.08), left_hip=(-0.36, 0.22, 0.02), left_knee=(0.52, 0, 0), left_ankle=(-0.12, 0.05, -0.08),
        right_hip=(0.02, -0.12, -0.16), right_ankle=(0, 0, 0.06),
    ),
    _pose(
        "walking", BACKWARD_SWING, FORWARD_SWING,
        pelvis=(0.03, -0.10, 0), spine2=(0, 0.08, 0), spine3=(0, 0.08, 0), left_hip=(-0.48, 0.05, 0),
        left_knee=(0.20, 0, 0), left_ankle=(-0.02, 0, 0), right_hip=(0.34, -0.05, 0), right_knee=(0.38, 0, 0),
        right_ankle=(0.20, 0, 0), right_foot=(-0.35, 0, 0),
    ),
    _pose(
        "catwalk", Arm(upper=(0.24, -1, 0.22), fore=(0.10, -1, 0.42)),
        Arm(upper=(0.28, -1, -0.28), fore=(0.16, -1, -0.02)),
        pelvis=(0, 0.12, -0.07), spine1=(0, -0.06, 0.06), spine3=(0, -0.10, 0.04), left_hip=(0.22, 0.02, -0.05),
        left_knee=(0.34, 0, 0), left_ankle=(0.16, 0, 0), left_foot=(-0.25, 0, 0), right_hip=(-0.34, -0.04, 0.10),
        right_knee=(0.10, 0, 0), right_ankle=(0.08, 0, 0),
    ),
    _pose(
        "running", Arm(upper=(0.30, -0.85, -0.75), fore=(0.05, -0.35, 0.95)),
        Arm(upper=(0.28, -0.9, 0.35), fore=(-0.35, 0.35, 0.9)),
        pelvis=(0.14, -0.15, 0), spine2=(0.08, 0.15, 0), spine3=(0.04, 0.12, 0), head=(-0.14, -0.10, 0),
        left_hip=(-0.95, 0.05, 0), left_knee=(1.15, 0, 0), left_ankle=(0.05, 0, 0), right_hip=(0.42, -0.05, 0),
        right_knee=(0.75, 0, 0), right_ankle=(0.40, 0, 0), right_foot=(-0.20, 0, 0),
    ),
    _pose(
        "hands_on_hips", AKIMBO,
        left_hip=(0, 0.10, 0.10), right_hip=(0, -0.10, -0.10), left_ankle=(0, 0, -0.06), right_ankle=(0, 0, 0.06),
        head=(-0.03, 0, 0),
    ),
    _pose(
        "one_hand_on_hip", AKIMBO, HANGING,
        pelvis=(0, -0.12, 0.08), spine1=(0, 0.04, -0.06), spine2=(0, 0.04, -0.06), head=(0, 0.12, 0.06),
        left_hip=(-0.28, 0.16, 0.04), left_knee=(0.40, 0, 0), left_ankle=(-0.10, 0, -0.06), right_hip=(0, -0.08, -0.12),
        right_ankle=(0, 0, 0.05),
    ),
    _pose(
        "arms_raised", Arm(upper=(0.55, 0.95, 0.05), fore=(0.12, 1, 0.12), collar=(0, 0, 0.35)),
        spine3=(-0.05, 0, 0), head=(-0.08, 0, 0), left_hip=(0, 0.06, 0.06), right_hip=(0, -0.06, -0.06),
    ),
    _pose(
        "arms_open", Arm(upper=(0.85, -0.40, 0.25), fore=(0.85, -0.05, 0.55), roll=-0.9, wrist=(0, 0, 0.1)),
        spine3=(-0.04, 0, 0), left_hip=(0, 0.08, 0.08), right_hip=(0, -0.08, -0.08),
    ),
    _pose(
        "waving", HANGING,
        Arm(upper=(0.85, -0.30, 0.18), fore=(0.28, 1, 0.22), roll=-0.2, wrist=(0, 0, 0.1), collar=(0, 0, 0.1)),
        spine2=(0, 0, 0.04), head=(0, -0.06, -0.08), left_hip=(0, 0.08, 0.04), right_hip=(0, -0.08, -0.04),
    ),
    _pose(
        "pointing", HANGING, Arm(upper=(0.80, -0.05, 0.55), fore=(0.78, 0.12, 0.62), collar=(0, 0, 0.05)),
        head=(0, -0.35, 0), spine3=(0, -0.08, 0), left_hip=(0, 0.08, 0.04), right_hip=(-0.02, -0.12, -0.08),
    ),
    _pose(
        "hand_on_chin", Arm(upper=(0.10, -1, 0.32), fore=(-0.90, 0.05, 0.50)),
        Arm(upper=(0.05, -0.74, 0.66), fore=(-0.34, 1, -0.04), roll=0.5),
        head=(0.08, -0.05, 0.05), left_hip=(0, 0.08, 0.04), right_hip=(0, -0.08, -0.04),
    ),
    _pose(
        "arms_crossed", Arm(upper=(0.20, -1, 0.38), fore=(-1, 0.16, 0.22), roll=-0.4),
        Arm(upper=(0.20, -1, 0.52), fore=(-1, 0.06, 0.34), roll=0.4),
        left_hip=(0, 0.08, 0.06), right_hip=(0, -0.08, -0.06),
    ),
    _pose(
        "hands_behind_back", Arm(upper=(0.35, -1, -0.45), fore=(-0.70, -0.75, -0.35)),
        spine3=(-0.06, 0, 0), left_hip=(0, 0.08, 0.04), right_hip=(0, -0.08, -0.04),
    ),
    _pose(
        "hand_in_hair",
        Arm(upper=(0.75, 0.62, 0.22), fore=(-0.95, 0.36, -0.22), wrist=(0, 0, -0.35), collar=(0, 0, 0.25)), HANGING,
        pelvis=(0, 0, -0.08), spine2=(0, 0, 0.10), head=(0, 0.10, -0.10), left_hip=(0, 0.10, 0.12),
        right_hip=(-0.25, -0.15, 0.06), right_knee=(0.38, 0, 0),
    ),
    _pose(
        "looking_back", Arm(upper=(0.32, -1, -0.15), fore=(0.16, -1, 0.15)), HANGING,
        pelvis=(0, 2.30, 0), spine1=(0, -0.15, 0), spine2=(0, -0.22, 0), spine3=(0, -0.22, 0), neck=(0, -0.50, 0),
        head=(0, -0.62, 0), left_hip=(-0.20, 0.05, 0.02), left_knee=(0.30, 0, 0), right_hip=(0.08, -0.05, -0.02),
    ),
    _pose(
        "turned", Arm(upper=(0.22, -1, 0.10), fore=(0.08, -1, 0.40)),
        Arm(upper=(0.24, -1, -0.12), fore=(0.12, -1, 0.10)),
        pelvis=(0, 0.75, 0), spine2=(0, -0.10, 0), spine3=(0, -0.10, 0), neck=(0, -0.15, 0), head=(0, -0.25, 0),
        left_hip=(-0.16, 0.05, 0.03), left_knee=(0.18, 0, 0), right_hip=(0.10, -0.05, -0.03),
    ),
    _pose(
        "leaning", Arm(upper=(0.42, -1, 0.10), fore=(-0.10, -0.95, 0.45)),
        Arm(upper=(0.75, -0.8, -0.10), fore=(0.55, -0.9, 0.25)),
        pelvis=(0, 0.10, 0.12), spine1=(0, 0, 0.06), spine2=(0, 0, 0.05), neck=(0, 0, -0.08), head=(0, 0, -0.12),
        left_hip=(-0.22, 0.05, -0.28), left_knee=(0.20, 0, 0), left_ankle=(0.05, 0, 0.1), right_hip=(0, -0.10, -0.16),
        right_ankle=(0, 0, 0.04),
    ),
    _pose(
        "stretching", Arm(upper=(0.40, 1, 0.05), fore=(-0.35, 1, 0.02), collar=(0, 0, 0.45)),
        Arm(upper=(0.30, 1, 0.05), fore=(-0.10, 1, 0.02), collar=(0, 0, 0.45)),
        spine1=(0, 0, -0.10), spine2=(0, 0, -0.12), spine3=(0, 0, -0.10), head=(0, 0, -0.05), left_hip=(0, 0.10, 0.12),
        right_hip=(0, -0.10, -0.12),
    ),
    _pose(
        "legs_apart", Arm(upper=(0.40, -1, 0), fore=(0.22, -1, 0.25)),
        left_hip=(0, 0.12, 0.26), right_hip=(0, -0.12, -0.26), left_ankle=(0, 0, -0.20), right_ankle=(0, 0, 0.20),
        head=(-0.04, 0, 0),
    ),
    _pose(
        "sitting", Arm(upper=(0.20, -1, 0.22), fore=(-0.12, -0.42, 1), roll=1.0),
        left_hip=(-1.45, 0.10, 0.08), right_hip=(-1.45, -0.10, -0.08), left_knee=(1.45, 0, 0), right_knee=(1.45, 0, 0),
        spine2=(0.06, 0, 0),
    ),
    _pose(
        "sitting_relaxed", Arm(upper=(0.24, -1, 0.20), fore=(-0.25, -0.40, 1), roll=0.9),
        Arm(upper=(0.30, -1, 0.05), fore=(-0.05, -0.52, 1), roll=0.9),
        pelvis=(-0.12, 0.55, 0), spine1=(0.10, 0, 0), spine3=(0.06, -0.10, 0), head=(0, -0.30, 0),
        left_hip=(-1.25, 0.18, 0.10), right_hip=(-1.30, -0.12, -0.10), left_knee=(1.30, 0, 0), right_knee=(0.95, 0, 0),
        right_ankle=(0.15, 0, 0),
    ),
    _pose(
        "kneeling", Arm(upper=(0.22, -1, 0.25), fore=(-0.10, -0.26, 0.9), roll=1.0), HANGING,
        left_hip=(-1.66, 0.08, 0.05), left_knee=(1.66, 0, 0), right_hip=(0.05, -0.05, -0.04), right_knee=(1.58, 0, 0),
        right_ankle=(0.45, 0, 0),
    ),
    _pose(
        "crouching", Arm(upper=(0.25, -0.8, 0.75), fore=(-0.20, -0.2, 1)),
        pelvis=(0.35, 0, 0), spine1=(0.12, 0, 0), spine2=(0.12, 0, 0), head=(-0.35, 0, 0), left_hip=(-1.75, 0.25, 0.15),
        right_hip=(-1.75, -0.25, -0.15), left_knee=(1.95, 0, 0), right_knee=(1.95, 0, 0), left_ankle=(-0.50, 0, 0),
        right_ankle=(-0.50, 0, 0),
    ),
    _pose(
        "lunging", AKIMBO,
        pelvis=(0, 0.25, 0), left_hip=(-1.05, 0.05, 0.04), left_knee=(1.05, 0, 0), right_hip=(0.50, -0.05, -0.04),
        right_knee=(0.45, 0, 0), right_ankle=(0.15, 0, 0), right_foot=(-0.55, 0, 0), head=(0, -0.15, 0),
    ),
    _pose(
        "dancing", Arm(upper=(0.80, 0.45, 0.15), fore=(0.30, 1, 0.20), collar=(0, 0, 0.22)),
        Arm(upper=(0.90, -0.25, 0.10), fore=(0.75, -0.45, 0.45)),
        pelvis=(0, 0.20, 0.12), spine1=(0, 0, -0.10), spine2=(0, -0.10, -0.10), head=(0, 0.10, 0.12),
        left_hip=(-0.50, 0.35, 0.12), left_knee=(0.85, 0, 0), left_ankle=(0.35, 0, 0), right_hip=(0, -0.15, -0.16),
        right_ankle=(0, 0, 0.04),
    ),
)  # fmt: skip

POSES: dict[str, Pose] = {entry.name: entry for entry in _LIBRARY}
"""Every named pose, read-only."""
