"""Pictures compared without knowing whose they are, as in the paper's votes: the page, its key, and the count of votes.

The page shows every set's pictures in an order of its own and saves what is chosen as JSON; which picture is whose
stands in the key, a file of its own.
"""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcjax.metrics import bootstrap_runs
from infer.figures import aligned, cell, counted
from infer.report_page import document, figure, row
from infer.sheet import Panel

QUESTIONS = {
    "quality": "Which picture has the better quality?",
    "fidelity": "Which picture is truer to the garments and the words?",
}
"""What a page asks; the second only where it shows what everybody was given."""
HEIGHT = 1024
"""Pixels of the pictures that are judged, at most."""
_SCRIPT = """
const VOTER = Math.random().toString(36).slice(2);
function save() {
  const sets = [...document.querySelectorAll("section")];
  const votes = sets.map((set, number) => {
    const vote = {set: number};
    for (const name of QUESTIONS) {
      const chosen = set.querySelector(`input[name="${name}_${number}"]:checked`);
      vote[name] = chosen ? Number(chosen.value) : null;
    }
    return vote;
  });
  const text = JSON.stringify({page: PAGE, voter: VOTER, votes: votes}, null, 1);
  const held = new Blob([text], {type: "application/json"});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(held);
  link.download = `votes-${PAGE}.json`;
  link.click();
}
"""


@dataclass(frozen=True, eq=False)
class Contest:
    """One set: what everybody was given, and what each arm made of it."""

    prompt: str
    given: Sequence[Panel]
    made: Mapping[str, np.ndarray]


def blind_page(title: str, contests: Sequence[Contest], seed: int) -> tuple[str, dict[str, Any]]:
    """The page, and its key, which holds the seed of the orders. ValueError where there is nothing to compare."""
    if not contests or min(len(contest.made) for contest in contests) < 2:
        raise ValueError("a comparison needs pictures of two at least")
    orders = balanced_orders(list(contests[0].made), len(contests), seed)
    told = any(contest.given for contest in contests)
    questions = {name: words for name, words in QUESTIONS.items() if told or name != "fidelity"}
    parts = [
        _section(number, contest, [contest.made[arm] for arm in order], questions)
        for number, (contest, order) in enumerate(zip(contests, orders, strict=True))
    ]
    page = hashlib.sha256(("".join(parts) + json.dumps(orders)).encode()).hexdigest()[:12]
    script = f"const PAGE = {json.dumps(page)}; const QUESTIONS = {json.dumps(list(questions))};{_SCRIPT}"
    body = (
        "<p>Choose a picture for each question; leave a question out where you cannot tell. Then save.</p>\n"
        + "\n".join(parts)
        + '\n<button onclick="save()">Save my votes</button>'
    )
    return document(title, body, script), {"page": page, "questions": questions, "seed": seed, "orders": orders}


def balanced_orders(arms: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """An order of the arms for each set, by chance, but every arm stands at every place equally often (to within one
    round)."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(len(arms)) for _ in range(-(-count // len(arms)))]
    # A round's orders are one order turned.
    orders = [np.roll(first, turn) for first in rounds for turn in range(len(arms))][:count]
    return [[arms[int(place)] for place in orders[number]] for number in rng.permutation(count)]


def _section(number: int, contest: Contest, pictures: Sequence[np.ndarray], questions: Mapping[str, str]) -> str:
    shown = "".join(figure(f"picture {place}", picture, HEIGHT) for place, picture in enumerate(pictures, 1))
    asked = "".join(
        f"<fieldset><legend>{words}</legend>"
        + "".join(
            f'<label><input type="radio" name="{name}_{number}" value="{place}"> picture {place + 1}</label>'
            for place in range(len(pictures))
        )
        + "</fieldset>"
        for name, words in questions.items()
    )
    given = row([*contest.given]) if contest.given else ""
    head = f"<h2>{number + 1}. {html.escape(contest.prompt)}</h2>"
    return f'<section>{head}{given}<div class="row made">{shown}</div>{asked}</section>'


Ballot = dict[int, dict[str, str]]
"""Of one voter: by set and question the arm that was chosen; what was left out is not there."""


def ballots(votes: Sequence[Path], key: Path) -> tuple[dict[str, Any], list[Ballot]]:
    """The key, and what every voter chose. Of one voter's votes on a set the last one counts, and a file once.

    ValueError for files that are none, or of another page, and for votes on what the page does not show.
    """
    known = _read(key, {"page", "orders", "questions"}, "the key of a comparison page")
    orders, questions = known["orders"], known["questions"]
    names = [arm for order in orders for arm in order] if _lists(orders) else []
    if not names or not all(isinstance(arm, str) for arm in names) or not isinstance(questions, dict) or not questions:
        raise ValueError(
            f"{key} is not the key of a comparison page: orders are lists of names, and questions an object"
        )
    found: dict[Any, Ballot] = {}
    for path in dict.fromkeys(one.resolve() for one in votes):
        given = _read(path, {"page", "votes"}, "votes that a comparison page saved")
        if given["page"] != known["page"]:
            raise ValueError(f"{path} holds votes on the page {given['page']}, the key {key} is of {known['page']}")
        if not isinstance(given["votes"], list):
            raise ValueError(f"{path} is not votes that a comparison page saved: votes must be a list")
        own = found.setdefault(str(given.get("voter", path)), {})
        for vote in given["votes"]:
            place = vote.get("set") if isinstance(vote, dict) else None
            if place is None or not _is_place(place, orders):
                raise ValueError(f"{path} votes on a set that the page does not show: {vote}")
            chosen = {name: vote[name] for name in questions if vote.get(name) is not None}
            if not all(_is_place(one, orders[place]) for one in chosen.values()):
                raise ValueError(f"{path} votes for a picture that the page does not show: {vote}")
            own[place] = {name: orders[place][one] for name, one in chosen.items()}
    return known, list(found.values())


def _lists(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, list) for one in value)


def _is_place(value: Any, of: Sequence[Any]) -> bool:
    """Whether this is a place in a list, from 0."""
    return type(value) is int and 0 <= value < len(of)


def count_votes(votes: Sequence[Path], key: Path) -> str:
    """The tally as text: a line an arm, a column a question: votes, and their share with its interval over voters and
    sets."""
    known, cast = ballots(votes, key)
    orders, questions = known["orders"], known["questions"]
    lines = [["", *questions]]
    for arm in sorted({arm for order in orders for arm in order}):
        line = [arm]
        for name in questions:
            runs = [
                [[float(own[place][name] == arm)] if name in own.get(place, {}) else [] for place in range(len(orders))]
                for own in cast
            ]
            line.append(f"{sum(sum(map(sum, run)) for run in runs):.0f}: {cell(bootstrap_runs(runs), 2)}")
        lines.append(line)
    given = [sum(name in chosen for own in cast for chosen in own.values()) for name in questions]
    lines += [["votes", *map(str, given)], ["abstentions", *(str(len(cast) * len(orders) - count) for count in given)]]
    return f"{counted(len(cast), 'voter')}, {counted(len(orders), 'set')}\n{aligned(lines)}"


def _read(path: Path, keys: set[str], what: str) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read {path} as {what}: {error}") from None
    if not isinstance(said, dict) or not keys <= said.keys():
        raise ValueError(f"{path} is not {what}: an object with {' and '.join(sorted(keys))} is expected")
    return said
