"""A picture of any size on one of another: letterboxed or cropped, never distorted, with its maps and keypoints."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Fit = Literal["letterbox", "crop"]


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a picture lies on the other: brought to rows x columns with its corner at (top, left), maybe outside."""

    rows: int
    columns: int
    top: int
    left: int
    height: int
    width: int
    # Of the picture itself.
    size: tuple[int, int]

    @classmethod
    def of(cls, size: Sequence[int], height: int, width: int, fit: Fit = "letterbox") -> "Frame":
        """The frame of a picture of `size` (height, width) on one of height x width.

        Of another shape it is padded ("letterbox"), or cropped about its middle.
        """
        ratios = height / size[0], width / size[1]
        crop = fit == "crop"
        scale = max(ratios) if crop else min(ratios)
        bound = max if crop else min
        rows = bound(height, max(1, round(size[0] * scale)))
        columns = bound(width, max(1, round(size[1] * scale)))
        top, left = (height - rows) // 2, (width - columns) // 2
        return cls(rows, columns, top, left, height, width, (int(size[0]), int(size[1])))

    def picture(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Colours are averaged; padding goes on with the median colour of the edge that it touches."""
        if (self.rows, self.columns) != image.shape[:2]:
            size = (self.columns, self.rows)
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))
        out = np.empty((self.height, self.width, 3), np.uint8)
        bottom, right = self.top + self.rows, self.left + self.columns
        # Only one of the two axes is ever padded, so no corner needs a colour.
        out[: max(0, self.top)], out[min(self.height, bottom) :] = _colour(image[0]), _colour(image[-1])
        if self.left > 0 or right < self.width:
            out[:, : max(0, self.left)], out[:, right:] = _colour(image[:, 0]), _colour(image[:, -1])
        there, here = self._windows()
        out[there] = image[here]
        return out

    def labels(self, values: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "H W *c"]:
        """The nearest pixels, 0 around them: part ids and (u, v) must never be averaged. ValueError: another size."""
        if values.shape[:2] != self.size:
            raise ValueError(
                f"the picture is {self.size[0]}x{self.size[1]}, its map {values.shape[0]}x{values.shape[1]}"
            )
        row = (np.arange(self.rows) * 2 + 1) * self.size[0] // (2 * self.rows)
        column = (np.arange(self.columns) * 2 + 1) * self.size[1] // (2 * self.columns)
        there, here = self._windows()
        out = np.zeros((self.height, self.width, *values.shape[2:]), values.dtype)
        out[there] = values[row][:, column][here]
        return out

    def points(self, keypoints: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, "k 3"]:
        """Keypoints (x, y, confidence) on the other picture; those that a crop loses get confidence 0."""
        scale = np.array([self.columns / self.size[1], self.rows / self.size[0]])
        places = keypoints[:, :2] * scale + [self.left, self.top]
        inside = ((places >= 0) & (places < [self.width, self.height])).all(axis=1)
        return np.concatenate([places, (keypoints[:, 2] * inside)[:, None]], axis=1)

    def restored(self, picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """What lies in the frame, at the size of the picture that was framed. ValueError where that was cropped."""
        if self.top < 0 or self.left < 0:
            raise ValueError("what was cropped away does not come back: frame the picture by letterbox")
        height, width = self.size
        inside = picture[self.top : self.top + self.rows, self.left : self.left + self.columns]
        if (self.rows, self.columns) == self.size:
            return inside
        return np.asarray(Image.fromarray(inside).resize((width, height), Image.Resampling.LANCZOS))

    def _windows(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the picture is seen on the other, and which part of it that is."""
        there, here = [], []
        for start, length, bound in ((self.top, self.rows, self.height), (self.left, self.columns, self.width)):
            there.append(slice(max(0, start), min(bound, start + length)))
            here.append(slice(max(0, -start), min(length, bound - start)))
        return (there[0], there[1]), (here[0], here[1])


def _colour(edge: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "3"]:
    return np.median(edge, axis=0).astype(np.uint8)
