"""Hats and bags: small meshes of their own, worn on the head or hung from a hand."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from fcjax.body.camera import view_rotation
from fcjax.body.embedded import ShapedBody, embedded_model
from fcjax.wardrobe.garments import FAR, Cut, Garment, Piece, measured
from fcjax.wardrobe.hair import COLUMNS, grid_faces, skull
from fcjax.wardrobe.meshes import Landmarks, smoothstep

# Polar angle of the hat's edge in front and at the back in degrees, distance from the skull, brim in metres.
HATS = {
    "beanie": (60.0, 104.0, 0.017, 0.0),
    "cap": (58.0, 98.0, 0.018, 0.075),
    "hat": (62.0, 96.0, 0.022, 0.085),
}


def _piece(
    source: str,
    points: ndarray,
    laid: ndarray,
    texture: ndarray,
    faces: Int[ndarray, "f 3"],
    bone: str,
    hangs: bool = False,
) -> Piece:
    weights = np.zeros((len(points), 53), np.float32)
    weights[:, embedded_model().bone_index[bone]] = 1
    return Piece(
        source=source,
        faces=faces,
        weights=weights,
        rest=points.astype(np.float32),
        points=points.astype(np.float32),
        laid=laid.astype(np.float32),
        texture=texture.astype(np.float32),
        fields=np.full((len(points), 3), FAR, np.float32),
        arms=np.zeros(len(points), np.float32),
        hangs_from=bone if hangs else "",
    )


def make_hat(cut: Cut, name: str, shaped: ShapedBody, marks: Landmarks) -> Garment:
    """A beanie, a baseball cap or a hat with a brim, fitted to the head. `name` is a key of HATS."""
    front, back, lift, brim = HATS[name]
    azimuth = np.linspace(-np.pi, np.pi, COLUMNS)
    edge = np.radians(back + (front - back) * (0.5 + 0.5 * np.cos(azimuth)) ** 0.8)
    polar_grid = np.linspace(0.02, np.radians(115), 30)
    center, radius_grid = skull(shaped, azimuth, polar_grid)
    share = np.linspace(0.02, 1, 14)
    polar = share[:, None] * edge
    radius = np.stack([np.interp(polar[:, c], polar_grid, radius_grid[:, c]) for c in range(COLUMNS)], axis=1)
    # Off the skull by the same distance, a little more at the crown, rolled at a beanie's edge.
    radius = radius + lift + (0.012 if name != "beanie" else 0.006) * np.cos(np.minimum(polar, np.pi / 2))
    if name == "beanie":
        radius += 0.006 * smoothstep(0.74, 0.80, share)[:, None]
    shell = _spherical(radius, azimuth, polar)
    if brim:
        # Cap: a visor in front, its sides drawn in; hat: a brim all around, bent down a little.
        reach = (
            brim * np.clip(np.cos(azimuth * 1.35), 0, None) ** 0.6 * (np.abs(azimuth) < 1.16) if name == "cap" else brim
        )
        out = np.stack([np.sin(azimuth), np.zeros(COLUMNS), np.cos(azimuth)], axis=-1)
        steps = np.linspace(0.2, 1, 5)
        droop = -0.22 if name == "cap" else -0.16
        width = steps[:, None] * np.broadcast_to(reach, (COLUMNS,))
        rows = shell[-1] + width[..., None] * out + (droop * width**1.0)[..., None] * np.array([0.0, 1.0, 0.0])
        shell = np.concatenate([shell, rows])
    points = shell + center
    along = np.concatenate(
        [np.zeros((1, COLUMNS)), np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=-1), axis=0)]
    )
    texture = np.stack([np.broadcast_to(azimuth * 0.105, along.shape), along.max() - along], axis=-1)
    count = len(points) * COLUMNS
    points = points.reshape(count, 3)
    piece = _piece("hat", points, points - center, texture.reshape(count, 2), grid_faces(len(shell), COLUMNS), "head")
    garment = Garment(cut, (piece,), float(center[2]), crown=(azimuth, edge))
    return measured(garment)


def _spherical(radius: ndarray, azimuth: ndarray, polar: ndarray) -> Float[ndarray, "r c 3"]:
    return np.stack(
        [radius * np.sin(polar) * np.sin(azimuth), radius * np.cos(polar), radius * np.sin(polar) * np.cos(azimuth)],
        axis=-1,
    )


def make_bag(cut: Cut, shaped: ShapedBody, marks: Landmarks, size: tuple[float, float, float]) -> Garment:
    """A bag of width, height and depth `size` (metres) with a handle.

    Choice: in the right hand, as nothing that a model is given would tell in which.
    """
    width, height, depth = size
    bone = "middle_01_r"
    grip = shaped.joints[embedded_model().bone_index[bone]].astype(np.float64) - np.array((0, 0.02, 0))
    # The body: rings from top to bottom of a rounded box that widens downwards.
    around = np.linspace(-np.pi, np.pi, 33)
    profile = np.array([(0.0, 0.80), (0.03, 0.84), (0.35, 0.95), (0.75, 1.0), (0.94, 0.98), (1.0, 0.86), (1.0, 0.0)])
    corner_x = np.sign(np.sin(around)) * np.abs(np.sin(around)) ** 0.4
    corner_z = np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.4
    drop = 0.10
    rings = [
        np.stack(
            [corner_x * width / 2 * wide, np.full(33, -drop - down * height), corner_z * depth / 2 * wide], axis=-1
        )
        for down, wide in profile
    ]
    body = np.stack(rings)
    # The handle: a band along an arc from one side of the opening to the other.
    arc = np.linspace(0, np.pi, 17)
    span = width * 0.27
    spine = np.stack([-np.cos(arc) * span, -drop - 0.01 + np.sin(arc) * (drop + 0.01), np.zeros(17)], axis=-1)
    inner = spine * (0.9, 1.0, 1.0) - np.array((0.0, 0.01, 0.0))
    half = np.array((0.0, 0.0, 0.007))
    handle = np.stack([spine + half, inner + half, inner - half, spine - half, spine + half])
    points = np.concatenate([body.reshape(-1, 3), handle.reshape(-1, 3)])
    faces = np.concatenate([grid_faces(len(body), 33), grid_faces(len(handle), 17) + body.shape[0] * 33])
    turned = points @ view_rotation(-38).T + grip
    texture = points[:, :2]
    piece = _piece("bag", turned, points, texture, faces, bone, hangs=True)
    return measured(Garment(cut, (piece,), float(turned[:, 2].min() - 1)))
