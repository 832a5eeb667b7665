"""Where a person is repainted for new clothes: a mask as training makes it, white where it is repainted.

python -m infer.mask --image person.png --parse parse.png --keypoints pose.json --category upper --out mask.png

It follows from a parse map (--labels says with whose labels) with OpenPose's keypoints or without, from a DensePose map
(--iuv), or from both. Where there is nothing but the photograph, --estimate guesses what is needed, clearly second best
(fcjax.estimate says what to install). infer.tryon takes the mask as --mask.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from PIL import Image

from fcjax.agnostic import MARGIN, Category, agnostic_image, agnostic_mask
from fcjax.cli import run
from fcjax.data.sources.files import read_iuv, read_keypoints, read_parse
from fcjax.data.sources.sample import Labels
from fcjax.estimate import warned
from fcjax.pictures import open_rgb
from infer.compose import prepare_outputs
from infer.sheet import sheet

TINT = np.array([255, 40, 40], np.uint8)


@dataclass(frozen=True)
class Request:
    """Whose mask, and of what."""

    image: Path
    """The person's picture; maps of another size but the same shape are brought to its size, keypoints are of it."""
    parse: Path | None = None
    """A parse map: a PNG of labels."""
    labels: Labels = "viton-hd"
    """Whose labels the parse map has."""
    iuv: Path | None = None
    """A DensePose map: a PNG of part, u and v."""
    keypoints: Path | None = None
    """OpenPose's JSON, or DressCode's."""
    estimate: bool = False
    """Body parts and keypoints are guessed from the photograph alone."""
    category: Category = "outfit"
    """What is taken off."""
    margin: float = MARGIN
    """How far the mask reaches beyond what it must cover, as a share of the picture's height."""
    shoes: bool = False
    """Taken off as well."""
    hat: bool = False
    """Taken off as well."""
    out: Path = Path("outputs/mask.png")
    preview: Path | None = None
    """Another picture: the person, the mask on them, and what stays."""


def make_mask(
    image: UInt8[ndarray, "h w 3"],
    *,
    parse: Path | None,
    labels: Labels,
    iuv: Path | None,
    keypoints: Path | None,
    estimate: bool,
    **worn: Any,
) -> Bool[ndarray, "h w"]:
    """The mask of the person in the picture. ValueError for files that cannot be read or do not fit it.

    worn: what is taken off, as `agnostic_mask` takes it.
    """
    for path in (parse, iuv, keypoints):
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}")
    size = image.shape[:2]
    if estimate:
        guess = warned(image, "give a parse map or a DensePose map where there is one")
        return agnostic_mask(iuv=guess.iuv, keypoints=guess.keypoints, **worn)
    return agnostic_mask(
        parse=None if parse is None else read_parse(parse, labels, size),
        keypoints=None if keypoints is None else read_keypoints(keypoints, size),
        iuv=None if iuv is None else read_iuv(iuv, size, parts_alone=True),
        **worn,
    )


def preview(image: UInt8[ndarray, "h w 3"], mask: Bool[ndarray, "h w"]) -> Image.Image:
    """The person, the mask on them, and what stays, side by side."""
    tinted = np.where(mask[..., None], image // 2 + TINT // 2, image)
    panels = (("person", image), ("repainted", tinted), ("what stays", agnostic_image(image, mask)))
    return sheet([list(panels)])


def main(request: Request) -> None:
    """Write the mask, and the preview where it is asked for."""
    maps = [name for name in ("parse", "iuv", "keypoints") if getattr(request, name) is not None]
    if request.estimate and maps:
        raise ValueError(f"--estimate guesses what --{maps[0]} says: give one of them")
    if not request.estimate and request.parse is None and request.iuv is None:
        raise ValueError(
            "give --parse or --iuv, or both: a mask follows from a parse map or a DensePose map (or --estimate, where "
            "there is only the photograph)"
        )
    prepare_outputs([request.out, request.preview], [request.image, request.parse, request.iuv])
    image = open_rgb(request.image)
    made_of = {name: value for name, value in vars(request).items() if name not in ("image", "out", "preview")}
    mask = make_mask(image, **made_of)
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(request.out)
    print(f"{request.out}: {mask.mean():.0%} of the picture is repainted")
    if request.preview is not None:
        preview(image, mask).save(request.preview)
        print(request.preview)


if __name__ == "__main__":
    run(main)
