"""DensePose's own charts on SMPL, from the `UV_Processed.mat` that users bring (CC BY-NC; nothing of it ships here).

Guler, Neverova, Kokkinos, "DensePose: Dense Human Pose Estimation In The Wild", 2018. Mirroring inside these charts is
a table too: `UV_symmetry_transforms.mat`, from the same archive, which is all that mirroring needs. Reading either file
needs scipy.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from fcjax.body.charts import MIRRORED_PARTS, Charts

SMPL_VERTICES = 6890
KEYS = ("All_Faces", "All_FaceIndices", "All_vertices", "All_U_norm", "All_V_norm")


@dataclass(frozen=True, eq=False)
class DensePoseCharts(Charts):
    """DensePose's own charts on no mesh: they are mirrored by their table, where it is known."""

    # u and v on the other side of the body, by part - 1, v and u in 255ths
    symmetry: UInt8[ndarray, "2 24 256 256"] | None = field(default=None, repr=False, kw_only=True)

    def mirrored(self, iuv: UInt8[ndarray, "*grid 3"]) -> UInt8[ndarray, "*grid 3"]:
        if self.symmetry is None:
            raise ValueError(
                "mirroring an IUV image of DensePose's own charts needs UV_symmetry_transforms.mat: give its path to "
                "load_densepose_symmetry, or to load_densepose_charts beside UV_Processed.mat"
            )
        part, u, v = np.moveaxis(iuv, -1, 0)
        mirrored_u, mirrored_v = self.symmetry[:, part.astype(np.int64) - 1, v, u]
        seen = part > 0
        return np.stack([MIRRORED_PARTS[part], np.where(seen, mirrored_u, 0), np.where(seen, mirrored_v, 0)], axis=-1)


@dataclass(frozen=True, eq=False)
class TableCharts(DensePoseCharts):
    """Charts given face by face: each face lies in one part, u and v interpolate between its corners."""

    part: UInt8[ndarray, "f"]
    u: Float[ndarray, "f 3"] = field(repr=False)
    v: Float[ndarray, "f 3"] = field(repr=False)

    def locate(
        self, face: Int[ndarray, "n"], barycentric: Float[ndarray, "n 3"]
    ) -> tuple[UInt8[ndarray, "n"], Float[ndarray, "n"], Float[ndarray, "n"]]:
        u, v = (np.einsum("nk,nk->n", barycentric, values[face]) for values in (self.u, self.v))
        return self.part[face], np.clip(u, 0, 1), np.clip(v, 0, 1)


def load_densepose_charts(
    path: str | Path, symmetry_path: str | Path | None = None
) -> tuple[TableCharts, Int[ndarray, "f 3"]]:
    """Charts from `UV_Processed.mat`, and the triangles (of SMPL's vertices) that they describe.

    `symmetry_path` is `UV_symmetry_transforms.mat`; without it these charts cannot be mirrored. Raises ValueError for
    files that hold something else, and where scipy is not installed.
    """
    data = _load_mat(path)
    missing = [key for key in KEYS if key not in data]
    if missing:
        raise ValueError(f"{path} is no UV_Processed.mat: it lacks {', '.join(missing)}")
    part, vertices, u, v = (np.asarray(data[key]).ravel() for key in KEYS[1:])
    corners = np.asarray(data["All_Faces"]).astype(np.int64) - 1  # MATLAB counts from 1
    if corners.ndim != 2 or corners.shape[1:] != (3,) or len(part) != len(corners) or not len(corners):
        raise ValueError(f"{path}: expected a part for each triangle; got {part.shape} for {corners.shape}")
    if not len(u) == len(v) == len(vertices) > 0 or corners.min() < 0 or corners.max() >= len(vertices):
        raise ValueError(f"{path}: triangles, vertices ({len(vertices)}), U ({len(u)}) and V ({len(v)}) do not fit")
    if part.min() < 1 or part.max() > 24 or vertices.min() < 1 or vertices.max() > SMPL_VERTICES:
        raise ValueError(f"{path}: expected parts 1..24 and SMPL vertices 1..{SMPL_VERTICES}")
    symmetry = None if symmetry_path is None else load_densepose_symmetry(symmetry_path).symmetry
    faces = (vertices.astype(np.int32) - 1)[corners]
    u, v = u.astype(np.float32)[corners], v.astype(np.float32)[corners]
    return TableCharts(part.astype(np.uint8), u, v, symmetry=symmetry), faces


def load_densepose_symmetry(path: str | Path) -> DensePoseCharts:
    """What mirrors IUV images of DensePose's own charts, whoever made them: `UV_symmetry_transforms.mat`.

    Raises ValueError for a file that holds something else, and where scipy is not installed.
    """
    data = _load_mat(path)
    tables = []
    for key in ("U_transforms", "V_transforms"):
        cells = np.asarray(data.get(key, np.empty(0, object))).ravel()
        shapes = {np.shape(cell) for cell in cells}
        if len(cells) != 24 or shapes != {(256, 256)}:
            raise ValueError(f"{path}: expected {key} with 24 tables (256, 256); got {len(cells)} of {sorted(shapes)}")
        tables.append(np.stack([np.asarray(cell, np.float64) for cell in cells]))
    return DensePoseCharts(symmetry=np.round(np.clip(np.stack(tables), 0, 1) * 255).astype(np.uint8))


def _load_mat(path: str | Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(f"reading {path} needs scipy: pip install 'fcjax[densepose]'") from error
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return loadmat(path)
    except Exception as error:  # scipy's own errors have no common base
        raise ValueError(f"{path} is not a readable .mat file: {error}") from error
