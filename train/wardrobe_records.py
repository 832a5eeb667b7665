"""Wardrobe's people as records: the pictures with where they show which garment, the assets on canvases."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from fcjax.agnostic import CATEGORIES, Category, agnostic_image
from fcjax.assets import Box, lay_out
from fcjax.data.records import encode_record
from fcjax.wardrobe import Sample, Wardrobe
from fcjax.wardrobe.samples import SWATCH_SAMPLES
from fcjax.wardrobe.undressing import take_off, worn_kinds
from train.shards import shard_count, shard_range

UNPARSED = 0.3
"""The share of try-on samples whose masks follow from the body's map alone."""


@dataclasses.dataclass(frozen=True)
class WardrobeJob:
    """Draws Wardrobe's people and lays their assets out on canvases."""

    out: Path
    count: int = 8000
    split: Literal["train", "heldout"] = "train"
    seed: int = 0
    height: int = 256
    width: int = 192
    max_assets: int = 6
    layouts: int = 2
    """Canvases laid out per sample: the same assets at other places and sizes."""
    swatches: float = SWATCH_SAMPLES
    """The share of samples that show fabrics in place of garments, told apart by their phrases alone."""
    tryon: bool = False
    """For training try-on: the cloth-agnostic person and its mask, and on the canvas what is put on alone."""
    shard_size: int = 250
    workers: int = 2
    ray: str = ""
    """The address of a Ray cluster that makes the shards instead."""

    def __post_init__(self):
        for field in ("count", "layouts", "shard_size", "workers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0.0 <= self.swatches <= 1.0:
            raise ValueError(f"swatches must be a share of the samples, 0 to 1, got {self.swatches}")

    source = "wardrobe"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that decide what is drawn, and the hash of the first sample."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("out", "workers", "ray")}
        # Sets of before there was a choice go on.
        if self.swatches == SWATCH_SAMPLES:
            del fields["swatches"]
        # Code that draws other samples makes another set, whatever the settings say.
        first = hashlib.sha256(wardrobe_record(self._wardrobe()[0], 0, self)).hexdigest()[:16]
        return {**fields, "first_sample": first}

    @property
    def samples(self) -> int:
        """How many people are drawn."""
        return self.count

    @property
    def shards(self) -> int:
        """How many shards hold them."""
        return shard_count(self.shard_size, self.count)

    def records(self, number: int) -> Iterator[bytes]:
        """The records of a shard."""
        wardrobe = self._wardrobe()
        return (wardrobe_record(wardrobe[i], i, self) for i in shard_range(number, self.shard_size, self.count))

    def _wardrobe(self) -> Wardrobe:
        return Wardrobe(self.split, self.seed, self.height, self.width, swatches=self.swatches)


def wardrobe_record(sample: Any, index: int, job: WardrobeJob) -> bytes:
    """One Wardrobe sample as a record: pictures, canvases with the map of their assets, IUV, regions, text.

    regions: which asset the person's pixels show, 0 none; origins: of flats, which place of them. worn: what each
    asset's garment covers (`worn_kinds`); subject: the caption's person.
    """
    worn = {}
    if job.tryon:
        sample, mask = taken_off(sample, np.random.default_rng((job.seed, index)))
        worn = {"agnostic": agnostic_image(sample.image, mask), "mask": 255 * mask.astype(np.uint8)}
    pictures = {
        **worn,
        "image": sample.image,
        "iuv": sample.maps.iuv,
        "origins": _packed(sample),
        "regions": sample.regions.astype(np.uint8),
        "foreground": 255 * sample.foreground.astype(np.uint8),
    }
    placed = []
    for layout in range(job.layouts):
        canvas = lay_out(
            sample.assets,
            job.height,
            job.width,
            seed=index * job.layouts + layout,
            max_assets=job.max_assets,
            varied=True,
        )
        pictures[f"canvas{layout}"] = canvas.image
        pictures[f"owners{layout}"] = canvas.owners
        placed.append(
            [
                _onto_canvas(asset.image, crop, box, job)
                for asset, crop, box in zip(sample.assets, canvas.crops, canvas.boxes, strict=True)
            ]
        )
    text = {
        "caption": sample.caption,
        "phrases": [asset.phrase for asset in sample.assets],
        "kinds": [asset.kind for asset in sample.assets],
        "worn": worn_kinds(sample),
        "subject": sample.subject,
        "layouts": job.layouts,
        "placed": placed,
    }
    return encode_record(pictures, {}, text)


def taken_off(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Bool[np.ndarray, "h w"]]:
    """`take_off` one garment, or the outfit with shoes and hat, as drawn.

    A sample with no garment to take off has everything that clothes may cover repainted, and no asset. The masks of a
    share of the samples know the body alone, as those of users do who have no parse map.
    """
    kinds = worn_kinds(sample)
    choices: list[Category] = sorted(kind for kind in CATEGORIES if kind in kinds)
    if len(choices) > 1 or not choices or {"shoes", "hat"} & set(kinds):
        choices.append("outfit")
    category = choices[int(rng.integers(len(choices)))]
    if rng.random() < UNPARSED:
        # Feet that no picture shows have no place on the body's map; the parse map needs none.
        with contextlib.suppress(ValueError):
            return take_off(sample, category, parsed=False)
    return take_off(sample, category)


def _packed(sample: Any) -> np.ndarray:
    """Where pixels show flats, in 8 bits: the asset's number from 1 (0: of none), x and y in 1/255 of its picture."""
    shown = sample.origins[..., :1] >= 0
    places = np.round(255 * sample.origins).astype(np.int16)
    return np.where(shown, np.concatenate([sample.regions[..., None], places], axis=-1), 0).astype(np.uint8)


def _onto_canvas(image: np.ndarray, crop: Box, box: Box, job: WardrobeJob) -> list[float]:
    """[a, b, c, d]: the place (x, y) of an asset's picture is at (a x + b, c y + d) of the canvas, all in shares."""
    found = []
    for low, high, length, whole in (
        ("left", "right", image.shape[1], job.width),
        ("top", "bottom", image.shape[0], job.height),
    ):
        scale = (getattr(box, high) - getattr(box, low)) / (getattr(crop, high) - getattr(crop, low))
        found += [scale * length / whole, (getattr(box, low) - scale * getattr(crop, low)) / whole]
    return found
