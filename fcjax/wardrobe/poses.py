"""Random poses around the pose library, and which of them are kept for the held-out split."""

import functools

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.body.embedded import BONE_OF_JOINT, SMPL_JOINTS, ShapedBody, embedded_model
from fcjax.body.poses import POSES, mirror_rotations
from fcjax.body.rotations import rotation_matrices

HELD_OUT_POSES = frozenset(
    {"arms_open", "catwalk", "contrapposto", "one_hand_on_hip", "sitting_relaxed", "stretching", "turned", "waving"}
)
"""Named poses around which no training picture is taken."""

LEAST_DISTANCE = 0.15
"""Metres by which a training pose has some joint elsewhere than any of them and of their mirrored ones, at least."""

RARE = {"t_pose": 0.4, "a_pose": 0.6, "crouching": 0.3, "kneeling": 0.4, "lunging": 0.5, "looking_back": 0.5}
"""Poses that are drawn less often than the others, relatively."""

# Standard deviation of the random turns in radians, by a part of the joint's name.
JITTER = {
    "pelvis": 0.04, "spine": 0.05, "neck": 0.07, "head": 0.10, "collar": 0.03, "shoulder": 0.14, "elbow": 0.16,
    "wrist": 0.14, "hip": 0.07, "knee": 0.08, "ankle": 0.05, "foot": 0.0, "hand": 0.0,
}  # fmt: skip


def seated(rotations: Float[ndarray, "24 3"]) -> bool:
    """Whether a thigh is lifted so far that a skirt would look wrong."""
    thighs = rotation_matrices(rotations[1:3])[:, 1, 1]
    return bool(thighs.min() < 0.72)


_STANDING = tuple(name for name in sorted(POSES) if not seated(POSES[name].rotations))


def names(split: str, skirts: bool) -> tuple[str, ...]:
    """The named poses around which a split's pictures are taken; `skirts` leaves seated ones out."""
    chosen = _STANDING if skirts else tuple(sorted(POSES))
    return tuple(name for name in chosen if (name in HELD_OUT_POSES) == (split == "heldout"))


@functools.cache
def _body() -> tuple[ShapedBody, list[int]]:
    """The average body, and the bones of the 22 joints that move it."""
    model = embedded_model()
    return model.shape(), [model.bone_index[bone] for bone in BONE_OF_JOINT.values()]


def _joints(rotations: Float[ndarray, "24 3"]) -> Float[ndarray, "22 3"]:
    shaped, bones = _body()
    return embedded_model().posed_joints(shaped, rotations)[bones]


@functools.cache
def _held_out_joints() -> Float[ndarray, "p 22 3"]:
    named = [POSES[name].rotations for name in sorted(HELD_OUT_POSES)]
    return np.stack([_joints(turned) for pose in named for turned in (pose, mirror_rotations(pose))])


def distance_from_held_out(rotations: Float[ndarray, "24 3"]) -> float:
    """How far the joint that differs most is from where the nearest held-out pose has it, on the average body."""
    apart = np.linalg.norm(_held_out_joints() - _joints(rotations), axis=-1)
    return float(apart.max(axis=-1).min())


def draw_pose(rng: np.random.Generator, split: str, skirts: bool) -> tuple[Float[ndarray, "24 3"], str]:
    """A random pose: a named one, or a mixture of two of the same split, mirrored half the time, with every joint
    turned a little. Returns axis-angle rotations and the name of the nearer pose."""
    while True:
        rotations, name = _draw_any(rng, split, skirts)
        if split == "heldout" or distance_from_held_out(rotations) >= LEAST_DISTANCE:
            return rotations, name


def _draw_any(rng: np.random.Generator, split: str, skirts: bool) -> tuple[Float[ndarray, "24 3"], str]:
    choice = names(split, skirts)
    chances = np.array([RARE.get(name, 1.0) for name in choice])
    name = str(rng.choice(choice, p=chances / chances.sum()))
    rotations = np.array(POSES[name].rotations, np.float64)
    others = [other for other in choice if other != name and seated(POSES[other].rotations) == seated(rotations)]
    if others and rng.random() < 0.5:
        # Axis-angles of neighbouring poses mix well: no joint of the library turns by much over a right angle.
        share = rng.uniform(0.1, 0.5)
        rotations += share * (np.array(POSES[str(rng.choice(others))].rotations) - rotations)
    if rng.random() < 0.5:
        rotations = mirror_rotations(rotations)
    spread = [next(size for part, size in JITTER.items() if part in joint) for joint in SMPL_JOINTS]
    rotations = rotations + rng.normal(0, 1, (24, 3)).clip(-2, 2) * np.array(spread)[:, None]
    return rotations, name
