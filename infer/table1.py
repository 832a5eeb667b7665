"""Builds a test set of several garments a person, such as Table 1 of the paper: sets with prompts, from a prepared set.

python -m infer.table1 --data OUT --count 100 --garments 2 3 4 --seed 0 --out outputs/table1

Every set has one person's body (and face, where the data set shows it) and garments that belong together, each of
another person: a top and something below, or a dress, and of coat, shoes, hat, bag and scarf as many as are wanted.
DIR/sets.jsonl lists prompt, assets, body map and seed; python -m infer.evaluate --sets DIR/sets.jsonl composes and
scores them. The same seed draws the same sets.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from fcjax.cli import run
from fcjax.data import Prepared
from fcjax.data.captioner import listed
from fcjax.metrics.scores import FACE
from infer.listed_sets import ListedAsset, ListedSet
from infer.prepared_sets import GROUP_OF, stored_asset

OUTER = ("coat", "outer", "jacket")
EXTRAS = ("outer", "shoes", "hat", "bag", "scarf")
BASES = (("upper", "lower"), ("dress",))
PERSONS = 20
"""So many people are tried before a set counts as impossible."""
LEAST_PIXELS = 64
"""An asset of which every stored canvas shows less is no reference."""


@dataclass(frozen=True)
class Request:
    """Which sets to draw, and where they go."""

    data: Path
    """A prepared data set: what train.prepare wrote."""
    out: Path = Path("outputs/table1")
    count: int = 100
    """Number of sets."""
    garments: tuple[int, ...] = (2, 3, 4)
    """How many garments a set has, in turn; the face is none."""
    seed: int = 0

    def check(self) -> None:
        """ValueError for what cannot be asked."""
        if self.count < 1:
            raise ValueError(f"count is {self.count}; expected at least 1")
        most = max(map(len, BASES)) + len(EXTRAS)
        if not self.garments or not all(2 <= number <= most for number in self.garments):
            raise ValueError(f"garments is {self.garments}; expected numbers from 2 to {most}")
        if (self.out / "sets.jsonl").exists():
            raise ValueError(f"{self.out} holds sets already: name another folder")


@dataclass(frozen=True)
class Item:
    """An asset of a sample: its number there (from 1), the layout that shows most of it, how it is worn."""

    sample: int
    number: int
    layout: int
    kind: str
    phrase: str

    @property
    def role(self) -> str:
        """What it is in an outfit."""
        return "outer" if self.kind in OUTER else GROUP_OF.get(self.kind, self.kind)


@dataclass(frozen=True)
class Catalogue:
    """All of a data set that sets are drawn from, without its pictures."""

    bodies: list[int]
    faces: dict[int, Item]
    garments: dict[str, list[Item]]

    @classmethod
    def of(cls, data: Prepared, quiet: bool = False) -> "Catalogue":
        """Goes through the data set once. ValueError where no sample has a body map."""
        found = cls([], {}, {})
        for sample in tqdm(range(len(data)), unit="sample", desc="looking through", disable=quiet):
            record = data[sample]
            if record["iuv"][..., 0].any():
                found.bodies.append(sample)
            for item in _items(record, sample):
                if item.role == FACE:
                    found.faces[sample] = item
                else:
                    found.garments.setdefault(item.role, []).append(item)
        if not found.bodies:
            raise ValueError(f"no sample of {data.folder} has a body map, which sets are composed on")
        return found


def _items(record: dict[str, Any], sample: int) -> list[Item]:
    items = []
    for number, (kind, phrase) in enumerate(zip(record["kinds"], record["phrases"], strict=True), 1):
        shown = [np.count_nonzero(record[f"owners{layout}"] == number) for layout in range(record["layouts"])]
        if max(shown) >= LEAST_PIXELS:
            items.append(Item(sample, number, int(np.argmax(shown)), kind, phrase))
    return items


def draw(catalogue: Catalogue, count: int, rng: np.random.Generator) -> tuple[int, list[Item]]:
    """A person and `count` garments, each of another sample and with a phrase of its own; the person's face first.

    ValueError where the data set has too few samples or kinds of garments.
    """
    outfits = [base for base in BASES if 0 <= count - len(base) <= len(EXTRAS)]
    extras = [role for role in EXTRAS if catalogue.garments.get(role)]
    # A person may wear what is rare in the data set; then another one is drawn.
    for person in rng.permutation(catalogue.bodies)[:PERSONS].tolist():
        for place in rng.permutation(len(outfits)):
            base = outfits[place]
            roles = [*base, *(str(role) for role in rng.permutation(extras)[: count - len(base)])]
            garments = _drawn(catalogue, roles, person, rng) if len(roles) == count else None
            if garments is not None:
                face = catalogue.faces.get(person)
                return person, garments if face is None else [face, *garments]
    there = ", ".join(f"{len(items)} {role}" for role, items in sorted(catalogue.garments.items()))
    raise ValueError(
        f"{count} garments that go together, each of another sample, are not to be had; the data set shows "
        f"{there or 'no garments'}: ask for fewer with --garments, or prepare more samples"
    )


def _drawn(catalogue: Catalogue, roles: Sequence[str], person: int, rng: np.random.Generator) -> list[Item] | None:
    """One item a role, in their order; None where some role has none left."""
    chosen: dict[str, Item] = {}
    # What is rarest chooses first.
    for role in sorted(roles, key=lambda role: len(catalogue.garments.get(role, []))):
        taken = {person, *(item.sample for item in chosen.values())}
        said = {item.phrase for item in chosen.values()}
        left = [
            item for item in catalogue.garments.get(role, []) if item.sample not in taken and item.phrase not in said
        ]
        if not left:
            return None
        chosen[role] = left[int(rng.integers(len(left)))]
    return [chosen[role] for role in roles]


def prompt_of(items: Sequence[Item]) -> str:
    """ "A woman with brown hair wearing a red top and blue pants." """
    faces = [item.phrase for item in items if item.role == FACE]
    worn = listed([item.phrase for item in items if item.role != FACE])
    sentence = f"{listed(faces) if faces else 'a person'} wearing {worn}."
    return f"{sentence[0].upper()}{sentence[1:]}"


def build(request: Request, quiet: bool = False) -> list[ListedSet]:
    """Writes the sets' pictures and, last, their list."""
    data = Prepared(request.data)
    catalogue = Catalogue.of(data, quiet)
    drawn = [
        draw(catalogue, request.garments[number % len(request.garments)], np.random.default_rng([request.seed, number]))
        for number in range(request.count)
    ]
    for name in ("assets", "iuv"):
        (request.out / name).mkdir(parents=True, exist_ok=True)
    sets = []
    for number, (person, items) in enumerate(tqdm(drawn, unit="set", desc="writing", disable=quiet)):
        body = f"iuv/{number:03d}.png"
        Image.fromarray(data[person]["iuv"]).save(request.out / body)
        assets = []
        for place, item in enumerate(items):
            asset, _ = stored_asset(data[item.sample], item.number, item.layout)
            file = f"assets/{number:03d}_{place}_{item.role}.png"
            Image.fromarray(asset.image).save(request.out / file)
            assets.append(ListedAsset(file, item.phrase, item.kind, item.sample))
        sets.append(ListedSet(prompt_of(items), tuple(assets), body, number, person))
    lines = (json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in sets)
    (request.out / "sets.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return sets


def main(request: Request) -> None:
    """Draw the sets and write them."""
    request.check()
    sets = build(request)
    print(f"{len(sets)} sets: {request.out / 'sets.jsonl'}")


if __name__ == "__main__":
    run(main)
