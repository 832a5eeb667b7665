"""Samples of real data sets as records: the person at one size, garments on canvases, text, cloth-agnostic pictures."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from fcjax.agnostic import agnostic_image, agnostic_mask
from fcjax.assets import Asset, lay_out
from fcjax.data import captioner
from fcjax.data.kinds import category_of
from fcjax.data.records import encode_record
from fcjax.data.sources.sample import Part
from fcjax.frame import Fit, Frame
from fcjax.tokenizer import Tokenizer
from train.chat import holding
from train.parser import load_parser
from train.phrases import load_phrase_finder
from train.shards import LeftOut, shard_count, shard_range
from train.vlm import load_describer

FAR = 45
"""A phrase that ends behind this many words of a caption may be cut off with it: 77 tokens are read."""


@dataclasses.dataclass(frozen=True)
class RawOptions:
    """How samples of a data set become records."""

    height: int = 512
    width: int = 384
    fit: Fit = "letterbox"
    """A picture of another shape is padded with the colour of its own edges, or cropped about its middle."""
    max_assets: int = 8
    layouts: int = 2
    """Canvases laid out per sample: the same assets at other places and sizes."""
    agnostic: bool = True
    """The cloth-agnostic person and its mask, which training for try-on reads."""
    need_pose: bool = True
    """Samples whose body map is unknown are left out; otherwise their map is empty."""
    tokenizer: Path | None = None
    """Of the model to be trained: samples whose phrases do not fit its prompt are left out."""
    captions_by: str = ""
    """A vision-language model of transformers, by name or folder, whose words stand for the set's own."""
    phrases_by: str = ""
    """A language model of transformers, by name or folder, that finds the assets' phrases in the captions; those are
    the set's own, else the rule-based captioner's, or with --captions-by that model's. What a caption does not mention
    keeps the phrase that it has without, put behind the caption."""
    parse_by: str = ""
    """A model of transformers that labels pixels (Mask2Former), whose parse maps stand for the set's own."""
    count: int = 0
    """How many samples, from the first; 0 takes all."""
    shard_size: int = 250

    def __post_init__(self):
        for field in ("max_assets", "layouts", "shard_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("height", "width"):
            size = getattr(self, field)
            if size < 8 or size % 8:
                raise ValueError(f"{field} must be a positive multiple of 8, got {size}")
        if self.count < 0:
            raise ValueError(f"count must be 0 (all samples) or more, got {self.count}")


@dataclasses.dataclass(frozen=True)
class RawJob:
    """The samples of `data` (see `fcjax.data.sources`) as shards; those that cannot be used are left out."""

    data: Any
    source: str
    options: RawOptions
    choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How the data set is read, for the settings."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is written, and the hash of the samples' names."""
        fields = dataclasses.asdict(self.options)
        names = "\n".join(self.data.name(index) for index in range(self.samples))
        tokenizer = str(self.options.tokenizer) if self.options.tokenizer else None
        return {
            **fields,
            **self.choices,
            "tokenizer": tokenizer,
            "names": hashlib.sha256(names.encode()).hexdigest()[:16],
        }

    @property
    def samples(self) -> int:
        """How many samples are gone through."""
        return min(len(self.data), self.options.count or len(self.data))

    @property
    def shards(self) -> int:
        """How many shards hold them."""
        return shard_count(self.options.shard_size, self.samples)

    def records(self, number: int) -> Iterator[bytes | LeftOut]:
        """The records of a shard, and what is left out of it. A sample may fail as it likes without ending the run.

        What all samples need and cannot be had ends it: ValueError or OSError of a model or tokenizer that is none.
        """
        if self.options.tokenizer is not None:
            _tokenizer(self.options.tokenizer)
        if self.options.captions_by:
            load_describer(self.options.captions_by)
        if self.options.phrases_by:
            load_phrase_finder(self.options.phrases_by)
        if self.options.parse_by:
            self.data.parser = parser_of(self.options)
        for index in shard_range(number, self.options.shard_size, self.samples):
            name = self.data.name(index)
            try:
                yield raw_record(self.data[index], index, self.options, name)
            except MemoryError:
                raise
            except Exception as error:
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                yield LeftOut(name, kind + " ".join(str(error).split()))


def raw_record(sample: Any, index: int, options: RawOptions, name: str = "") -> bytes:
    """One sample as a record like Wardrobe's, without where the person shows which place of a flat.

    index: decides, of the sample's canvases, which asset lies where. name: by which its data set knows the sample.
    ValueError for a sample that cannot be used.
    """
    frame = Frame.of(sample.image.shape[:2], options.height, options.width, options.fit)
    body = None if sample.iuv is None else frame.labels(sample.iuv)
    if body is None and options.need_pose:
        raise ValueError("its body map is unknown (--no-need-pose takes such samples with an empty one)")
    if not sample.assets:
        raise ValueError("it has no asset")
    parse = None if sample.parse is None else frame.labels(np.asarray(sample.parse, np.uint8))
    caption, phrases = described(sample, options.captions_by, options.phrases_by)
    assets = [placeable(asset, phrase) for asset, phrase in zip(sample.assets, phrases, strict=True)]
    if options.tokenizer is not None:
        _tokenizer(options.tokenizer).encode_prompt(caption, phrases, options.max_assets)
    image, person = frame.picture(sample.image), foreground(parse, body, frame)
    empty = np.zeros((options.height, options.width, 3), np.uint8)
    pictures = {
        "image": image,
        "iuv": empty if body is None else body,
        "foreground": 255 * person.astype(np.uint8),
        "regions": _regions([asset.region for asset in sample.assets], frame),
    }
    for layout in range(options.layouts):
        seed = index * options.layouts + layout
        canvas = lay_out(assets, options.height, options.width, seed, max_assets=options.max_assets, varied=True)
        pictures[f"canvas{layout}"] = canvas.image
        pictures[f"owners{layout}"] = canvas.owners
    kinds = [asset.kind for asset in sample.assets]
    if options.agnostic:
        mask = frame.labels(repainted(sample, kinds).astype(np.uint8)) > 0
        if not mask.any():
            raise ValueError("what is to be repainted lies outside its crop (--fit letterbox keeps all of it)")
        pictures |= {"agnostic": agnostic_image(image, mask), "mask": 255 * mask.astype(np.uint8)}
    text = {"name": name, "caption": caption, "phrases": phrases, "kinds": kinds, "layouts": options.layouts}
    return encode_record(pictures, {}, text)


@functools.cache
def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def parser_of(options: RawOptions) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w"]]:
    """What labels a picture's parts in place of the set's own maps: readers cut garments and faces out by it."""
    return functools.partial(load_parser(options.parse_by).parse, parts=part_numbers())


def part_numbers() -> dict[str, int]:
    """The parts of our parse maps by name, with their numbers."""
    return {part.name.lower(): int(part) for part in Part}


def placeable(asset: Any, phrase: str) -> Asset:
    """The asset cut from its background; a face is taken edge to edge where it has one."""
    return Asset.from_image(asset.picture, phrase, whole=asset.kind == "face")


def described(sample: Any, captions_by: str = "", phrases_by: str = "") -> tuple[str, list[str]]:
    """The caption and a phrase for every asset: a model's, the data set's own, or else the rule-based captioner's."""
    phrases = [asset.phrase for asset in sample.assets]
    if phrases_by:
        caption, phrases = _found(sample, captions_by, phrases_by)
    elif captions_by:
        caption, phrases = load_describer(captions_by).describe(sample)
    elif sample.caption is None or None in phrases:
        caption, phrases = captioner.describe(sample)
    else:
        caption = sample.caption
    return within_reach(caption, list(phrases))


def _found(sample: Any, captions_by: str, phrases_by: str) -> tuple[str, list[str]]:
    """A caption and the phrases that a language model finds in it; what it does not mention is described without."""
    if captions_by:
        describer = load_describer(captions_by)
        caption, otherwise = describer.caption(sample.image), lambda index: describer.phrase(sample.assets[index])
    else:
        sentence, spoken = captioner.describe(sample)
        caption, otherwise = sample.caption or sentence, spoken.__getitem__
    caption = " ".join(caption.split())
    found = load_phrase_finder(phrases_by).find(caption, [asset.kind for asset in sample.assets])
    phrases = [words or otherwise(index) for index, words in enumerate(found)]
    return holding(caption, phrases), phrases


def within_reach(caption: str, phrases: Sequence[str]) -> tuple[str, list[str]]:
    """The caption, with all phrases put in front where one of them stands far behind: a prompt's end is cut off."""
    start = " ".join(re.findall(r"\S+", caption)[:FAR])
    if len(start) < len(" ".join(caption.split())) and not all(phrase.lower() in start.lower() for phrase in phrases):
        caption = f"{', '.join(phrases)}: {caption}"
    return caption, list(phrases)


def foreground(
    parse: UInt8[np.ndarray, "H W"] | None, body: UInt8[np.ndarray, "H W 3"] | None, frame: Frame
) -> Bool[np.ndarray, "H W"]:
    """The person: what is not the parse map's background, else the body's surface, else the whole picture."""
    if parse is not None:
        return parse > 0
    return np.ones((frame.height, frame.width), bool) if body is None else body[..., 0] > 0


def _regions(regions: Sequence[np.ndarray | None], frame: Frame) -> UInt8[np.ndarray, "H W"]:
    """Which asset the person's pixels show: 0 none, i + 1 asset i."""
    shown = np.zeros((frame.height, frame.width), np.uint8)
    for number, region in enumerate(regions, 1):
        if region is not None:
            shown[frame.labels(region.astype(np.uint8)) > 0] = number
    return shown


# ---------------------------------------------------------------------------------------------------------------------
# What is to be taken off


def repainted(sample: Any, kinds: Sequence[str]) -> Bool[np.ndarray, "h w"]:
    """The mask for assets of these kinds, at the picture's own size, as `infer.mask` makes it of the same maps."""
    # What lies on the canvas is to be put on, shoes and hat too.
    worn = {"shoes": "shoes" in kinds, "hat": "hat" in kinds}
    parse = None if sample.parse is None else np.asarray(sample.parse, np.uint8)
    body = sample.parts if sample.iuv is None else sample.iuv
    return agnostic_mask(parse=parse, keypoints=sample.keypoints, iuv=body, category=category(kinds), **worn)


def category(kinds: Sequence[str]) -> str:
    """`category_of` these kinds. ValueError where they say none."""
    hidden = category_of(kinds)
    if hidden is None:
        raise ValueError(f"nothing to try on among {', '.join(kinds)} (--no-agnostic takes such samples)")
    return hidden
