"""Cameras and framing.

World axes: x the subject's left, y up, z towards a viewer at view angle 0; pixels: x right, y down.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray

# Choice: a full-body framing never magnifies beyond a figure of this height, so that a crouching person stays smaller.
LEAST_EXTENT = 1.3  # metres
DEFAULT_DISTANCE = 3.5  # metres from the camera to the middle of the framed points


def view_rotation(view: float = 0.0, elevation: float = 0.0) -> Float[ndarray, "3 3"]:
    """World to camera axes for a camera that walked around the subject towards its left side, then rose.

    Both in degrees: view 90 sees the left profile, 180 the back; elevation 90 looks down from above.
    """
    turn, rise = np.radians(view), np.radians(elevation)
    around = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
    over = np.array([[1, 0, 0], [0, np.cos(rise), -np.sin(rise)], [0, np.sin(rise), np.cos(rise)]])
    return over @ around


@dataclass(frozen=True, eq=False)
class Camera:
    """A weak-perspective camera, or a perspective one when `distance` is given.

    `scale` is pixels per metre at `target`; `target` (world) appears at pixel `center`. A perspective camera stands
    `distance` metres from the target; its focal length in pixels is `scale * distance`.
    """

    scale: float
    center: tuple[float, float]
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: Float[ndarray, "3 3"] = field(default_factory=lambda: np.eye(3))
    distance: float | None = None

    @property
    def perspective(self) -> bool:
        """Whether depths are distances from the camera (for `rasterize`)."""
        return self.distance is not None

    def project(self, points: Float[ndarray, "v 3"]) -> Float[ndarray, "v 3"]:
        """Pixels x, y and depth in metres, smaller is nearer: from the camera (perspective) or the target's plane."""
        local = (np.asarray(points) - np.asarray(self.target)) @ np.asarray(self.rotation).T
        magnification = np.full(len(local), float(self.scale))
        depth = -local[:, 2]
        if self.distance is not None:
            depth = depth + self.distance
            # Points behind the camera have no image; rasterize drops them by their depth.
            magnification *= self.distance / np.where(depth > 1e-3, depth, 1e-3)
        projected = np.stack(
            [self.center[0] + magnification * local[:, 0], self.center[1] - magnification * local[:, 1], depth], axis=1
        )
        return projected.astype(np.float32)

    def resized(self, factor: float) -> "Camera":
        """The same camera for an image `factor` times as large."""
        return replace(self, scale=self.scale * factor, center=(self.center[0] * factor, self.center[1] * factor))

    @classmethod
    def pinhole(
        cls,
        focal: float,
        principal: tuple[float, float],
        translation: tuple[float, float, float] = (0.0, 0.0, 0.0),
        rotation: Float[ndarray, "3 3"] | None = None,
    ) -> "Camera":
        """A computer-vision camera, p = K (R X + t) with y down and z away from the viewer, as 4D-Humans, WHAM (both
        without R) and SMPLify-X store.

        Points X are taken as that source stores them (its global orientation already turns the body upside down).
        """
        x, y, z = translation
        if not focal > 0 or not z > 0:
            raise ValueError(f"a pinhole camera needs focal > 0 and translation z > 0; got {focal} and {z}")
        turned = np.eye(3) if rotation is None else np.asarray(rotation, np.float64)
        return cls(
            scale=focal / z,
            center=principal,
            target=tuple(-turned.T @ (x, y, 0.0)),
            rotation=np.diag([1.0, -1.0, -1.0]) @ turned,
            distance=z,
        )


def frame_full(
    points: Float[ndarray, "v 3"],
    height: int,
    width: int,
    view: float = 0.0,
    elevation: float = 0.0,
    distance: float | None = None,
    margin: float = 0.05,
    least_extent: float = LEAST_EXTENT,
) -> Camera:
    """The camera that shows all points, centred, with `margin` (a share of each side) free around them.

    `distance` in metres makes it perspective; None is weak perspective.
    """
    rotation = view_rotation(view, elevation)
    points = np.asarray(points, np.float64)
    local = points @ rotation.T
    target = rotation.T @ ((local.min(axis=0) + local.max(axis=0)) / 2)
    unit = Camera(1.0, (0.0, 0.0), tuple(target), rotation, distance)
    projected = unit.project(points).astype(np.float64)
    if distance is not None and projected[:, 2].min() < 0.2:
        raise ValueError(
            f"the camera at {distance} m stands inside the body or nearly touches it; give a larger distance"
        )
    low, high = projected[:, :2].min(axis=0), projected[:, :2].max(axis=0)
    usable = np.array([width, height]) * (1 - 2 * margin)
    scale = float(min(*(usable / np.maximum(high - low, 1e-6)), usable[1] / least_extent))
    middle = (low + high) / 2
    return Camera(
        scale, (width / 2 - scale * middle[0], height / 2 - scale * middle[1]), tuple(target), rotation, distance
    )


def frame_upper(
    points: Float[ndarray, "v 3"],
    height: int,
    width: int,
    view: float = 0.0,
    elevation: float = 0.0,
    distance: float | None = None,
    margin: float = 0.05,
) -> Camera:
    """As `frame_full`, for the points of the upper body alone (`Body` passes head, torso and arms).

    What lies below leaves the picture.
    """
    return frame_full(points, height, width, view, elevation, distance, margin, least_extent=0.75)
