"""A request of try-on: what `Composer.try_on` is asked for, with pictures as files, from flags, lists and PNGs."""

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcjax.agnostic import CATEGORIES, MARGIN, Category
from fcjax.data.sources.sample import LABELS, Labels
from infer.request import AssetFile, asset_files, asset_problems, png_metadata, read_request
from infer.sampling_request import SamplingRequest
from infer.values import changed, check, key_problems, tuples

TRYON_MODEL = "mini-tryon"
FILES = ("person", "mask", "parse", "iuv", "keypoints")
MADE = ("labels", "estimate", "category", "margin", "shoes", "hat")
"""What a mask is made by, beside files."""
SHOES = {"shoe", "shoes", "boots", "sneakers", "trainers", "heels", "sandals", "loafers", "pumps", "flats"}
HATS = {"hat", "cap", "beanie", "beret"}


@dataclass(frozen=True)
class TryOnRequest(SamplingRequest):
    """What `Composer.try_on` is asked for, with pictures as files."""

    prompt: str
    person: str
    assets: tuple[AssetFile, ...] = ()
    mask: str | None = None
    parse: str | None = None
    labels: Labels = "viton-hd"
    iuv: str | None = None
    keypoints: str | None = None
    estimate: bool = False
    category: Category = "outfit"
    margin: float = MARGIN
    shoes: bool = False
    hat: bool = False
    model: str = field(default=TRYON_MODEL, kw_only=True)
    feather: int | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt", "person", "model", "sampler"):
            check(name, getattr(self, name), str, "text")
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty")
        for name in FILES[1:]:
            if getattr(self, name) is not None:
                check(name, getattr(self, name), str, "a file's name")
        self.check_values()
        if self.feather is not None:
            check("feather", self.feather, numbers.Integral, "a whole number")
        check("margin", self.margin, numbers.Real, "a number")
        for name in ("raw", "estimate", "shoes", "hat"):
            check(name, getattr(self, name), bool, "true or false")
        if self.category not in CATEGORIES:
            raise ValueError(f"category is {self.category!r}; expected one of {', '.join(CATEGORIES)}")
        if not self.assets:
            raise ValueError("there is nothing to try on: give a garment's picture as FILE=PHRASE with --asset")
        if self.labels not in LABELS:
            raise ValueError(f"labels are {self.labels!r}; expected one of {', '.join(LABELS)}")
        maps = [name for name in ("parse", "iuv", "keypoints") if getattr(self, name) is not None]
        if self.mask is None and not self.estimate and not {"parse", "iuv"} & {*maps}:
            raise ValueError(
                "nothing says what to repaint: give --mask (white is repainted), or --iuv or --parse, and --category, "
                "to make one (or --estimate, where there is only the photograph)"
            )
        sources = [name for name in ("mask", "estimate") if getattr(self, name)] + maps
        if len(sources) > 1 and sources != maps:
            raise ValueError(f"{' and '.join(sources)} each say what to repaint: give one of them")
        if self.raw and self.feather is not None:
            raise ValueError("raw is the model's own picture everywhere, which has no edge to feather: leave one out")
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        unused = [name for name in MADE if getattr(self, name) != defaults[name]]
        if self.mask is not None and unused:
            raise ValueError(f"the mask says what to repaint: {' and '.join(unused)} are for masks that are made")

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `Composer.try_on`."""
        return {**self.sampling, "feather": self.feather, "raw": self.raw}

    @property
    def made(self) -> dict[str, Any]:
        """What a mask is made of and what it takes off, as `infer.mask.make_mask` is told; files by their names."""
        return {name: getattr(self, name) for name in ("parse", "iuv", "keypoints", *MADE)}

    def uncovered(self) -> list[str]:
        """What is wrong with a made mask: garments of the assets that it would leave as they are."""
        if self.mask is not None:
            return []
        return [
            f"{asset.path} is {asset.phrase!r}, but the mask leaves the {place} as it is: --{name} covers that, too"
            for name, place, words in (("shoes", "feet", SHOES), ("hat", "head", HATS))
            for asset in self.assets
            if not getattr(self, name) and words & {*asset.phrase.lower().replace("-", " ").split()}
        ]

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], source: str) -> "TryOnRequest":
        """The request of plain data; ValueError names every unknown or missing key at once, and `source`."""
        problems = [*key_problems(cls, given, ""), *asset_problems(given)]
        if problems:
            raise ValueError(f"{source}: {'; '.join(problems)}")
        return cls(**{**given, "assets": asset_files(given), "size": tuples(given.get("size"))})

    @staticmethod
    def read(path: Path) -> tuple[dict[str, Any], dict[str, str], str | None]:
        """The plain data of a request in a JSON file or inside a PNG; of a PNG the SHA-256 of its files, and the digest
        of the weights that made it, as well. ValueError for another file.
        """
        given, weights = read_request(path)
        if not isinstance(given, Mapping) or "person" not in given:
            raise ValueError(f"{path} holds no request of infer.tryon: a JSON object with person, prompt and assets")
        return {name: value for name, value in given.items() if name != "sha256"}, given.get("sha256", {}), weights

    def asdict(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Plain data for JSON: what is not at its default, and the SHA-256 of every file that the request names."""
        said = {**changed(self), "assets": [changed(asset) for asset in self.assets], "model": self.model}
        return {**said, "seed": self.seed, "sha256": dict(digests)}

    def metadata(self, weights: str, digests: Mapping[str, str]) -> Any:
        """The PNG's text, see `asdict`."""
        return png_metadata(self.asdict(digests), weights)
