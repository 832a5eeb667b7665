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

Pages that are drawn stay in --work (by default beside --json or --sheet until that is written), so that a killed run
goes on; without any of the three it begins anew.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from tqdm import tqdm

from fcjax.cli import run
from fcjax.metrics import Figure, bootstrap
from fcjax.pictures import open_rgb
from fcjax.wardrobe import EDITION, Wardrobe
from fcjax.whole_files import write_json
from infer.album_scores import FIDELITY, FIGURES, PageSet, album_set, score_album
from infer.compose import prepare_output, save_png
from infer.figures import aligned, cell, prepare_file, versions
from infer.flags import OptionalPath, flag
from infer.predictions import working_folder
from infer.request import own_sampling, weights_digest
from infer.sampling_request import settled
from infer.scoring import claim
from infer.sheet import Panel, sheet

if TYPE_CHECKING:
    from fcjax.composer import Composer

MODES = ("one by one", "cross-frame", "correspondence", "correspondence + alignment")
TRUTH = "truth"
DISTANCES = ("face_palette", "garment_palette", "palette_distance")
"""Of these less is better."""
IDENTITY = ("face_palette", "face_texture")


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
    """Number of albums, each of another person; one of four pages takes about 12 times as long as a picture."""
    pages: int = 4
    """Pages of each."""
    changed: int = 2
    """The last so many pages show the person in another outfit."""
    seed: int = 0
    """Of the people; album i has the seed SEED + i."""
    steps: Annotated[int | None, flag("INT", "the model's")] = None
    guidance: Annotated[float | None, flag("FLOAT", "the model's")] = None
    json: OptionalPath = None
    """All figures, and those of every album."""
    sheet: OptionalPath = None
    """A PNG of the first albums, a row for each way."""
    rows: int = 4
    """Albums on the sheet."""
    work: Annotated[Path | None, flag("PATH", "beside --json or --sheet")] = None
    """Where a killed run's part is kept."""
    overwrite: bool = False
    """Replace the file of figures (--json) that is there."""

    def check(self) -> None:
        """ValueError for what cannot be asked."""
        for name, least in (("count", 1), ("pages", 2), ("changed", 0), ("seed", 0), ("rows", 1), ("steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        if self.changed >= self.pages:
            raise ValueError(f"changed is {self.changed} of {self.pages} pages; expected fewer, the first one stays")


@dataclass(frozen=True, eq=False)
class Made:
    """An album's pages, and of those after the first what share of the body's tokens used the first one's."""

    pictures: list[UInt8[ndarray, "h w 3"]]
    matched: list[float]


def compose(composer: "Composer", given: Sequence[PageSet], request: Request, seed: int) -> dict[str, Made]:
    """The album by every way."""
    from fcjax.album import Page, make_album

    pages = [Page(page.maps, page.prompt, page.assets) for page in given]
    settings: dict[str, Any] = {
        "seed": seed,
        "steps": request.steps,
        "guidance": request.guidance,
        "batch_size": len(pages),
    }
    alone = make_album(composer, pages, sharing="none", **settings)
    aligned = make_album(composer, pages, keep_joined=True, **settings)
    albums = (alone, aligned.joined["cross_frame"], aligned.joined["correspondence"], aligned)
    return {
        name: Made([np.asarray(picture.image) for picture in album.pictures], album.matched[1:].mean(axis=1).tolist())
        for name, album in zip(MODES, albums, strict=True)
    }


def drawn(
    composer: "Composer", given: Sequence[PageSet], request: Request, number: int, folder: Path
) -> dict[str, Made]:
    """The album by every way, from the working folder where it is there, else composed and kept there."""

    def page(way: int, place: int) -> Path:
        return folder / f"{number:06d}-{way}-{place}.png"

    # Written last, so that where it is the pages are, too.
    head = folder / f"{number:06d}.json"
    if head.is_file():
        matched = json.loads(head.read_text())
        return {
            name: Made([open_rgb(page(way, place)) for place in range(len(given))], matched[name])
            for way, name in enumerate(MODES)
        }
    made = compose(composer, given, request, request.seed + number)
    for way, album in enumerate(made.values()):
        for place, picture in enumerate(album.pictures):
            save_png(Image.fromarray(picture), page(way, place), None)
    write_json(head, {name: album.matched for name, album in made.items()})
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
    for said in CLAIMS:
        for worse, name in itertools.product(said.worse, said.figures):
            sign = -1 if name in DISTANCES else 1
            pairs = zip(values[said.better], values[worse], strict=True)
            apart = [
                [sign * float(np.mean(one[name]) - np.mean(other[name]))] if name in one and name in other else []
                for one, other in pairs
            ]
            difference = bootstrap(apart)
            if difference is not None:
                found.append(Comparison(said.words, said.better, worse, name, difference))
    return found


def verdict(found: Sequence[Comparison]) -> str:
    """The comparisons as text, and whether all of them say what the paper's Figure 8 shows."""
    lines, told = [["", "", "better by", "so it is"]], ""
    for one in found:
        if one.claim != told:
            told = one.claim
            lines.append([told, "", "", ""])
        words = f"  {one.better} above {one.worse}"
        lines.append([words, FIGURES[one.figure], cell(one.difference), one.verdict])
    counts = [sum(one.verdict == said for one in found) for said in ("yes", "no, the reverse")]
    shown = "shown" if found and counts[0] == len(found) else "not shown"
    said = f"{counts[0]} of {len(found)} comparisons say so, {counts[1]} the reverse"
    return f"{aligned(lines)}\n\nthe order of the paper's Figure 8 is {shown}: {said}"


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
    if request.json is not None:
        prepare_file(request.json, request.overwrite)
    if request.sheet is not None:
        prepare_output(request.sheet)
    from fcjax.composer import Composer

    composer = Composer.load(request.model)
    request = settled(request, own_sampling(request.model))
    size = (composer.config.height, composer.config.width)
    weights = weights_digest(request.model)
    wardrobe = Wardrobe("heldout", request.seed, *size, backgrounds=("plain",))
    values: dict[str, list[dict[str, list[float]]]] = {mode: [] for mode in (*MODES, TRUTH)}
    shown: list[list[Panel]] = []
    decides = {name: getattr(request, name) for name in ("pages", "changed", "seed", "steps", "guidance")}
    outputs = [path for path in (request.json, request.sheet) if path is not None]
    with working_folder(request.work, outputs) as folder:
        claim(folder, {"albums": decides, "edition": EDITION, "size": list(size), "weights": weights})
        for number in tqdm(range(request.count), unit="album"):
            given = album_set(wardrobe, number, request.pages, request.changed)
            made = drawn(composer, given, request, number, folder)
            for mode, album in made.items():
                values[mode].append({**score_album(album.pictures, given), "matched": album.matched})
            values[TRUTH].append(score_album([page.truth for page in given], given))
            if number < request.rows:
                shown += panels(given, made)
        report(request, values, size, weights)
        if request.sheet is not None:
            sheet(shown).save(request.sheet)


def report(
    request: Request, values: dict[str, list[dict[str, list[float]]]], size: tuple[int, int], weights: str
) -> None:
    """Prints the table and writes the figures."""
    compared = comparisons(values)
    print(f"{request.count} albums of {request.pages} pages, the last {request.changed} in another outfit\n")
    print(f"{table(values)}\n\n{verdict(compared)}")
    if request.json is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()}
        content = {
            "settings": {**settings, "size": size},
            "versions": versions(),
            "weights": {request.model: weights},
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


if __name__ == "__main__":
    run(main)
