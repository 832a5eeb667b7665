"""DensePose's 24 charts of the body surface, and the one atlas that packs them.

Part, u and v are properties of the mesh, not of its posture or shape: they are found once, on the rest pose (SMPL's
T-pose) of the default shape, and hold for every body of that topology.

Every part except the torso has u around its bone and v along it, growing towards the trunk (on the head: upwards).
Around a bone that hangs down, u grows from the back past the subject's right side to the front and on past its left
side. Halves of limbs cover the front or the back, the head's halves the subject's right (chart 23, the nose at u = 1)
and left (chart 24, the nose at u = 0); the nose is at v = 0.48. Hands are unrolled from the little finger's edge, feet
from the sole. On the torso, charts 1 and 2, u grows downwards and v from the subject's left to its right. Hence a
left-right flip is 1 - u on the paired charts and 1 - v on the torso.

DensePose's own charts have the same ids, the same torso front and the same head. Choice: the rules above stand in for
the rest of its axes, which its publications do not put in words.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8
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

# Choice: cells of the atlas lie as in DensePose's texture atlas, six parts down each of four columns; the margin (a
# share of a cell on each side) keeps places of different charts apart.
ATLAS_ROWS, ATLAS_COLUMNS, ATLAS_MARGIN = 6, 4, 0.05

_CELLS = np.array([ATLAS_COLUMNS, ATLAS_ROWS])
_CELL_SIZE = ((1 - 2 * ATLAS_MARGIN) / _CELLS).astype(np.float32)
# Where (u, v) = (0, 0) of each part lies; the background's row is never shown.
_CELL_CORNERS = np.stack([(np.arange(-1, 24) // ATLAS_ROWS), (np.arange(-1, 24) % ATLAS_ROWS)], axis=1)
_CELL_CORNERS = ((_CELL_CORNERS + ATLAS_MARGIN) / _CELLS).astype(np.float32)

NOSE_V = 0.48
# The face ends at the ears (u of chart 23, 1 - u of chart 24), at the hairline, and below at the jaw, which rises from
# the chin to the ear.
EAR_U = 0.45
CHIN_V, JAW_V, HAIRLINE_V = 0.21, 0.40, 0.88

# Points along u and v at which a chart's places on the resting body are known.
_REST_POINTS = 32

# A body's trunk is about this much wider than deep; depth is stretched by it before angles are taken.
TRUNK_FLATNESS = 1.4

BACK, RIGHT = 0.0, 0.5 * np.pi  # angles around a bone; front and left follow


class Charts:
    """Where the surface of a mesh lies in the 24 charts."""

    part: UInt8[ndarray, "f"]  # the part at each face's middle, 1..24

    def locate(
        self, face: Int[ndarray, "n"], barycentric: Float[ndarray, "n 3"]
    ) -> tuple[UInt8[ndarray, "n"], Float[ndarray, "n"], Float[ndarray, "n"]]:
        """Part, u and v (float32 in [0, 1]) of points inside faces."""
        raise NotImplementedError

    def mirrored(self, iuv: UInt8[ndarray, "*grid 3"]) -> UInt8[ndarray, "*grid 3"]:
        """The same places on the other side of the body, pixel by pixel (the picture itself is not flipped)."""
        part, u, v = np.moveaxis(iuv, -1, 0)
        torso = (part == 1) | (part == 2)
        u, v = np.where(torso | (part == 0), u, 255 - u), np.where(torso, 255 - v, v)
        return np.stack([MIRRORED_PARTS[part], u, v], axis=-1)


@dataclass(frozen=True)
class _Group:
    """A body part before it is cut into charts."""

    joints: tuple[str, ...]  # whose skinning weights it gathers
    charts: tuple[int, int]  # ids of the first and the second half turn; a hand or foot is one chart all around
    start: float  # angle at which the first one starts
    bone: tuple[str, str] | None = None  # distal and proximal joint of its axis


def _groups() -> dict[str, _Group]:
    trunk = ("pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar")
    groups = {
        "torso": _Group(trunk, (2, 1), start=RIGHT),
        "head": _Group(("neck", "head"), (23, 24), start=BACK),
    }
    limbs = {  # joint, joint at its far end, front and back chart on the left, on the right
        "upper leg": ("hip", "knee", (10, 8), (9, 7)),
        "lower leg": ("knee", "ankle", (14, 12), (13, 11)),
        "upper arm": ("shoulder", "elbow", (15, 17), (16, 18)),
        "lower arm": ("elbow", "wrist", (19, 21), (20, 22)),
    }
    ends = {"hand": ("wrist", "hand", 4, 3), "foot": ("ankle", "foot", 5, 6)}
    for number, side in enumerate(("left", "right")):
        for name, (near, far, *charts) in limbs.items():
            bone = (f"{side}_{far}", f"{side}_{near}")
            groups[f"{side} {name}"] = _Group((f"{side}_{near}",), charts[number], start=RIGHT, bone=bone)
        for name, (near, far, *charts) in ends.items():
            both = (charts[number], charts[number])
            groups[f"{side} {name}"] = _Group((f"{side}_{near}", f"{side}_{far}"), both, start=BACK)
    return groups


GROUPS = _groups()
TORSO = list(GROUPS).index("torso")
_HALVES = np.array([group.charts for group in GROUPS.values()], np.uint8)
_IS_HALVED = np.array([group.charts[0] != group.charts[1] for group in GROUPS.values()])


@dataclass(frozen=True, eq=False)
class SkinningCharts(Charts):
    """Charts that follow from skinning weights: parts meet where two are equally strong, between vertices if need be.

    `groups` holds each face's strongest and second strongest body part. `fields` interpolate linearly inside a face:
    how much the first outweighs the second, then for either part the turn around its axis (from where its first chart
    starts; whole turns are equal) and the share of the way along it.
    """

    part: UInt8[ndarray, "f"]
    groups: Int[ndarray, "f 2"] = field(repr=False)
    fields: Float[ndarray, "f 5 3"] = field(repr=False)

    def locate(
        self, face: Int[ndarray, "n"], barycentric: Float[ndarray, "n 3"]
    ) -> tuple[UInt8[ndarray, "n"], Float[ndarray, "n"], Float[ndarray, "n"]]:
        return _locate(self.groups[face], np.einsum("nk,nck->cn", barycentric, self.fields[face]))


def _locate(groups: Int[ndarray, "n 2"], values: Float[ndarray, "5 n"]) -> tuple[ndarray, ndarray, ndarray]:
    first = values[0] >= 0
    group = np.where(first, groups[:, 0], groups[:, 1])
    turn = np.where(first, values[1], values[3])
    turn = turn - np.floor(turn)
    along = np.clip(np.where(first, values[2], values[4]), 0, 1)
    second_half = turn >= 0.5
    part = np.where(second_half, _HALVES[group, 1], _HALVES[group, 0])
    around = np.where(_IS_HALVED[group], 2 * turn - second_half, turn)
    torso = group == TORSO
    return part, np.where(torso, 1 - along, around), np.where(torso, 1 - around, along)


def charts_from_skinning(
    vertices: Float[ndarray, "v 3"],
    faces: Int[ndarray, "f 3"],
    weights: Float[ndarray, "v 24"],
    joints: Float[ndarray, "24 3"],
) -> SkinningCharts:
    """Charts of a mesh that SMPL's 24 joints move.

    Args:
        vertices: the T-pose, y up, facing +z, any unit.
        faces: triangles.
        weights: skinning weights over SMPL's joints.
        joints: their rest positions.

    A point belongs to the part whose joints weigh most on it. Raises ValueError for other shapes, and for weights under
    which a part has no vertex.
    """
    vertices, joints = np.asarray(vertices, np.float64), np.asarray(joints, np.float64)
    if weights.shape != (len(vertices), len(SMPL_JOINTS)) or joints.shape != (len(SMPL_JOINTS), 3):
        raise ValueError(
            f"charts need weights ({len(vertices)}, 24) and joints (24, 3); got {weights.shape} and {joints.shape}"
        )
    place = {name: joints[index] for index, name in enumerate(SMPL_JOINTS)}
    strength = np.stack(
        [weights[:, [SMPL_JOINTS.index(joint) for joint in group.joints]].sum(axis=1) for group in GROUPS.values()],
        axis=1,
    )
    dominant = strength.argmax(axis=1)
    groups = np.argsort(-strength[faces].sum(axis=1), axis=1, kind="stable")[:, :2]
    lead = np.take_along_axis(strength[faces], np.repeat(groups[:, None], 3, axis=1), axis=2)
    fields = np.zeros((len(faces), 5, 3))
    fields[:, 0] = lead[..., 0] - lead[..., 1]
    for number, (name, group) in enumerate(GROUPS.items()):
        own = vertices[dominant == number]
        if not len(own):
            raise ValueError(f"no vertex follows the {name} most; are these skinning weights over SMPL's 24 joints?")
        for candidate in (0, 1):
            chosen = groups[:, candidate] == number
            corners = vertices[faces[chosen]]
            if name.endswith("hand"):
                turn, along = _unrolled_hand(corners, own, place, name.split()[0])
            else:
                turn, along = _around_and_along(corners, own, name, group, place)
            fields[chosen, 1 + 2 * candidate] = turn
            fields[chosen, 2 + 2 * candidate] = along
    groups, fields = groups.astype(np.int8), fields.astype(np.float32)
    return SkinningCharts(_locate(groups, fields.mean(axis=2).T)[0], groups, fields)


def _around_and_along(
    corners: Float[ndarray, "f 3 3"], own: Float[ndarray, "v 3"], name: str, group: _Group, place: dict[str, ndarray]
) -> tuple[Float[ndarray, "f 3"], Float[ndarray, "f 3"]]:
    """Turns around the part's axis (continuous within a face) and the share of the way along it.

    `own` are the vertices that surely belong to the part: they span the way.
    """
    forward, flatness = np.array([0.0, 0.0, 1.0]), 1.0
    if group.bone is not None:
        origin, near = place[group.bone[0]], place[group.bone[1]]
        axis = near - origin
    elif name.endswith("foot"):
        side = name.split()[0]
        axis = (place[f"{side}_ankle"] - place[f"{side}_foot"]) * (1, 0, 1)
        origin, forward = own.mean(axis=0), np.array([0.0, 1.0, 0.0])
    else:
        axis, origin = np.array([0.0, 1.0, 0.0]), _centreline(corners[..., 1], own, name, place)
        flatness = TRUNK_FLATNESS if name == "torso" else 1.0
    axis = axis / np.linalg.norm(axis)
    forward = forward - (forward @ axis) * axis
    forward /= np.linalg.norm(forward)
    leftward = np.cross(axis, forward)
    offset = corners - origin
    turn = (np.arctan2(-(offset @ leftward), -(offset @ forward) * flatness) - group.start) / (2 * np.pi)
    turn -= np.round(turn - turn[:, :1])  # corners across the cut follow the face's first corner
    way = own @ axis
    knots, values = [way.min(), way.max()], [0.0, 1.0]
    if name == "head":
        knots, values = [way.min(), way[own[:, 2].argmax()], way.max()], [0.0, NOSE_V, 1.0]
    return turn, np.interp(corners @ axis, knots, values)


def _centreline(
    height: Float[ndarray, "f 3"], own: Float[ndarray, "v 3"], name: str, place: dict[str, ndarray]
) -> Float[ndarray, "f 3 3"]:
    """The trunk's axis at each corner's height: above the neck it leans into the middle of the skull."""
    if name == "torso":
        low, high = place["pelvis"], place["neck"]
    else:
        low, high = place["neck"], place["head"].copy()
        skull = own[own[:, 1] > high[1]]
        high[2] = (skull[:, 2].min() + skull[:, 2].max()) / 2
    line = np.zeros((*height.shape, 3))
    line[..., 0] = np.mean([place[joint][0] for joint in ("left_hip", "right_hip", "left_shoulder", "right_shoulder")])
    line[..., 2] = np.interp(height, (low[1], high[1]), (low[2], high[2]))
    return line


def _unrolled_hand(
    corners: Float[ndarray, "f 3 3"], own: Float[ndarray, "v 3"], place: dict[str, ndarray], side: str
) -> tuple[Float[ndarray, "f 3"], Float[ndarray, "f 3"]]:
    """A hand as two flat sides that meet at the thumb's edge, half a turn each.

    Fingers are not convex, so the side comes from a face's normal, and the turn from its place across the hand.
    """
    axis = place[f"{side}_wrist"] - place[f"{side}_hand"]
    axis /= np.linalg.norm(axis)
    forward = np.array([0.0, 0.0, 1.0])
    forward -= (forward @ axis) * axis
    forward /= np.linalg.norm(forward)

    def share(direction: ndarray) -> ndarray:
        span = own @ direction
        return np.clip((corners @ direction - span.min()) / np.ptp(span), 0, 1)

    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    leftward = normal @ np.cross(axis, forward) > 0
    across = share(forward) / 2
    return np.where(leftward[:, None], 1 - across, across), share(axis)


@functools.lru_cache(maxsize=1)
def embedded_charts() -> SkinningCharts:
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
        if name in joint_of_bone:
            joint = joint_of_bone[name]
            joints[joint] = heads[bone]
        else:  # fingers belong to their hand, the root to the pelvis
            joint = joint_of_bone["pelvis" if name == "Root" else f"hand_{name[-1]}"]
        weights[:, joint] += model.weights[body, bone]
    for side in ("left", "right"):
        joints[SMPL_JOINTS.index(f"{side}_hand")] = heads[model.bone_index[f"middle_01_{side[0]}"]]
    return charts_from_skinning(vertices, model.faces["body"], weights, joints)


def rest_places(uv: Float[ndarray, "*grid 2"]) -> Float[ndarray, "*grid 3"]:
    """Where places of the atlas lie on the embedded body at rest, arms hanging aslant: float32, zeros off the body.

    x to the subject's left, y up, z forwards, from the middle of its bounding box, in units of half its height. Equal
    places of any body give equal values: a function of the UV map alone, known to within 1/32 of a chart.
    """
    # In the atlas's order, column by column, parts 1 to 24.
    uv = np.asarray(uv, np.float32)
    cell = np.clip(np.floor(uv * _CELLS), 0, _CELLS - 1).astype(int)
    inside = (uv * _CELLS - cell - ATLAS_MARGIN) / (1 - 2 * ATLAS_MARGIN)
    row, column = np.moveaxis(np.clip((inside * _REST_POINTS).astype(int), 0, _REST_POINTS - 1), -1, 0)
    places = _rest_table()[cell[..., 0] * ATLAS_ROWS + cell[..., 1], row, column]
    return np.where(uv[..., :1] < 0, np.float32(0), places)


@functools.lru_cache(maxsize=1)
def _rest_table() -> Float[ndarray, "24 n n 3"]:
    """For parts 1 to 24, at n x n points of (u, v), the middle of the face that is nearest in its chart."""
    model, charts = embedded_model(), embedded_charts()
    faces, vertices = model.faces["body"], model.shape().vertices[model.ranges["body"]]
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middles = ((2 * vertices - low - high) / (high - low)[1])[faces].mean(axis=1)
    part, u, v = charts.locate(np.arange(len(faces)), np.full((len(faces), 3), 1 / 3))
    axis = (np.arange(_REST_POINTS) + 0.5) / _REST_POINTS
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    table = np.empty((len(PART_NAMES) - 1, len(points), 3), np.float32)
    for number in range(len(table)):
        own = part == number + 1
        distances = np.square(points - np.stack([u[own], v[own]], axis=-1)).sum(axis=-1)
        table[number] = middles[own][distances.argmin(axis=1)]
    return table.reshape(-1, _REST_POINTS, _REST_POINTS, 3)


def _check_iuv(iuv: ndarray) -> None:
    if iuv.dtype != np.uint8 or iuv.shape[-1:] != (3,):
        raise ValueError(f"expected a uint8 IUV image (..., 3); got {iuv.dtype} {iuv.shape}")
    if iuv.size and iuv[..., 0].max() >= len(PART_NAMES):
        raise ValueError(f"expected part ids 0..24 in the IUV image's first channel; got {iuv[..., 0].max()}")


def atlas_uv(iuv: UInt8[ndarray, "*grid 3"]) -> Float[ndarray, "*grid 2"]:
    """An IUV image as the 2-channel map of one atlas: float32 in [0, 1], the background -1 in both channels."""
    _check_iuv(iuv)
    return place_in_atlas(iuv[..., 0], iuv[..., 1:].astype(np.float32) / 255)


def place_in_atlas(part: Integer[ndarray, "*grid"], uv: Float[ndarray, "*grid 2"]) -> Float[ndarray, "*grid 2"]:
    """Atlas coordinates of (u, v) in [0, 1] within charts; -1 where the part is 0."""
    part = np.asarray(part)
    placed = _CELL_CORNERS[part]
    placed += _CELL_SIZE * np.asarray(uv, np.float32)
    placed[part == 0] = -1
    return placed


def face_of(part: UInt8[ndarray, "*grid"], u: Float[ndarray, "*grid"], v: Float[ndarray, "*grid"]) -> ndarray:
    """Which places belong to the face: bool."""
    forward = np.where(part == 23, u, 1 - u)
    jaw = CHIN_V + (JAW_V - CHIN_V) * (1 - forward) / (1 - EAR_U)
    return (part >= 23) & (forward > EAR_U) & (v > jaw) & (v < HAIRLINE_V)


def flip_iuv(iuv: UInt8[ndarray, "*batch h w 3"], charts: Charts | None = None) -> UInt8[ndarray, "*batch h w 3"]:
    """The IUV image of the mirrored person.

    Columns are reversed, left and right parts exchanged, and u and v mirrored inside them.
    `charts` is needed only for an image of DensePose's own charts, made by DensePose or with a user's
    `UV_Processed.mat`, whose mirroring is a table (`load_densepose_symmetry`).
    """
    _check_iuv(iuv)
    return (charts or Charts()).mirrored(np.asarray(iuv)[..., ::-1, :])
