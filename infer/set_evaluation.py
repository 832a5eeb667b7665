"""Sets (Wardrobe's, a prepared data set's, or of a list) drawn into a folder (`infer.drawing`) and scored from there.

No more than one set a device is held at a time.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from tqdm import tqdm

from fcjax.data import read_index
from fcjax.local_devices import accelerators
from fcjax.metrics import places_exchanged, score
from fcjax.pictures import open_rgb
from fcjax.wardrobe import EDITION
from infer import predictions
from infer.arms import TRUTH, Arm, make_arms, picture_arms
from infer.blind import Contest
from infer.drawing import Sets, draw, drawn, picture_file, save
from infer.evaluation import Evaluation, Results, face_asset, given, own_settings, report, table, weights, worst
from infer.evaluation_request import Request
from infer.figures import counted
from infer.folders import ENDINGS, Matched, Pair
from infer.likeness import NOTHING, Measure, digests, likeness
from infer.listed_sets import ListedSets, read_sets
from infer.pages import write_page
from infer.predictions import FolderFlags, Scored, score_matched, working_folder, write_csv
from infer.prepared_sets import PreparedSets
from infer.scoring import SIDES, Networks, claim
from infer.sets import DrawnSets, EvaluationSet, WardrobeSets
from infer.sheet import Panel, sheet

SWAP_SCAN = 60
"""The swap test looks at no more than this many sets for each that it wants (about every fifth serves)."""


def score_drawn(
    sets: Sets,
    columns: Sequence[Arm],
    folder: Path,
    count: int,
    further: Mapping[str, tuple[str, Measure]] = NOTHING,
    *,
    seed: int = 0,
    swaps: int = 0,
    quiet: bool = False,
) -> Evaluation:
    """The figures of all pictures in the folder, set by set; what is not there is drawn. The evaluation holds no
    pictures.

    further: figures of networks by name, with their words in the table and what measures them (similarities of CLIP or
    DINO, for instance). swaps: how many sets the swap test takes, of which the first `count` serve where they can.
    ValueError where there are not so many.
    """
    words = {name: said for name, (said, _) in further.items()}
    results = Evaluation({column.name: Results() for column in columns}, further=words)
    with tqdm(total=count + swaps, unit="set", desc="evaluating", disable=quiet) as bar:
        for index in range(count + SWAP_SCAN * swaps):
            left = swaps - len(results.swap_indices)
            # A quick look spares the making of most sets that do not serve.
            if index >= count and not (left and sets.may_have_swatches(index)):  # pyright: ignore
                continue
            one = sets[index]
            if index < count:
                _score(one, columns, folder, index, further, seed, results)
                bar.update()
            if left and one.swatches is not None:
                _exchange(one, one.swatches, columns, folder, index, seed, results)
                bar.update()
    if len(results.swap_indices) < swaps:
        raise ValueError(f"found {len(results.swap_indices)} sets with two different swatches, wanted {swaps}")
    return results


def _score(
    one: EvaluationSet,
    columns: Sequence[Arm],
    folder: Path,
    index: int,
    further: Mapping[str, tuple[str, Measure]],
    seed: int,
    results: Evaluation,
) -> None:
    """Notes the figures of every column's picture of a set."""
    for place, column in enumerate(columns):
        picture = open_rgb(drawn(one, column, folder, place, index, seed))
        tried_on = one.person is not None and column.composes
        raw = open_rgb(picture_file(folder, f"{place}-raw", index)) if tried_on else None
        scores = score(picture, one.target, raw)
        scores.figures.update({name: measure(picture, one) for name, (_, measure) in further.items()})
        results.results[column.name].scores.append(scores)
    results.faces.append(face_asset(one.target))
    results.groups.append(_group(one, index))
    results.prompts.append(one.prompt)
    results.poses.append(one.pose)
    results.samples.append(one.samples)


def _exchange(
    one: EvaluationSet,
    pair: tuple[int, int],
    columns: Sequence[Arm],
    folder: Path,
    index: int,
    seed: int,
    results: Evaluation,
) -> None:
    """Notes of every column that composes whether two swatches change places with their phrases."""
    for place, column in enumerate(columns):
        if column.composes:
            before, after = (
                open_rgb(drawn(one, column, folder, place, index, seed, exchanged)) for exchanged in (None, pair)
            )
            results.results[column.name].swaps.append(places_exchanged(before, after, one.target, pair))
    results.swap_indices.append(index)
    results.swap_groups.append(_group(one, index))


def _group(one: EvaluationSet, index: int) -> int:
    return index if one.group is None else one.group


def by_protocol(
    sets: PreparedSets, columns: Sequence[Arm], folder: Path, count: int, flags: FolderFlags, seed: int, nets: Networks
) -> dict[str, Scored]:
    """Every model's pictures of the first `count` sets against the people of the data set, at the model's size, by a
    published protocol. The folder may hold pictures of more sets."""
    for index in range(count):
        path = picture_file(folder, "people", index)
        if not path.exists():
            save(sets.picture(index), path)
    found = {}
    for place, column in enumerate(columns):
        if column.name != TRUTH:
            pairs = [
                Pair(f"{index:06d}", picture_file(folder, place, index), picture_file(folder, "people", index))
                for index in range(count)
            ]
            made, true = folder / str(place), folder / "people"
            size = f"{sets.height}x{sets.width}"
            origin = f"truth: the data set's pictures at {size} (height x width), not the files that it was made from"
            matched = Matched(pairs, sizes={side: {size: count} for side in SIDES}, origin=origin)
            own = dataclasses.replace(flags, predictions=made, truth=true, csv=None, work=None)
            kept = folder / f"scores-{place}-of-{count}"
            scored = score_matched(matched, own, kept, nets, seed=seed)
            # The pictures' own folders may be gone when their figures are read.
            told = dataclasses.replace(own, predictions=None, truth=None)
            found[column.name] = dataclasses.replace(scored, name=column.name, flags=told)
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
    further = likeness(request.clip, request.dino, request.faces)
    made_from = _checked_source(request)
    columns, size = _columns(request)
    if request.blind and sum(column.composes for column in columns) < 2:
        raise ValueError(f"--blind compares two at least, and {request.model} has no binding: name another with --also")
    sets = _open(request, size)
    if isinstance(sets, PreparedSets):
        for column in columns:
            if column.condition is not None:
                sets.data.require(column.condition)
    count = _count(request, sets)
    with working_folder(flags.work, request.outputs) as folder:
        claim(folder, {**made_from, **_drawn_by(request, size)})
        if request.shard is not None:
            draw(sets, columns, folder, count, request.seed, request.shard)
            print(f"the pictures of shard {request.shard[0]} of {request.shard[1]} are in {folder}")
            return
        if len(accelerators()) > 1:
            # One alone draws while it scores, so that every set is made once.
            draw(sets, columns, folder, count, request.seed, (0, 1))
        evaluation = score_drawn(sets, columns, folder, count, further, seed=request.seed, swaps=request.swaps)
        scored: dict[str, Scored] = {}
        if wants_protocol:
            assert isinstance(sets, PreparedSets) and networks is not None
            scored = by_protocol(sets, columns, folder, count, flags, request.seed, networks)
        said = title(request, sets, columns, count)
        print("\n\n".join([said, table(evaluation), *map(predictions.table, scored.values())]))
        _write(request, said, sets, columns, folder, evaluation, scored, size)


def _columns(request: Request) -> tuple[list[Arm], tuple[int, int]]:
    """Who draws, and the size of all pictures."""
    if request.scores_pictures:
        folders = [Path(name) for name in request.drawn_by]
        truth = request.wardrobe not in (None, "drawn")
        held = None if request.sets is None else len(read_sets(request.sets))
        return picture_arms(folders, request.names, _count(request, None), truth=truth, sets=held)
    paired = request.folders.pairing == "paired"
    return make_arms(
        request.model,
        request.also,
        {"steps": request.steps, "sampler": request.sampler, "guidance": request.guidance},
        size=request.size,
        binding_off=request.binding_off,
        truth=paired if request.data is not None else request.wardrobe not in (None, "drawn"),
        tries_on=request.task == "tryon",
        labels=request.labels,
    )


def _count(request: Request, sets: Any) -> int:
    """How many sets are scored. ValueError where there are not so many."""
    if request.wardrobe is not None:
        return request.wanted
    held = len(read_sets(request.sets)) if request.sets is not None else len(sets)
    count = held if request.count is None else request.count
    if count > held:
        raise ValueError(f"count is {count}, {request.data or request.sets} has {held} sets")
    return count


def _checked_source(request: Request) -> dict[str, Any]:
    """What the sets are made from, before anything slow is done. ValueError where it is not there."""
    if request.wardrobe is not None:
        return {"split": request.wardrobe, "edition": EDITION}
    if request.data is not None:
        return {"data": str(request.data), "index": read_index(request.data)}
    assert request.sets is not None
    read_sets(request.sets)
    return {"sets": str(request.sets), "sha256": hashlib.sha256(request.sets.read_bytes()).hexdigest()}


def _open(request: Request, size: tuple[int, int]) -> Sets:
    if request.wardrobe == "drawn":
        return DrawnSets(request.seed, *size)
    if request.wardrobe is not None:
        return WardrobeSets(request.wardrobe, request.seed, *size)
    if request.data is None:
        assert request.sets is not None
        return ListedSets(request.sets, size)
    assert request.task is not None
    return PreparedSets(request.data, request.task, request.folders.pairing, request.seed, size)


def _drawn_by(request: Request, size: tuple[int, int]) -> dict[str, Any]:
    """All that decides what the pictures look like."""
    names = ("task", "binding_off", "seed", "steps", "sampler", "guidance")
    said = {name: getattr(request, name) for name in names}
    for name, used in own_settings(request).items():
        said[name] = list(used.values()) if isinstance(used, dict) else used
    # The pictures lie by the place of their column, whatever it is called.
    drawn_by = list(weights(request).values())
    return {**said, "pairing": request.folders.pairing, "size": list(size), "weights": drawn_by}


def title(request: Request, sets: Sets, columns: Sequence[Arm], count: int) -> str:
    """What was scored, and what was not."""
    source = request.data or request.sets
    split = sets.data.index["settings"].get("split") if isinstance(sets, PreparedSets) else None
    named = f"{source}, split {split}" if split else str(source)
    said = counted(count, f"{request.wardrobe} set") if source is None else f"{named}, {counted(count, 'set')}"
    if request.data is not None:
        said += f", {request.task}, {request.folders.pairing}"
    if count < (held := _held(sets, columns, count)):
        said += f", A SUBSET of {held}"
    if isinstance(sets, PreparedSets) and sets.without_partner:
        said += f", {len(sets.without_partner)} left out that nobody can exchange garments with"
    return said


def _held(sets: Sets, columns: Sequence[Arm], count: int) -> int:
    """How many sets there are; of Wardrobe's there is no end, but there may be pictures of more than are scored."""
    if isinstance(sets, PreparedSets | ListedSets):
        return len(sets)
    return max([count, *(len(column.drawn) for column in columns)])


def _write(
    request: Request,
    said: str,
    sets: Sets,
    columns: Sequence[Arm],
    folder: Path,
    evaluation: Evaluation,
    scored: dict[str, Scored],
    size: tuple[int, int],
) -> None:
    count, main = len(evaluation.prompts), request.names[0]
    if request.json is not None:
        document = {
            "title": said,
            "counts": {"scored": count, "of": _held(sets, columns, count)},
            **({"data": sets.made_from} if isinstance(sets, PreparedSets) else {}),
            **report(request, evaluation, size),
            "networks": digests([*request.dino, *([request.clip] if request.clip is not None else [])]),
            "protocols": {name: predictions.report(one) for name, one in scored.items()},
        }
        request.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if request.folders.csv is not None:
        lines: list[dict[str, Any]] = []
        for arm in (column.name for column in columns if column.composes):
            protocol = scored[arm].figures if scored else [{}] * count
            for own, other in zip(evaluation.figures(arm), protocol, strict=True):
                means = {name: float(np.mean(values)) for name, values in own.items()}
                lines.append({"model": arm, **means, **{f"protocol_{name}": value for name, value in other.items()}})
        write_csv(request.folders.csv, [f"{place % count:06d}" for place in range(len(lines))], lines)
    first = range(min(request.rows, count))
    if request.html is not None:
        contests = [_contest(sets, columns, folder, index) for index in first if request.blind]
        shown = contests or [_row(sets, columns, folder, index) for index in first]
        write_page(request, said, evaluation, shown, scored)
    if request.sheet is not None:
        sheet([_row(sets, columns, folder, index) for index in first]).save(request.sheet)
    if request.worst is not None:
        chosen = worst(evaluation, main, request.rows, scored.get(main))
        sheet([_row(sets, columns, folder, index) for index in chosen]).save(request.worst)
    if request.swap_sheet is not None and evaluation.swap_indices:
        chosen = evaluation.swap_indices[: request.rows]
        sheet([_swap_row(sets, columns, folder, index) for index in chosen]).save(request.swap_sheet)
    if request.pictures is not None:
        place = next(place for place, column in enumerate(columns) if column.name == main)
        keep_pictures([picture_file(folder, place, index) for index in first], request.pictures)


def keep_pictures(paths: Sequence[Path], folder: Path) -> None:
    """Copies numbered pictures into a folder, in place of all that are there of an earlier run."""
    for path in folder.iterdir():
        if path.stem.isdecimal() and path.suffix.lower() in ENDINGS:
            path.unlink()
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def _shown(column: Arm, folder: Path, place: int, index: int) -> UInt8[ndarray, "h w 3"]:
    return open_rgb(column.drawn.get(index) or picture_file(folder, place, index))


def _contest(sets: Sets, columns: Sequence[Arm], folder: Path, index: int) -> Contest:
    """One set for a comparison page."""
    one = sets[index]
    made = {
        column.name: _shown(column, folder, place, index) for place, column in enumerate(columns) if column.composes
    }
    return Contest(one.prompt, given(one), made)


def _row(sets: Sets, columns: Sequence[Arm], folder: Path, index: int) -> list[Panel]:
    """Assets, pose and every column's picture of one set, the truth last."""
    one = sets[index]
    places = sorted(range(len(columns)), key=lambda place: (not columns[place].composes, columns[place].name == TRUTH))
    labels = [columns[place].name for place in places]
    labels[0] += f": {one.prompt}"
    shown = [_shown(columns[place], folder, place, index) for place in places]
    return [*given(one), *zip(labels, shown, strict=True)]


def _swap_row(sets: Sets, columns: Sequence[Arm], folder: Path, index: int) -> list[Panel]:
    """Assets, pose and every composing column's two pictures of a set of the swap test."""
    row = given(sets[index])
    for place, column in enumerate(columns):
        if column.composes:
            after = open_rgb(picture_file(folder, f"{place}-exchanged", index))
            row += [(column.name, _shown(column, folder, place, index)), (f"{column.name}, phrases exchanged", after)]
    return row
