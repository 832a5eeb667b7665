"""DensePose's 24 charts of the body surface, and the one atlas that packs them.

Which part a face belongs to and its (u, v) are properties of the mesh, not of its posture or shape: they are found once, on the
rest pose (SMPL's T-pose) of the default shape, and hold for every body of that topology.

Every part except the torso has u around its bone and v along it, growing towards the trunk (on the head: upwards). Around a bone
that hangs down, u grows from the back past the subject's right side to the front and on past its left side. Halves of limbs cover
the front (or back), the head's halves the subject's right (chart 23: the nose is at u = 1) and left (chart 24: the nose is at
u = 0); the nose is at v = 0.48. Hands are unrolled from the little finger's edge, feet from the sole. On the torso, charts 1 and
2, u grows downwards and v from the subject's left to its right. Hence a left-right flip is 1 - u on the paired charts and 1 - v on
the torso. DensePose's published charts agree in ids, in the axes of the torso's front and of the head; where its axes are not
published in words the rules above are a choice.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from fcjax.body.embedded import BONE_OF_JOINT, SMPL_JOINTS, embedded_model, skin

PART_NAMES = (
    "background", "torso back", "torso front", "right hand", "left hand", "left foot", "right foot",
    "right upper leg back", "left upper leg back", "right upper leg front", "left upper leg front",
    "right lower leg back", "left lower leg back", "right lower leg front", "left lower leg front",
    "left upper arm front", "right upper arm front", "left upper arm back", "right upper arm back",
    "left lower arm front", "right lower arm front", "left lower arm back", "right lower arm back",
    "right half of the head", "left half of the head",
)  # fmt: skip
# Part ids under left-right mirroring.
MIRRORED_PARTS = np.array([0, 1, 2, *(part + (1 if part % 2 else -1) for part in range(3, 25))], np.uint8)
TORSO = (1, 2)

# Choice: cells of the atlas lie as in DensePose's texture atlas, six parts down each of four columns; the margin (a share of a
# cell on each side) keeps places of different charts apart.
ATLAS_ROWS, ATLAS_COLUMNS, ATLAS_MARGIN = 6, 4, 0.05

NOSE_V = 0.48
# The face: in front of the ears and above the chin.
FACE_U = 0.45
FACE_V = 0.25

# A body's trunk is about this much wider than deep; depth is stretched by it before angles are taken.
TRUNK_FLATNESS = 1.4

BACK, RIGHT, FRONT, LEFT = 0.0, 0.5 * np.pi, np.pi, 1.5 * np.pi  # angles around a bone


@dataclass(frozen=True, eq=False)
class Charts:
    """Where each face of a mesh lies in the charts; u and v belong to face corners, since charts meet along edges."""

    part: UInt8[ndarray, "f"]  # 1..24
    u: Float[ndarray, "f 3"] = field(repr=False)  # float32 in [0, 1]
    v: Float[ndarray, "f 3"] = field(repr=False)
    # Flips an IUV image; None where mirroring is the rule above (see `flip_iuv`).
    symmetry: "Callable[[ndarray], ndarray] | None" = field(default=None, repr=False)

    def mirrored(self, iuv: UInt8[ndarray, "*grid 3"]) -> UInt8[ndarray, "*grid 3"]:
        """The same places on the other side of the body, pixel by pixel (the picture itself is not flipped)."""
        return _mirrored_places(iuv) if self.symmetry is None else self.symmetry(iuv)


@dataclass(frozen=True)
class _Group:
    """A body part before it is cut into charts."""

    joints: tuple[str, ...]  # whose skinning weights it gathers
    charts: tuple[tuple[int, float, float], ...]  # part id, angle at which its u starts, angle that it spans
    bone: tuple[str, str] | None = None  # distal and proximal joint of its axis


def _groups() -> dict[str, _Group]:
    halves = ((RIGHT, np.pi), (LEFT, np.pi))  # front, back
    groups = {
        "torso": _Group(
            ("pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar"), ((2, *halves[0]), (1, *halves[1]))
        ),
        "head": _Group(("neck", "head"), ((23, BACK, np.pi), (24, FRONT, np.pi))),
    }
    limbs = {  # joint, joint at its far end, front and back chart on the left, on the right
        "upper leg": ("hip", "knee", (10, 8), (9, 7)),
        "lower leg": ("knee", "ankle", (14, 12), (13, 11)),
        "upper arm": ("shoulder", "elbow", (15, 17), (16, 18)),
        "lower arm": ("elbow", "wrist", (19, 21), (20, 22)),
    }
    for number, side in enumerate(("left", "right")):
        for name, (near, far, *parts) in limbs.items():
            charts = tuple((part, *half) for part, half in zip(parts[number], halves, strict=True))
            groups[f"{side} {name}"] = _Group((f"{side}_{near}",), charts, (f"{side}_{far}", f"{side}_{near}"))
        groups[f"{side} hand"] = _Group((f"{side}_wrist", f"{side}_hand"), (((4, 3)[number], BACK, 2 * np.pi),))
        groups[f"{side} foot"] = _Group((f"{side}_ankle", f"{side}_foot"), (((5, 6)[number], BACK, 2 * np.pi),))
    return groups


def charts_from_skinning(
    vertices: Float[ndarray, "v 3"],
    faces: Int[ndarray, "f 3"],
    weights: Float[ndarray, "v 24"],
    joints: Float[ndarray, "24 3"],
) -> Charts:
    """Charts of a mesh that SMPL's 24 joints move.

    Args:
        vertices: the T-pose, y up, facing +z, any unit.
        faces: triangles.
        weights: skinning weights over SMPL's joints.
        joints: their rest positions.

    A face belongs to the part whose joints weigh most on its corners.
    """
    vertices, joints = np.asarray(vertices, np.float64), np.asarray(joints, np.float64)
    if weights.shape != (len(vertices), len(SMPL_JOINTS)) or joints.shape != (len(SMPL_JOINTS), 3):
        raise ValueError(
            f"charts need weights ({len(vertices)}, 24) and joints (24, 3); got {weights.shape} and {joints.shape}"
        )
    groups = _groups()
    place = {name: joints[index] for index, name in enumerate(SMPL_JOINTS)}
    strength = np.stack(
        [weights[:, [SMPL_JOINTS.index(joint) for joint in group.joints]].sum(axis=1) for group in groups.values()], axis=1
    )
    strongest = sum(strength[faces[:, corner]] for corner in range(3)).argmax(axis=1)
    part = np.zeros(len(faces), np.uint8)
    u, v = np.zeros((2, len(faces), 3), np.float32)
    for number, (name, group) in enumerate(groups.items()):
        chosen = np.flatnonzero(strongest == number)
        if not len(chosen):
            raise ValueError(f"no face follows the {name}; are these skinning weights over SMPL's 24 joints?")
        corners = vertices[faces[chosen]]
        if name.endswith("hand"):
            angle, along = _unrolled_hand(corners, place, name.split()[0])
        else:
            angle, along = _around_and_along(corners, name, group, place)
        middle = angle.mean(axis=1) % (2 * np.pi)
        angle += (middle - angle.mean(axis=1))[:, None]
        for chart, start, span in group.charts:
            inside = (middle - start) % (2 * np.pi) < span
            rows = chosen[inside]
            part[rows] = chart
            # Measured from the chart's middle, no corner of a face within it is half a turn away.
            offset = (angle[inside] - start - span / 2 + np.pi) % (2 * np.pi) - np.pi if span < 2 * np.pi else angle[inside] - np.pi
            around = np.clip(0.5 + offset / span, 0, 1)
            u[rows], v[rows] = (1 - along[inside], 1 - around) if name == "torso" else (around, along[inside])
    return Charts(part, u, v)


def _around_and_along(
    corners: Float[ndarray, "f 3 3"], name: str, group: _Group, place: dict[str, ndarray]
) -> tuple[Float[ndarray, "f 3"], Float[ndarray, "f 3"]]:
    """Angle around the part's axis (continuous within a face) and the share of the way along it."""
    forward, stretch = np.array([0.0, 0.0, 1.0]), 1.0
    if group.bone is not None:
        origin, near = place[group.bone[0]], place[group.bone[1]]
        axis = near - origin
    elif name.endswith("foot"):
        side = name.split()[0]
        axis = place[f"{side}_ankle"] - place[f"{side}_foot"]
        axis[1] = 0
        origin, forward = corners.mean(axis=(0, 1)), np.array([0.0, 1.0, 0.0])
    else:
        axis, origin = np.array([0.0, 1.0, 0.0]), _centreline(corners, name, place)
        stretch = TRUNK_FLATNESS if name == "torso" else 1.0
    axis = axis / np.linalg.norm(axis)
    forward = forward - (forward @ axis) * axis
    forward /= np.linalg.norm(forward)
    leftward = np.cross(axis, forward)
    offset = corners - origin
    angle = np.arctan2(-(offset @ leftward), -(offset @ forward) * stretch)
    # Corners across the cut behind the part follow the face's first corner.
    angle -= 2 * np.pi * np.round((angle - angle[:, :1]) / (2 * np.pi))
    along = corners @ axis
    knots, values = [along.min(), along.max()], [0.0, 1.0]
    if name == "head":
        nose = along.ravel()[corners[..., 2].argmax()]
        knots, values = [knots[0], nose, knots[1]], [0.0, NOSE_V, 1.0]
    return angle, np.interp(along, knots, values)


def _centreline(corners: Float[ndarray, "f 3 3"], name: str, place: dict[str, ndarray]) -> Float[ndarray, "f 3 3"]:
    """The trunk's axis at each corner's height: it leans from the neck into the middle of the skull."""
    height = corners[..., 1]
    if name == "torso":
        low, high = place["pelvis"], place["neck"]
    else:
        low, high = place["neck"], place["head"].copy()
        skull = corners[height > high[1]]
        high[2] = (skull[:, 2].min() + skull[:, 2].max()) / 2
    line = np.zeros_like(corners)
    line[..., 2] = np.interp(height, (low[1], high[1]), (low[2], high[2]))
    return line


def _unrolled_hand(
    corners: Float[ndarray, "f 3 3"], place: dict[str, ndarray], side: str
) -> tuple[Float[ndarray, "f 3"], Float[ndarray, "f 3"]]:
    """A hand as two flat sides that meet at the thumb's edge: angles 0 to pi for one, pi to 2 pi for the other.

    Fingers are not convex, so the side comes from a face's normal, and the angle from its place across the hand.
    """
    axis = place[f"{side}_wrist"] - place[f"{side}_hand"]
    axis /= np.linalg.norm(axis)
    forward = np.array([0.0, 0.0, 1.0])
    forward -= (forward @ axis) * axis
    forward /= np.linalg.norm(forward)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    across = corners @ forward
    across = (across - across.min()) / np.ptp(across) * np.pi
    along = corners @ axis
    angle = np.where((normal @ np.cross(axis, forward) > 0)[:, None], 2 * np.pi - across, across)
    return angle, (along - along.min()) / np.ptp(along)


@functools.lru_cache(maxsize=1)
def embedded_charts() -> Charts:
    """Charts of the embedded body's skin, `embedded_model().faces["body"]`."""
    model = embedded_model()
    shaped = model.shape()
    transforms = model.bone_transforms(shaped, finger_curl=0.0)
    body = model.ranges["body"]
    vertices = skin(shaped.vertices[body], model.weights[body], transforms)
    heads = np.einsum("bij,bj->bi", transforms[..., :3], shaped.joints) + transforms[..., 3]
    joints = np.zeros((len(SMPL_JOINTS), 3))
    weights = np.zeros((len(vertices), len(SMPL_JOINTS)), np.float32)
    joint_of_bone = {bone: SMPL_JOINTS.index(joint) for joint, bone in BONE_OF_JOINT.items()}
    for name, bone in model.bone_index.items():
        # Fingers belong to their hand, the root to the pelvis.
        parent = "pelvis" if name == "Root" else f"hand_{name[-1]}"
        weights[:, joint_of_bone.get(name, joint_of_bone[parent] if name not in joint_of_bone else 0)] += model.weights[body, bone]
        if name in joint_of_bone:
            joints[joint_of_bone[name]] = heads[bone]
    for side in "lr":
        hand = "left_hand" if side == "l" else "right_hand"
        joints[SMPL_JOINTS.index(hand)] = heads[model.bone_index[f"middle_01_{side}"]]
    return charts_from_skinning(vertices, model.faces["body"], weights, joints)


def atlas_uv(iuv: UInt8[ndarray, "*grid 3"]) -> Float[ndarray, "*grid 2"]:
    """An IUV image as the 2-channel map of one atlas: float32 in [0, 1], the background -1 in both channels."""
    iuv = np.asarray(iuv)
    if iuv.dtype != np.uint8 or iuv.shape[-1:] != (3,) or (iuv.size and iuv[..., 0].max() > 24):
        raise ValueError(
            f"expected a uint8 IUV image (..., 3) with part ids 0..24; got {iuv.dtype} {iuv.shape}"
            + (f" with ids up to {iuv[..., 0].max()}" if iuv.size and iuv.shape[-1:] == (3,) else "")
        )
    return place_in_atlas(iuv[..., 0], iuv[..., 1:].astype(np.float32) / 255)


def place_in_atlas(part: Int[ndarray, "*grid"], uv: Float[ndarray, "*grid 2"]) -> Float[ndarray, "*grid 2"]:
    """Atlas coordinates of (u, v) in [0, 1] within charts; -1 where the part is 0."""
    part = np.asarray(part)
    index = part.astype(np.int64) - 1
    corner = np.stack([index // ATLAS_ROWS, index % ATLAS_ROWS], axis=-1)
    cells = np.array([ATLAS_COLUMNS, ATLAS_ROWS])
    placed = (corner + ATLAS_MARGIN + (1 - 2 * ATLAS_MARGIN) * uv) / cells
    return np.where((part > 0)[..., None], placed, -1).astype(np.float32)


def face_of(part: UInt8[ndarray, "*grid"], u: Float[ndarray, "*grid"], v: Float[ndarray, "*grid"]) -> ndarray:
    """Which places belong to the face: bool."""
    front = ((part == 23) & (u > FACE_U)) | ((part == 24) & (u < 1 - FACE_U))
    return front & (v > FACE_V)


def _mirrored_places(iuv: UInt8[ndarray, "*grid 3"]) -> UInt8[ndarray, "*grid 3"]:
    part, u, v = np.moveaxis(iuv, -1, 0)
    torso = (part == 1) | (part == 2)
    u, v = np.where(torso | (part == 0), u, 255 - u), np.where(torso, 255 - v, v)
    return np.stack([MIRRORED_PARTS[part], u, v], axis=-1).astype(np.uint8)


def flip_iuv(iuv: UInt8[ndarray, "*batch h w 3"], charts: Charts | None = None) -> UInt8[ndarray, "*batch h w 3"]:
    """The IUV image of the mirrored person: columns reversed, left and right parts exchanged, (u, v) mirrored inside them.

    `charts` is needed only for an image made with a user's `UV_Processed.mat`, whose mirroring is a table.
    """
    atlas_uv(iuv)  # complains about anything that is not an IUV image
    flipped = np.asarray(iuv)[..., :, ::-1, :]
    return _mirrored_places(flipped) if charts is None else charts.mirrored(flipped)
