"""The photographer: where the camera stands, what is behind the person, and the shadow on the floor."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from fcjax.body.camera import Camera, frame_full
from fcjax.wardrobe.backgrounds import Background
from fcjax.wardrobe.shading import Light, box_blur


def draw_view(rng: np.random.Generator) -> float:
    """Mostly from the front, within 60 degrees, now and then from behind."""
    if rng.random() < 0.07:
        return float(180 + rng.normal(0, 15))
    return float(np.clip(rng.normal(0, 24), -60, 60))


def draw_camera(rng: np.random.Generator, posed: ndarray, height: int, width: int, view: float) -> Camera:
    """Full body, sometimes from the knees up, with a little freedom of place and perspective."""
    distance = None if rng.random() < 0.3 else float(rng.uniform(3.0, 6.0))
    elevation = float(np.clip(rng.normal(2, 4), -6, 12))
    margin = float(rng.uniform(0.03, 0.09))
    camera = frame_full(posed, height, width, view=view, elevation=elevation, distance=distance, margin=margin)
    if rng.random() < 0.12:
        # Closer: the upper two thirds.
        zoom = float(rng.uniform(1.25, 1.55))
        top = camera.project(posed)[:, 1].min()
        x = (camera.center[0] - width / 2) * zoom + width / 2
        y = height * margin + (camera.center[1] - top) * zoom
        return replace(camera, scale=camera.scale * zoom, center=(float(x), float(y)))
    slack = margin * np.array([width, height]) * 0.6
    shift = rng.uniform(-1, 1, 2) * slack
    return replace(camera, center=(camera.center[0] + float(shift[0]), camera.center[1] + float(shift[1])))


def photograph(
    person: Float[ndarray, "h w 4"], camera: Camera, body: Float[ndarray, "v 3"], backdrop: Background, light: Light
) -> tuple[UInt8[ndarray, "h w 3"], Bool[ndarray, "h w"], UInt8[ndarray, "h w 3"]]:
    """Put the person (premultiplied alpha) before the background, with a soft shadow on the floor.

    `body` are some of the body's posed vertices. Returns the picture, the foreground and the picture without person and
    shadow.
    """
    height, width = person.shape[:2]
    alpha = person[..., 3:]
    shadow, feet = _shadow(camera, body, light, height, width)
    plate = backdrop.paint(height, width, feet)
    painted = person[..., :3] + plate * (1 - shadow[..., None]) * (1 - alpha)
    return _bytes(painted), alpha[..., 0] > 0.5, _bytes(plate)


def _shadow(
    camera: Camera, body: ndarray, light: Light, height: int, width: int
) -> tuple[Float[ndarray, "h w"], float]:
    """How dark the floor is, and the pixel row on which the feet stand.

    Every body point falls on the floor, away from the key light, and counts the less the higher it is; the points are
    gathered in coarse cells, which are blurred and enlarged.
    """
    rise = body[:, 1] - body[:, 1].min()
    floor = body.copy()
    floor[:, 1] = body[:, 1].min() + 0.012
    sideways = np.asarray(camera.rotation).T @ np.array([light.key[0], 0.0, 0.0])
    floor[:, [0, 2]] -= 0.28 * rise[:, None] * sideways[[0, 2]]
    projected = camera.project(floor)
    feet = float(np.percentile(projected[:, 1], 90))
    # The camera sees the floor nearly edge-on; a little foreshortening gives the shadow a width.
    deeper = (projected[:, 2] - projected[:, 2].mean()) * camera.scale * 0.12
    cell = max(height // 64, 1)
    rows, columns = (np.floor(place / cell).astype(int) for place in (projected[:, 1] - deeper, projected[:, 0]))
    grid = np.zeros((height // cell + 1, width // cell + 1), np.float32)
    inside = (rows >= 0) & (rows < grid.shape[0]) & (columns >= 0) & (columns < grid.shape[1])
    np.add.at(grid, (rows[inside], columns[inside]), np.exp(-rise[inside] / 0.2))
    dense = box_blur(box_blur(grid, 2), 2) * (96 / len(body))
    return _enlarge(0.42 * dense / (0.35 + dense), height, width, cell), feet


def _bytes(image: ndarray) -> UInt8[ndarray, "h w 3"]:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _enlarge(values: Float[ndarray, "r c"], height: int, width: int, cell: int) -> Float[ndarray, "h w"]:
    """Bilinear enlargement by `cell`."""
    for axis, count in ((0, height), (1, width)):
        place = np.clip((np.arange(count) + 0.5) / cell - 0.5, 0, values.shape[axis] - 1.001)
        low = place.astype(int)
        share = (place - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None]
        values = np.take(values, low, axis=axis) * (1 - share) + np.take(values, low + 1, axis=axis) * share
    return values
