"""DressCode: tops, lower garments and dresses as a shop shows them, and people who wear them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from fcjax.data.sources.files import (
    Shelf,
    read_charts,
    read_garment,
    read_iuv,
    read_keypoints,
    read_lines,
    read_uv,
)
from fcjax.data.sources.sample import Part, RawAsset, RawSample
from fcjax.data.sources.source import Source, checked_root
from fcjax.data.sources.viton import Split
from fcjax.data.sources.worn import region_of, worn_assets
from fcjax.pictures import open_rgb

CATEGORIES = ("upper_body", "lower_body", "dresses")
# What the shop's garment is worn as: parts by the kind of asset.
_SHOWN: dict[str, dict[str, Part]] = {
    "upper_body": {"top": Part.UPPER, "coat": Part.COAT},
    "lower_body": {"pants": Part.PANTS, "skirt": Part.SKIRT},
    "dresses": {"dress": Part.DRESS, "jumpsuit": Part.JUMPSUIT},
}


class _Room(NamedTuple):
    """The shelves of one category."""

    image: Shelf
    parse: Shelf
    keypoints: Shelf
    dense: Shelf
    uv: Shelf
    mask: Shelf


class DressCode(Source):
    """The folder with upper_body/, lower_body/ and dresses/, each with images/ and lists of pairs.

    Args:
        split: "train" or "test".
        paired: the garment that the person wears; False reads test_pairs_unpaired.txt, for evaluations.
        worn: what else they wear, cut out by the parse map, and the face are assets too.

    images/ holds people and garments side by side: only the lists tell which is which. Keypoints are scaled from
    384x512 to the picture; skeletons/, drawings of them, are left aside. ValueError where the folder is none of
    DressCode.
    """

    def __init__(self, root: str | Path, split: Split = "train", paired: bool = True, worn: bool = True):
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; DressCode has train and test")
        if split == "train" and not paired:
            raise ValueError("DressCode has no unpaired training list: unpaired goes with the split test")
        self.root, self.paired, self.worn = checked_root(root, "DressCode"), paired, worn
        name = "train_pairs.txt" if split == "train" else f"test_pairs_{'' if paired else 'un'}paired.txt"
        self.there = [category for category in CATEGORIES if (self.root / category).is_dir()]
        if not self.there:
            raise ValueError(f"none of {', '.join(CATEGORIES)} is in {self.root}: DressCode's folder is expected")
        self.rooms = {category: _room(self.root / category) for category in self.there}
        self.pairs = [
            (category, Path(line[0]).stem, Path(line[1]).stem)
            for category in self.there
            for line in read_lines(self.root / category / name, 2)
        ]
        wrong = [f"{category}/{a} {b}" for category, a, b in self.pairs if not a.endswith("_0") or not b.endswith("_1")]
        if wrong:
            raise ValueError(f"{name} must name a person (N_0.jpg) and a garment (N_1.jpg) a line, got {wrong[0]}")
        self.stems = [f"{category}/{person}" for category, person, _ in self.pairs]

    def read(self, index: int) -> RawSample:
        category, person, garment = self.pairs[index]
        room, stem = self.rooms[category], person[:-2]
        image = open_rgb(room.image.require(person))
        size = image.shape[:2]
        maps: dict[str, Any] = {}
        if (parse := self.parsed(image, room.parse, stem, "atr")) is not None:
            maps["parse"] = parse
        if (path := room.keypoints.find(stem)) is not None:
            maps["keypoints"] = read_keypoints(path, size)
        dense, uv = (shelf.find(name) for shelf, name in self.body_files(index))
        if dense is not None and uv is not None:
            maps["iuv"] = np.dstack([read_charts(dense, size), read_uv(uv, size)])
        elif dense is not None:
            maps["parts"] = read_iuv(dense, size, parts_alone=True)
        parse = maps.get("parse")
        assets = [self._garment(category, garment, parse)]
        if self.worn and parse is not None:
            # Choice: what the shop's dress hides or is mistaken for is no asset of its own.
            shown = {*_SHOWN[category], *(("top", "pants", "skirt") if category == "dresses" else ())}
            assets += worn_assets(image, parse, shown)
        return RawSample(image, tuple(assets), **maps)

    def _garment(self, category: str, stem: str, parse: ndarray | None) -> RawAsset:
        room, kinds = self.rooms[category], _SHOWN[category]
        picture = read_garment(room.image.require(stem), room.mask.find(stem))
        if parse is None or not self.paired:
            return RawAsset(picture, "lower" if category == "lower_body" else next(iter(kinds)))
        seen = {kind: np.count_nonzero(parse == part) for kind, part in kinds.items()}
        return RawAsset(picture, max(seen, key=lambda kind: seen[kind]), region=region_of(parse, kinds.values()))

    def shelves(self, index: int) -> list[tuple[Shelf, str]]:
        category, person, garment = self.pairs[index]
        room, stem = self.rooms[category], person[:-2]
        maps = [(room.parse, stem), (room.keypoints, stem), *self.body_files(index)]
        return [(room.image, person), *maps, (room.image, garment), (room.mask, garment)]

    def body_files(self, index: int) -> list[tuple[Shelf, str]]:
        category, person, _ = self.pairs[index]
        room, stem = self.rooms[category], person[:-2]
        return [(room.dense, stem), (room.uv, stem)]

    def oddities(self) -> list[str]:
        return [f"no {category}/: its samples are missed" for category in CATEGORIES if category not in self.there]


def _room(folder: Path) -> _Room:
    no_pose = "no body map: left out unless --no-need-pose"
    return _Room(
        Shelf(folder, ("images",), (".jpg", ".png"), "these samples are left out"),
        Shelf(
            folder, ("label_maps",), ("_4.png",),
            "no cut-outs, no face; left out where no body map says what is repainted", sized=True,
        ),
        Shelf(folder, ("keypoints",), ("_2.json",), "masks without sleeves nobody wears"),
        Shelf(folder, ("dense",), ("_5.png",), no_pose, sized=True),
        Shelf(folder, ("dense",), ("_5_uv.npz",), no_pose),
        Shelf(folder, ("masks", "cloth_mask"), (".png", ".jpg"), "cut from white instead"),
    )  # fmt: skip
