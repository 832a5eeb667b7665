"""Score albums: is every page the same person, and does every page keep its pose and garments?

python -m infer.evaluate_albums --model mini --count 25 --json outputs/albums.json --sheet outputs/albums.png

Each album shows a held-out person of Wardrobe in several poses; prompt and assets are the first page's. Columns: pages
made one by one, and the ways of sharing of `fcjax.album` (the paper's Figure 8). Identity compares faces between pages:
palettes, and textures where both pages show the same place of the head; so do the garments' rows. The last rows say
what sharing costs: whether each page still has its garments and its pose. Means with 95 % bootstrap intervals over
albums.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from tqdm import tqdm

from fcjax.assets import Placeable
from fcjax.body import BodyMaps
from fcjax.cli import run
from fcjax.metrics import (
    Figure,
    Target,
    asset_palette,
    bootstrap,
    face_palette,
    is_plain,
    palette_distance,
    region_palette,
    score,
    texel_psnr,
)
from fcjax.metrics.scores import FACE
from fcjax.wardrobe import Sample, Wardrobe
from infer.figures import aligned, cell, prepare_file, versions
from infer.request import weights_digest
from infer.sheet import Panel, sheet

if TYPE_CHECKING:
    from fcjax.composer import Composer

MODES: dict[str, dict[str, Any]] = {
    "one by one": {"sharing": "none", "align": False},
    "cross-frame": {"sharing": "cross_frame", "align": False},
    "correspondence": {"sharing": "correspondence", "align": False},
    "correspondence + alignment": {"sharing": "correspondence", "align": True},
}
FIGURES = {
    "face_palette": "identity: palette distance of faces between pages",
    "face_texture": "identity: PSNR of faces between pages (dB)",
    "garment_palette": "garments: palette distance between pages",
    "garment_texture": "garments: PSNR between pages (dB)",
    "binding_accuracy": "binding accuracy",
    "palette_distance": "palette distance to the own asset",
    "silhouette_iou": "silhouette IoU",
}
HEAD_PARTS, CLOTHED_PARTS = (23, 24), (1, 2, *range(7, 23))
"""DensePose's."""


@dataclass(frozen=True)
class Request:
    """What to score, and where the figures go."""

    model: str = "mini"
    """A model folder that composes, or mini, the model in the package."""
    count: int = 25
    """Number of albums."""
    pages: int = 4
    """Pages of each."""
    seed: int = 0
    """Of the people; album i has the seed SEED + i."""
    steps: int = 20
    guidance: float = 1.5
    json: Path | None = None
    """All figures, and those of every album."""
    sheet: Path | None = None
    """A PNG of the first albums, a row for each way."""
    rows: int = 4
    """Albums on the sheet."""

    def check(self) -> None:
        """ValueError for what cannot be asked."""
        for name, least in (("count", 1), ("pages", 2), ("seed", 0), ("rows", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")


@dataclass(frozen=True, eq=False)
class AlbumSet:
    """One person's album: what to compose, and per page what it is held against."""

    prompt: str
    assets: tuple[Placeable, ...]
    maps: tuple[BodyMaps, ...]
    targets: tuple[Target, ...]


def album_set(wardrobe: Wardrobe, number: int, pages: int) -> AlbumSet:
    """An album of a person of Wardrobe."""
    samples = wardrobe.pages(number, pages)
    first = samples[0]
    palettes = tuple(
        face_palette(asset.image) if asset.kind == FACE else asset_palette(asset.image) for asset in first.assets
    )
    kinds = tuple(asset.kind for asset in first.assets)
    targets = [
        Target(kinds, palettes, _regions(first, page), foreground=page.foreground if is_plain(page.backdrop) else None)
        for page in samples
    ]
    return AlbumSet(first.caption, first.assets, tuple(page.maps for page in samples), tuple(targets))


def _regions(first: Sample, page: Sample) -> ndarray:
    """Where a page shows the first one's assets; a garment that is no asset of this page is nowhere."""
    places = {asset.garment or asset.kind: place for place, asset in enumerate(first.assets, 1)}
    regions = np.zeros_like(page.regions)
    for number, asset in enumerate(page.assets, 1):
        place = places.get(asset.garment or asset.kind)
        if place is not None:
            regions[page.regions == number] = place
    return regions


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def score_album(pictures: Sequence[UInt8[ndarray, "h w 3"]], given: AlbumSet) -> dict[str, list[float]]:
    """Lists of values under the names of FIGURES: one for a pair of pages, or for a page or its garments."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    pairs = list(itertools.combinations(range(len(pictures)), 2))
    for i, j in pairs:
        one, other, maps = pictures[i], pictures[j], (given.maps[i], given.maps[j])
        _note(found["face_palette"], _distance(one, maps[0].face_mask, other, maps[1].face_mask))
        for name, parts in (("face_texture", HEAD_PARTS), ("garment_texture", CLOTHED_PARTS)):
            _note(found[name], texel_psnr(one, maps[0].iuv, other, maps[1].iuv, parts))
        for place, kind in enumerate(given.targets[0].kinds, 1):
            if kind != FACE:
                regions = (given.targets[page].regions == place for page in (i, j))
                _note(found["garment_palette"], _distance(one, next(regions), other, next(regions)))
    for picture, target in zip(pictures, given.targets, strict=True):
        figures = score(picture, target).figures
        for name in ("binding_accuracy", "palette_distance", "silhouette_iou"):
            found[name] += figures.get(name, [])
    return {name: values for name, values in found.items() if values}


def _distance(
    one: ndarray, region: Bool[ndarray, "h w"], other: ndarray, region2: Bool[ndarray, "h w"]
) -> float | None:
    first, second = region_palette(one, region), region_palette(other, region2)
    return None if first is None or second is None else palette_distance(first, second)


def _note(values: list[float], value: float | None) -> None:
    # Equal pictures have an infinite PSNR, of which there is no mean.
    if value is not None:
        values.append(min(value, 100.0))


def compose(composer: "Composer", given: AlbumSet, request: Request, seed: int) -> dict[str, list[ndarray]]:
    """The album by every way."""
    from fcjax.album import Page, make_album

    pages = [Page(maps, given.prompt, given.assets) for maps in given.maps]
    made = {}
    for name, ways in MODES.items():
        album = make_album(
            composer, pages, **ways, seed=seed, steps=request.steps, guidance=request.guidance, batch_size=len(pages)
        )
        made[name] = [np.asarray(picture.image) for picture in album.pictures]
    return made


def summary(values: Sequence[dict[str, list[float]]]) -> dict[str, Figure]:
    """Means and intervals over albums; figures without a value are left out."""
    found = {name: bootstrap([one.get(name, []) for one in values]) for name in FIGURES}
    return {name: figure for name, figure in found.items() if figure is not None}


def table(values: dict[str, list[dict[str, list[float]]]]) -> str:
    """The figures as text, one column a way."""
    summaries = {mode: summary(ones) for mode, ones in values.items()}
    lines = [["", *values, "values"]]
    for name, words in FIGURES.items():
        figures = [one.get(name) for one in summaries.values()]
        counts = [figure.count for figure in figures if figure is not None]
        if counts:
            lines.append([words, *map(cell, figures), str(max(counts))])
    return aligned(lines)


def panels(given: AlbumSet, made: dict[str, list[ndarray]]) -> list[list[Panel]]:
    """Rows of a sheet: the assets, then the pages by every way."""
    assets: list[Panel] = [(asset.phrase, asset.image) for asset in given.assets]
    rows: list[list[Panel]] = [assets]
    for name, pictures in made.items():
        rows.append([(f"{name}, page {page}", picture) for page, picture in enumerate(pictures, 1)])
    return rows


def main(request: Request) -> None:
    """Compose, score, print, write."""
    request.check()
    for path in (request.json, request.sheet):
        if path is not None:
            prepare_file(path)
    from fcjax.composer import Composer
    from fcjax.pretrained import locate

    composer = Composer.load(request.model)
    size = (composer.config.height, composer.config.width)
    wardrobe = Wardrobe("heldout", request.seed, *size, backgrounds=("plain",))
    values: dict[str, list[dict[str, list[float]]]] = {mode: [] for mode in MODES}
    shown: list[list[Panel]] = []
    for number in tqdm(range(request.count), unit="album"):
        given = album_set(wardrobe, number, request.pages)
        made = compose(composer, given, request, request.seed + number)
        for mode, pictures in made.items():
            values[mode].append(score_album(pictures, given))
        if number < request.rows:
            shown += panels(given, made)
    print(table(values))
    if request.json is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()}
        content = {
            "settings": {**settings, "size": size},
            "versions": versions(),
            "weights": {request.model: weights_digest(locate(request.model))},
            "ways": {
                mode: {name: figure._asdict() for name, figure in summary(ones).items()}
                for mode, ones in values.items()
            },
            "albums": values,
        }
        request.json.write_text(json.dumps(content, indent=1) + "\n")
    if request.sheet is not None:
        sheet(shown).save(request.sheet)


if __name__ == "__main__":
    run(main)
