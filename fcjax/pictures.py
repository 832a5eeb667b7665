"""Picture files of any common kind as arrays: upright, 8 bits a channel, errors in one line."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

WHITE = 128
"""So light a pixel of a mask counts as white."""
COLOURED = 64
"""How far a pixel's channels lie apart that is no grey; a JPEG's of a mask are nearer."""
COLOURED_SHARE = 0.02
"""A mask with a greater share of such pixels is refused."""


def read(path: str | Path, at_least: int | None = None, what: str = "picture") -> Image.Image:
    """The picture in a file, as it is stored. ValueError for a missing or broken file.

    at_least: a JPEG may be decoded at a fraction of its size, but to no less than so many pixels along each side.
    """
    if not isinstance(path, (str, Path)) and not hasattr(path, "read"):
        raise ValueError(f"the {what} must be the name of a file, got {path!r}")
    try:
        with Image.open(path) as file:
            if at_least is not None:
                file.draft(None, (at_least, at_least))
            file.load()
            return file
    except FileNotFoundError:
        raise ValueError(f"no such {what} file: {path}") from None
    # Pillow's readers raise SyntaxError for some broken files and their own error for absurd sizes.
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"cannot read {path} as a picture ({error}); PNG, JPEG or WebP is expected") from error


def open_rgb(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """A picture file in RGB; what is transparent stands on white. ValueError as `read`."""
    image = upright(read(path), str(path))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def open_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """A mask file: True where it is lighter than middle grey, transparent is black.

    ValueError as `read`, for one whose lightest pixel is dark, such as a mask of 0 and 1, and for a coloured picture,
    such as a body map or most photographs.
    """
    image = upright(read(path, what="mask"), str(path))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    coloured = float(np.mean(np.ptp(np.asarray(image.convert("RGB")), axis=-1) > COLOURED))
    if coloured > COLOURED_SHARE:
        raise ValueError(
            f"the mask {path} is in colours ({coloured:.0%} of it), so it is a photograph or a map: a mask is white "
            "where the picture is repainted and black elsewhere"
        )
    levels = np.asarray(image.convert("L"))
    if 0 < levels.max() < WHITE:
        raise ValueError(
            f"the mask {path} has no white: its lightest pixel is {levels.max()} of 255, and {WHITE} or more counts"
        )
    return levels >= WHITE


def icc_profile(path: str | Path) -> bytes | None:
    """The colour profile of a picture file in RGB, for what is made of its pixels; None where it has none.

    The pixels are not decoded.
    """
    with Image.open(path) as file:
        profile = file.info.get("icc_profile")
    return profile if profile is not None and profile[16:20] == b"RGB " else None


def upright(image: Image.Image, name: str) -> Image.Image:
    """The picture as its EXIF turns it, in mode RGB, or RGBA where it has transparency. ValueError for floats.

    `name` stands in error messages.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError(f"{name} is a floating-point picture; save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _of_16_bits(image)
    if image.mode not in ("RGB", "RGBA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "RGB" and image.has_transparency_data:
        return image.convert("RGBA")
    return image


def _of_16_bits(image: Image.Image) -> Image.Image:
    """The same at 8 bits, which Pillow's own conversion would clip at 255, transparent where it names a grey for that.

    Where no pixel has more than 8 bits, they are taken for 8, as programs that write small numbers mean them.
    """
    values, clear = np.asarray(image).astype(np.int64), image.info.get("transparency")
    levels = Image.fromarray(np.clip(values if values.max() <= 255 else values // 257, 0, 255).astype(np.uint8))
    if isinstance(clear, int):
        levels.putalpha(Image.fromarray(np.where(values == clear, np.uint8(0), np.uint8(255))))
    return levels
