"""Where a person is repainted for new clothes: a mask as training makes it, white where it is repainted.

python -m infer.mask --image person.png --parse parse.png --keypoints pose.json --category upper --out mask.png

It follows from a parse map (--labels says with whose labels) with OpenPose's keypoints or without, from a DensePose map
(--iuv), or from both. Where there is nothing but the photograph, --estimate guesses what is needed, clearly second best
(fcjax.estimate says what to install). infer.tryon takes the mask as --mask.
"""

from dataclasses import dataclass
from pathlib import Path

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
from infer.compose import prepare_output
from infer.sheet import sheet

TINT = np.array([255, 40, 40], np.uint8)


@dataclass(frozen=True)
class Request:
    """Whose mask, and of what."""

    image: Path
    """The person's picture; maps of another size but the same shape are brought to its size."""
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


def make_mask(request: Request, image: UInt8[ndarray, "h w 3"]) -> Bool[ndarray, "h w"]:
    """The mask of the person in the picture. ValueError for files that cannot be read or do not fit it."""
    for path in (request.parse, request.iuv, request.keypoints):
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}")
    size = image.shape[:2]
    worn = {"category": request.category, "margin": request.margin, "shoes": request.shoes, "hat": request.hat}
    if request.estimate:
        guess = warned(image, "give --parse or --iuv where there is one")
        return agnostic_mask(iuv=guess.iuv, keypoints=guess.keypoints, **worn)
    return agnostic_mask(
        parse=None if request.parse is None else read_parse(request.parse, request.labels, size),
        keypoints=None if request.keypoints is None else read_keypoints(request.keypoints, size),
        iuv=None if request.iuv is None else read_iuv(request.iuv, size, parts_alone=True),
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
    paths = [request.out] if request.preview is None else [request.out, request.preview]
    for path in paths:
        prepare_output(path)
    image = open_rgb(request.image)
    mask = make_mask(request, image)
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(request.out)
    print(f"{request.out}: {mask.mean():.0%} of the picture is repainted")
    if request.preview is not None:
        preview(image, mask).save(request.preview)
        print(request.preview)


if __name__ == "__main__":
    run(main)
