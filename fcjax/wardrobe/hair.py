"""Hair: a grid of strands over the skull that ends in a noisy hairline, a fringe, or hangs down as a curtain.

Columns run around the head (angle 0 in front, positive towards the subject's left), rows from the crown outwards. The
grid stands off the skull by the hair's thickness; where it ends is decided per pixel, strand by strand.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from fcjax.body.embedded import ShapedBody, embedded_model
from fcjax.wardrobe.meshes import Landmarks, smoothstep
from fcjax.wardrobe.people import Person

COLUMNS, SKULL_ROWS, HANGING_ROWS = 73, 22, 14
SKULL_END = np.radians(128)  # polar angle from the crown at which the skull rows end
TURN_DOWN = np.radians(88)  # from here curtains hang

# The hairline's polar angle in degrees over the azimuth in degrees: forehead, temple, sideburn, over the ear, nape.
HAIRLINE = (
    (0, 18, 34, 50, 62, 72, 84, 98, 112, 130, 180),
    (50, 51, 52, 57, 72, 92, 90, 88, 104, 118, 122),
)


@dataclass(frozen=True)
class Style:
    length: float | None = None  # metres below the eyes that the curtain hangs; None: no curtain
    thickness: float = 0.016
    fringe: float = 0.0  # polar degrees that hair in front reaches over the hairline
    wave: float = 0.0  # metres that strands swing
    noise: float = 1.0  # raggedness of the hairline
    front_limit: float = 68.0  # azimuth in degrees behind which the curtain hangs
    knot: str = "none"  # "bun" | "ponytail"
    curls: float = 0.0


STYLES: dict[str, Style] = {
    "short": Style(thickness=0.017, fringe=3.0, noise=1.3),
    "cropped": Style(thickness=0.006, fringe=0.0, noise=0.6),
    "bob": Style(length=0.10, thickness=0.020, fringe=0.0),
    "long": Style(length=0.30, thickness=0.018),
    "wavy": Style(length=0.27, thickness=0.024, wave=0.012, noise=1.4),
    "fringe": Style(length=0.19, thickness=0.018, fringe=26.0),
    "bun": Style(thickness=0.010, knot="bun"),
    "ponytail": Style(thickness=0.010, knot="ponytail"),
    "curly": Style(thickness=0.050, fringe=7.0, curls=0.010, noise=2.0),
    "bald": Style(),
}


@dataclass(frozen=True, eq=False)
class Hair:
    """Hair as a mesh in the rest pose, to be skinned with `weights`."""

    points: Float[ndarray, "v 3"]
    faces: Int[ndarray, "f 3"]
    weights: Float[ndarray, "v 53"]
    strand: Float[ndarray, "v 2"]  # around (radians) and along (metres from the crown)
    margin: Float[ndarray, "v"]  # metres left until the hair ends; the shader adds a strand's own difference
    polar: Float[ndarray, "v"]  # angle from the crown, radians

    def below(self, edge: tuple[ndarray, ndarray]) -> Float[ndarray, "v"]:
        """How far (metres) below a hat's edge, given as polar angles over azimuths, the hair lies."""
        return (0.1 * (self.polar - np.interp(self.strand[:, 0], *edge)) + 0.006).astype(np.float32)


def grid_faces(rows: int, columns: int) -> Int[ndarray, "f 3"]:
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    return np.concatenate([np.stack(corner, axis=-1).reshape(-1, 3) for corner in ((a, b, c), (a, c, d))])


def skull(shaped: ShapedBody, azimuth: ndarray, polar: ndarray) -> tuple[ndarray, ndarray]:
    """Centre of the skull, and its radius over a grid (rows of polar angles, columns of azimuths)."""
    model = embedded_model()
    body = model.ranges["body"]
    points = shaped.vertices[body]
    head = (model.weights[body][:, model.bone_index["head"]] > 0.5) & (model.masks["ears"] < 0.05)
    points = points[head]
    top = points[:, 1].max()
    crown = points[points[:, 1] > top - 0.06]
    center = np.array([0.0, top - 0.105, (crown[:, 2].min() + crown[:, 2].max()) / 2])
    local = points - center
    radius = np.linalg.norm(local, axis=1)
    outer = np.flatnonzero(radius > 0.07)[::2]  # not the inside of mouth and nose; half of the points suffice
    local, radius = local[outer], radius[outer]
    direction = local / radius[:, None]
    wanted = np.stack(
        [
            np.sin(polar)[:, None] * np.sin(azimuth),
            np.broadcast_to(np.cos(polar)[:, None], (len(polar), len(azimuth))),
            np.sin(polar)[:, None] * np.cos(azimuth),
        ],
        axis=-1,
    ).reshape(-1, 3)
    # A Gaussian mean over directions; sharp enough to follow a skull, smooth enough to ignore single vertices.
    closeness = np.exp(140 * (wanted.astype(np.float32) @ direction.astype(np.float32).T - 1))
    smooth = (closeness @ radius) / np.maximum(closeness.sum(axis=1), 1e-9)
    return center, smooth.reshape(len(polar), len(azimuth))


def grow_hair(person: Person, shaped: ShapedBody, marks: Landmarks) -> Hair | None:
    """The person's hair, or None where there is none."""
    if person.hair_style == "bald":
        return None
    style = STYLES[person.hair_style]
    rng = np.random.default_rng(person.hair_seed)
    azimuth = np.linspace(-np.pi, np.pi, COLUMNS)
    polar = np.linspace(0.02, SKULL_END, SKULL_ROWS)
    center, radius = skull(shaped, azimuth, polar)
    around = np.degrees(np.abs(azimuth))
    hairline = np.radians(np.interp(around, *HAIRLINE)) + rng.normal(0, 0.02)
    side = rng.choice((-1, 1)) * rng.uniform(0.3, 0.6)  # the parting's azimuth
    reach = hairline.copy()
    if style.fringe:
        in_front = smoothstep(58, 40, around)
        sweep = 1 - 0.35 * np.clip(azimuth * np.sign(side), -0.6, 0.6) * (style.fringe < 15)
        reach += np.radians(style.fringe) * in_front * sweep
    hangs = np.zeros(COLUMNS, bool) if style.length is None else around > style.front_limit

    # How far the hair stands off: nothing at its roots along the hairline, full a few centimetres behind it.
    behind = (hairline[None] - polar[:, None]) * radius
    full = style.thickness * smoothstep(-0.002, 0.045, behind)
    lift = 0.004 + full
    if style.fringe:
        lift = np.maximum(lift, (0.006 + 0.55 * style.thickness) * smoothstep(58, 45, around)[None])
    if style.length is not None:
        lift = np.where(hangs[None], np.maximum(lift, style.thickness * smoothstep(0.1, 0.7, polar)[:, None]), lift)
    part_depth = np.exp(-(((azimuth - side) / 0.10) ** 2))[None] * np.exp(-(((polar - 0.35) / 0.45) ** 2))[:, None]
    lift = lift - 0.5 * style.thickness * part_depth * (style.curls == 0)
    if style.curls:
        lift = lift + style.curls * np.sin(azimuth * 11)[None] * np.sin(polar * 13)[:, None]
    shell = radius + lift
    points = np.stack(
        [
            shell * np.sin(polar)[:, None] * np.sin(azimuth),
            shell * np.cos(polar)[:, None],
            shell * np.sin(polar)[:, None] * np.cos(azimuth),
        ],
        axis=-1,
    )
    along = np.concatenate([[0], np.cumsum(np.diff(polar))])[:, None] * radius.mean()
    along = np.broadcast_to(along, radius.shape).copy()
    margin = (reach[None] - polar[:, None]) * radius
    rows = SKULL_ROWS
    if style.length is not None:
        turn = int(np.searchsorted(polar, TURN_DOWN))
        points, along, margin = _hang(
            points, along, margin, hangs, turn, style, marks.joints["head"][1] - center[1], rng
        )
        rows = len(points)
    points = points + center
    strand = np.stack([np.broadcast_to(azimuth, along.shape), along], axis=-1)
    count = rows * COLUMNS
    hair = Hair(
        points.reshape(count, 3).astype(np.float32),
        grid_faces(rows, COLUMNS),
        _weights(points.reshape(count, 3), marks),
        strand.reshape(count, 2).astype(np.float32),
        margin.reshape(count).astype(np.float32),
        np.repeat(np.concatenate([polar, np.full(rows - SKULL_ROWS, 3.0)]), COLUMNS).astype(np.float32),
    )
    return _tie(hair, style, center, radius, marks) if style.knot != "none" else hair


def _hang(points, along, margin, hangs, turn, style, head_height, rng):
    """Replace the hanging columns' lower skull rows by a curtain and append rows to it; other columns end on the
    skull."""
    start = points[turn]
    below = np.linspace(0, 1, len(points) - turn + HANGING_ROWS)
    drop = below * (style.length + 0.04)
    columns = np.arange(points.shape[1])
    ragged = style.length * (1 + 0.05 * np.sin(columns * 1.7) + 0.03 * rng.normal(size=len(columns)))
    curtain = np.repeat(start[None], len(below), axis=0)
    curtain[..., 1] -= drop[:, None]
    # Fall in towards the neck behind the ears, and a little outwards at the tips.
    inwards = 1 - 0.10 * smoothstep(0.0, 0.5, below) + 0.10 * smoothstep(0.5, 1.0, below)
    curtain[..., 0] *= inwards[:, None]
    curtain[..., 2] = np.where(start[None, :, 2] > 0, curtain[..., 2] * (1 - 0.5 * below[:, None]), curtain[..., 2])
    curtain[..., 2] -= 0.03 * below[:, None] * smoothstep(0, 0.12, drop)[:, None]
    if style.wave:
        swing = np.sin(drop[:, None] * 45 + 2 * np.sin(columns * 0.5)) * style.wave * smoothstep(0, 0.4, below)[:, None]
        curtain[..., 0] += swing * np.sign(start[None, :, 0]) * 0.8
        curtain[..., 2] += swing * 0.7
    tail = np.repeat(points[-1:], HANGING_ROWS, axis=0)
    whole = np.concatenate([points, tail])
    whole[turn:, hangs] = curtain[:, hangs]
    along = np.concatenate([along, np.repeat(along[-1:], HANGING_ROWS, axis=0)])
    along[turn:, hangs] = (along[turn][None] + drop[:, None])[:, hangs]
    margin = np.concatenate([margin, np.repeat(margin[-1:], HANGING_ROWS, axis=0)])
    margin[: turn + 1, hangs] = 0.1
    margin[turn:, hangs] = (ragged[None] - drop[:, None])[:, hangs]
    return whole, along, margin


def _weights(points: Float[ndarray, "v 3"], marks: Landmarks) -> Float[ndarray, "v 53"]:
    """All head above the chin; what hangs lower follows the chest more and more."""
    index = embedded_model().bone_index
    weights = np.zeros((len(points), len(index)), np.float32)
    chest = smoothstep(marks.neck + 0.03, marks.neck - 0.12, points[:, 1]) * 0.85
    weights[:, index["head"]] = 1 - chest
    weights[:, index["spine_03"]] = chest
    return weights


def _tie(hair: Hair, style: Style, center: ndarray, radius: ndarray, marks: Landmarks) -> Hair:
    """Add a bun or a ponytail at the back of the head."""
    back = float(radius[SKULL_ROWS // 2, 0])
    rows, columns = (10, 17) if style.knot == "bun" else (16, 13)
    around = np.linspace(0, 2 * np.pi, columns)
    if style.knot == "bun":
        polar = np.linspace(0.05, np.pi - 0.05, rows)
        size = 0.042
        place = center + np.array((0, back * 0.62, -back * 0.78 - 0.012))
        points = np.stack(
            [
                size * np.sin(polar)[:, None] * np.sin(around),
                np.broadcast_to(size * np.cos(polar)[:, None], (rows, columns)),
                size * np.sin(polar)[:, None] * np.cos(around),
            ],
            axis=-1,
        )
        points = points + place
        along = np.broadcast_to(polar[:, None] * size * 2, (rows, columns))
    else:
        below = np.linspace(0, 1, rows)
        spine = np.stack(
            [
                np.zeros(rows),
                0.015 * np.sin(below * 3) - 0.24 * below**1.3,
                -0.055 * np.sin(np.minimum(below * 2.2, 1.57)),
            ],
            axis=1,
        )
        spine = spine + center + np.array((0, back * 0.35, -back * 0.93))
        width = 0.010 + 0.022 * np.sin(np.clip(below * 1.15 + 0.1, 0, 1) * np.pi) ** 0.7
        ring = np.stack([np.sin(around), np.zeros(columns), np.cos(around)], axis=-1)
        points = spine[:, None] + width[:, None, None] * ring
        along = np.broadcast_to(below[:, None] * 0.24, (rows, columns))
    count = rows * columns
    knot = points.reshape(count, 3).astype(np.float32)
    strand = np.stack([np.broadcast_to(around * 0.5, along.shape), along], axis=-1).reshape(count, 2)
    return Hair(
        np.concatenate([hair.points, knot]),
        np.concatenate([hair.faces, grid_faces(rows, columns) + len(hair.points)]),
        np.concatenate([hair.weights, _weights(knot + np.array((0, 0.25, 0)), marks)]),
        np.concatenate([hair.strand, strand]).astype(np.float32),
        np.concatenate([hair.margin, np.full(count, 0.1)]).astype(np.float32),
        np.concatenate([hair.polar, np.full(count, 3.0)]).astype(np.float32),
    )
