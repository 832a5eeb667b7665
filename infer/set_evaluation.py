"""Sets from files (a prepared data set, or a list of sets): drawn into a folder, then scored from there.

Every picture that is drawn stays in the working folder, so that a killed run goes on, many processes can share the
drawing, and no more than one set is held at a time.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from tqdm import tqdm

from fcjax.data import read_index
from fcjax.metrics import score
from fcjax.pictures import open_rgb
from infer import predictions
from infer.arms import TRUTH, Arm, make_arms
from infer.blind import Contest
from infer.compose import save_png
from infer.evaluation import Evaluation, Results, face_asset, given, report, table, worst
from infer.evaluation_request import Request
from infer.figures import prepare_file
from infer.likeness import NOTHING, Measure, likeness
from infer.listed_sets import ListedSets, read_sets
from infer.pages import write_page
from infer.predictions import FolderFlags, Scored, score_folders, working_folder, write_csv
from infer.prepared_sets import PreparedSets
from infer.request import weights_digest
from infer.scoring import Networks, claim
from infer.sets import EvaluationSet
from infer.sheet import Panel, sheet


class Sets(Protocol):
    """What is drawn: `sets[index]`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> EvaluationSet: ...


def picture_file(folder: Path, place: int | str, index: int) -> Path:
    """Where the picture of a set lies that a column of the table (by its place) drew, or that is the truth."""
    return folder / str(place) / f"{index:06d}.png"


def draw(
    sets: Sets, columns: Sequence[Arm], folder: Path, count: int, seed: int, shard: tuple[int, int], quiet: bool = False
) -> None:
    """Every column's picture of every set of this shard; those that are there stay."""
    first, step = shard
    for index in tqdm(range(first, count, step), unit="set", desc="drawing", disable=quiet):
        left = [place for place in range(len(columns)) if not picture_file(folder, place, index).exists()]
        one = sets[index] if left else None
        for place in left:
            assert one is not None
            own = index if one.seed is None else one.seed
            picture = columns[place].draw(one, one.assets, seed + own)
            _save(picture, picture_file(folder, place, index))


def _save(picture: UInt8[ndarray, "h w 3"], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(Image.fromarray(picture), path, None)


def score_drawn(
    sets: Sets,
    columns: Sequence[Arm],
    folder: Path,
    count: int,
    further: Mapping[str, tuple[str, Measure]] = NOTHING,
    quiet: bool = False,
) -> Evaluation:
    """The figures of all pictures in the folder, set by set; the evaluation holds no pictures.

    further: figures of networks by name, with their words in the table and what measures them (similarities of CLIP or
    DINO, for instance).
    """
    words = {name: said for name, (said, _) in further.items()}
    results = Evaluation({column.name: Results() for column in columns}, [], [], [], [], words)
    for index in tqdm(range(count), unit="set", desc="scoring", disable=quiet):
        one = sets[index]
        for place, column in enumerate(columns):
            picture = open_rgb(picture_file(folder, place, index))
            scores = score(picture, one.target)
            scores.figures.update({name: measure(picture, one) for name, (_, measure) in further.items()})
            results.results[column.name].scores.append(scores)
        results.faces.append(face_asset(one.target))
        results.prompts.append(one.prompt)
        results.poses.append(one.pose)
    return results


def by_protocol(
    sets: PreparedSets, columns: Sequence[Arm], folder: Path, count: int, flags: FolderFlags, seed: int, networks: Any
) -> dict[str, Scored]:
    """Every model's pictures against the people of the data set, at the model's size, by a published protocol."""
    for index in range(count):
        path = picture_file(folder, "people", index)
        if not path.exists():
            _save(sets.picture(index), path)
    found = {}
    for place, column in enumerate(columns):
        if column.name != TRUTH:
            own = dataclasses.replace(
                flags, predictions=folder / str(place), truth=folder / "people", csv=None, work=None
            )
            found[column.name] = score_folders(own, folder / f"scores-{place}", networks, seed=seed)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The program


def score_sets(request: Request, networks: Networks | None = None) -> None:
    """Draw the sets that the request names, score them, print the table, write what was asked for.

    networks: in place of those of the request's weights.
    """
    flags = request.folders
    wants_protocol = flags.protocol is not None
    if wants_protocol:
        protocol, metrics = dataclasses.replace(flags, predictions=Path(), truth=Path()).check()
        networks = networks or predictions.load_networks(protocol, metrics, flags)
    elif flags.metrics:
        raise ValueError("--metrics are a protocol's: name it with --protocol")
    if flags.csv is not None:
        prepare_file(flags.csv)
    further = likeness(request.clip, request.dino, request.faces)
    made_from = _checked_source(request)
    columns, size = make_arms(
        request.model,
        request.also,
        {"steps": request.steps, "sampler": request.sampler, "guidance": request.guidance},
        size=request.size,
        binding_off=request.without_binding,
        truth=request.data is not None and flags.pairing == "paired",
        condition="tryon" if request.task == "tryon" else "pose",
    )
    sets = _open(request, size)
    count = len(sets) if request.count is None else request.count
    if count > len(sets):
        raise ValueError(f"count is {count}, {request.data or request.sets} has {len(sets)} sets")
    with working_folder(flags.work, request.json) as folder:
        claim(folder, {**made_from, **_drawn_by(request, size)})
        draw(sets, columns, folder, count, request.seed, request.shard or (0, 1))
        if request.shard is not None:
            print(f"the pictures of shard {request.shard[0]} of {request.shard[1]} are in {folder}")
            return
        evaluation = score_drawn(sets, columns, folder, count, further)
        scored: dict[str, Scored] = {}
        if wants_protocol:
            assert isinstance(sets, PreparedSets)
            scored = by_protocol(sets, columns, folder, count, flags, request.seed, networks)
        print("\n\n".join([title(request, sets, count), table(evaluation), *_protocol_tables(scored)]))
        _write(request, sets, columns, folder, evaluation, scored, size)


def _checked_source(request: Request) -> dict[str, Any]:
    """What the sets are made from, before anything slow is done. ValueError where it is not there."""
    if request.data is not None:
        return {"data": str(request.data), "index": read_index(request.data)}
    assert request.sets is not None
    read_sets(request.sets)
    return {"sets": str(request.sets), "sha256": hashlib.sha256(request.sets.read_bytes()).hexdigest()}


def _open(request: Request, size: tuple[int, int]) -> PreparedSets | ListedSets:
    if request.data is None:
        assert request.sets is not None
        return ListedSets(request.sets, size)
    assert request.task is not None
    return PreparedSets(request.data, request.task, request.folders.pairing, request.seed, size)


def _drawn_by(request: Request, size: tuple[int, int]) -> dict[str, Any]:
    """All that decides what the pictures look like."""
    from fcjax.pretrained import locate

    names = ("task", "without_binding", "seed", "steps", "sampler", "guidance")
    weights = {name: weights_digest(locate(name)) for name in (request.model, *request.also)}
    said = {name: getattr(request, name) for name in names}
    return {**said, "pairing": request.folders.pairing, "size": list(size), "weights": weights}


def title(request: Request, sets: Sets, count: int) -> str:
    """What was scored, and what was not."""
    said = f"{request.data or request.sets}, {count} sets"
    if request.data is not None:
        said += f", {request.task}, {request.folders.pairing}"
    if count < len(sets):
        said += f", A SUBSET of {len(sets)}"
    if isinstance(sets, PreparedSets) and sets.without_partner:
        said += f", {len(sets.without_partner)} left out that nobody can exchange garments with"
    return said


def _protocol_tables(scored: dict[str, Scored]) -> list[str]:
    return [f"{name}: {predictions.table(one)}" for name, one in scored.items()]


def _write(
    request: Request,
    sets: Sets,
    columns: Sequence[Arm],
    folder: Path,
    evaluation: Evaluation,
    scored: dict[str, Scored],
    size: tuple[int, int],
) -> None:
    count = len(evaluation.prompts)
    if request.json is not None:
        document = {
            "title": title(request, sets, count),
            "counts": {"scored": count, "of": len(sets)},
            **report(request, evaluation, size),
            "protocols": {name: predictions.report(one) for name, one in scored.items()},
        }
        request.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if request.folders.csv is not None:
        lines: list[dict[str, Any]] = [
            {name: float(np.mean(values)) for name, values in own.items()} for own in evaluation.figures(request.model)
        ]
        for line, own in zip(lines, scored[request.model].figures if scored else [], strict=False):
            line |= {f"protocol_{name}": value for name, value in own.items()}
        write_csv(request.folders.csv, [f"{index:06d}" for index in range(count)], lines)
    first = range(min(request.rows, count))
    if request.html is not None:
        make = _contest if request.blind else _row
        write_page(request, title(request, sets, count), evaluation, [make(sets, columns, folder, n) for n in first])
    for path, chosen in (
        (request.sheet, first),
        (request.worst, worst(evaluation, request.model, request.rows)),
    ):
        if path is not None:
            sheet([_row(sets, columns, folder, index) for index in chosen]).save(path)


def _contest(sets: Sets, columns: Sequence[Arm], folder: Path, index: int) -> Contest:
    """One set for a comparison page."""
    one = sets[index]
    made = {
        column.name: open_rgb(picture_file(folder, place, index))
        for place, column in enumerate(columns)
        if column.composes
    }
    return Contest(one.prompt, given(one), made)


def _row(sets: Sets, columns: Sequence[Arm], folder: Path, index: int) -> list[Panel]:
    """Assets, pose and every column's picture of one set, the truth last."""
    one = sets[index]
    places = sorted(range(len(columns)), key=lambda place: not columns[place].composes)
    labels = [columns[place].name for place in places]
    labels[0] += f": {one.prompt}"
    shown = [open_rgb(picture_file(folder, place, index)) for place in places]
    return [*given(one), *zip(labels, shown, strict=True)]
