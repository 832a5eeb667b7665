"""DeepFashion-MultiModal: people with parse maps, DensePose, captions and attributes; no pictures of garments alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from fcjax.data.sources.files import Shelf, read_iuv, read_json, read_lines
from fcjax.data.sources.sample import RawAsset, RawSample, SampleError
from fcjax.data.sources.source import Source, checked_root, some
from fcjax.data.sources.worn import worn_assets
from fcjax.pictures import open_rgb

SLEEVES = {0: "sleeveless", 1: "short-sleeved", 3: "long-sleeved"}
FABRICS = {0: "denim", 1: "cotton", 2: "leather", 3: "furry", 4: "knitted", 5: "chiffon"}
# The set calls these colours.
PATTERNS = {0: "floral", 1: "graphic", 2: "striped", 4: "checked", 6: "colour-block"}
SHORT = (0, 1)
"""Lengths of lower garments by which trousers are shorts."""
# Which column of the fabric and pattern lists tells of an asset; sleeves are told of the two first.
_COLUMNS = {"top": 0, "dress": 0, "jumpsuit": 0, "pants": 1, "skirt": 1, "coat": 2}
_LISTS = {
    "shape": (("shape_anno_all.txt", "shape.txt"), 12),
    "fabric": (("fabric_ann.txt", "fabric.txt"), 3),
    "pattern": (("pattern_ann.txt", "texture_ann.txt", "color.txt"), 3),
}


class DeepFashion(Source):
    """The folder with images/, segm/, densepose/, captions.json and labels/; files may also lie side by side.

    A sample is a picture of which garments and face are cut out by its parse map. The 21 keypoints are landmarks of
    clothes, not of bodies, and are left aside. ValueError where the folder is none of DeepFashion-MultiModal.

    Args:
        parsed: False takes pictures without a parse map, too, and leaves the labels to `parser`.
    """

    def __init__(self, root: str | Path, parsed: bool = True):
        self.root = checked_root(root, "DeepFashion-MultiModal")
        self.image = Shelf(self.root, ("images", "image", "."), (".jpg", ".png"), "these samples are left out")
        self.parse = Shelf(self.root, ("segm", "parsing", "."), ("_segm.png",), "no samples", sized=True)
        self.iuv = Shelf(
            self.root, ("densepose", "dense", "."), ("_densepose.png",), "no body map: left out unless --no-need-pose",
            sized=True,
        )  # fmt: skip
        self._parsed = parsed
        if parsed:
            shelf, expected = self.parse, "*_segm.png"
            self.stems = sorted(path.name.removesuffix("_segm.png") for path in shelf.folder.glob(expected))
        else:
            shelf, expected, self.stems = self.image, "pictures", self._pictures()
        if not self.stems:
            raise ValueError(f"no {expected} in {shelf.folder}: DeepFashion-MultiModal is expected to have them there")
        self.lists = {name: self._list(name) for name in _LISTS}
        self.captions = self._captions()

    def read(self, index: int) -> RawSample:
        stem = self.stems[index]
        image = open_rgb(self.image.require(stem))
        parse = self.parsed(image, self.parse, stem, "deepfashion")
        if parse is None:
            raise SampleError(f"no such file: {self.parse.folder / stem}_segm.png")
        dense = self.iuv.find(stem)
        return RawSample(
            image,
            tuple(self._attributed(asset, stem) for asset in worn_assets(image, parse)),
            caption=self.captions.get(stem),
            iuv=None if dense is None else read_iuv(dense, image.shape[:2]),
            parse=parse,
            person={"MEN": "man", "WOMEN": "woman"}.get(stem.split("-")[0], "person"),
        )

    def _attributed(self, asset: RawAsset, stem: str) -> RawAsset:
        """With what the lists say of it."""
        if asset.kind not in _COLUMNS:
            return asset
        column = _COLUMNS[asset.kind]
        words = [
            names.get(self.lists[kind][stem][column]) if stem in self.lists[kind] else None
            for kind, names in (("pattern", PATTERNS), ("fabric", FABRICS))
        ]
        shape = self.lists["shape"].get(stem)
        if shape and column == 0:
            words.insert(1, SLEEVES.get(shape[0]))
        noun = "shorts" if shape and asset.kind == "pants" and shape[1] in SHORT else None
        return dataclasses.replace(asset, adjectives=tuple(word for word in words if word), noun=noun)

    def shelves(self, index: int) -> list[tuple[Shelf, str]]:
        shelves = (self.image, self.parse, self.iuv) if self._parsed else (self.image, self.iuv)
        return [(shelf, self.stems[index]) for shelf in shelves]

    def body_files(self, index: int) -> list[tuple[Shelf, str]]:
        return [(self.iuv, self.stems[index])]

    def oddities(self) -> list[str]:
        pictures, taken = self._pictures(), set(self.stems)
        bare = [stem for stem in pictures if stem not in taken]
        found = []
        if bare:
            found.append(f"{len(bare)} of {len(pictures)} pictures have no parse map and are no samples ({some(bare)})")
        found += [
            f"no list of {name} attributes ({' or '.join(_LISTS[name][0])}, here or in labels/)"
            for name in _LISTS
            if not self.lists[name]
        ]
        untold = [stem for stem in self.stems if stem not in self.captions]
        if untold:
            found.append(f"captions.json: nothing on {len(untold)} of {len(self)} samples ({some(untold)})")
        return found

    def _pictures(self) -> list[str]:
        maps = tuple(ending for shelf in (self.parse, self.iuv) for ending in shelf.endings)
        files = self.image.folder.glob("*") if self.image.folder.is_dir() else []
        return sorted(
            path.stem for path in files if path.name.endswith(self.image.endings) and not path.name.endswith(maps)
        )

    def _list(self, name: str) -> Mapping[str, Sequence[int]]:
        """The numbers of an attribute list by stem; nothing where there is no such file. ValueError: a broken one."""
        files, columns = _LISTS[name]
        places = [self.root, *(self.root / "labels" / inner for inner in ("", "shape", "texture"))]
        path = next((path for place in places for file in files if (path := place / file).is_file()), None)
        if path is None:
            return {}
        lines = read_lines(path, 1 + columns)
        try:
            return {Path(line[0]).stem: [int(number) for number in line[1 : 1 + columns]] for line in lines}
        except ValueError as error:
            raise ValueError(f"{path}: a picture and {columns} whole numbers a line are expected ({error})") from error

    def _captions(self) -> Mapping[str, str]:
        path = self.root / "captions.json"
        if not path.is_file():
            return {}
        said = read_json(path)
        if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
            raise ValueError(f"{path}: an object with a caption for every picture's name is expected")
        return {Path(name).stem: text for name, text in said.items() if text.strip()}
