"""A folder of one's own pictures."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcjax.data.kinds import kinds_in
from fcjax.data.sources.files import Shelf, read_iuv, read_json, read_keypoints
from fcjax.data.sources.sample import Labels, RawAsset, RawSample, SampleError
from fcjax.data.sources.source import Source, checked_root, some
from fcjax.data.sources.worn import worn_assets
from fcjax.pictures import open_rgb, read, upright

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_KEYS = {"caption": str, "phrases": dict, "kinds": dict}


class Folder(Source):
    """A folder of this layout, in which all but images/ may be missing, as a whole or for some pictures:

        images/X.jpg        the person (.jpg, .jpeg, .png or .webp)
        images/X.json       {"caption": ..., "phrases": {"shirt.png": ...}, "kinds": {"shirt.png": "top"}}
        assets/X/*.png      garments, cut out or on white, and a face
        parse/X.png         a parse map, with labels of `labels`: viton-hd, atr or deepfashion
        iuv/X.png           a DensePose map: part, u and v
        keypoints/X.json    as OpenPose or DressCode writes it

    An asset's phrase, where X.json has none, is its file's name: "1_a_red_t-shirt.png" is "a red t-shirt". Its kind,
    where X.json has none, is told by the phrase's words ("a red t-shirt for a man" is a top, "a young man" a face; see
    `fcjax.data.kinds`). A picture without a folder of assets has what its person wears, cut out by the parse map.
    Body maps are taken for DensePose's, in its own charts, which training mirrors by a table (`--augment.symmetry`).
    Those that `infer.densepose` drew without --uv-processed follow fcjax's own charts, which the files do not tell, and
    that table mirrors them wrongly: train on them without `--augment.flip`.
    ValueError for a folder without images/, and for two pictures of one name.
    """

    def __init__(self, root: str | Path, labels: Labels = "viton-hd"):
        self.root, self.labels = checked_root(root, "a folder with images/"), labels
        self.image = Shelf(self.root, ("images",), ENDINGS, "these samples are left out")
        if not self.image.folder.is_dir():
            raise ValueError(f"no such folder: {self.image.folder}; the pictures of people are expected there")
        found = sorted(path for path in self.image.folder.iterdir() if path.suffix.lower() in ENDINGS)
        if not found:
            raise ValueError(f"no picture ({', '.join(ENDINGS)}) in {self.image.folder}")
        self.pictures = {path.stem: path for path in found}
        twice = [path.name for path in found if self.pictures[path.stem] != path]
        if twice:
            raise ValueError(
                f"{some(twice)} in {self.image.folder}: another picture has that name but for its ending, and would "
                "have the same assets and maps; rename one"
            )
        self.stems = list(self.pictures)
        self.text = Shelf(self.root, ("images",), (".json",), "")
        self.parse = Shelf(self.root, ("parse",), (".png",), "no cut-outs of what is worn", sized=True)
        self.iuv = Shelf(self.root, ("iuv",), (".png",), "no body map: left out unless --no-need-pose", sized=True)
        self.keypoints = Shelf(self.root, ("keypoints",), (".json",), "masks without sleeves nobody wears")

    def read(self, index: int) -> RawSample:
        stem = self.stems[index]
        image = open_rgb(self.pictures[stem])
        maps: dict[str, Any] = {}
        if (parse := self.parsed(image, self.parse, stem, self.labels)) is not None:
            maps["parse"] = parse
        if (path := self.iuv.find(stem)) is not None:
            maps["iuv"] = read_iuv(path, image.shape[:2])
        if (path := self.keypoints.find(stem)) is not None:
            maps["keypoints"] = read_keypoints(path, image.shape[:2])
        text = self._text(stem)
        files = self._files(stem)
        assets = [_asset(path, text) for path in files]
        if not files and "parse" in maps:
            assets = worn_assets(image, maps["parse"])
        return RawSample(image, tuple(assets), caption=text.get("caption"), **maps)

    def _files(self, stem: str) -> list[Path]:
        folder = self.root / "assets" / stem
        return sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)

    def _text(self, stem: str) -> Mapping[str, Any]:
        path = self.text.find(stem)
        if path is None:
            return {}
        said = read_json(path)
        if not isinstance(said, dict) or any(
            not isinstance(said.get(key, kind()), kind) for key, kind in _KEYS.items()
        ):
            raise SampleError(f"{path}: an object with caption (text), phrases and kinds (objects) is expected")
        unknown = sorted(said.keys() - _KEYS.keys())
        files = {file.name for file in self._files(stem)}
        absent = sorted({*said.get("phrases", {}), *said.get("kinds", {})} - files)
        if unknown or absent:
            raise SampleError(
                f"{path}: unknown keys {some(unknown)}; expected {', '.join(_KEYS)}"
                if unknown
                else f"{path}: no such asset in assets/{stem}/: {some(absent)}"
            )
        return said

    def shelves(self, index: int) -> list[tuple[Shelf, str]]:
        return [(shelf, self.stems[index]) for shelf in (self.image, self.parse, self.iuv, self.keypoints)]

    def body_files(self, index: int) -> list[tuple[Shelf, str]]:
        return [(self.iuv, self.stems[index])]

    def oddities(self) -> list[str]:
        found = []
        for room in ("assets", "parse", "iuv", "keypoints"):
            paths = (self.root / room).glob("*")
            others = [path.name if path.is_dir() else path.stem for path in paths]
            strays = sorted(set(others) - set(self.stems))
            if strays:
                found.append(f"{room}/: {len(strays)} belong to no picture in images/ ({some(strays)})")
        bare = [stem for stem in self.stems if not self._files(stem) and self.parse.find(stem) is None]
        if bare:
            found.append(
                f"{len(bare)} of {len(self)} pictures have neither assets nor parse map ({some(bare)}): left out"
            )
        return found


def _asset(path: Path, text: Mapping[str, Any]) -> RawAsset:
    phrase = text.get("phrases", {}).get(path.name) or re.sub(r"^\d+_", "", path.stem).replace("_", " ").strip()
    kind = text.get("kinds", {}).get(path.name) or (*kinds_in(phrase), "other")[0]
    return RawAsset(np.asarray(upright(read(path), str(path))), kind, phrase)
