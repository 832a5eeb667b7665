"""Score models on sets whose truth is known: does every garment keep its look, its texture and its place?

python -m infer.evaluate --model mini --split heldout --count 100 --without-binding --json outputs/evaluation.json

heldout and train are sets of Wardrobe (heldout: textures, colour pairs and poses that no training picture shows); drawn
are flat-coloured t-shirts and trousers in another hand. Columns of the table: the true pictures and their
reconstruction by the VAE (what no model can surpass), the model, the same with its binding switched off, other models.
Every figure is a mean with its 95 % bootstrap interval over sets; fcjax/metrics says how each is measured. No
pretrained network takes part.

The swap test exchanges the phrases of two equally shaped swatches of fabric, in sets whose captions do not name their
colours: the share of sets in which both places show the right fabric before and the other one after.
"""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from jaxtyping import UInt8
from numpy import ndarray
from tqdm import tqdm

import fcjax
from fcjax.cli import run
from fcjax.metrics import FIGURES, Figure, Palette, Scores, bootstrap, face_scores, places_exchanged, score
from fcjax.metrics.scores import FACE
from infer.arms import RECONSTRUCTION, TRUTH, Arm, make_arms
from infer.compose import prepare_output
from infer.densepose import preview
from infer.request import weights_digest
from infer.sets import DrawnSets, EvaluationSet, WardrobeSets
from infer.sheet import Panel, sheet

SWAP_SCAN = 60
"""The swap test looks at no more than this many sets for each that it wants (about every fifth serves)."""
PACKAGES = ("jax", "numpy", "pillow")


@dataclass(frozen=True)
class Request:
    """What to score, and where the figures go."""

    model: str = "mini"
    """A model folder, or mini, the model in the package."""
    also: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another model folder to score on the same sets; may be repeated."""
    without_binding: bool = False
    """Score the model with its binding switched off as well."""
    split: Literal["heldout", "train", "drawn"] = "heldout"
    count: int = 100
    """Number of sets."""
    swap_count: int | None = None
    """Number of sets for the swap test; by default as --count, for drawn garments 0."""
    seed: int = 0
    """Of the sets; the picture of set i has the seed SEED + i."""
    steps: int = 20
    sampler: str = "ddim"
    guidance: float = 1.5
    size: tuple[int, int] | None = None
    """Height and width in pixels, if not those of the model."""
    json: Path | None = None
    """All figures, and those of every set."""
    sheet: Path | None = None
    """A PNG of the first sets: assets, pose, results, truth."""
    worst: Path | None = None
    """The same of the sets that the model did worst."""
    swap_sheet: Path | None = None
    """A PNG of the first sets of the swap test, before and after the exchange."""
    rows: int = 12
    """Sets on each sheet."""

    def check(self) -> None:
        """ValueError for what cannot be asked. (Not on construction: the parser of flags would frame the message.)"""
        for name, least in (("count", 1), ("rows", 1), ("swap_count", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        if self.split == "drawn" and self.swap_count:
            raise ValueError("drawn garments have no fabric swatches to exchange; leave --swap-count out")

    @property
    def swaps(self) -> int:
        """How many sets the swap test takes."""
        if self.swap_count is None:
            return 0 if self.split == "drawn" else self.count
        return self.swap_count


@dataclass(eq=False)
class Results:
    """What one arm gave, set by set."""

    pictures: list[UInt8[ndarray, "h w 3"]] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    swaps: list[bool] = field(default_factory=list)
    swap_pictures: list[tuple[ndarray, ndarray]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All results; lists over sets run in parallel."""

    results: dict[str, Results]
    faces: list[Palette | None]  # of the face assets
    prompts: list[str]
    poses: list[str]
    swap_indices: list[int]

    def figures(self, arm: str) -> list[dict[str, list[float]]]:
        """Every set's values under the names of FIGURES, but for the swap test, which has sets of its own."""
        scores = self.results[arm].scores
        faces = face_scores([one.face for one in scores], self.faces)
        return [{**one.figures, **face} for one, face in zip(scores, faces, strict=True)]

    def summary(self, arm: str) -> dict[str, Figure]:
        """Means and intervals, in the order of FIGURES; figures without a value are left out."""
        values = self.figures(arm)
        groups = {name: [one.get(name, []) for one in values] for name in FIGURES}
        groups["swap_test"] = [[float(exchanged)] for exchanged in self.results[arm].swaps]
        found = {name: bootstrap(groups[name]) for name in FIGURES}
        return {name: figure for name, figure in found.items() if figure is not None}

    def textures(self, arm: str) -> dict[str, Figure]:
        """Texture correlation by pattern, by name."""
        scores = self.results[arm].scores
        names = sorted({name for one in scores for name in one.textures})
        found = {name: bootstrap([one.textures.get(name, []) for one in scores]) for name in names}
        return {name: figure for name, figure in found.items() if figure is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def evaluate(request: Request, columns: Sequence[Arm], size: tuple[int, int], quiet: bool = False) -> Evaluation:
    """Make every set once, let every arm draw it, keep scores and pictures; then more sets for the swap test.

    Sets of the first `count` that hold two swatches serve the swap test too.
    """
    source = _source(request, size)
    results = Evaluation({column.name: Results() for column in columns}, [], [], [], [])
    composing = [column for column in columns if column.composes]
    with tqdm(total=request.count + request.swaps, unit="set", desc="evaluating", disable=quiet) as bar:
        for index in range(request.count + SWAP_SCAN * request.swaps):
            swaps_left = request.swaps - len(results.swap_indices)
            if index >= request.count and swaps_left == 0:
                break
            if index >= request.count and not source.may_have_swatches(index):
                continue
            one = source[index]
            pictures: dict[str, ndarray] = {}
            if index < request.count:
                for column in columns:
                    pictures[column.name] = column.draw(one, one.assets, request.seed + index)
                    results.results[column.name].pictures.append(pictures[column.name])
                    results.results[column.name].scores.append(score(pictures[column.name], one.target))
                faces = [place for place, kind in enumerate(one.target.kinds) if kind == FACE]
                results.faces.append(one.target.palettes[faces[0]] if faces else None)
                results.prompts.append(one.prompt)
                results.poses.append(one.pose)
                bar.update()
            pair = one.swatches
            if swaps_left and pair is not None:
                for column in composing:
                    before = pictures.get(column.name)
                    if before is None:
                        before = column.draw(one, one.assets, request.seed + index)
                    after = column.draw(one, one.exchanged(pair), request.seed + index)
                    own = results.results[column.name]
                    own.swaps.append(places_exchanged(before, after, one.target, pair))
                    if len(results.swap_indices) < request.rows:
                        own.swap_pictures.append((before, after))
                results.swap_indices.append(index)
                bar.update()
    if len(results.swap_indices) < request.swaps:
        raise ValueError(f"found {len(results.swap_indices)} sets with two different swatches, wanted {request.swaps}")
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Output


def table(evaluation: Evaluation) -> str:
    """The figures as text, one column an arm, and texture correlation by pattern."""
    arms = list(evaluation.results)
    summaries, textures = ([method(arm) for arm in arms] for method in (evaluation.summary, evaluation.textures))
    lines = [["", *arms, "values"]]
    lines += _rows({name: words for name, words in FIGURES.items()}, summaries)
    names = sorted({name for one in textures for name in one})
    if names:
        lines += [["texture correlation by pattern", *[""] * len(arms), ""]]
        lines += _rows({name: f"  {name or 'unnamed'}" for name in names}, textures)
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _rows(words: dict[str, str], summaries: Sequence[dict[str, Figure]]) -> list[list[str]]:
    rows = []
    for name, label in words.items():
        figures = [summary.get(name) for summary in summaries]
        counts = [figure.count for figure in figures if figure is not None]
        if counts:
            rows.append([label, *map(_cell, figures), str(max(counts))])
    return rows


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    digits = 3 if abs(figure.high) <= 1 else 1
    return f"{figure.mean:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def report(request: Request, evaluation: Evaluation, size: tuple[int, int]) -> dict[str, Any]:
    """Everything as plain data for JSON."""
    from fcjax.pretrained import locate

    per_arm = {arm: evaluation.figures(arm) for arm in evaluation.results}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()}
    return {
        "settings": {**settings, "size": size, "swap_count": request.swaps},
        "versions": {
            "fcjax": fcjax.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "weights": {name: weights_digest(locate(name)) for name in (request.model, *request.also)},
        "arms": {
            arm: {
                "figures": {name: figure._asdict() for name, figure in evaluation.summary(arm).items()},
                "texture_correlation_by_pattern": {
                    name: figure._asdict() for name, figure in evaluation.textures(arm).items()
                },
            }
            for arm in evaluation.results
        },
        "sets": [
            {
                "index": index,
                "prompt": prompt,
                "pose": pose,
                "figures": {arm: values[index] for arm, values in per_arm.items()},
            }
            for index, (prompt, pose) in enumerate(zip(evaluation.prompts, evaluation.poses, strict=True))
        ],
        "swaps": [
            {"index": index, **{arm: own.swaps[place] for arm, own in evaluation.results.items() if own.swaps}}
            for place, index in enumerate(evaluation.swap_indices)
        ],
    }


def worst(evaluation: Evaluation, arm: str, count: int) -> list[int]:
    """The sets with the lowest binding accuracy, among equals those with the lowest texture correlation."""

    def mean(values: dict[str, list[float]], name: str) -> float:
        return float(np.mean(values[name])) if name in values else 1.0

    figures = evaluation.figures(arm)
    order = sorted(
        range(len(figures)),
        key=lambda index: (mean(figures[index], "binding_accuracy"), mean(figures[index], "texture_correlation")),
    )
    return order[:count]


def rows(request: Request, evaluation: Evaluation, size: tuple[int, int], indices: Sequence[int]) -> list[list[Panel]]:
    """Assets, pose, every arm's result and the truth of some sets; the sets are made again."""
    source = _source(request, size)
    made = []
    for index in indices:
        one = source[index]
        row = _given(one)
        arms = [arm for arm in evaluation.results if arm not in (TRUTH, RECONSTRUCTION)]
        arms += [arm for arm in (RECONSTRUCTION, TRUTH) if arm in evaluation.results]
        for place, arm in enumerate(arms):
            label = f"{arm}: {one.prompt}" if place == 0 else arm
            row.append((label, evaluation.results[arm].pictures[index]))
        made.append(row)
    return made


def swap_rows(request: Request, evaluation: Evaluation, size: tuple[int, int]) -> list[list[Panel]]:
    """Assets, pose and every composing arm's two pictures of the first sets of the swap test."""
    source = _source(request, size)
    made = []
    for place, index in enumerate(evaluation.swap_indices[: request.rows]):
        row = _given(source[index])
        for arm, own in evaluation.results.items():
            if own.swap_pictures:
                before, after = own.swap_pictures[place]
                row += [(arm, before), (f"{arm}, phrases exchanged", after)]
        made.append(row)
    return made


def _source(request: Request, size: tuple[int, int]) -> DrawnSets | WardrobeSets:
    if request.split == "drawn":
        return DrawnSets(request.seed, *size)
    return WardrobeSets(request.split, request.seed, *size)


def _given(one: EvaluationSet) -> list[Panel]:
    charts = preview(one.maps)
    pose = np.ascontiguousarray(charts[:, : charts.shape[1] // 2])
    return [*((asset.phrase, asset.image) for asset in one.assets), (one.pose, pose)]


def main(request: Request) -> None:
    """Score, print the table, write what was asked for."""
    request.check()
    for path in (request.sheet, request.worst, request.swap_sheet):
        if path is not None:
            prepare_output(path)
    if request.json is not None:
        if request.json.is_dir():
            raise ValueError(f"{request.json} is a folder; name a file in it")
        request.json.parent.mkdir(parents=True, exist_ok=True)
    columns, size = make_arms(
        request.model,
        request.also,
        {"steps": request.steps, "sampler": request.sampler, "guidance": request.guidance},
        size=request.size,
        binding_off=request.without_binding,
        truth=request.split != "drawn",
    )
    evaluation = evaluate(request, columns, size)
    print(table(evaluation))
    if request.json is not None:
        request.json.write_text(json.dumps(report(request, evaluation, size), indent=1) + "\n")
    first = range(min(request.rows, request.count))
    if request.sheet is not None:
        sheet(rows(request, evaluation, size, first)).save(request.sheet)
    if request.worst is not None:
        sheet(rows(request, evaluation, size, worst(evaluation, request.model, request.rows))).save(request.worst)
    if request.swap_sheet is not None and evaluation.swap_indices:
        sheet(swap_rows(request, evaluation, size)).save(request.swap_sheet)


if __name__ == "__main__":
    run(main)
