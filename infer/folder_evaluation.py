"""Folders of pictures scored by a protocol: what `infer.evaluate --predictions` prints, writes and shows."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcjax.metrics.protocols import PAIRWISE
from fcjax.pictures import open_rgb
from infer import predictions
from infer.blind import Contest
from infer.evaluation_request import Request
from infer.pages import write_contests
from infer.predictions import WORDS, Scored, lines, report, rows, score_folders, title, working_folder, worst, write_csv
from infer.report_page import report_page
from infer.scoring import Networks
from infer.sheet import sheet


def score_predictions(request: Request, networks: Networks | None = None) -> None:
    """Score every folder, print a table of each, write what was asked for. The first folder's sheet is --worst's.

    networks: in place of those of the request's weights.
    """
    flags = request.folders
    protocol, metrics = flags.check()
    if request.worst is not None and not any(metric in PAIRWISE for metric in metrics):
        raise ValueError("FID and KID know no worst pictures: leave --worst out")
    networks = networks or predictions.load_networks(protocol, metrics, flags)
    with working_folder(flags.work, request.outputs) as work:
        scored: dict[str, Scored] = {}
        for place, (name, made) in enumerate(zip(request.names, request.drawn_by, strict=True)):
            own = dataclasses.replace(flags, predictions=Path(made))
            found = score_folders(own, work / str(place) if place else work, networks, seed=request.seed)
            scored[name] = dataclasses.replace(found, name=name)
        print("\n\n".join(predictions.table(one) for one in scored.values()))
        _write(request, scored)


def _write(request: Request, scored: Mapping[str, Scored]) -> None:
    first, *_ = scored.values()
    if request.json is not None:
        others = {name: report(one) for name, one in scored.items() if one is not first}
        content = report(first) | ({"also": others} if others else {})
        request.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    if request.folders.csv is not None:
        alone = len(scored) == 1
        names = [
            pair.name if alone else f"{own}/{pair.name}" for own, one in scored.items() for pair in one.matched.pairs
        ]
        write_csv(request.folders.csv, names, [figures for one in scored.values() for figures in one.figures])
    if request.worst is not None:
        sheet(rows(first, worst(first, request.rows))).save(request.worst)
    if request.html is not None and request.blind:
        write_contests(request.html, contests(scored, request.rows))
    elif request.html is not None:
        request.html.write_text(page(request, scored), encoding="utf-8")


def contests(scored: Mapping[str, Scored], count: int) -> list[Contest]:
    """The first pictures that all folders have, for a comparison page; of pairs the truth is shown."""
    made = {name: {pair.name: pair for pair in one.matched.pairs} for name, one in scored.items()}
    first = next(iter(made.values()))
    shared = [name for name in first if all(name in own and own[name].prediction for own in made.values())]
    paired = next(iter(scored.values())).flags.pairing == "paired"
    found = []
    for name in shared[:count]:
        truth = first[name].truth
        given = [("truth", open_rgb(truth))] if paired and truth is not None else []
        found.append(Contest(name, given, {own: _picture(pairs[name].prediction) for own, pairs in made.items()}))
    return found


def _picture(path: Path | None) -> np.ndarray:
    assert path is not None
    return open_rgb(path)


def page(request: Request, scored: Mapping[str, Scored]) -> str:
    """A report of all folders."""
    first, *_ = scored.values()
    summaries = {
        name: {WORDS[metric]: figure for metric, figure in one.summary().items()} for name, one in scored.items()
    }
    if first.flags.pairing == "paired":
        shown = rows(first, range(min(request.rows, len(first.matched.pairs))))
    else:
        shown = [
            [(f"{name}: {one.prompt}", picture) for name, picture in one.made.items()]
            for one in contests(scored, request.rows)
        ]
    told = {**first.networks, **predictions.versions()}
    return report_page(title(first), told, summaries, shown, {name: lines(one) for name, one in scored.items()})
