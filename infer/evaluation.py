"""Figures of the sets that several arms composed: what `infer.evaluate` says of models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcjax.metrics import FIGURES, Figure, Palette, Scores, Target, bootstrap, face_scores
from fcjax.metrics.protocols import PAIRWISE
from fcjax.metrics.scores import FACE
from infer import predictions
from infer.densepose import parts
from infer.evaluation_request import Request
from infer.figures import aligned, cell, versions
from infer.predictions import Scored
from infer.request import own_sampling, weights_digest
from infer.sets import EvaluationSet
from infer.sheet import Panel


@dataclass(eq=False)
class Results:
    """What one arm gave, set by set."""

    scores: list[Scores] = field(default_factory=list)
    swaps: list[bool] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All results; lists over sets run in parallel."""

    results: dict[str, Results]
    faces: list[Palette | None] = field(default_factory=list)  # of the face assets
    prompts: list[str] = field(default_factory=list)
    poses: list[str] = field(default_factory=list)
    samples: list[Mapping[str, Any]] = field(default_factory=list)  # of a data set, as `EvaluationSet` has them
    groups: list[int] = field(default_factory=list)  # whom sets show: those of one person are drawn as one
    swap_indices: list[int] = field(default_factory=list)
    swap_groups: list[int] = field(default_factory=list)
    further: dict[str, str] = field(default_factory=dict)
    """Figures beside those of FIGURES that the scores hold, with the words that a table has for them."""

    @property
    def words(self) -> dict[str, str]:
        """Every figure with its words, in the order of the table."""
        return {**FIGURES, **self.further}

    def figures(self, arm: str) -> list[dict[str, list[float]]]:
        """Every set's values under the names of FIGURES, but for the swap test, which has sets of its own."""
        scores = self.results[arm].scores
        faces = face_scores([one.face for one in scores], self.faces, self.groups)
        return [{**one.figures, **face} for one, face in zip(scores, faces, strict=True)]

    def summary(self, arm: str) -> dict[str, Figure]:
        """Means and intervals, in the order of the table; figures without a value are left out."""
        values, swaps = self.figures(arm), self.results[arm].swaps
        found = {name: _figure([one.get(name, []) for one in values], self.groups) for name in self.words}
        # An arm that does not compose has no swaps.
        found["swap_test"] = _figure([[float(exchanged)] for exchanged in swaps], self.swap_groups[: len(swaps)])
        return {name: figure for name, figure in found.items() if figure is not None}

    def textures(self, arm: str) -> dict[str, Figure]:
        """Texture correlation by pattern, by name."""
        scores = self.results[arm].scores
        names = sorted({name for one in scores for name in one.textures})
        found = {name: _figure([one.textures.get(name, []) for one in scores], self.groups) for name in names}
        return {name: figure for name, figure in found.items() if figure is not None}


def _figure(values: Sequence[Sequence[float]], groups: Sequence[int]) -> Figure | None:
    """The mean of all sets' values, and its interval over groups of sets."""
    found: dict[int, list[float]] = {}
    for group, own in zip(groups, values, strict=True):
        found.setdefault(group, []).extend(own)
    return bootstrap(list(found.values()))


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


def weights(request: Request) -> dict[str, str]:
    """The digests of what drew the columns, by their names; none of pictures that were there."""
    if request.scores_pictures:
        return {}
    return {name: weights_digest(model) for name, model in zip(request.names, request.drawn_by, strict=True)}


def own_settings(request: Request) -> dict[str, Any]:
    """The models' own of what was not asked for (guidance, steps), each by column where the models differ."""
    models = {} if request.scores_pictures else dict(zip(request.names, request.drawn_by, strict=True))
    own = {name: own_sampling(model) for name, model in models.items()}
    found = {}
    for setting in next(iter(own.values()), {}):
        if getattr(request, setting) is None:
            values = {name: said[setting] for name, said in own.items()}
            found[setting] = values if len(set(values.values())) > 1 else next(iter(values.values()))
    return found


def settings(request: Request) -> dict[str, Any]:
    """The request's settings, with how its pictures were sampled."""
    return request.settings | own_settings(request)


def report(request: Request, evaluation: Evaluation, size: tuple[int, int]) -> dict[str, Any]:
    """Everything as plain data for JSON."""
    per_arm = {arm: evaluation.figures(arm) for arm in evaluation.results}
    return {
        "settings": {**settings(request), "count": len(evaluation.prompts), "size": size, "swap_count": request.swaps},
        "versions": versions(),
        "weights": weights(request),
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
                **samples,
                "figures": {arm: values[index] for arm, values in per_arm.items()},
            }
            for index, (prompt, pose, samples) in enumerate(
                zip(evaluation.prompts, evaluation.poses, evaluation.samples, strict=True)
            )
        ],
        "swaps": [
            {"index": index, **{arm: own.swaps[place] for arm, own in evaluation.results.items() if own.swaps}}
            for place, index in enumerate(evaluation.swap_indices)
        ],
    }


def worst(evaluation: Evaluation, arm: str, count: int, scored: Scored | None = None) -> list[int]:
    """The sets with the lowest binding accuracy, among equals those with the lowest texture correlation.

    Where no set has either, those that a protocol finds worst (scored: the arm's pictures by it), or else those with
    the greatest palette distance. ValueError where there is nothing of all that.
    """
    figures = evaluation.figures(arm)
    there = {name for one in figures for name in one}

    def mean(index: int, name: str, otherwise: float) -> float:
        return float(np.mean(figures[index].get(name, [otherwise])))

    def likeness(index: int) -> tuple[float, float]:
        return mean(index, "binding_accuracy", 1.0), mean(index, "texture_correlation", 1.0)

    if there & {"binding_accuracy", "texture_correlation"}:
        order = sorted(range(len(figures)), key=likeness)
    elif scored is not None and any(metric in PAIRWISE for metric in scored.metrics):
        return predictions.worst(scored, count)
    elif "palette_distance" in there:
        order = sorted(range(len(figures)), key=lambda index: -mean(index, "palette_distance", 0.0))
    else:
        raise ValueError("these sets have no figure that tells which are worst: leave --worst out")
    return order[:count]


def given(one: EvaluationSet) -> list[Panel]:
    """Assets and pose of a set, and the person whom they are put on."""
    person: list[Panel] = [] if one.person is None else [("the person", one.person.image)]
    return [*((asset.phrase, asset.image) for asset in one.assets), (one.pose, parts(one.maps)), *person]
