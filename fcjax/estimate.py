"""What a photograph alone tells of a person's body: keypoints and body parts, by MediaPipe's packaged BlazePose.

Second best, clearly: parts are guessed from the skeleton and the outline, and know neither u and v nor where a garment
ends. Maps of a data set's quality (OpenPose, DensePose, a human parser) give better masks.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image

# MediaPipe's own program wants another protobuf than grain: its model file is run by LiteRT instead.
NEEDS = (
    'estimating a body needs LiteRT and the model in MediaPipe\'s package: pip install "fcjax[estimate]" && '
    "pip install --no-deps mediapipe==0.10.14 (Python 3.11 or 3.12)"
)
_FILE = Path("modules/pose_landmark/pose_landmark_full.tflite")
_SIDE, _LOOKS, _LEAST_SURE = 256, 3, 0.5
_OUTPUTS = ((1, 195), (1, 1), (1, _SIDE, _SIDE, 1))
# MediaPipe's numbers of OpenPose's 18; the neck is the middle of the shoulders.
_OF_33 = (0, 11, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
_NECK = 1
_LEAST_VISIBLE = 0.5
# DensePose's charts and the bones that they lie around, in MediaPipe's numbers; radii over the shoulders' width.
_BONES = (
    (15, 11, 13, 0.13), (16, 12, 14, 0.13), (19, 13, 15, 0.10), (20, 14, 16, 0.10),
    (4, 15, 19, 0.08), (3, 16, 20, 0.08),
    (10, 23, 25, 0.22), (9, 24, 26, 0.22), (14, 25, 27, 0.16), (13, 26, 28, 0.16),
    (5, 27, 31, 0.12), (6, 28, 32, 0.12), (5, 27, 29, 0.12), (6, 28, 30, 0.12),
)  # fmt: skip
_TORSO, _HEAD = 2, 24
_SHOULDERS, _HIPS, _FACE = (11, 12), (23, 24), tuple(range(11))


class Estimate(NamedTuple):
    """Maps as `fcjax.agnostic.agnostic_mask` takes them.

    iuv: DensePose's parts, front ones alone, with u and v 0. keypoints: OpenPose's 18 as (x, y, confidence) in pixels.
    """

    iuv: UInt8[ndarray, "h w 3"]
    keypoints: Float[ndarray, "18 3"]


def estimate(image: UInt8[ndarray, "h w 3"]) -> Estimate:
    """The body of the upright person who fills most of a photograph. ValueError for none, and without the model."""
    landmarks, outline = _look(image)
    return Estimate(body_parts(landmarks, outline), openpose(landmarks))


def openpose(landmarks: Float[ndarray, "33 3"]) -> Float[ndarray, "18 3"]:
    """MediaPipe's landmarks (x, y, visibility) as OpenPose's 18."""
    points = landmarks[list(_OF_33)].copy()
    points[_NECK] = landmarks[list(_SHOULDERS)].mean(axis=0)
    return points


def body_parts(landmarks: Float[ndarray, "33 3"], outline: Bool[ndarray, "h w"]) -> UInt8[ndarray, "h w 3"]:
    """Every pixel of the outline as the body part whose bone is nearest, u and v 0.

    landmarks: x and y in pixels, visibility; limbs of which an end is not visible are left out.
    """
    rows, columns = np.nonzero(outline)
    places = np.stack([columns, rows], axis=1).astype(np.float64)
    points, inside = landmarks[:, :2], np.array([outline.shape[1], outline.shape[0]])
    seen = (landmarks[:, 2] >= _LEAST_VISIBLE) & ((points >= 0) & (points < inside)).all(axis=1)
    shoulders, hips, face = (points[list(group)].mean(axis=0) for group in (_SHOULDERS, _HIPS, _FACE))
    # Shoulders seen from the side are narrow; half the trunk's length is about their width.
    width = max(float(np.linalg.norm(points[11] - points[12])), 0.5 * float(np.linalg.norm(shoulders - hips)), 1.0)
    crown, chin = face + 0.6 * (face - shoulders), face + 0.1 * (shoulders - face)
    found = [
        (_HEAD, _from_bone(places, crown, chin) - 0.35 * width),
        (_TORSO, _from_quad(places, points[[11, 12, 24, 23]]) - 0.12 * width),
    ]
    for chart, start, end, radius in _BONES:
        if seen[start] and seen[end]:
            found.append((chart, _from_bone(places, points[start], points[end]) - radius * width))
    charts = np.array([chart for chart, _ in found], np.uint8)
    iuv = np.zeros((*outline.shape, 3), np.uint8)
    if len(places):
        iuv[rows, columns, 0] = charts[np.argmin([distance for _, distance in found], axis=0)]
    return iuv


def _from_bone(places: Float[ndarray, "n 2"], start: ndarray, end: ndarray) -> Float[ndarray, "n"]:
    """Distances from a line between two points."""
    way = end - start
    share = np.clip((places - start) @ way / max(float(way @ way), 1e-9), 0, 1)
    return np.linalg.norm(places - start - share[:, None] * way, axis=1)


def _from_quad(places: Float[ndarray, "n 2"], corners: Float[ndarray, "4 2"]) -> Float[ndarray, "n"]:
    """Distances from a convex quadrilateral, 0 inside."""
    after = np.roll(corners, -1, axis=0)
    ways = after - corners
    sides = [
        way[0] * (places[:, 1] - a[1]) - way[1] * (places[:, 0] - a[0]) for a, way in zip(corners, ways, strict=True)
    ]
    inside = np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)
    edges = [_from_bone(places, a, b) for a, b in zip(corners, after, strict=True)]
    return np.where(inside, 0, np.min(edges, axis=0))


def _look(image: UInt8[ndarray, "h w 3"]) -> tuple[Float[ndarray, "33 3"], Bool[ndarray, "h w"]]:
    """BlazePose's landmarks in pixels, and the outline."""
    # Choice: no detector, as a person fills most of a try-on picture.
    model, picture = _model(), Image.fromarray(image)
    height, width = image.shape[:2]
    middle, side = np.array([width, height]) / 2, 1.25 * max(height, width)
    for _ in range(_LOOKS):
        corner = middle - side / 2
        x, y = (int(number) for number in np.floor(corner))
        square = max(round(side), 1)
        seen = picture.crop((x, y, x + square, y + square)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        points, sure, outline = model(np.asarray(seen, np.float32)[None] / 255)
        if sure < _LEAST_SURE:
            raise ValueError("no person is found in the picture: a mask needs a parse map or a DensePose map then")
        places = points[:, :2] * square / _SIDE + (x, y)
        # Two points beyond the body's 33 say where the hips' middle is, and how far the person reaches from there.
        middle, side = places[33], 2.5 * float(np.linalg.norm(places[34] - places[33]))
    mask = Image.fromarray(np.uint8(255 * _sigmoid(outline))).resize((square, square), Image.Resampling.BILINEAR)
    whole = Image.new("L", (width, height))
    whole.paste(mask, (x, y))
    landmarks = np.concatenate([places[:33], _sigmoid(points[:33, 3:4])], axis=1)
    return landmarks, np.asarray(whole) > 127


def _model() -> Callable[[ndarray], tuple[Float[ndarray, "39 5"], float, Float[ndarray, "256 256"]]]:
    """MediaPipe's BlazePose: a picture of 256x256 in, landmarks in its pixels, certainty and outline (logits) out."""
    found = importlib.util.find_spec("mediapipe")
    try:
        from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise ValueError(NEEDS) from None
    path = None if found is None or found.origin is None else Path(found.origin).parent / _FILE
    if path is None or not path.is_file():
        raise ValueError(NEEDS)
    interpreter: Any = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    [given] = interpreter.get_input_details()
    outputs = {tuple(one["shape"]): one["index"] for one in interpreter.get_output_details()}

    def run(square: ndarray) -> tuple[ndarray, float, ndarray]:
        interpreter.set_tensor(given["index"], square)
        interpreter.invoke()
        points, sure, outline = (interpreter.get_tensor(outputs[shape]) for shape in _OUTPUTS)
        return points.reshape(39, 5).astype(np.float64), float(sure[0, 0]), outline[0, :, :, 0].astype(np.float64)

    return run


def _sigmoid(values: Float[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))


def warned(image: UInt8[ndarray, "h w 3"], instead: str) -> Estimate:
    """`estimate` for programs, with a warning that it is second best; `instead` names what would be better."""
    warnings.warn(f"the body is estimated from the photograph alone, which is second best: {instead}", stacklevel=2)
    return estimate(image)
