"""Sets to compose from a list of files: one JSON object a line, as `infer.table1` writes them.

{"prompt": "A person wearing a red top and blue pants.", "seed": 0, "iuv": "iuv/000.png",
 "assets": [{"file": "assets/000_0.png", "phrase": "a red top", "kind": "top"}, ...]}

Files lie beside the list. Nothing tells where a picture shows which garment but the body: its parts are the regions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcjax.assets import Asset
from fcjax.frame import Frame
from fcjax.metrics import Target
from fcjax.metrics.scores import FACE
from fcjax.pictures import open_rgb, read
from infer.prepared_sets import completed, maps_of
from infer.sets import EvaluationSet, palettes_of
from infer.values import check, key_problems


@dataclass(frozen=True)
class ListedAsset:
    """An asset's picture (cut out, or on near-white; a face edge to edge), its phrase and what it is."""

    file: str
    phrase: str
    kind: str
    sample: int | None = None
    """Of the data set that it comes from."""


@dataclass(frozen=True)
class ListedSet:
    """One line. person: the sample whose body it is."""

    prompt: str
    assets: tuple[ListedAsset, ...]
    iuv: str
    seed: int
    person: int | None = None


class ListedSets:
    """`sets[index]`: the set of a line, at a model's size."""

    def __init__(self, path: Path, size: tuple[int, int]):
        self.folder, self.size, self.lines = path.parent, size, read_sets(path)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> EvaluationSet:
        one = self.lines[index]
        kinds = tuple(asset.kind for asset in one.assets)
        assets = tuple(_open(self.folder / asset.file, asset) for asset in one.assets)
        stored = open_rgb(self.folder / one.iuv)
        iuv = Frame.of(stored.shape[:2], *self.size).labels(stored)
        nowhere = np.zeros(self.size, np.uint8)
        target = Target(kinds, palettes_of(assets, kinds), completed(nowhere, iuv[..., 0], kinds))
        return EvaluationSet(one.prompt, assets, maps_of(iuv), target, one.iuv, seed=one.seed)


def _open(path: Path, asset: ListedAsset) -> Asset:
    """What has an alpha channel is cut out already, even if that is opaque everywhere."""
    image = read(path, what="asset")
    return Asset.from_image(image, asset.phrase, whole=asset.kind == FACE or image.has_transparency_data)


def read_sets(path: Path) -> list[ListedSet]:
    """The lines of a list. ValueError for one that is no set, by its number, and for files that are not there."""
    if not path.is_file():
        raise ValueError(f"no such list of sets: {path}; python -m infer.table1 writes one")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [_read(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no set")
    files = {name for one in found for name in (one.iuv, *(asset.file for asset in one.assets))}
    missing = sorted(name for name in files if not (path.parent / name).is_file())
    if missing:
        raise ValueError(f"{path} names {len(missing)} files that are not beside it: {', '.join(missing[:5])}")
    return found


def _read(line: str, place: str) -> ListedSet:
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON ({error}); one object a line is expected") from error
    if not isinstance(given, Mapping) or not isinstance(given.get("assets", []), list):
        raise ValueError(f"{place} must be an object with prompt, assets (a list), iuv and seed")
    assets: list[Any] = given.get("assets", [])
    problems = list(key_problems(ListedSet, given, ""))
    for number, asset in enumerate(assets):
        if isinstance(asset, Mapping):
            problems += key_problems(ListedAsset, asset, f"assets[{number}].")
        else:
            problems.append(f"assets[{number}] must be an object with file, phrase and kind")
    if problems:
        raise ValueError(f"{place}: {'; '.join(problems)}")
    for name, kind, words in (("prompt", str, "text"), ("iuv", str, "a file's name"), ("seed", int, "a whole number")):
        check(f"{place}: {name}", given[name], kind, words)
    for asset in assets:
        for name in ("file", "phrase", "kind"):
            check(f"{place}: an asset's {name}", asset[name], str, "text")
    return ListedSet(**{**given, "assets": tuple(ListedAsset(**asset) for asset in assets)})
