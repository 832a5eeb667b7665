"""A person's picture and what of it is repainted: at the model's size for try-on, and back at its own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from fcjax.agnostic import agnostic_image, chessboard
from fcjax.data.sources.files import CHARTS, read_iuv
from fcjax.frame import Frame
from fcjax.pictures import open_mask, open_rgb

FEATHER = 1 / 128
"""How wide the edge between old and new is by default, as a share of the picture's longer side."""


@dataclass(frozen=True, eq=False)
class Person:
    """`image` uint8 RGB (h, w, 3) of any size, and `mask` bool (h, w), True where it is repainted.

    iuv: uint8 (h, w, 3), the picture's DensePose map, for a model that takes a pose; None where there is none. One of
    the parts alone, without u and v, as of VITON-HD's colours, tells no pose.
    """

    image: np.ndarray
    mask: np.ndarray
    iuv: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, array in (("picture", self.image), ("mask", self.mask)):
            if not isinstance(array, np.ndarray):
                kind = type(array).__name__
                raise ValueError(f"a person's {name} must be an array, got {kind}; Person.open reads files of any kind")
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(
                f"a person's picture must be uint8 RGB (height, width, 3), got {self.image.dtype} {self.image.shape}; "
                "Person.open reads files of any kind"
            )
        if self.mask.dtype != bool or self.mask.ndim != 2:
            raise ValueError(
                f"a mask must be bool (height, width), got {self.mask.dtype} {self.mask.shape}; Person.open reads files"
            )
        if self.mask.shape != self.image.shape[:2]:
            turned = self.mask.shape == self.image.shape[1::-1]
            raise ValueError(
                f"the mask is {_size(self.mask)} (height x width), the person's picture {_size(self.image)}: "
                + ("turn one of them by a quarter" if turned else "give a mask of the picture's own size")
            )
        if self.iuv is not None and (
            not isinstance(self.iuv, np.ndarray) or self.iuv.dtype != np.uint8 or self.iuv.shape != self.image.shape
        ):
            raise ValueError(
                f"a person's body map must be uint8 (part, u, v) of the picture's own size, {_size(self.image)}, got "
                + (f"{self.iuv.dtype} {self.iuv.shape}" if isinstance(self.iuv, np.ndarray) else repr(self.iuv)[:60])
                + "; Person.open reads files"
            )
        if self.iuv is not None and self.iuv[..., 0].max(initial=0) > CHARTS:
            raise ValueError(
                f"a person's body map has the part {self.iuv[..., 0].max()} in its first channel; DensePose's are 1 to "
                f"{CHARTS}, and 0 the background"
            )
        if not self.mask.any():
            raise ValueError("the mask is empty: white it where the picture is to be repainted")
        if self.mask.all():
            raise ValueError("the mask covers everything, so nothing of the person is left: black it what stays")

    @property
    def tells_pose(self) -> bool:
        """Whether there is a body map with u and v."""
        return self.iuv is not None and bool(self.iuv[..., 1:].any())

    @classmethod
    def open(cls, image: str | Path, mask: str | Path, iuv: str | Path | None = None) -> "Person":
        """Reads them from files of any common format; white in the mask is repainted, and a body map of another size
        but the same shape is brought to the picture's. ValueError for what is wrong.
        """
        picture = open_rgb(image)
        shown = None if iuv is None else read_iuv(Path(iuv), picture.shape[:2], parts_alone=True)
        return cls(picture, open_mask(mask), shown)

    def framed(self, height: int, width: int) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
        """The cloth-agnostic picture and the mask at the model's size, letterboxed where the shape differs."""
        frame = Frame.of(self.mask.shape, height, width)
        mask = frame.labels(self.mask.astype(np.uint8)) > 0
        if not mask.any():
            raise ValueError(f"the mask is so thin that nothing of it is left at the model's {height}x{width}")
        return agnostic_image(frame.picture(self.image), mask), mask

    def posed(self, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
        """The body map at the model's size, as `framed` lays the picture; all background where no pose is told."""
        if self.iuv is None or not self.tells_pose:
            return np.zeros((height, width, 3), np.uint8)
        return Frame.of(self.mask.shape, height, width).labels(self.iuv)

    def restored(
        self, picture: UInt8[np.ndarray, "H W 3"], *, feather: int | None = None, raw: bool = False
    ) -> UInt8[np.ndarray, "h w 3"]:
        """A picture of the model's size at the person's own, with everything outside the mask as it was, exactly.

        feather: pixels inside the mask over which old becomes new; by default FEATHER of the longer side. Fewer where
            the mask is thin, so that the middle of a strap is new.
        raw: the model's picture everywhere.
        """
        made = Frame.of(self.mask.shape, *picture.shape[:2]).restored(picture)
        if raw:
            return made
        if feather is None:
            feather = round(FEATHER * max(self.mask.shape))
        share = feathered(self.mask, feather)[..., None]
        return np.round(self.image + share * (made.astype(np.float32) - self.image)).astype(np.uint8)


def feathered(mask: Bool[np.ndarray, "h w"], width: int) -> Float32[np.ndarray, "h w"]:
    """1 deep inside the mask, 0 outside, and a ramp of `width` pixels between, all of it inside; where the mask is
    thin, no wider than to its middle. ValueError: < 0.
    """
    if width < 0:
        raise ValueError(f"feather must be 0 (a hard edge) or more pixels, got {width}")
    deep, ramp = chessboard(~mask), np.ones(mask.shape, np.int32)
    # Of the largest square of 2 reach - 1 pixels around each pixel that the mask holds, in powers of 2.
    reach = 2
    while ramp.max() < width + 1 and (deep >= reach).any():
        ramp[chessboard(deep >= reach) < reach] = min(reach, width + 1)
        reach *= 2
    return (np.minimum(deep, ramp) / ramp).astype(np.float32)


def _size(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape[:2]))
