"""Score albums: is every page the same person, and does every page keep its pose and garments?

python -m infer.evaluate_albums --model mini --json outputs/albums.json --sheet outputs/albums.png

Each album shows a held-out person of Wardrobe in several poses, on the last pages in another outfit; prompt and assets
are those of the first page in that outfit. Columns: pages made one by one, the ways of sharing of `fcjax.album` (the
paper's Figure 8), and the true pictures, which no model can pass. Identity compares faces between pages: palettes, and
textures where both pages show the same place of the face; garments' rows do so with every garment between pages of one
outfit. The rows below say what sharing costs: whether each page still has its garments and its pose. Means with 95 %
bootstrap intervals over albums.

Under the table stands what the paper's Figure 8 shows, comparison by comparison: the mean difference between two ways
on the same albums, with its interval, which must lie above 0.
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
from fcjax.wardrobe import Sample, Wardrobe, WardrobeAsset
from infer.figures import aligned, cell, prepare_file, versions
from infer.request import weights_digest
from infer.sets import worn_by
from infer.sheet import Panel, sheet

if TYPE_CHECKING:
    from fcjax.composer import Composer

MODES: dict[str, dict[str, Any]] = {
    "one by one": {"sharing": "none", "align": False},
    "cross-frame": {"sharing": "cross_frame", "align": False},
    "correspondence": {"sharing": "correspondence", "align": False},
    "correspondence + alignment": {"sharing": "correspondence", "align": True},
}
TRUTH = "truth"
FIGURES = {
    "face_palette": "identity: palette distance of faces between pages",
    "face_texture": "identity: PSNR of faces between pages (dB)",
    "garment_palette": "garments: palette distance between pages",
    "garment_texture": "garments: PSNR between pages (dB)",
    "binding_accuracy": "binding accuracy",
    "palette_distance": "palette distance to the own asset",
    "silhouette_iou": "silhouette IoU",
    "matched": "share of the body's tokens that use page 1's",
}
DISTANCES = ("face_palette", "garment_palette", "palette_distance")
"""Of these less is better."""
IDENTITY = ("face_palette", "face_texture")
FIDELITY = ("binding_accuracy", "palette_distance", "silhouette_iou")
"""Garments and pose."""


@dataclass(frozen=True)
class Claim:
    """What the paper says of its Figure 8: `better` has the better figures than each of `worse`."""

    words: str
    better: str
    worse: tuple[str, ...]
    figures: tuple[str, ...]


CLAIMS = (
    Claim("cross-frame is the most consistent", "cross-frame", ("one by one", "correspondence"), IDENTITY),
    Claim("but pages one by one keep garments and pose better", "one by one", ("cross-frame",), FIDELITY),
    Claim("correspondence + alignment is consistent, too", "correspondence + alignment", ("one by one",), IDENTITY),
    Claim("and keeps garments and pose", "correspondence + alignment", ("cross-frame",), FIDELITY),
)


@dataclass(frozen=True)
class Request:
    """What to score, and where the figures go."""

    model: str = "mini"
    """A model folder that composes, or mini, the model in the package."""
    count: int = 100
    """Number of albums, each of another person; one of four pages takes about 20 times as long as a picture."""
    pages: int = 4
    """Pages of each."""
    changed: int = 2
    """The last so many pages show the person in another outfit."""
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
        for name, least in (("count", 1), ("pages", 2), ("changed", 0), ("seed", 0), ("rows", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.changed >= self.pages:
            raise ValueError(f"changed is {self.changed} of {self.pages} pages; expected fewer, the first one stays")


@dataclass(frozen=True, eq=False)
class PageSet:
    """What to compose on one page, and what it is held against."""

    prompt: str
    assets: tuple[WardrobeAsset, ...]
    maps: BodyMaps
    target: Target
    truth: UInt8[ndarray, "h w 3"]
    outfit: int
    """Pages of one number have the same garments."""


def album_set(wardrobe: Wardrobe, number: int, pages: int, changed: int = 0) -> list[PageSet]:
    """An album of a person of Wardrobe, the last `changed` pages in another outfit."""
    samples, made = wardrobe.pages(number, pages, changed), []
    for outfit, (start, end) in enumerate(((0, pages - changed), (pages - changed, pages))):
        for page in samples[start:end]:
            prompt, assets = _asked(samples[0], samples[start])
            target = Target(
                tuple(asset.kind for asset in assets),
                tuple((face_palette if asset.kind == FACE else asset_palette)(asset.image) for asset in assets),
                _regions(assets, page),
                foreground=page.foreground if is_plain(page.backdrop) else None,
            )
            made.append(PageSet(prompt, assets, page.maps, target, page.image, outfit))
    return made


def _asked(first: Sample, worn: Sample) -> tuple[str, tuple[WardrobeAsset, ...]]:
    """Prompt and assets of all pages of an outfit: the first page's face, subject and background, what `worn` wears."""
    if worn is first:
        return first.caption, first.assets
    faces = tuple(asset for asset in first.assets if asset.kind == FACE)
    garments = tuple(asset for asset in worn.assets if asset.kind != FACE)
    prompt = f"{worn_by(first.subject, [asset.phrase for asset in garments])} {first.background}"
    return prompt, (*faces, *garments)


def _regions(assets: Sequence[WardrobeAsset], page: Sample) -> ndarray:
    """Where a page shows these assets; a garment that is no asset of this page is nowhere."""
    places = {asset.garment or asset.kind: place for place, asset in enumerate(assets, 1)}
    regions = np.zeros_like(page.regions)
    for number, asset in enumerate(page.assets, 1):
        place = places.get(asset.garment or asset.kind)
        if place is not None:
            regions[page.regions == number] = place
    return regions


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def score_album(pictures: Sequence[UInt8[ndarray, "h w 3"]], given: Sequence[PageSet]) -> dict[str, list[float]]:
    """Lists of values under the names of FIGURES: one for a pair of pages, or for a page or its garments."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for (one, first), (other, second) in itertools.combinations(zip(pictures, given, strict=True), 2):
        faces = first.maps.face_mask, second.maps.face_mask
        _note(found["face_palette"], _distance(one, faces[0], other, faces[1]))
        _note(found["face_texture"], _texture(one, first, faces[0], other, second, faces[1]))
        if first.outfit == second.outfit:
            for place, kind in enumerate(first.target.kinds, 1):
                if kind != FACE:
                    worn = first.target.regions == place, second.target.regions == place
                    _note(found["garment_palette"], _distance(one, worn[0], other, worn[1]))
                    _note(found["garment_texture"], _texture(one, first, worn[0], other, second, worn[1]))
    for picture, page in zip(pictures, given, strict=True):
        figures = score(picture, page.target).figures
        for name in FIDELITY:
            found[name] += figures.get(name, [])
    return {name: values for name, values in found.items() if values}


def _texture(
    one: ndarray,
    first: PageSet,
    region: Bool[ndarray, "h w"],
    other: ndarray,
    second: PageSet,
    region2: Bool[ndarray, "h w"],
) -> float | None:
    """PSNR over the places of the body that both regions show."""
    maps = [
        np.where(shown[..., None], page.maps.iuv, np.uint8(0)) for page, shown in ((first, region), (second, region2))
    ]
    return texel_psnr(one, maps[0], other, maps[1])


def _distance(
    one: ndarray, region: Bool[ndarray, "h w"], other: ndarray, region2: Bool[ndarray, "h w"]
) -> float | None:
    first, second = region_palette(one, region), region_palette(other, region2)
    return None if first is None or second is None else palette_distance(first, second)


def _note(values: list[float], value: float | None) -> None:
    # Equal pictures have an infinite PSNR, of which there is no mean.
    if value is not None:
        values.append(min(value, 100.0))


@dataclass(frozen=True, eq=False)
class Made:
    """An album's pages, and of those after the first what share of the body's tokens used the first one's."""

    pictures: list[UInt8[ndarray, "h w 3"]]
    matched: list[float]


def compose(composer: "Composer", given: Sequence[PageSet], request: Request, seed: int) -> dict[str, Made]:
    """The album by every way."""
    from fcjax.album import Page, make_album

    pages = [Page(page.maps, page.prompt, page.assets) for page in given]
    made = {}
    for name, ways in MODES.items():
        album = make_album(
            composer, pages, **ways, seed=seed, steps=request.steps, guidance=request.guidance, batch_size=len(pages)
        )
        pictures = [np.asarray(picture.image) for picture in album.pictures]
        made[name] = Made(pictures, album.matched[1:].mean(axis=1).tolist())
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


@dataclass(frozen=True)
class Comparison:
    """How much better a way's figure is than another's on the same albums, and whether that is beyond chance."""

    claim: str
    better: str
    worse: str
    figure: str
    difference: Figure

    @property
    def verdict(self) -> str:
        if self.difference.groups < 2:
            # One album's interval is a point.
            return "not told apart"
        return "yes" if self.difference.low > 0 else "no, the reverse" if self.difference.high < 0 else "not told apart"


def comparisons(values: dict[str, list[dict[str, list[float]]]]) -> list[Comparison]:
    """Every comparison of CLAIMS, of the means of each album that has the figure both ways."""
    found = []
    for claim in CLAIMS:
        for worse, name in itertools.product(claim.worse, claim.figures):
            sign = -1 if name in DISTANCES else 1
            pairs = zip(values[claim.better], values[worse], strict=True)
            apart = [
                [sign * float(np.mean(one[name]) - np.mean(other[name]))] if name in one and name in other else []
                for one, other in pairs
            ]
            difference = bootstrap(apart)
            if difference is not None:
                found.append(Comparison(claim.words, claim.better, worse, name, difference))
    return found


def verdict(found: Sequence[Comparison]) -> str:
    """The comparisons as text, and whether all of them say what the paper's Figure 8 shows."""
    lines, claim = [["", "", "better by", "so it is"]], ""
    for one in found:
        if one.claim != claim:
            claim = one.claim
            lines.append([claim, "", "", ""])
        words = f"  {one.better} above {one.worse}"
        lines.append([words, FIGURES[one.figure], cell(one.difference), one.verdict])
    counts = [sum(one.verdict == said for one in found) for said in ("yes", "no, the reverse")]
    told = "shown" if found and counts[0] == len(found) else "not shown"
    said = f"{counts[0]} of {len(found)} comparisons say so, {counts[1]} the reverse"
    return f"{aligned(lines)}\n\nthe order of the paper's Figure 8 is {told}: {said}"


def panels(given: Sequence[PageSet], made: dict[str, Made]) -> list[list[Panel]]:
    """Rows of a sheet: each outfit's assets, then the pages by every way and as they are."""
    rows: list[list[Panel]] = []
    for outfit in dict.fromkeys(page.outfit for page in given):
        page = next(page for page in given if page.outfit == outfit)
        rows.append([(asset.phrase, asset.image) for asset in page.assets])
    shown = {**{name: album.pictures for name, album in made.items()}, TRUTH: [page.truth for page in given]}
    for name, pictures in shown.items():
        rows.append([(f"{name}, page {number}", picture) for number, picture in enumerate(pictures, 1)])
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
    values: dict[str, list[dict[str, list[float]]]] = {mode: [] for mode in (*MODES, TRUTH)}
    shown: list[list[Panel]] = []
    for number in tqdm(range(request.count), unit="album"):
        given = album_set(wardrobe, number, request.pages, request.changed)
        made = compose(composer, given, request, request.seed + number)
        for mode, album in made.items():
            values[mode].append({**score_album(album.pictures, given), "matched": album.matched})
        values[TRUTH].append(score_album([page.truth for page in given], given))
        if number < request.rows:
            shown += panels(given, made)
    compared = comparisons(values)
    print(f"{request.count} albums of {request.pages} pages, the last {request.changed} in another outfit\n")
    print(f"{table(values)}\n\n{verdict(compared)}")
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
            "comparisons": [
                {**vars(one), "difference": one.difference._asdict(), "verdict": one.verdict} for one in compared
            ],
            "albums": values,
        }
        request.json.write_text(json.dumps(content, indent=1) + "\n")
    if request.sheet is not None:
        sheet(shown).save(request.sheet)


if __name__ == "__main__":
    run(main)
