"""Files of data sets: where they lie under which names, and readers that say in one line what is wrong with one."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy import ndarray

from fcjax.data.sources.sample import SampleError, to_parts
from fcjax.pictures import open_mask, open_rgb, read

CHARTS = 24
"""DensePose's."""
_SAME_ASPECT = 0.02
CHART_COLOURS = (
    (37, 60, 163), (20, 80, 194), (4, 97, 223), (8, 110, 221), (14, 122, 216), (20, 132, 212), (15, 144, 208),
    (11, 156, 203), (6, 166, 198), (22, 173, 185), (38, 179, 172), (55, 185, 159), (86, 187, 144), (114, 189, 130),
    (145, 191, 116), (170, 189, 105), (192, 188, 96), (216, 186, 86), (228, 192, 74), (240, 199, 60), (252, 206, 46),
    (251, 220, 36), (250, 235, 25), (249, 251, 14),
)  # fmt: skip
"""Of charts 1 to 24 in VITON-HD's renderings on black: colour floor(255 i / 24) of MATLAB's map parula."""
_FAR_COLOUR = 40
# Shares of what is not black. In renderings of 128 x 96 as blurred JPEGs up to 0.25 have the colour of no chart, in
# photographs 0.95 and more, however dark.
_MOST_FAR, _LEAST_CHART = 0.3, 0.01
_BEYOND = 0.1  # keypoints may lie so far outside a picture, over its longer side
# Where OpenPose's 25 have its 18: the 9th is the middle of the hips.
_OF_25 = (*range(8), *range(9, 19))
# Height and width of the pictures that DressCode's keypoints were found in.
_DRESSCODE_SIZE = (512, 384)


@dataclass(frozen=True)
class Shelf:
    """Files of one kind, one for each sample, in the first that exists of `folders`: the set's own name and aliases.

    endings: what may follow a sample's stem. without: what becomes of a sample without such a file, "" where it does
    not matter. sized: a map that has the picture's own size.
    """

    root: Path
    folders: tuple[str, ...]
    endings: tuple[str, ...]
    without: str = ""
    sized: bool = False

    @functools.cached_property
    def folder(self) -> Path:
        """The folder that exists, or the first that may."""
        named = [self.root / name for name in self.folders]
        return next((path for path in named if path.is_dir()), named[0])

    @property
    def label(self) -> str:
        """The shelf in words: "dense/*_5.png"."""
        return f"{self.folders[0]}/*{self.endings[0]}"

    def find(self, stem: str) -> Path | None:
        """The sample's file, None where it has none."""
        paths = [self.folder / f"{stem}{ending}" for ending in self.endings]
        return next((path for path in paths if path.is_file()), None)

    def require(self, stem: str) -> Path:
        """The sample's file. SampleError where it has none."""
        path = self.find(stem)
        if path is None:
            raise SampleError(f"no such file: {self.folder / (stem + self.endings[0])}")
        return path


def read_lines(path: Path, columns: int) -> list[list[str]]:
    """The columns of a list. ValueError where it is missing, empty, or a line has fewer columns."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise ValueError(f"no such list: {path}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: a list of file names is expected") from None
    short = next((number for number, line in enumerate(lines, 1) if len(line) < columns), None)
    if short or not lines:
        place = f"line {short}" if short else "the list"
        raise ValueError(f"{path}: {place} is too short; {columns} columns a line are expected")
    return lines


def read_json(path: Path) -> Any:
    """What a JSON file holds. ValueError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def read_labels(path: Path) -> Shaped[ndarray, "h w"]:
    """The numbers in a PNG of labels, with or without a palette. SampleError for a coloured picture."""
    image = read(path, what="label map")
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise SampleError(f"{path} is a picture in colours ({image.mode}); one number for each pixel is expected")
    return np.asarray(image).astype(np.uint8) if image.mode == "1" else np.asarray(image)


def read_parse(path: Path, kind: str, size: tuple[int, ...]) -> UInt8[ndarray, "h w"]:
    """A parse map with labels of `kind` as `Part` numbers, at the picture's size."""
    try:
        return resized(to_parts(read_labels(path), kind), size, path)
    except SampleError:
        raise
    except ValueError as error:
        raise SampleError(f"{path}: {error}") from error


def read_mask(path: Path, size: tuple[int, ...]) -> Bool[ndarray, "h w"]:
    """True where a mask is lighter than middle grey, at the picture's size."""
    return resized(open_mask(path), size, path)


def read_garment(path: Path, mask: Path | None) -> UInt8[ndarray, "h w c"]:
    """A shop's picture, cut out by its mask where it has one."""
    picture = open_rgb(path)
    if mask is None:
        return picture
    return np.dstack([picture, np.where(read_mask(mask, picture.shape[:2]), np.uint8(255), np.uint8(0))])


def read_iuv(path: Path, size: tuple[int, ...], parts_alone: bool = False) -> UInt8[ndarray, "h w 3"]:
    """A DensePose map (part, u, v) at the picture's size, in whichever order its channels are.

    The part's channel is the one whose values are all charts: the first, or the last where a program wrote blue first.
    parts_alone: masks need no u and v, so a rendering of the parts in VITON-HD's colours, and their numbers alone as
    DressCode's dense/N_5.png has them, are taken too, u and v being 0. SampleError for other pictures.
    """
    image = read(path, what="DensePose map")
    pixels = np.asarray(image)
    if parts_alone and image.mode in ("L", "P"):
        return _alone(_charts(pixels, size, path))
    if image.mode in ("RGB", "RGBA"):
        for channels in (pixels[..., :3], pixels[..., 2::-1]):
            if channels[..., 0].max() <= CHARTS:
                return resized(np.ascontiguousarray(channels), size, path)
        if parts_alone and (charts := _rendered_charts(pixels[..., :3])) is not None:
            return resized(_alone(charts), size, path)
    also = ", or the parts alone, as numbers or in VITON-HD's colours" if parts_alone else ""
    raise SampleError(
        f"{path} is no DensePose map: the parts 0 to {CHARTS}, u and v are expected as its channels{also}"
    )


def _alone(charts: UInt8[ndarray, "h w"]) -> UInt8[ndarray, "h w 3"]:
    return np.stack([charts, 0 * charts, 0 * charts], axis=-1)


def read_charts(path: Path, size: tuple[int, ...]) -> UInt8[ndarray, "h w"]:
    """The parts alone of a DensePose map as numbers. SampleError for others than 0 to 24."""
    return _charts(read_labels(path), size, path)


def _charts(parts: Shaped[ndarray, "h w"], size: tuple[int, ...], path: Path) -> UInt8[ndarray, "h w"]:
    if parts.max() > CHARTS:
        raise SampleError(f"{path} has parts up to {parts.max()}; DensePose's 0 to {CHARTS} are expected")
    return resized(parts.astype(np.uint8), size, path)


def _rendered_charts(pixels: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h w"] | None:
    """The charts whose colours those are; None where many pixels that are not black have the colour of none, and where
    they are fewer than two: even the picture of a face shows both halves of the head, or a part beside one.

    JPEG blurs the edges, so that a pixel there may be taken for another chart.
    """
    nearest, least = np.zeros(pixels.shape[:2], np.uint8), (pixels.astype(np.int32) ** 2).sum(-1)
    shown = (least > _FAR_COLOUR**2).sum()
    for chart, colour in enumerate(np.array(CHART_COLOURS, np.int32), 1):
        away = ((pixels - colour) ** 2).sum(-1)
        nearest, least = np.where(away < least, np.uint8(chart), nearest), np.minimum(away, least)
    far = least > _FAR_COLOUR**2
    counts = np.bincount(nearest[~far], minlength=CHARTS + 1)[1:]
    several = (counts > _LEAST_CHART * shown).sum() > 1
    return nearest if several and far.sum() < _MOST_FAR * shown else None


def read_uv(path: Path, size: tuple[int, ...]) -> UInt8[ndarray, "h w 2"]:
    """The array `uv` of an .npz, (2, h, w) or (h, w, 2) in 0..1 or 0..255, at the picture's size."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            uv = np.asarray(file["uv"])
    except Exception as error:  # NumPy raises almost anything for a damaged file
        raise SampleError(f"cannot read {path}: an .npz with the array uv is expected ({error})") from error
    if uv.ndim == 3 and uv.shape[0] == 2:
        uv = np.moveaxis(uv, 0, -1)
    if uv.ndim != 3 or uv.shape[2] != 2 or not np.isfinite(uv).all() or uv.min() < 0 or uv.max() > 255:
        raise SampleError(f"{path}: uv is expected as (2, h, w) in 0..1 or 0..255, got {uv.dtype} {uv.shape}")
    if uv.dtype.kind == "f" and uv.max() <= 1:
        uv = uv * 255
    return resized(np.round(uv).astype(np.uint8), size, path)


def resized(values: Shaped[ndarray, "h w *c"], size: tuple[int, ...], path: Path) -> Shaped[ndarray, "H W *c"]:
    """A map of the same shape at the size (height, width) by its nearest pixels. SampleError for another shape."""
    height, width = values.shape[:2]
    if (height, width) == tuple(size):
        return values
    if abs(height * size[1] / (width * size[0]) - 1) > _SAME_ASPECT:
        raise SampleError(f"{path} is {height}x{width} (height x width), the picture {size[0]}x{size[1]}")
    rows, columns = ((np.arange(n) * 2 + 1) * m // (2 * n) for n, m in zip(size, (height, width), strict=True))
    return values[rows][:, columns]


# ---------------------------------------------------------------------------------------------------------------------
# Keypoints


def read_keypoints(path: Path, size: tuple[int, ...]) -> Float[ndarray, "18 3"] | None:
    """18 points (x, y, confidence) in pixels of a picture of `size`, of OpenPose's JSON or DressCode's.

    OpenPose's may have 18 or 25 points: the surest person's are taken, None for nobody; they are pixels of that very
    picture. SampleError for other files.
    """
    said = read_json(path)
    return (
        _dresscode_points(said, path, size)
        if isinstance(said, dict) and "keypoints" in said
        else _openpose(said, path, size)
    )


def _openpose(said: Any, path: Path, size: tuple[int, ...]) -> Float[ndarray, "18 3"] | None:
    try:
        people = [np.asarray(one["pose_keypoints_2d"], np.float64).reshape(-1, 3) for one in said["people"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SampleError(f"{path} is no JSON of OpenPose: people with pose_keypoints_2d are expected") from error
    if not people:
        return None
    points = max(people, key=lambda one: one[:, 2].sum())
    if len(points) not in (18, 25):
        raise SampleError(f"{path} has {len(points)} keypoints a person; OpenPose's 18 or 25 are expected")
    if not np.isfinite(points).all():
        raise SampleError(f"{path}: keypoints are expected as finite numbers, got NaN, infinity or null")
    seen = points[points[:, 2] > 0]
    if (seen[:, :2] < -_BEYOND * max(size)).any() or (seen[:, :2] > np.array(size[::-1]) + _BEYOND * max(size)).any():
        across, down = seen[:, :2].max(axis=0)
        raise SampleError(
            f"{path}: keypoints lie outside the picture of {size[0]}x{size[1]} (height x width), up to x {across:.0f} "
            f"and y {down:.0f}: they are of another picture, or of this one at another size"
        )
    return points[list(_OF_25)] if len(points) == 25 else points


def _dresscode_points(said: Any, path: Path, size: tuple[int, ...]) -> Float[ndarray, "18 3"]:
    """Choice: their third and fourth numbers are left aside; a point that is not seen has no positive place."""
    try:
        points = np.asarray(said["keypoints"], np.float64).reshape(18, -1)[:, :2]
    except (TypeError, ValueError) as error:
        raise SampleError(f"{path}: keypoints are expected as 18 rows of 4 numbers") from error
    if points.shape != (18, 2) or not np.isfinite(points).all():
        raise SampleError(f"{path}: keypoints are expected as 18 rows of 4 numbers")
    scale = np.array([size[1] / _DRESSCODE_SIZE[1], size[0] / _DRESSCODE_SIZE[0]])
    return np.concatenate([points * scale, (points > 1).all(axis=1, keepdims=True)], axis=1)
