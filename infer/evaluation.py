"""Sets composed by several arms and scored: what `infer.evaluate` computes, prints and shows of models."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from tqdm import tqdm

from fcjax.metrics import FIGURES, Figure, Palette, Scores, Target, bootstrap, face_scores, places_exchanged, score
from fcjax.metrics.scores import FACE
from infer.arms import RECONSTRUCTION, TRUTH, Arm
from infer.blind import Contest
from infer.densepose import preview
from infer.evaluation_request import Request
from infer.figures import aligned, cell, versions
from infer.request import weights_digest
from infer.sets import DrawnSets, EvaluationSet, WardrobeSets
from infer.sheet import Panel

SWAP_SCAN = 60
"""The swap test looks at no more than this many sets for each that it wants (about every fifth serves)."""


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
    further: dict[str, str] = field(default_factory=dict)
    """Figures beside those of FIGURES that the scores hold, with the words that a table has for them."""

    @property
    def words(self) -> dict[str, str]:
        """Every figure with its words, in the order of the table."""
        return {**FIGURES, **self.further}

    def figures(self, arm: str) -> list[dict[str, list[float]]]:
        """Every set's values under the names of FIGURES, but for the swap test, which has sets of its own."""
        scores = self.results[arm].scores
        faces = face_scores([one.face for one in scores], self.faces)
        return [{**one.figures, **face} for one, face in zip(scores, faces, strict=True)]

    def summary(self, arm: str) -> dict[str, Figure]:
        """Means and intervals, in the order of the table; figures without a value are left out."""
        values = self.figures(arm)
        groups = {name: [one.get(name, []) for one in values] for name in self.words}
        groups["swap_test"] = [[float(exchanged)] for exchanged in self.results[arm].swaps]
        found = {name: bootstrap(groups[name]) for name in self.words}
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

    Sets of the first `wanted` that hold two swatches serve the swap test too.
    """
    source = _source(request, size)
    results = Evaluation({column.name: Results() for column in columns}, [], [], [], [])
    composing = [column for column in columns if column.composes]
    with tqdm(total=request.wanted + request.swaps, unit="set", desc="evaluating", disable=quiet) as bar:
        for index in range(request.wanted + SWAP_SCAN * request.swaps):
            swaps_left = request.swaps - len(results.swap_indices)
            if index >= request.wanted and swaps_left == 0:
                break
            if index >= request.wanted and not source.may_have_swatches(index):
                continue
            one = source[index]
            pictures: dict[str, ndarray] = {}
            if index < request.wanted:
                for column in columns:
                    pictures[column.name] = column.draw(one, one.assets, request.seed + index)
                    results.results[column.name].pictures.append(pictures[column.name])
                    results.results[column.name].scores.append(score(pictures[column.name], one.target))
                results.faces.append(face_asset(one.target))
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


def face_asset(target: Target) -> Palette | None:
    """The palette of the face among a set's assets, if there is one."""
    return next((palette for palette, kind in zip(target.palettes, target.kinds, strict=True) if kind == FACE), None)


# ---------------------------------------------------------------------------------------------------------------------
# Output


def table(evaluation: Evaluation) -> str:
    """The figures as text, one column an arm, and texture correlation by pattern."""
    arms = list(evaluation.results)
    summaries, textures = ([method(arm) for arm in arms] for method in (evaluation.summary, evaluation.textures))
    lines = [["", *arms, "values"]]
    lines += _rows(evaluation.words, summaries)
    names = sorted({name for one in textures for name in one})
    if names:
        lines += [["texture correlation by pattern", *[""] * len(arms), ""]]
        lines += _rows({name: f"  {name or 'unnamed'}" for name in names}, textures)
    return aligned(lines)


def _rows(words: dict[str, str], summaries: Sequence[dict[str, Figure]]) -> list[list[str]]:
    rows = []
    for name, label in words.items():
        figures = [summary.get(name) for summary in summaries]
        counts = [figure.count for figure in figures if figure is not None]
        if counts:
            rows.append([label, *map(cell, figures), str(max(counts))])
    return rows


def report(request: Request, evaluation: Evaluation, size: tuple[int, int]) -> dict[str, Any]:
    """Everything as plain data for JSON."""
    from fcjax.pretrained import locate

    per_arm = {arm: evaluation.figures(arm) for arm in evaluation.results}
    return {
        "settings": {**request.settings, "count": len(evaluation.prompts), "size": size, "swap_count": request.swaps},
        "versions": versions(),
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
        row = given(one)
        arms = [arm for arm in evaluation.results if arm not in (TRUTH, RECONSTRUCTION)]
        arms += [arm for arm in (RECONSTRUCTION, TRUTH) if arm in evaluation.results]
        for place, arm in enumerate(arms):
            label = f"{arm}: {one.prompt}" if place == 0 else arm
            row.append((label, evaluation.results[arm].pictures[index]))
        made.append(row)
    return made


def contests(request: Request, evaluation: Evaluation, size: tuple[int, int], indices: Sequence[int]) -> list[Contest]:
    """The pictures of some sets by the arms that compose, for a comparison page."""
    source = _source(request, size)
    arms = [arm for arm in evaluation.results if arm not in (TRUTH, RECONSTRUCTION)]
    made = []
    for index in indices:
        one = source[index]
        made.append(Contest(one.prompt, given(one), {arm: evaluation.results[arm].pictures[index] for arm in arms}))
    return made


def swap_rows(request: Request, evaluation: Evaluation, size: tuple[int, int]) -> list[list[Panel]]:
    """Assets, pose and every composing arm's two pictures of the first sets of the swap test."""
    source = _source(request, size)
    made = []
    for place, index in enumerate(evaluation.swap_indices[: request.rows]):
        row = given(source[index])
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


def given(one: EvaluationSet) -> list[Panel]:
    """Assets and pose of a set."""
    charts = preview(one.maps)
    pose = np.ascontiguousarray(charts[:, : charts.shape[1] // 2])
    return [*((asset.phrase, asset.image) for asset in one.assets), (one.pose, pose)]
