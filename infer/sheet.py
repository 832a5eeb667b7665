"""Pictures side by side with labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Panel = tuple[str, Image.Image | UInt8[np.ndarray, "h w c"]]

MARGIN = 8  # pixels around every panel
TEXT = 12  # pixels of a line's letters
LINE = 17  # pixels from line to line
NARROWEST = 72  # pixels, so that a label has room

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(rows: Sequence[Sequence[Panel]], height: int = 256) -> Image.Image:
    """Rows of (label, picture) panels on white.

    Pictures are scaled to `height` pixels, or to that width if they are wider than high, aspect kept; transparent ones
    stand on white. Labels are broken into lines under their pictures. Enlarging keeps pixels as squares, so that a
    small picture does not look better than it is.
    """
    if not rows or not all(rows):
        raise ValueError("a sheet needs at least one row, and every row at least one picture")
    font = ImageFont.load_default(TEXT)
    drawn = [[_panel(label, picture, height, font) for label, picture in row] for row in rows]
    heights = [max(panel.height for panel in row) for row in drawn]
    width = max(sum(panel.width + MARGIN for panel in row) for row in drawn) + MARGIN
    page = Image.new("RGB", (width, sum(heights) + MARGIN * (len(rows) + 1)), "white")
    top = MARGIN
    for row, row_height in zip(drawn, heights, strict=True):
        left = MARGIN
        for panel in row:
            page.paste(panel, (left, top))
            left += panel.width + MARGIN
        top += row_height + MARGIN
    return page


def _panel(label: str, picture: Image.Image | np.ndarray, height: int, font: Font) -> Image.Image:
    """A picture with its label under it."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    scale = height / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    width = max(image.width, NARROWEST)
    lines = _lines(label, width, font)
    panel = Image.new("RGB", (width, height + LINE * len(lines)), "white")
    panel.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    draw = ImageDraw.Draw(panel)
    for number, line in enumerate(lines):
        draw.text((0, height + LINE * number + 2), line, fill="black", font=font)
    return panel


def _lines(text: str, width: int, font: Font) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces (a longer word sticks out)."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
