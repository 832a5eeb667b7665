"""A vectorised z-buffer in NumPy.

Every triangle's bounding box is expanded into candidate pixels at once, edge functions are evaluated at pixel centres,
and the nearest candidate of each pixel wins. What a pixel shows (colours, UV, normals, masks) is then a look-up by
`Fragments`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

# A hair of tolerance closes the cracks that float32 would leave between triangles that share an edge.
EDGE_TOLERANCE = np.float32(1e-5)

# keep(face_ids (n,), barycentric (n, 3)) -> bool (n,): which candidate fragments survive.
FragmentTest = Callable[[ndarray, ndarray], ndarray]


@dataclass(frozen=True, eq=False)
class Fragments:
    """The nearest surface at each pixel centre."""

    face: Int[ndarray, "h w"]  # int32, -1 where nothing is seen
    barycentric: Float[ndarray, "h w 3"]  # float32 weights of the face's corners, zero on the background
    depth: Float[ndarray, "h w"]  # float32, infinite on the background

    def interpolate(self, attribute: ndarray, faces: Int[ndarray, "f 3"], background: float = 0.0) -> ndarray:
        """A per-vertex attribute (v,) or (v, c) at every pixel, float32."""
        seen = self.face >= 0
        corners = np.asarray(attribute, np.float32)[faces[self.face[seen]]]
        values = np.einsum("nk,nk...->n...", self.barycentric[seen], corners)
        image = np.full((*self.face.shape, *values.shape[1:]), background, np.float32)
        image[seen] = values
        return image


def rasterize(
    projected: Float[ndarray, "v 3"],
    faces: Int[ndarray, "f 3"],
    height: int,
    width: int,
    cull: bool = True,
    keep: FragmentTest | None = None,
    perspective: bool = False,
) -> Fragments:
    """Find the nearest triangle at each pixel centre.

    Args:
        projected: per vertex x and y in pixels (the centre of the first pixel is (0.5, 0.5), y down) and depth (smaller
            is nearer).
        faces: triangles; a front face winds counter-clockwise as one sees it.
        cull: drop back faces.
        keep: an optional test per candidate fragment; a fragment that fails is transparent.
        perspective: depths are distances along the optical axis of a perspective camera: barycentrics and depths are
            then corrected for it, and triangles that reach behind the camera are dropped.

    Ties in depth go to the lower face id, so the result is deterministic. Raises ValueError for points that are not
    finite.
    """
    if not np.isfinite(projected).all():
        raise ValueError("projected vertices hold NaN or infinite numbers; check shape, pose and camera")
    points = np.asarray(projected, np.float32)
    x, y, z = (points[:, axis][faces] for axis in range(3))
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    left = np.clip(np.ceil(x.min(axis=1) - 0.5), 0, width).astype(np.int32)
    right = np.clip(np.floor(x.max(axis=1) - 0.5), -1, width - 1).astype(np.int32)
    top = np.clip(np.ceil(y.min(axis=1) - 0.5), 0, height).astype(np.int32)
    bottom = np.clip(np.floor(y.max(axis=1) - 0.5), -1, height - 1).astype(np.int32)
    # y points down, so a front face has negative area
    drawn = (right >= left) & (bottom >= top) & ((area < -1e-9) if cull else (np.abs(area) > 1e-9))
    if perspective:
        drawn &= z.min(axis=1) > 1e-3
    live = np.flatnonzero(drawn)
    x, y, z, area, left, top = (values[live] for values in (x, y, z, area, left, top))
    columns, rows = right[live] - left + 1, bottom[live] - top + 1

    # One entry per pixel of each triangle's bounding box, row by row of boxes first: fewer elements through divisions.
    triangle_of_row = np.repeat(np.arange(len(live), dtype=np.int32), rows)
    first_row = np.cumsum(rows) - rows
    row = (np.arange(len(triangle_of_row), dtype=np.int32) - first_row[triangle_of_row]) + top[triangle_of_row]
    # Barycentrics are affine in the pixel; measured from the triangle's own first corner they keep float32's precision.
    inverse = 1 / area
    step_x = np.stack([(y[:, 1] - y[:, 2]) * inverse, (y[:, 2] - y[:, 0]) * inverse], axis=1)
    step_y = np.stack([(x[:, 2] - x[:, 1]) * inverse, (x[:, 0] - x[:, 2]) * inverse], axis=1)
    offset_x = left + np.float32(0.5) - x[:, 0]
    offset_y = row + np.float32(0.5) - y[triangle_of_row, 0]
    row_start = offset_x[triangle_of_row, None] * step_x[triangle_of_row] + offset_y[:, None] * step_y[triangle_of_row]
    row_start[:, 0] += 1

    widths = columns[triangle_of_row]
    row_of_candidate = np.repeat(np.arange(len(widths), dtype=np.int32), widths)
    first_candidate = np.cumsum(widths) - widths
    column = np.arange(len(row_of_candidate), dtype=np.int32) - first_candidate[row_of_candidate].astype(np.int32)
    triangle = triangle_of_row[row_of_candidate]
    first = row_start[row_of_candidate, 0] + column * step_x[triangle, 0]
    second = row_start[row_of_candidate, 1] + column * step_x[triangle, 1]
    inside = np.flatnonzero(
        (first >= -EDGE_TOLERANCE) & (second >= -EDGE_TOLERANCE) & (first + second <= 1 + EDGE_TOLERANCE)
    )
    triangle, column, first, second = (values[inside] for values in (triangle, column, first, second))
    pixel = row[row_of_candidate[inside]].astype(np.int64) * width + left[triangle] + column
    barycentric = np.stack([first, second, 1 - first - second], axis=1)
    corner_depth = z[triangle]
    if perspective:
        weighted = barycentric / corner_depth
        depth = 1 / weighted.sum(axis=1)
        barycentric = weighted * depth[:, None]
    else:
        depth = np.einsum("nk,nk->n", barycentric, corner_depth)
    face = live[triangle]
    if keep is not None:
        kept = np.flatnonzero(keep(face, barycentric))
        pixel, barycentric, depth, face = pixel[kept], barycentric[kept], depth[kept], face[kept]
    return _nearest(pixel, barycentric, depth, face, height, width)


def _nearest(pixel: ndarray, barycentric: ndarray, depth: ndarray, face: ndarray, height: int, width: int) -> Fragments:
    """Keep each pixel's nearest candidate."""
    # The bits of a float order like an integer once those of negative numbers are flipped; the candidate's number,
    # which grows with the face id, fills the lower half of the key and settles ties.
    bits = depth.astype(np.float32).view(np.int32)
    order = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    key = (order << 32) | np.arange(len(order))
    nearest = np.full(height * width, np.iinfo(np.int64).max)
    np.minimum.at(nearest, pixel, key)
    seen = np.flatnonzero(nearest != np.iinfo(np.int64).max)
    winner = nearest[seen] & 0xFFFFFFFF
    face_image = np.full(height * width, -1, np.int32)
    face_image[seen] = face[winner]
    barycentric_image = np.zeros((height * width, 3), np.float32)
    barycentric_image[seen] = barycentric[winner]
    depth_image = np.full(height * width, np.inf, np.float32)
    depth_image[seen] = depth[winner]
    return Fragments(
        face_image.reshape(height, width),
        barycentric_image.reshape(height, width, 3),
        depth_image.reshape(height, width),
    )


def vertex_normals(vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"]) -> Float[ndarray, "v 3"]:
    """Unit normals outwards, weighted by the area of the faces around; zero for a vertex without faces. float32."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.empty((len(vertices), 3))
    for axis in range(3):
        total[:, axis] = np.bincount(faces.ravel(), np.repeat(normals[:, axis], 3), len(vertices))
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)).astype(np.float32)
