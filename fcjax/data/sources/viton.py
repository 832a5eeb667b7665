"""VITON-HD: a person and the top they wear as a shop shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fcjax.data.sources.files import Shelf, read_garment, read_iuv, read_json, read_keypoints, read_lines
from fcjax.data.sources.sample import Part, RawAsset, RawSample
from fcjax.data.sources.source import Source, checked_root, some
from fcjax.data.sources.worn import region_of, worn_assets
from fcjax.pictures import open_rgb

Split = Literal["train", "test"]
_TOPS = {"top": Part.UPPER, "coat": Part.COAT, "dress": Part.DRESS}  # any of which the shop's top may be


class VitonHD(Source):
    """The folder with train_pairs.txt, test_pairs.txt, train/ and test/.

    Args:
        split: "train" or "test".
        paired: the garment is the one that the person wears, which the lists' first column names twice over: the second
            of train_pairs.txt does not match the person, and test_pairs.txt (or test_pairs_unpaired.txt) is the
            unpaired list. False takes the second column, for trying on in evaluations.
        worn: what else they wear, cut out by the parse map, and the face are assets too.

    Body maps are read from image-densepose-iuv/: image-densepose/ shows parts without u and v, enough for masks alone.
    Its own cloth-agnostic pictures and masks (agnostic-v3.2/, agnostic-mask/, image-parse-agnostic-v3.2/) and drawings
    of keypoints (openpose_img/) are left aside: masks are made by the rule that trying on follows, too.
    ValueError where the folder is none of VITON-HD.
    """

    def __init__(self, root: str | Path, split: Split = "train", paired: bool = True, worn: bool = True):
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; VITON-HD has train and test")
        self.root, self.split, self.paired, self.worn = checked_root(root, "VITON-HD"), split, paired, worn
        named = [self.root / f"{split}_pairs{ending}.txt" for ending in (*(() if paired else ("_unpaired",)), "")]
        self.list = next((path for path in named if path.is_file()), named[-1])
        lines = read_lines(self.list, 2)
        self.stems = [Path(line[0]).stem for line in lines]
        self.second = [Path(line[1]).stem for line in lines]
        folder = self.root / split
        if not (folder / "image").is_dir():
            raise ValueError(f"no such folder: {folder / 'image'}; VITON-HD keeps the {split} set's pictures there")
        lost, some_lost = "these samples are left out", "left out where no body map says what is repainted"
        self.image = Shelf(folder, ("image",), (".jpg", ".png"), lost)
        self.cloth = Shelf(folder, ("cloth",), (".jpg", ".png"), lost)
        self.cloth_mask = Shelf(folder, ("cloth-mask", "cloth_mask"), (".jpg", ".png"), "cut from white instead")
        self.parse = Shelf(
            folder, ("image-parse-v3", "image-parse"), (".png",), f"no cut-outs, no face; {some_lost}", sized=True
        )
        self.keypoints = Shelf(
            folder, ("openpose_json", "openpose-json"), ("_keypoints.json",), "masks without sleeves nobody wears"
        )
        self.iuv = Shelf(
            folder, ("image-densepose-iuv",), (".png",), "no body map: left out unless --no-need-pose", sized=True
        )
        self.rendered = Shelf(
            folder, ("image-densepose",), (".jpg", ".png"), "masks know no body but by image-densepose-iuv/", sized=True
        )
        self.tags = _tags(self.root, split)

    def read(self, index: int) -> RawSample:
        stem = self.stems[index]
        image = open_rgb(self.image.require(stem))
        maps: dict[str, Any] = {}
        if (parse := self.parsed(image, self.parse, stem, "viton-hd")) is not None:
            maps["parse"] = parse
        if (path := self.keypoints.find(stem)) is not None:
            maps["keypoints"] = read_keypoints(path, image.shape[:2])
        if (path := self.iuv.find(stem)) is not None:
            maps["iuv"] = read_iuv(path, image.shape[:2])
        elif (path := self.rendered.find(stem)) is not None:
            maps["parts"] = read_iuv(path, image.shape[:2], parts_alone=True)
        parse = maps.get("parse")
        assets = [self._top(index, parse)]
        if self.worn and parse is not None:
            assets += worn_assets(image, parse, shown=_TOPS)
        return RawSample(image, tuple(assets), **maps, person="woman")

    def _top(self, index: int, parse: np.ndarray | None) -> RawAsset:
        stem = self.stems[index] if self.paired else self.second[index]
        picture = read_garment(self.cloth.require(stem), self.cloth_mask.find(stem))
        region = None if parse is None or not self.paired else region_of(parse, _TOPS.values())
        return RawAsset(picture, "top", region=region, **self.tags.get(stem, {}))

    def shelves(self, index: int) -> list[tuple[Shelf, str]]:
        stem = self.stems[index]
        cloth = stem if self.paired else self.second[index]
        persons = [(shelf, stem) for shelf in (self.image, self.parse, self.keypoints, self.iuv, self.rendered)]
        return [*persons, (self.cloth, cloth), (self.cloth_mask, cloth)]

    def body_files(self, index: int) -> list[tuple[Shelf, str]]:
        return [(self.iuv, self.stems[index])]

    def oddities(self) -> list[str]:
        found = []
        if self.paired and (differ := sum(a != b for a, b in zip(self.stems, self.second, strict=True))):
            found.append(
                f"{self.list.name}: {differ} of {len(self)} lines name another garment than the person wears; "
                "the first column is read for both"
            )
        listed = set(self.stems)
        extra = sorted(path.stem for path in self.image.folder.iterdir() if path.stem not in listed)
        if extra:
            found.append(
                f"{self.split}/image/: {len(extra)} files stand in no line of {self.list.name} ({some(extra)})"
            )
        if not self.tags:
            found.append(f"no vitonhd_{self.split}_tagged.json: garments are described by their colours alone")
        return found


def _tags(root: Path, split: str) -> Mapping[str, Mapping[str, Any]]:
    """What vitonhd_SPLIT_tagged.json says of each garment, as fields of RawAsset; nothing where there is no such file.

    It is {anything: [{"file_name": ..., "tag_info": [{"tag_name": ..., "tag_category": ...}, ...]}, ...]}.
    """
    name = f"vitonhd_{split}_tagged.json"
    path = next((path for path in (root / split / name, root / name) if path.is_file()), None)
    if path is None:
        return {}
    found = {}
    try:
        for entries in read_json(path).values():
            for entry in entries if isinstance(entries, list) else ():
                said = {
                    tag["tag_name"]: str(tag["tag_category"]).lower()
                    for tag in entry["tag_info"]
                    if tag["tag_category"]
                }
                sleeve = said.get("sleeveLength", "")
                found[Path(entry["file_name"]).stem] = {
                    "color": said.get("colors"),
                    "adjectives": (sleeve,) if "sleeve" in sleeve else (),
                    "noun": said.get("item"),
                }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: file_name and tag_info of each garment are expected ({error!r})") from error
    return found
