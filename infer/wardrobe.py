"""A contact sheet of Wardrobe's samples: each picture, its assets, and the assets' regions.

python -m infer.wardrobe --count 12 --out outputs/wardrobe.png
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fcjax.cli import run
from fcjax.wardrobe import POSES_PER_OUTFIT, Sample, Wardrobe

REGION_COLORS = np.array(
    [(40, 40, 40), (230, 80, 70), (80, 190, 90), (80, 110, 235), (235, 210, 70), (200, 80, 210), (70, 205, 205)],
    np.uint8,
)


@dataclass(frozen=True)
class Request:
    """Which samples to show."""

    out: Path = Path("outputs/wardrobe.png")
    count: int = 12
    first: int = 0
    split: Literal["train", "heldout"] = "train"
    seed: int = 0
    height: int = 256
    width: int = 192
    columns: int = 4
    # Print the captions as well.
    captions: bool = False


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture (RGBA on white) shrunk into a cell and centred."""
    image = Image.fromarray(picture)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((width, height), Image.Resampling.BOX)
    cell = Image.new("RGB", (width, height), "white")
    cell.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return np.asarray(cell)


def panel(sample: Sample) -> np.ndarray:
    """One sample as a picture: the person, a column of up to six assets two by two, the regions."""
    height, width = sample.image.shape[:2]
    cells = [_fit(asset.image, height // 3, width // 2) for asset in sample.assets[:6]]
    cells += [np.full((height // 3, width // 2, 3), 255, np.uint8)] * (6 - len(cells))
    assets = np.concatenate([np.concatenate(cells[row : row + 2], axis=1) for row in (0, 2, 4)])
    assets = np.pad(assets, ((0, height - len(assets)), (0, 0), (0, 0)), constant_values=255)
    regions = _fit(REGION_COLORS[sample.regions], height // 2, width // 2)
    body = _fit(sample.maps.iuv * np.array([10, 1, 1], np.uint8), height - height // 2, width // 2)
    return np.concatenate([sample.image, assets, np.concatenate([regions, body])], axis=1)


def sheet(request: Request) -> np.ndarray:
    """The contact sheet, one outfit per panel."""
    if request.count < 1 or request.columns < 1:
        raise ValueError(f"count is {request.count} and columns {request.columns}; both must be at least 1")
    wardrobe = Wardrobe(request.split, request.seed, request.height, request.width)
    step = POSES_PER_OUTFIT[request.split]
    panels = []
    for number in range(request.count):
        sample = wardrobe[(request.first + number) * step]
        if request.captions:
            print(f"{number + 1}. {sample.caption}")
        panels.append(panel(sample))
    columns = min(request.columns, len(panels))
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % columns)
    rows = [np.concatenate(panels[start : start + columns], axis=1) for start in range(0, len(panels), columns)]
    return np.concatenate(rows)


def main(request: Request) -> None:
    request.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(request)).save(request.out)
    print(f"{request.count} samples of {request.split}: {request.out}")


if __name__ == "__main__":
    run(main)
