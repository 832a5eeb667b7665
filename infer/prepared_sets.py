"""Sets to compose or to try on from a prepared data set: its people and poses, their own garments or another's.

Assets are cut from the stored canvas 0. Where the data set does not say where a garment is worn, its region is the part
of the body that such a thing covers; what two assets would cover is counted for neither. Another sample's garment is
looked for where the person's own of the same place is, but for what it leaves bare on the other. Of try-on, regions
lie inside the mask.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int8, UInt8
from numpy import ndarray

from fcjax.assets import Asset, Box
from fcjax.body import BodyMaps, atlas_uv
from fcjax.body.camera import Camera
from fcjax.body.charts import face_of
from fcjax.body.matching import match_tokens
from fcjax.body.rasterizer import Fragments
from fcjax.data import Prepared
from fcjax.data.kinds import CATEGORY_OF
from fcjax.frame import Frame
from fcjax.metrics import Target
from fcjax.metrics.scores import FACE
from fcjax.person import Person
from fcjax.wardrobe import POSES_PER_OUTFIT
from infer.sets import LEGS, TORSO, UPPER_ARMS, EvaluationSet, palettes_of, worn_by

Pairing = Literal["paired", "unpaired"]
COARSE = 2
"""Pixels along a side of the squares in which two people's bodies are compared."""
FEET, HEAD = (5, 6), (23, 24)
"""DensePose's parts."""
_PARTS: Mapping[str, tuple[int, ...]] = {
    "upper": (*TORSO, *UPPER_ARMS),
    "lower": LEGS,
    "dress": (*TORSO, *UPPER_ARMS, *LEGS),
    "shoes": FEET,
    FACE: HEAD,
}
GROUP_OF: Mapping[str, str] = {**CATEGORY_OF, "shoes": "shoes", FACE: FACE}
"""Where a kind of asset is worn, for those that have a part of the body of their own."""


class PreparedSets:
    """`sets[index]`: sample `index` of a prepared set, at a model's size.

    pairing: "paired" has its own garments, and its picture is the truth; "unpaired" those of another sample, chosen by
    the seed, and no truth. A set that was prepared with unpaired garments keeps those. For try-on, garments go to
    people whose own cover the same of the body; `without_partner` are the samples for which there is no such other.
    """

    def __init__(
        self, folder: Path, task: Literal["compose", "tryon"], pairing: Pairing, seed: int, size: tuple[int, int]
    ):
        self.data, self.task, self.pairing = Prepared(folder), task, pairing
        self.height, self.width = size
        settings = self.data.index["settings"]
        if self.data.index["source"] == "latents":
            raise ValueError(f"{folder} holds latents: name the set of pictures that they were made from")
        self.data.require("pose" if task == "compose" else "tryon")
        # So many samples in a row show one person in one outfit.
        self.together = POSES_PER_OUTFIT[settings["split"]] if self.data.index["source"] == "wardrobe" else 1
        self.own = settings.get("paired", True)
        if pairing == "paired" and not self.own:
            raise ValueError(f"{folder} was prepared with unpaired garments (--no-paired): score it --pairing unpaired")
        self.indices = list(range(len(self.data)))
        self.donors: list[int] = self.indices
        self.without_partner: list[int] = []
        if pairing == "unpaired" and self.own:
            self._exchange(seed)

    def _exchange(self, seed: int) -> None:
        """Every sample takes the garments of the next one in a random order of those of its kind."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for index in np.random.default_rng(seed).permutation(len(self.data)):
            worn = tuple(sorted(worn_of(self.data[int(index)]))) if self.task == "tryon" else ("anything",)
            groups.setdefault(worn, []).append(int(index))
        # Who has nothing to take off (a group of its own) has nothing to give.
        self.without_partner = sorted([*groups.pop((), []), *(own[0] for own in groups.values() if len(own) == 1)])
        partner = {
            index: group[(place + 1) % len(group)]
            for group in groups.values()
            if len(group) > 1
            for place, index in enumerate(group)
        }
        if not partner:
            raise ValueError(
                f"no two samples of {self.data.folder} can exchange garments: a larger set is needed"
                + (", or one of people whose garments cover the same" if self.task == "tryon" else "")
            )
        self.indices = sorted(partner)
        self.donors = [partner[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def made_from(self) -> dict[str, Any]:
        """What the data set says of itself: its source, and with which settings (split, paired ...) it was prepared."""
        return {name: value for name, value in self.data.index.items() if name != "shards"}

    def picture(self, index: int) -> UInt8[ndarray, "h w 3"]:
        """The person as the data set shows them."""
        image = self.data[self.indices[index]]["image"]
        return Frame.of(image.shape[:2], self.height, self.width).picture(image)

    def __getitem__(self, index: int) -> EvaluationSet:
        sample = self.data[self.indices[index]]
        donor = sample if self.donors[index] == self.indices[index] else self.data[self.donors[index]]
        frame = Frame.of(sample["image"].shape[:2], self.height, self.width)
        assets, boxes = assets_of(donor)
        kinds, iuv = tuple(donor["kinds"]), frame.labels(sample["iuv"])
        regions = self._regions(sample, donor)
        image, prompt, person = frame.picture(sample["image"]), donor["caption"], None
        if self.task == "tryon":
            person = Person(image, frame.labels(sample["mask"]) > 0, iuv)
            regions[~person.mask] = 0
            if donor is not sample:
                # Choice: data sets but Wardrobe do not say who a picture shows.
                prompt = worn_by(sample.get("subject", "a person"), donor["phrases"])
        target = Target(
            kinds=kinds,
            palettes=palettes_of(assets, kinds),
            regions=regions,
            truth=image if self.pairing == "paired" else None,
            iuv=iuv if self.pairing == "paired" else None,
            person=None if person is None else person.image,
            mask=None if person is None else person.mask,
        )
        return EvaluationSet(
            prompt,
            assets,
            maps_of(iuv),
            target,
            f"sample {self.indices[index]}",
            boxes if donor["canvas0"].shape[:2] == (self.height, self.width) else None,
            person,
            # Choice: of an exchange by whose garments they are.
            group=self.donors[index] // self.together,
            samples=self._samples(index, sample, donor),
        )

    def _samples(self, index: int, sample: Mapping[str, Any], donor: Mapping[str, Any]) -> dict[str, Any]:
        """Whom a set shows and whose garments, by their numbers and the data set's own names.

        Of a set that was prepared with unpaired garments its own list says whose they are.
        """
        person, garments = (
            {"sample": number, **({"name": record["name"]} if record.get("name") else {})}
            for number, record in ((self.indices[index], sample), (self.donors[index], donor))
        )
        return {"person": person, "garments": garments} if self.own else {"person": person}

    def _regions(self, sample: Mapping[str, Any], donor: Mapping[str, Any]) -> Int8[ndarray, "h w"]:
        """Where the person wears, or would wear, which of the donor's assets."""
        maps, worn = [], worn_of(donor)
        for one in (sample, donor):
            frame = Frame.of(one["image"].shape[:2], self.height, self.width)
            maps.append((frame.labels(one["iuv"]), frame.labels(stored_regions(one))))
        (iuv, stored), (others_iuv, others) = maps
        if self.pairing == "unpaired":
            stored = renumbered(stored, worn_of(sample), worn)
        regions = completed(stored, iuv[..., 0], worn)
        if donor is sample:
            return regions
        return without_bare(regions, iuv, completed(others, others_iuv[..., 0], worn), others_iuv)


def assets_of(sample: Mapping[str, Any]) -> tuple[tuple[Asset, ...], tuple[Box, ...]]:
    """The assets on canvas 0 of a decoded sample, and where they stand on it."""
    found = [stored_asset(sample, number) for number in range(1, len(sample["phrases"]) + 1)]
    return tuple(asset for asset, _ in found), tuple(box for _, box in found)


def stored_asset(sample: Mapping[str, Any], number: int, layout: int = 0) -> tuple[Asset, Box]:
    """Asset `number` (from 1) as a stored canvas shows it, and its place. ValueError where nothing of it is seen."""
    canvas, owners = sample[f"canvas{layout}"], sample[f"owners{layout}"]
    phrase, (rows, columns) = sample["phrases"][number - 1], np.nonzero(owners == number)
    if not len(rows):
        raise ValueError(f"the stored canvas shows nothing of {phrase!r}: prepare the set anew, larger")
    box = Box(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
    part = np.s_[box.top : box.bottom, box.left : box.right]
    alpha = np.uint8(255) * (owners[part] == number)
    return Asset(np.dstack([canvas[part], alpha]), phrase), box


def stored_regions(sample: Mapping[str, Any]) -> UInt8[ndarray, "h w"]:
    """Where the person wears which asset, as far as the record tells. ValueError for a record of before there were."""
    if "regions" not in sample:
        raise ValueError(
            f"the sample {sample['caption']!r} does not say where its garments are worn: prepare the set anew"
        )
    return sample["regions"]


def worn_of(sample: Mapping[str, Any]) -> tuple[str, ...]:
    """What the garment of each asset covers, a swatch's too; data sets without swatches tell it by the kind."""
    return tuple(sample.get("worn", sample["kinds"]))


def renumbered(regions: UInt8[ndarray, "h w"], worn: Sequence[str], others: Sequence[str]) -> UInt8[ndarray, "h w"]:
    """The regions of what is worn as those of another's that covers the same, 0 where that is none or one of two."""
    table = np.zeros(len(worn) + 1, np.uint8)
    for number, covers in enumerate(worn, 1):
        if worn.count(covers) == others.count(covers) == 1:
            table[number] = others.index(covers) + 1
    return table[regions]


def without_bare(
    regions: Int8[ndarray, "h w"],
    iuv: UInt8[ndarray, "h w 3"],
    others: Int8[ndarray, "h w"],
    others_iuv: UInt8[ndarray, "h w 3"],
) -> Int8[ndarray, "h w"]:
    """The regions without the places of the body where the other, seen there, does not wear that asset."""
    size = regions.shape[0] // COARSE, regions.shape[1] // COARSE
    found = match_tokens(iuv, others_iuv, *size)
    worn = Frame.of(others.shape, *size).labels(others).reshape(-1)
    seen = np.where(found >= 0, worn[found], np.int8(-1)).reshape(size)
    theirs = Frame.of(size, *regions.shape).labels(seen)
    return np.where((theirs >= 0) & (theirs != regions), np.int8(0), regions)


def completed(
    regions: UInt8[ndarray, "h w"], parts: UInt8[ndarray, "h w"], kinds: Sequence[str]
) -> Int8[ndarray, "h w"]:
    """The regions, and for assets without one the parts of the body that such a thing covers and nothing else does."""
    found = regions.astype(np.int8)
    known = set(np.unique(regions).tolist())
    covered = {
        number: _PARTS[GROUP_OF[kind]]
        for number, kind in enumerate(kinds, 1)
        if kind in GROUP_OF and number not in known
    }
    claims = Counter(part for own in covered.values() for part in own)
    for number, own in covered.items():
        alone = [part for part in own if claims[part] == 1]
        found[np.isin(parts, alone) & (regions == 0)] = number
    return found


def maps_of(iuv: UInt8[ndarray, "h w 3"]) -> BodyMaps:
    """Body maps of a DensePose picture: nothing but the picture is known of the body, depth is infinite."""
    height, width = iuv.shape[:2]
    seen, far = iuv[..., 0] > 0, np.full((height, width), np.inf, np.float32)
    face = np.zeros((height, width), bool)
    face[seen] = face_of(iuv[seen][:, 0], *(iuv[seen][:, 1:].T / np.float32(255)))
    fragments = Fragments(np.where(seen, 0, -1).astype(np.int32), np.zeros((height, width, 3), np.float32), far)
    nothing = np.zeros((0, 3))
    camera = Camera(1.0, (width / 2, height / 2))
    return BodyMaps(iuv, atlas_uv(iuv), face, far, fragments, nothing, nothing.astype(int), camera)
