"""A request of try-on: what `Composer.try_on` is asked for, with pictures as files, from flags, lists and PNGs."""

import dataclasses
import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcjax.agnostic import CATEGORIES, MARGIN, Category
from fcjax.data.kinds import CATEGORY_OF, category_of, kinds_in
from fcjax.data.sources.sample import LABELS, Labels
from infer.request import AssetFile, asset_files, asset_problems, found, png_metadata, read_request
from infer.sampling_request import SamplingRequest
from infer.values import changed, check, key_problems, tuples

TRYON_MODEL = "mini-tryon"
FILES = {"person": "picture", "mask": "mask", "parse": "parse map", "iuv": "body map", "keypoints": "keypoints"}
"""The files of a request but for its assets, and what errors call them."""
MADE = ("labels", "estimate", "category", "margin", "shoes", "hat")
"""What a mask is made by, beside files."""
REPLACED = {
    "mask": ("parse", "keypoints", *MADE),
    "parse": ("mask", "estimate"),
    "iuv": ("estimate",),
    "estimate": ("mask", "parse", "iuv", "keypoints"),
    "feather": ("raw",),
    "raw": ("feather",),
}
"""What of an older request cannot stand beside what a newer one says."""
PLACES = {"the upper body": "upper", "the legs": "lower"}
"""What of the body categories cover; a dress or an outfit covers both."""
ENDS = (("shoes", "the feet"), ("hat", "the head"))
"""What is taken off beside a category, and where it is worn."""


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
    category: Category | None = None
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
        for name in [*FILES][1:]:
            if getattr(self, name) is not None:
                check(name, getattr(self, name), str, "a file's name")
        self.check_values()
        if self.feather is not None:
            check("feather", self.feather, numbers.Integral, "a whole number")
        check("margin", self.margin, numbers.Real, "a number")
        for name in ("raw", "estimate", "shoes", "hat"):
            check(name, getattr(self, name), bool, "true or false")
        if self.category is not None and self.category not in CATEGORIES:
            raise ValueError(f"category is {self.category!r}; expected one of {', '.join(CATEGORIES)}")
        if not self.assets:
            raise ValueError("there is nothing to try on: give a garment's picture as FILE=PHRASE with --asset")
        check("labels", self.labels, str, "a name")
        if self.labels not in LABELS:
            raise ValueError(f"labels are {self.labels!r}; expected one of {', '.join(LABELS)}")
        maps = [name for name in ("parse", "iuv", "keypoints") if getattr(self, name) is not None]
        if self.mask is None and not self.estimate and not {"parse", "iuv"} & {*maps}:
            raise ValueError(
                "nothing says what to repaint: give --mask (white is repainted), or --iuv or --parse to make one (or "
                "--estimate, where there is only the photograph)"
            )
        if self.mask is not None and "iuv" in maps:
            # It tells the pose.
            maps.remove("iuv")
        sources = [name for name in ("mask", "estimate") if getattr(self, name)] + maps
        if len(sources) > 1 and sources != maps:
            raise ValueError(f"{' and '.join(sources)} each say what to repaint: give one of them")
        if self.raw and self.feather is not None:
            raise ValueError("raw is the model's own picture everywhere, which has no edge to feather: leave one out")
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        unused = [name for name in MADE if getattr(self, name) != defaults[name]]
        if self.mask is not None and unused:
            raise ValueError(f"the mask says what to repaint: it leaves nothing for {' and '.join(unused)} to do")

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `Composer.try_on`."""
        return {**self.sampling, "feather": self.feather, "raw": self.raw}

    @property
    def covered(self) -> Category:
        """What a made mask covers: what is asked for, or else what the garments do, as training has it.

        "outfit" where no phrase names a garment.
        """
        return self.category or category_of(self._worn()) or "outfit"

    @property
    def made(self) -> dict[str, Any]:
        """What a mask is made of and what it takes off, as `infer.mask.make_mask` is told; files by their names."""
        names = ("parse", "iuv", "keypoints", *MADE)
        return {name: getattr(self, name) for name in names} | {"category": self.covered}

    def oddities(self) -> Iterator[str]:
        """What is odd about a made mask: garments that it leaves no room, places where nothing is put on, and phrases
        that do not tell.
        """
        if self.mask is not None:
            return
        fitting, room = category_of(self._worn()), _places([self.covered])
        for asset in self.assets:
            kinds, words = kinds_in(asset.phrase), f"{asset.path} is {asset.phrase!r}"
            left = [(place, f"category {fitting}") for place in PLACES if place in _places(kinds) - room]
            left += [(place, name) for name, place in ENDS if name in kinds and not getattr(self, name)]
            for place, flag in left:
                yield f"{words}, but the mask leaves {place} alone: --{flag} covers that, too"
            if not kinds and self.category is None:
                yield f"{words}, which is no garment that is known: --category says what the mask is to cover"
        bare = " and ".join(place for place in PLACES if place in room - _places(self._worn()))
        if bare and all(kinds_in(asset.phrase) for asset in self.assets):
            spared = f"--category {fitting} leaves" if fitting else "a --mask of your own may leave"
            yield f"the mask covers {bare} of {self.person}, where nothing is put on: {spared} that as it is"

    def _worn(self) -> list[str]:
        return [kind for asset in self.assets for kind in kinds_in(asset.phrase)]

    def file(self, name: str, beside: Path | None = None) -> Path:
        """Where one of `FILES` lies, looked for in the folder `beside` first. ValueError where it is not found."""
        return found(getattr(self, name), beside, f"{FILES[name]} file")

    def found(self, beside: Path | None) -> "TryOnRequest":
        """The same with all files by the places where they lie, see `file`."""
        files = {name: str(self.file(name, beside)) for name in FILES if getattr(self, name) is not None}
        assets = tuple(asset.found(beside)[0] for asset in self.assets)
        return dataclasses.replace(self, **files, assets=assets)

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
        said = {name: value for name, value in as_made(given).items() if name != "sha256"}
        return said, given.get("sha256", {}), weights

    def asdict(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Plain data for JSON: what is not at its default, what a made mask covers, and the SHA-256 of every file that
        the request names.
        """
        said = {**changed(self), "assets": [changed(asset) for asset in self.assets], "model": self.model}
        if self.mask is None:
            said["category"] = self.covered
        return {**said, "seed": self.seed, "sha256": dict(digests)}

    def metadata(self, weights: str, digests: Mapping[str, str]) -> Any:
        """The PNG's text, see `asdict`."""
        return png_metadata(self.asdict(digests), weights)


def as_made(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request's plain data, with what a picture leaves out that is older than its setting.

    Masks covered the outfit before they followed from garments, and every model was sampled alike.
    """
    if "sha256" not in request:
        return request
    covered = {"category": "outfit"} if request.get("mask") is None else {}
    return {"guidance": 1.5, "steps": 20, **covered, **request}


def put_over(held: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A request's plain data with what is given put over it, and without what that replaces."""
    said = [name for name in REPLACED if given.get(name) is not None and given[name] is not False]
    gone = {other for name in said for other in REPLACED[name]}
    return {**{name: value for name, value in held.items() if name not in gone}, **given}


def _places(kinds: Iterable[str]) -> set[str]:
    """What of the body these kinds of garments, or categories, cover."""
    covered = {CATEGORY_OF.get(kind, kind) for kind in kinds}
    return {place for place, half in PLACES.items() if covered & {half, "dress", "outfit"}}
