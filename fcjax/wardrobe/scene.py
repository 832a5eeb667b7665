"""From a dressed person to pixels: what is where (rasteriser with cut tests), then what each pixel looks like.

A `Scene` gathers every mesh of a dressed person in its rest pose once; posing and framing it is cheap, so that several
pictures share it: the person in some poses, each garment's flat picture, the face.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from fcjax.body.camera import Camera
from fcjax.body.embedded import ShapedBody, embedded_model, skin
from fcjax.body.rasterizer import rasterize, vertex_normals
from fcjax.wardrobe import garments as cloth
from fcjax.wardrobe.garments import FAR, Garment
from fcjax.wardrobe.hair import STYLES, Hair
from fcjax.wardrobe.meshes import Landmarks, bone_weight, helper_mesh
from fcjax.wardrobe.people import Person

SKIN, EYES, HAIR, FIRST_GARMENT = 0, 1, 2, 3
FACE_HEM = 0.035  # metres below the neck joint where the face asset ends
INNER_SIDE = 0.15  # metres from the ends of cloth within which its inner side is drawn
NECK_SLACK = 0.02  # metres around the neckline in which fragments are tested exactly


@dataclass(frozen=True, eq=False)
class Scene:
    """Meshes in the rest pose, concatenated. `kind` says what a face is: skin, eyes, hair, or FIRST_GARMENT +
    garment."""

    rest: Float[ndarray, "v 3"]  # where fields and features are evaluated
    points: Float[ndarray, "v 3"]  # displaced
    laid: Float[ndarray, "v 3"]  # where they lie in their garment's flat picture
    weights: Float[ndarray, "v 53"]
    flat: Float[ndarray, "v 2"]  # texture coordinates in metres; hair: strand
    fields: Float[ndarray, "v 3"]
    features: Float[ndarray, "v 2"]  # skin: lips; garments: weight of the arms
    hanging: Int[ndarray, "v"]  # the bone under which a vertex hangs upright, -1 for none
    faces: Int[ndarray, "f 3"]
    kind: Int[ndarray, "f"]
    two_sided: Bool[ndarray, "f"]
    tested: Bool[ndarray, "f"]  # faces whose fragments go through `cut`
    exact: Bool[ndarray, "f"]  # faces with an exact neckline

    def select(self, chosen: Bool[ndarray, "f"], points: Float[ndarray, "v 3"] | None = None) -> "Scene":
        """The scene with some faces only and the vertices they need; `points` replaces the positions."""
        used, faces = np.unique(self.faces[chosen], return_inverse=True)
        return Scene(
            self.rest[used],
            (self.points if points is None else points)[used],
            self.laid[used],
            self.weights[used],
            self.flat[used],
            self.fields[used],
            self.features[used],
            self.hanging[used],
            faces.reshape(-1, 3),
            self.kind[chosen],
            self.two_sided[chosen],
            self.tested[chosen],
            self.exact[chosen],
        )


NEVER, ALWAYS = -9.0, 9.0


def _inner(garment: Garment) -> float:
    """How far from a garment's ends, in metres, its inner side may be seen."""
    return ALWAYS if garment.cut.kind in ("jacket", "hat", "bag") else INNER_SIDE


class _Builder:
    def __init__(self) -> None:
        self.parts: list[tuple[ndarray, ...]] = []
        self.count = 0

    def add(
        self, rest, points, laid, weights, flat, fields, features, faces, kind, inner, exact=False, bone=""
    ) -> None:
        def of_corners(attribute: ndarray, join: np.ufunc) -> ndarray:
            # Three gathers: NumPy reduces short axes slowly.
            a, b, c = faces.T
            return join(join(attribute[a], attribute[b]), attribute[c])

        positive = fields > 0
        some = of_corners(positive, np.logical_or)
        faces = faces[some[:, 0] & some[:, 1] & some[:, 2]]
        if kind == HAIR:
            tested = of_corners(np.minimum(np.minimum(fields[:, 0], fields[:, 1]), fields[:, 2]), np.minimum) < 0.05
        else:
            tested = ~of_corners(positive[:, 0] & positive[:, 1] & positive[:, 2], np.logical_and)
        # The inner side of closed garments shows near their ends alone; elsewhere their outer side hides it.
        sides = of_corners(np.minimum(fields[:, 0], fields[:, 1]), np.minimum) < inner
        near_neck = np.zeros(len(faces), bool)
        if exact:
            near_neck = of_corners(np.abs(fields[:, 1]) < NECK_SLACK, np.logical_or)
            tested |= near_neck
        used, faces = np.unique(faces, return_inverse=True)
        faces = faces.reshape(-1, 3) + self.count
        self.count += len(used)
        self.parts.append(
            (
                rest[used], points[used], laid[used], weights[used], flat[used], fields[used], features[used],
                np.full(len(used), embedded_model().bone_index[bone] if bone else -1), faces,
                np.full(len(faces), kind, np.int8), sides, tested, near_neck,
            )
        )  # fmt: skip

    def scene(self) -> Scene:
        arrays = [np.concatenate(columns) for columns in zip(*self.parts, strict=True)]
        floats = [np.ascontiguousarray(array, np.float32) for array in arrays[:7]]
        return Scene(*floats, *arrays[7:])


def _constant(count: int, *values: float | np.floating) -> Float[ndarray, "v k"]:
    return np.tile(np.array(values, np.float32), (count, 1))


def assemble(
    shaped: ShapedBody, marks: Landmarks, hair: Hair | None, garments: tuple[Garment, ...], bare: bool = False
) -> Scene:
    """The scene of a dressed person. Later garments lie over earlier ones. `bare` leaves garments away (for the
    face)."""
    model = embedded_model()
    builder = _Builder()
    worn = () if bare else garments
    body, rows = helper_mesh("body"), model.ranges["body"]
    rest = shaped.vertices[rows]
    fields = _constant(len(rest), FAR, FAR, FAR)
    head = bone_weight(model, rows, "head", "neck")
    if bare:
        fields[:, 0] = np.where(head > 0.02, rest[:, 1] - marks.neck + FACE_HEM - 0.25 * rest[:, 2], -FAR)
        fields[:, 1] = 0.085 - np.abs(rest[:, 0])
    else:
        fields[:, 0] = -cloth.hidden_skin(worn, marks, body, rest, bone_weight(model, rows, "head"))
    features = np.stack([model.masks["lips"], np.zeros(len(rest), np.float32)], axis=1)
    builder.add(rest, rest, rest, body.weights, _constant(len(rest), 0, 0), fields, features, body.faces, SKIN, NEVER)
    eyes = model.ranges["eyes"]
    points = shaped.vertices[eyes]
    nothing, always = _constant(len(points), 0, 0), _constant(len(points), FAR, FAR, FAR)
    faces = model.faces["eyes"] - eyes.start
    builder.add(points, points, points, model.weights[eyes], nothing, always, nothing, faces, EYES, NEVER)
    if hair is not None:
        # A hat hides the hair under it.
        crown = next((garment.crown for garment in worn if garment.crown is not None), None)
        below = np.full_like(hair.margin, FAR) if crown is None else hair.below(crown)
        fields = np.stack([hair.margin, below, np.full_like(hair.margin, FAR)], axis=1)
        nothing = _constant(len(hair.points), 0, 0)
        if bare:
            fields[:, 2] = hair.points[:, 1] - marks.neck + FACE_HEM + 0.01
        # The margin may be somewhat negative: strands differ.
        fields[:, 0] += 0.012
        builder.add(
            hair.points, hair.points, hair.points, hair.weights, hair.strand, fields, nothing, hair.faces, HAIR, ALWAYS
        )
    for index, garment in enumerate(worn):
        over = worn[index + 1 :]
        for piece in garment.pieces:
            fields = piece.fields.copy()
            if over and piece.source in ("skirt", "tights"):
                fields[:, 2] = np.minimum(fields[:, 2], -cloth.cover(over, marks, piece.rest, piece.source))
            features = np.stack([piece.arms, np.zeros_like(piece.arms)], axis=1)
            builder.add(
                piece.points, piece.points, piece.laid, piece.weights, piece.texture, fields, features, piece.faces,
                FIRST_GARMENT + index, _inner(garment), piece.exact_neck, piece.hangs_from,
            )  # fmt: skip
    return builder.scene()


def flat_scene(garment: Garment) -> Scene:
    """One garment laid out, seen from the front."""
    builder = _Builder()
    for piece in garment.pieces:
        features = np.stack([piece.arms, np.zeros_like(piece.arms)], axis=1)
        builder.add(
            piece.points, piece.laid, piece.laid, piece.weights, piece.texture, piece.fields, features, piece.faces,
            FIRST_GARMENT, _inner(garment), piece.exact_neck,
        )  # fmt: skip
    return builder.scene()


def hairline_noise(strand: Float[ndarray, "n 2"], amount: float, seed: int) -> Float[ndarray, "n"]:
    """How much longer (metres) a strand is than its neighbours."""
    phase = np.float32(seed % 628) / 100
    around = strand[:, 0]
    return np.float32(amount) * (
        0.004 * np.sin(around * 31 + phase) + 0.003 * np.sin(around * 67 + 2 * phase) + 0.002 * np.sin(around * 149)
    )


@dataclass(frozen=True, eq=False)
class Surface:
    """What a picture shows at its pixels; arrays run over the `n` seen pixels."""

    height: int
    width: int
    pixels: Int[ndarray, "n"]  # flat indices of seen pixels
    corners: Int[ndarray, "n 3"]
    barycentric: Float[ndarray, "n 3"]
    kind: Int[ndarray, "n"]
    normals: Float[ndarray, "n 3"]  # camera axes, towards the viewer
    inside: Bool[ndarray, "n"]  # the inner side of cloth
    depth: Float[ndarray, "n"]  # metres, smaller is nearer
    squeeze: Float[ndarray, "v"]  # how much cloth is compressed at a vertex, 0 to 0.6

    def labels(self) -> Int[ndarray, "h w"]:
        """Per pixel the kind of what is seen, -1 for nothing."""
        kinds = np.full(self.height * self.width, -1, np.int8)
        kinds[self.pixels] = self.kind
        return kinds.reshape(self.height, self.width)

    def interpolate(self, attribute: ndarray, rows: ndarray) -> ndarray:
        """A per-vertex attribute (v,) or (v, c) at some of the seen pixels."""
        return blend(attribute, self.corners[rows], self.barycentric[rows])


def blend(attribute: ndarray, corners: Int[ndarray, "n 3"], weights: Float[ndarray, "n 3"]) -> ndarray:
    """A per-vertex attribute (v,) or (v, c) at points given by barycentric weights."""
    if attribute.ndim == 1:
        return (attribute[corners] * weights).sum(axis=1)
    value = attribute[corners[:, 0]] * weights[:, :1]
    value += attribute[corners[:, 1]] * weights[:, 1:2]
    value += attribute[corners[:, 2]] * weights[:, 2:]
    return value


def draw(
    scene: Scene,
    posed: Float[ndarray, "v 3"],
    camera: Camera,
    height: int,
    width: int,
    garments: tuple[Garment, ...],
    marks: Landmarks,
    person: Person | None,
) -> Surface:
    """Rasterise a posed scene; `garments` are those that the scene's kinds count."""
    projected = camera.project(posed)
    corners = projected[scene.faces]
    first, second = corners[:, 1, :2] - corners[:, 0, :2], corners[:, 2, :2] - corners[:, 0, :2]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    live = np.flatnonzero(scene.two_sided | (area < 0))
    faces, kind, tested, exact = scene.faces[live], scene.kind[live], scene.tested[live], scene.exact[live]

    def keep(face: ndarray, barycentric: ndarray) -> ndarray:
        kept = np.ones(len(face), bool)
        rows = np.flatnonzero(tested[face])
        face, weights = face[rows], barycentric[rows]
        vertices = faces[face]

        def at(attribute: ndarray, chosen: ndarray) -> ndarray:
            return np.einsum("nk,nkc->nc", weights[chosen], attribute[vertices[chosen]])

        everything = np.arange(len(rows))
        values = at(scene.fields, everything)
        strands = np.flatnonzero(kind[face] == HAIR)
        if len(strands) and person is not None:
            amount = STYLES[person.hair_style].noise
            values[strands, 0] += hairline_noise(at(scene.flat, strands), amount, person.hair_seed) - 0.012
        for index, garment in enumerate(garments):
            chosen = np.flatnonzero(exact[face] & (kind[face] == FIRST_GARMENT + index))
            if len(chosen):
                x, y, z = at(scene.rest, chosen).T
                arms = at(scene.features, chosen)[:, 0]
                values[chosen, 1] = cloth.neckline(garment.cut, marks, x, y, z, arms)
        positive = values > 0
        kept[rows] = positive[:, 0] & positive[:, 1] & positive[:, 2]
        return kept

    fragments = rasterize(projected, faces, height, width, cull=False, keep=keep, perspective=camera.perspective)
    seen = np.flatnonzero(fragments.face.ravel() >= 0)
    face = fragments.face.ravel()[seen]
    barycentric = fragments.barycentric.reshape(-1, 3)[seen]
    corners = faces[face]
    inside = area[live][face] > 0
    normals = blend(
        vertex_normals(posed, scene.faces) @ np.asarray(camera.rotation, np.float32).T, corners, barycentric
    )
    normals /= np.sqrt(np.einsum("nk,nk->n", normals, normals) + np.float32(1e-12))[:, None]
    normals[inside] *= -1
    return Surface(
        height=height,
        width=width,
        pixels=seen,
        corners=corners,
        barycentric=barycentric,
        kind=kind[face],
        normals=normals,
        inside=inside,
        depth=fragments.depth.ravel()[seen],
        squeeze=_squeeze(scene, posed),
    )


def _squeeze(scene: Scene, posed: Float[ndarray, "v 3"]) -> Float[ndarray, "v"]:
    """How much shorter the shortest edge around each of the cloth's vertices became by posing."""
    faces = scene.faces[scene.kind >= FIRST_GARMENT]
    total, count = np.zeros(len(posed)), np.full(len(posed), 1e-9)
    if len(faces):
        ratio = np.full(len(faces), 2.0, np.float32)
        for a, b in ((0, 1), (1, 2), (2, 0)):
            before = np.linalg.norm(scene.points[faces[:, a]] - scene.points[faces[:, b]], axis=1)
            after = np.linalg.norm(posed[faces[:, a]] - posed[faces[:, b]], axis=1)
            ratio = np.minimum(ratio, after / np.maximum(before, 1e-5))
        squeezed = np.clip(0.92 - ratio, 0, 0.6)
        total = np.bincount(faces.ravel(), np.repeat(squeezed, 3), len(posed))
        count = np.maximum(np.bincount(faces.ravel(), minlength=len(posed)), 1)
    return (total / count).astype(np.float32)


def pose_scene(
    scene: Scene, transforms: Float[ndarray, "53 3 4"], joints: Float[ndarray, "53 3"]
) -> Float[ndarray, "v 3"]:
    """The scene's vertices in a pose; `joints` are the bones' heads at rest. What hangs moves along without turning."""
    posed = skin(scene.points, scene.weights, transforms)
    for bone in np.unique(scene.hanging[scene.hanging >= 0]):
        rows = scene.hanging == bone
        moved = transforms[bone, :, :3] @ joints[bone] + transforms[bone, :, 3]
        posed[rows] = scene.points[rows] + (moved - joints[bone])
    return posed
