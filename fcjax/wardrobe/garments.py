"""Garments: cuts, the displaced helper meshes that carry them, and the fields that say where the cloth ends.

A garment is a copy of a helper mesh (tights, skirt) that follows the body's shape and bones. Where it ends is decided
per pixel by scalar fields on rest positions: cloth is where all of them are positive. Cutting whole faces instead
would make jagged hems. Flat coordinates are those of the garment laid out with straight arms and its sides unrolled;
they are its texture coordinates too, so the flat picture and the worn garment share every pixel of print.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from fcjax.body.embedded import ShapedBody, embedded_model, skin
from fcjax.body.rasterizer import vertex_normals
from fcjax.wardrobe.meshes import HelperMesh, Landmarks, helper_mesh, sleeve_coordinate, smoothstep

FAR = np.float32(0.9)  # a field that cuts nothing
GAP = 0.005  # metres between layers of cloth
HIDING_MARGIN = 0.022  # metres that cloth reaches over what it hides: less lets skin poke through, more cuts holes
SKIRT_MARGIN = 0.07


@dataclass(frozen=True)
class Cut:
    """The shape of a garment. Lengths are metres at the average body; heights are absolute, in the rest pose."""

    kind: str  # "top" | "jacket" | "trousers" | "skirt" | "dress" | "shoes" | "hat" | "bag"
    hem: float  # height of the lower end
    waist: float = 0.0  # height of the upper end (trousers, skirt), or of a dress's seam
    sleeve: float = 0.6  # 0 shoulder, 1 elbow, 2 wrist
    neck: tuple[float, float, float] = (0.086, 0.062, 0.03)  # half width, depth in front, depth at the back
    vee: tuple[float, float] | None = None  # depth below the neck, slope
    opening: float = 0.0  # half width of a jacket's open front at the hem
    offset: float = 0.01  # from the skin
    smoothing: int = 3
    drape: float = 0.6  # 1 hangs straight from the chest, 0 follows the body
    flare: float = 0.0  # widening of sleeves, metres
    legs: tuple[float, float] = (0.064, 0.064)  # least radius of trouser legs at knee and hem
    spread: float = 0.25  # of skirts, per 0.6 m
    folds: float = 0.05
    fold_count: int = 11
    fold_phase: float = 0.0
    wrinkles: float = 0.5
    trims: tuple[str, ...] = ()  # painted on: "placket", "fly", "band", "collar", "pocket"


@dataclass(frozen=True, eq=False)
class Piece:
    """A mesh that a garment shows: a displaced copy of a helper mesh, or one of its own (hats, bags)."""

    source: str  # "tights", "skirt", "hat" or "bag"
    faces: Int[ndarray, "f 3"]
    weights: Float[ndarray, "v 53"]
    rest: Float[ndarray, "v 3"]  # the helper mesh itself
    points: Float[ndarray, "v 3"]  # displaced, rest pose: what fields are evaluated on
    laid: Float[ndarray, "v 3"]  # as the flat picture shows it
    texture: Float[ndarray, "v 2"]  # texture coordinates in metres: x and y as laid out
    fields: Float[ndarray, "v 3"]  # ends of the cloth, neckline, cover by outer garments; positive is cloth
    arms: Float[ndarray, "v"]
    exact_neck: bool = False
    hangs_from: str = ""  # a bone under which the piece hangs upright, if any


@dataclass(frozen=True, eq=False)
class Garment:
    cut: Cut
    pieces: tuple[Piece, ...]
    depth: float  # rest z that parts front from back
    extent: tuple[float, float, float, float] = (0, 0, 0, 0)  # texture x low, x high, y low, y high
    crown: tuple[ndarray, ndarray] | None = None  # a hat's edge: azimuths and polar angles, radians

    @property
    def tights(self) -> Piece | None:
        return next((piece for piece in self.pieces if piece.source == "tights"), None)


def neckline(cut: Cut, marks: Landmarks, x: ndarray, y: ndarray, z: ndarray, arms: ndarray) -> ndarray:
    """How far inside its neckline (and a jacket's front opening) cloth at rest positions lies, metres."""
    half_width, front_depth, back_depth = (size * marks.unit for size in cut.neck)
    base = marks.neck + 0.015
    front = smoothstep(-0.03, 0.06, z - marks.neck_depth)
    depth = back_depth + (front_depth - back_depth) * front
    radius = np.abs(x) / half_width
    inside = np.where(y > base, radius, np.sqrt(radius**2 + ((y - base) / depth) ** 2 + 1e-9)) - 1
    inside = np.minimum(inside, np.where(arms < 0.5, (base + 0.002 - y) / half_width, FAR)) * half_width
    in_front = z > marks.neck_depth + 0.015
    if cut.vee is not None:
        depth_below, slope = cut.vee
        edge = (slope * np.abs(x) + marks.neck - depth_below * marks.unit - y) / slope
        inside = np.minimum(inside, np.where(in_front, edge, FAR))
    if cut.opening:
        # Lapels: narrow at the chest, wider towards neck and hem.
        up = np.clip((y - cut.hem) / (marks.neck - cut.hem), 0, 1)
        gap = cut.opening * (0.55 + 0.45 * (2 * up - 0.9) ** 2) + 0.035 * smoothstep(0.65, 1.0, up)
        inside = np.minimum(inside, np.where((z > marks.neck_depth - 0.01) & (arms < 0.5), np.abs(x) - gap, FAR))
    return inside.astype(np.float32)


def fields(
    cut: Cut, marks: Landmarks, points: Float[ndarray, "v 3"], arms: ndarray, sleeve: ndarray
) -> Float[ndarray, "v 2"]:
    """Distances inside the cloth's ends (hem, waist, sleeves) and inside its neckline, on rest positions of the
    tights."""
    x, y, z = points.T
    far = np.full(len(points), FAR, np.float32)
    if cut.kind in ("top", "jacket", "dress"):
        lower = cut.hem if cut.kind != "dress" else cut.waist
        ends = np.minimum(np.maximum(y - lower, (arms - 0.5) * 0.4), (cut.sleeve - sleeve) * 0.24)
        return np.stack([ends, neckline(cut, marks, x, y, z, arms)], axis=1)
    if cut.kind == "trousers":
        ends = np.minimum(np.minimum(cut.waist - y, (0.5 - arms) * 0.4), y - cut.hem)
    elif cut.kind == "shoes":
        ends = cut.hem + 0.25 * smoothstep(0.06, -0.05, z) * 0.08 - y
    else:
        raise ValueError(f"no fields on the tights for a {cut.kind}")
    return np.stack([ends.astype(np.float32), far], axis=1)


def _hang(points: Float[ndarray, "v 3"], mesh: HelperMesh, marks: Landmarks, drape: float) -> Float[ndarray, "v 3"]:
    """Let a top's body hang from the chest: its width shrinks only slowly below the bust. The greatest gain in
    realism."""
    torso = (mesh.arms < 0.35) & mesh.used
    count = 60
    low, high = marks.hip - 0.2, marks.neck
    bins = np.clip(((points[torso, 1] - low) / (high - low) * (count - 1)).round().astype(int), 0, count - 1)
    half_width, front = np.zeros(count), np.full(count, -0.9)
    np.maximum.at(half_width, bins, np.abs(points[torso, 0]))
    np.maximum.at(front, bins, points[torso, 2])
    for profile in (half_width, front):  # each height also looks at its neighbours, which closes empty bins
        padded = np.pad(profile, 1, mode="edge")
        np.maximum(np.maximum(padded[:-2], padded[2:]), profile, out=profile)
    wanted_width, wanted_front = half_width.copy(), front.copy()
    bust = int((marks.neck - 0.16 * marks.unit - low) / (high - low) * (count - 1))
    for row in range(bust, -1, -1):
        wanted_width[row] = max(half_width[row], wanted_width[row + 1] * (drape + (1 - drape) * 0.86))
        wanted_front[row] = max(front[row], wanted_front[row + 1] - (1 - drape) * 0.012 - 0.001)
    heights = np.linspace(low, high, count)
    widen = np.interp(points[:, 1], heights, wanted_width / np.maximum(half_width, 1e-3))
    forward = np.interp(points[:, 1], heights, wanted_front - front)
    share = 1 - smoothstep(0.05, 0.5, mesh.arms)
    points = points.copy()
    points[:, 0] *= 1 + (widen - 1) * share
    points[:, 2] += forward * share * smoothstep(0, 0.09, points[:, 2])
    return points


def _flare_sleeves(
    points: Float[ndarray, "v 3"], mesh: HelperMesh, marks: Landmarks, sleeve: ndarray, flare: float
) -> Float[ndarray, "v 3"]:
    points = points.copy()
    for side in "lr":
        shoulder, elbow, wrist = (marks.joints[f"{bone}_{side}"] for bone in ("upperarm", "lowerarm", "hand"))
        weight = mesh.arm[side] * smoothstep(0.1, 0.9, sleeve)
        for start, end, part in ((shoulder, elbow, sleeve <= 1), (elbow, wrist, sleeve > 1)):
            chosen = np.flatnonzero(part & (weight > 0))
            axis = (end - start) / np.linalg.norm(end - start)
            across = points[chosen] - start
            across -= (across @ axis)[:, None] * axis
            length = np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
            points[chosen] += across / length * (flare * weight[chosen])[:, None]
    return points


def _widen_legs(points: Float[ndarray, "v 3"], marks: Landmarks, legs: tuple[float, float]) -> Float[ndarray, "v 3"]:
    """Trouser legs keep a least radius about the leg's axis."""
    points = points.copy()
    for side, sign in (("l", 1), ("r", -1)):
        axis = np.array([marks.joints[f"{bone}_{side}"] for bone in ("thigh", "calf", "foot")])[::-1]
        chosen = np.flatnonzero(np.sign(points[:, 0]) == sign)
        x, y, z = points[chosen].T
        center_x, center_z = np.interp(y, axis[:, 1], axis[:, 0]), np.interp(y, axis[:, 1], axis[:, 2])
        from_x, from_z = x - center_x, z - center_z
        below_hip = smoothstep(0, 1, (marks.hip - 0.07 - y) / (marks.hip - 0.07 - marks.knee))
        below_knee = np.clip((marks.knee - y) / (marks.knee - marks.ankle), 0, 1)
        least = legs[0] + (legs[1] - legs[0]) * below_knee
        grow = 1 + below_hip * (np.maximum(least * marks.unit / np.maximum(np.hypot(from_x, from_z), 1e-3), 1) - 1)
        points[chosen, 0] = center_x + from_x * grow
        points[chosen, 2] = center_z + from_z * grow
    return points


def _flat_transforms(shaped: ShapedBody) -> Float[ndarray, "53 3 4"]:
    """Bones of the layout: straight arms held slightly away, legs as in the T-pose."""
    rotations = np.zeros((24, 3))
    rotations[16, 2], rotations[17, 2] = -0.85, 0.85
    rotations[18, 2], rotations[19, 2] = -0.12, 0.12
    rotations[1, 2], rotations[2, 2] = 0.035, -0.035
    return embedded_model().bone_transforms(shaped, rotations, finger_curl=0.0)


def _unroll(points: Float[ndarray, "v 3"], arms: ndarray, marks: Landmarks, share: float) -> Float[ndarray, "v 3"]:
    """Spread the sides of torso and skirt from how wide they look to how much cloth there is."""
    points = points.copy()
    x, y = points[:, 0], points[:, 1]
    count = 80
    low, high = y.min() - 0.01, marks.neck + 0.06
    torso = arms < 0.3
    bins = np.clip(((y[torso] - low) / (high - low) * (count - 1)).round().astype(int), 0, count - 1)
    half_width = np.zeros(count)
    np.maximum.at(half_width, bins, np.abs(x[torso]))
    padded = np.pad(half_width, 1, mode="edge")
    half_width = np.maximum(np.maximum(padded[:-2], padded[2:]), half_width)
    armpit = int(np.clip((marks.shoulder - 0.09 - low) / (high - low), 0, 1) * (count - 1))
    half_width[armpit:] = np.maximum(half_width[armpit:], half_width[armpit])
    half_width = np.convolve(np.pad(half_width, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    heights = np.linspace(low, high, count)
    width = np.interp(y, heights, half_width) * 1.06
    relative = np.clip(x / np.maximum(width, 1e-3), -0.985, 0.985)
    outwards = share * (0.9 * width * np.arcsin(relative) - x)
    at_armpit = share * (0.9 * np.arcsin(0.93) - 0.93) * half_width[armpit] * 1.06
    body = 1 - smoothstep(0.05, 0.6, arms)
    points[:, 0] = x + outwards * body + (1 - body) * np.sign(x) * at_armpit
    return points


def tailor(cut: Cut, shaped: ShapedBody, marks: Landmarks, inner: Piece | None = None) -> Garment:
    """Make a garment for a body. `inner` is the cloth beneath, over which this one keeps a gap."""
    pieces = []
    transforms = _flat_transforms(shaped)
    if cut.kind != "skirt":
        mesh = helper_mesh("tights")
        rest = shaped.vertices[mesh.vertices]
        sleeve = sleeve_coordinate(mesh, rest, marks)
        points = mesh.smooth(rest, cut.smoothing)
        points = points + cut.offset * vertex_normals(points, mesh.faces)
        if cut.kind in ("top", "jacket", "dress"):
            points = _hang(points, mesh, marks, cut.drape)
            if cut.flare:
                points = _flare_sleeves(points, mesh, marks, sleeve, cut.flare)
        elif cut.kind == "trousers":
            points = _widen_legs(points, marks, cut.legs)
        if inner is not None:
            normals = vertex_normals(inner.points, mesh.faces)
            lift = GAP - ((points - inner.points) * normals).sum(axis=1)
            points = points + normals * np.maximum(lift, 0)[:, None]
        flat = skin(points, mesh.weights, transforms)
        if cut.kind in ("top", "jacket", "dress"):
            flat = _unroll(flat, mesh.arms, marks, 0.55)
        # Ends are measured on the cloth where it hangs, covering on the skin beneath: smoothing moves vertices up
        # and down.
        ends = fields(cut, marks, points, mesh.arms, sleeve)
        pieces.append(
            Piece(
                source="tights",
                faces=mesh.faces,
                weights=mesh.weights,
                rest=rest,
                points=points.astype(np.float32),
                laid=flat.astype(np.float32),
                texture=flat[:, :2].astype(np.float32),
                fields=np.concatenate([ends, np.full((len(rest), 1), FAR, np.float32)], axis=1),
                arms=mesh.arms,
                exact_neck=cut.kind in ("top", "jacket", "dress"),
            )
        )
    if cut.kind in ("skirt", "dress"):
        pieces.append(_skirt(cut, shaped, marks, transforms))
    depth = marks.joints["spine_03" if cut.kind in ("top", "jacket", "dress") else "thigh_l"][2]
    return measured(Garment(cut, tuple(pieces), float(depth)))


def _skirt(cut: Cut, shaped: ShapedBody, marks: Landmarks, transforms: ndarray) -> Piece:
    mesh = helper_mesh("skirt")
    rest = shaped.vertices[mesh.vertices]
    points = mesh.smooth(rest, 2)
    points = points + cut.offset * vertex_normals(points, mesh.faces)
    below = np.clip((marks.waist - 0.03 - points[:, 1]) / 0.6, 0, 1.2)
    depth = marks.joints["thigh_l"][2]
    angle = np.arctan2(points[:, 2] - depth, points[:, 0])
    grow = 1 + cut.spread * below
    grow = grow * (1 + cut.folds * below * np.sin(angle * cut.fold_count + cut.fold_phase))
    points[:, 0] *= grow
    points[:, 2] = depth + (points[:, 2] - depth) * grow
    arms = np.zeros(len(rest), np.float32)
    flat = _unroll(skin(points, mesh.weights, transforms), arms, marks, 0.55)
    ends = points[:, 1] - cut.hem
    if cut.kind == "skirt":
        ends = np.minimum(ends, cut.waist - points[:, 1])
    far = np.full(len(rest), FAR)
    return Piece(
        source="skirt",
        faces=mesh.faces,
        weights=mesh.weights,
        rest=rest,
        points=points.astype(np.float32),
        laid=flat.astype(np.float32),
        texture=flat[:, :2].astype(np.float32),
        fields=np.stack([ends, far, far], axis=1).astype(np.float32),
        arms=arms,
    )


def measured(garment: Garment) -> Garment:
    """The garment with the bounds of its texture coordinates."""
    shown = [piece.texture[np.unique(piece.faces[shown_faces(piece)])] for piece in garment.pieces]
    outline = np.concatenate(shown)
    (left, bottom), (right, top) = outline.min(axis=0), outline.max(axis=0)
    return replace(garment, extent=(float(left), float(right), float(bottom), float(top)))


def shown_faces(piece: Piece) -> Bool[ndarray, "f"]:
    """Faces of which some part is cloth."""
    return piece.fields[piece.faces].max(axis=1).min(axis=1) > 0


def cover(garments: tuple[Garment, ...], marks: Landmarks, rest: ndarray, rows: str) -> Float[ndarray, "v"]:
    """How far under the garments (negative: not under) points of the tights' or skirt's mesh lie, beyond the margin."""
    mesh = helper_mesh(rows)
    under = np.full(len(rest), -FAR, np.float32)
    for garment in garments:
        if garment.tights is None or garment.cut.kind == "shoes":
            continue
        if rows == "tights":
            inside = garment.tights.fields[:, :2].min(axis=1)
        else:
            sleeve = np.full(len(rest), -1.0, np.float32)
            inside = fields(garment.cut, marks, rest, mesh.arms, sleeve).min(axis=1)
        under = np.maximum(under, inside - HIDING_MARGIN)
    return under


def hidden_skin(
    garments: tuple[Garment, ...], marks: Landmarks, body: HelperMesh, rest: Float[ndarray, "v 3"], head: ndarray
) -> Float[ndarray, "v"]:
    """How far under cloth points of the skin lie (negative: bare), never on the head."""
    sleeve = sleeve_coordinate(body, rest, marks)
    arms = body.arms
    hidden = np.full(len(rest), -FAR, np.float32)
    for garment in garments:
        cut = garment.cut
        if cut.kind in ("hat", "bag"):
            continue
        if cut.kind in ("skirt", "dress"):
            top = cut.waist - 0.02 if cut.kind == "skirt" else marks.waist - 0.045
            under = np.minimum(rest[:, 1] - cut.hem - SKIRT_MARGIN, top - rest[:, 1])
            hidden = np.maximum(hidden, np.minimum(under, (0.5 - arms) * 0.4))
        if cut.kind != "skirt":
            margin = 0.004 if cut.kind == "shoes" else HIDING_MARGIN
            hidden = np.maximum(hidden, fields(cut, marks, rest, arms, sleeve).min(axis=1) - margin)
    return np.where(head > 0.3, -FAR, hidden).astype(np.float32)
