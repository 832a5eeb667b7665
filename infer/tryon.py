"""Try garments on a person's picture: whole outfits in one pass, everything outside the mask as it was.

python -m infer.tryon --person person.png --mask mask.png --prompt "a woman in a striped shirt"
--asset top.png="a striped shirt" --out out.png

The model is mini-tryon, the small one in the package, or any that --model names. White in the mask is repainted.
Without a mask, --iuv (a DensePose map, or the body map of infer.densepose) and --category say what to repaint; with
nothing but the photograph, --estimate guesses the body, which is second best (fcjax.estimate says what to install). The
result has the size of the person's own picture, which is read as its EXIF turns it. Masks and maps must be of the
turned picture: one of the picture as the camera stored it is told by its shape, but not where the turn is by half or
the picture square. Turn such a picture for good before its maps are made.

Many at once: python -m infer.tryon --pairs pairs.jsonl --out FOLDER, each line such as

{"name": "1.png", "person": "a.jpg", "mask": "a_mask.png", "prompt": "a woman in a red dress",
 "assets": [{"path": "dress.jpg", "phrase": "a red dress"}]}

with any other flag as a further key; flags say what lines leave out. Files may lie beside the list. Pictures that are
there already stay, so that a stopped run goes on, and are refused where another request, another file or other weights
made them; what fails is listed in FOLDER/failed.json, and the rest is made.
"""

import dataclasses
import hashlib
import json
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from fcjax.agnostic import CATEGORIES, MARGIN, Category, agnostic_mask
from fcjax.assets import Asset
from fcjax.cli import one_line, run
from fcjax.data.sources.files import read_iuv
from fcjax.estimate import warned
from fcjax.person import Person
from fcjax.pictures import open_mask, open_rgb
from infer.compose import prepare_output, save_png
from infer.request import (
    AssetFile,
    asset_files,
    asset_problems,
    changed,
    check,
    check_whole_numbers,
    found,
    key_problems,
    png_metadata,
    read_png_metadata,
    tuples,
    weights_digest,
)
from infer.sheet import sheet

if TYPE_CHECKING:
    from fcjax.composer import Composer, Fitting

TRYON_MODEL = "mini-tryon"


@dataclass(frozen=True)
class TryOnRequest:
    """What `Composer.try_on` is asked for, with pictures as files and its model as a name or a folder."""

    prompt: str
    person: str
    assets: tuple[AssetFile, ...] = ()
    mask: str | None = None
    iuv: str | None = None
    estimate: bool = False
    category: Category = "outfit"
    margin: float = MARGIN
    shoes: bool = False
    hat: bool = False
    model: str = TRYON_MODEL
    seed: int = 0
    steps: int = 20
    guidance: float = 1.5
    reference_guidance: float | None = None
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    eta: float = 0.0
    size: tuple[int, int] | None = None
    layout_seed: int = 0
    dtype: str | None = None
    feather: int | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt", "person", "model", "sampler"):
            check(name, getattr(self, name), str, "text")
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty")
        for name in ("mask", "iuv"):
            if getattr(self, name) is not None:
                check(name, getattr(self, name), str, "a file's name")
        if self.dtype is not None:
            check("dtype", self.dtype, str, "a name")
        for name in ("seed", "steps", "layout_seed"):
            check(name, getattr(self, name), numbers.Integral, "a whole number")
        if self.feather is not None:
            check("feather", self.feather, numbers.Integral, "a whole number")
        if self.reference_guidance is not None:
            check("reference_guidance", self.reference_guidance, numbers.Real, "a number")
        for name in ("guidance", "guidance_rescale", "eta", "margin"):
            check(name, getattr(self, name), numbers.Real, "a number")
        for name in ("raw", "estimate", "shoes", "hat"):
            check(name, getattr(self, name), bool, "true or false")
        if self.size is not None:
            check_whole_numbers("size", self.size, 2, "height and width")
        if self.category not in CATEGORIES:
            raise ValueError(f"category is {self.category!r}; expected one of {', '.join(CATEGORIES)}")
        if not self.assets:
            raise ValueError("there is nothing to try on: give a garment's picture as FILE=PHRASE with --asset")
        if self.mask is None and self.iuv is None and not self.estimate:
            raise ValueError(
                "nothing says what to repaint: give --mask (white is repainted), or --iuv and --category to make one "
                "(or --estimate, where there is only the photograph)"
            )
        sources = [name for name in ("mask", "iuv", "estimate") if getattr(self, name)]
        if len(sources) > 1:
            raise ValueError(f"{' and '.join(sources)} each say what to repaint: give one of them")
        if self.mask is not None and (self.shoes or self.hat or self.margin != MARGIN):
            raise ValueError("shoes, hat and margin are for masks that are made; the one given says what to repaint")

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `Composer.try_on`."""
        files = ("prompt", "person", "assets", "mask", "iuv", "estimate", "category", "margin", "shoes", "hat", "model")
        others = (*files, "dtype")
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in others}

    @property
    def worn(self) -> dict[str, Any]:
        """What `agnostic_mask` is to take off."""
        return {name: getattr(self, name) for name in ("category", "margin", "shoes", "hat")}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], source: str) -> "TryOnRequest":
        """The request of plain data; ValueError names every unknown or missing key at once, and `source`."""
        problems = [*key_problems(cls, given, ""), *asset_problems(given)]
        if problems:
            raise ValueError(f"{source}: {'; '.join(problems)}")
        return cls(**{**given, "assets": asset_files(given), "size": tuples(given.get("size"))})

    def asdict(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Plain data for JSON: what is not at its default, and the SHA-256 of every file that the request names."""
        said = {**changed(self), "assets": [changed(asset) for asset in self.assets], "model": self.model}
        return {**said, "seed": self.seed, "sha256": dict(digests)}

    def metadata(self, weights: str, digests: Mapping[str, str]) -> Any:
        """The PNG's text, see `asdict`."""
        return png_metadata(self.asdict(digests), weights)


@dataclass(frozen=True)
class Flags:
    """What to try on, and where it goes. What is not given has the default of `TryOnRequest`."""

    out: Path = Path("outputs/tryon.png")
    """The picture, a PNG; with --pairs a folder."""
    sheet: Path | None = None
    """Another picture that shows assets, person, mask and result side by side."""
    pairs: Path | None = None
    """A file with one request a line."""
    model: str | None = None
    """A model folder whose condition is tryon (default: mini-tryon, the one in the package)."""
    person: str | None = None
    """The person's picture, of any size."""
    mask: str | None = None
    """Of the person's size; white is repainted."""
    iuv: str | None = None
    """The person's body map (part ids, u, v), from which a mask is made where there is none; of the picture as its EXIF
    turns it."""
    estimate: bool = False
    """The body is guessed from the photograph alone."""
    category: Category | None = None
    """What a made mask covers: upper, lower, dress or outfit (default: outfit)."""
    margin: float | None = None
    """How far a made mask reaches beyond what it must cover, as a share of the picture's height."""
    shoes: bool = False
    """A made mask covers the feet as well."""
    hat: bool = False
    """A made mask covers the top of the head as well."""
    prompt: str | None = None
    """What the picture shows; it should contain every asset's phrase."""
    asset: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE=PHRASE")] = ()
    """A garment's picture and the phrase that describes it; once for every garment."""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    reference_guidance: float | None = None
    guidance_rescale: float | None = None
    sampler: str | None = None
    eta: float | None = None
    """Of ddim: 0 is deterministic, 1 ancestral."""
    dtype: str | None = None
    """Of computation (default: float32 on a CPU, else bfloat16)."""
    size: tuple[int, int] | None = None
    """Height and width at which the model works."""
    layout_seed: int | None = None
    feather: int | None = None
    """Pixels inside the mask over which old becomes new (default: the longer side / 128)."""
    raw: bool = False
    """The model's own picture everywhere, not only inside the mask."""


def given_by(flags: Flags) -> dict[str, Any]:
    """What the flags say of a request, as plain data."""
    names = {field.name for field in dataclasses.fields(TryOnRequest)}
    said = {
        name: value for name, value in vars(flags).items() if name in names and value is not None and value is not False
    }
    if flags.asset:
        said["assets"] = [changed(AssetFile.parse(words)) for words in flags.asset]
    return said


def person_of(request: TryOnRequest, beside: Path | None = None) -> Person:
    """The person and the mask: the file's, or one made from the body map. ValueError for files that do not fit."""
    image = open_rgb(found(request.person, beside))
    if request.mask is not None:
        return Person(image, open_mask(found(request.mask, beside)))
    if request.estimate:
        guess = warned(image, "give --mask or --iuv where there is one")
        return Person(image, agnostic_mask(iuv=guess.iuv, keypoints=guess.keypoints, **request.worn))
    assert request.iuv is not None
    body = read_iuv(found(request.iuv, beside), image.shape[:2], parts_alone=True)
    return Person(image, agnostic_mask(iuv=body, **request.worn))


def opened(request: TryOnRequest, beside: Path | None = None) -> tuple[Person, list[Asset]]:
    """The person, the mask and the assets of a request's files. ValueError for what cannot be read or does not fit."""
    return person_of(request, beside), [file.open(file.read(beside)) for file in request.assets]


def fit(
    request: TryOnRequest, composer: "Composer", person: Person, assets: Sequence[Asset], progress: Any = None
) -> "Fitting":
    """The picture of a request."""
    [fitting] = composer.try_on(request.prompt, assets, person, **request.settings, progress=progress)
    return fitting


def digests(request: TryOnRequest, beside: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file that the request names."""
    names = [request.person, request.mask, request.iuv, *(asset.path for asset in request.assets)]
    paths = {name: found(name, beside) for name in names if name is not None}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Many


def read_pairs(path: Path, flags: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], TryOnRequest]]]:
    """Names of pictures and what makes their requests. ValueError for a list that cannot be read, or twice one name."""
    if not path.is_file():
        raise ValueError(f"no such list of pairs: {path}")
    seen = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is no JSON ({error}); one object a line is expected") from error
        if not isinstance(given, dict):
            raise ValueError(f"{place} must be a JSON object with person, prompt and assets, got {line[:40]!r}")
        name = given.pop("name", f"{number:06d}.png")
        if not isinstance(name, str) or Path(name).name != name or not name.lower().endswith(".png"):
            raise ValueError(f"{place}: name is {name!r}; expected a file name that ends in .png")
        if name in seen:
            raise ValueError(f"{place}: the name {name} stands in the list twice")
        seen.add(name)
        yield name, lambda given=given, place=place: TryOnRequest.from_dict({**flags, **given}, place)
    if not seen:
        raise ValueError(f"{path} holds no pair")


def try_on_pairs(flags: Flags) -> None:
    """One picture a line into the folder; those that are there stay."""
    assert flags.pairs is not None
    if flags.out.suffix and not flags.out.is_dir():
        raise ValueError(f"with --pairs, --out is a folder; got {flags.out}")
    if flags.sheet is not None:
        raise ValueError("--sheet shows one request; leave it out with --pairs")
    # All names first, so that a mistake in the list is told before any work.
    pairs = list(read_pairs(flags.pairs, given_by(flags)))
    flags.out.mkdir(parents=True, exist_ok=True)
    beside, weights = flags.pairs.parent, _Weights()
    left = left_to_make(pairs, flags.out, beside, weights)
    failed: dict[str, str] = {}
    composers: dict[tuple[str, str | None], Composer] = {}
    with tqdm(total=len(pairs), initial=len(pairs) - len(left), unit="pair") as bar:
        for name, make in left:
            try:
                request = make()
                person, assets = opened(request, beside)
                model = request.model, request.dtype
                if model not in composers:
                    composers = {model: _load(*model)}
                fitting = fit(request, composers[model], person, assets)
                info = request.metadata(weights[request.model], digests(request, beside))
                save_png(fitting.image, flags.out / name, info)
            except ValueError as error:
                failed[name] = one_line(error)
            bar.update()
            bar.set_postfix(failed=len(failed))
    report = flags.out / "failed.json"
    report.unlink(missing_ok=True)
    if failed:
        report.write_text(json.dumps(failed, indent=2, ensure_ascii=False) + "\n")
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(pairs)} pairs failed, {report} says why; the first, {name}: {reason}")
    print(f"{len(left)} pictures made, {len(pairs) - len(left)} were there: {flags.out}")


def left_to_make(
    pairs: Sequence[tuple[str, Callable[[], TryOnRequest]]], out: Path, beside: Path, weights: "_Weights"
) -> list[tuple[str, Callable[[], TryOnRequest]]]:
    """The pairs without a picture in the folder, or with a request that cannot be met.

    ValueError names pictures that are there and that their line does not ask for, and in what they differ.
    """
    left, others = [], {}
    for name, make in pairs:
        if not (out / name).exists():
            left.append((name, make))
            continue
        try:
            request = make()
            asked = request.asdict(digests(request, beside)), weights[request.model]
        except (ValueError, OSError):
            # What is wrong with it is said when its turn comes.
            left.append((name, make))
            continue
        differ = differences(out / name, *asked)
        if differ:
            others[name] = differ
    if others:
        name, differ = next(iter(others.items()))
        raise ValueError(
            f"{len(others)} pictures in {out} are not what the list asks for; the first, {name}, was made with another "
            f"{', '.join(differ)}: remove them, or name another --out"
        )
    return left


def differences(path: Path, asked: Mapping[str, Any], weights: str) -> list[str]:
    """In what the request inside a PNG, its files or the weights that met it are not those that are asked for."""
    try:
        held, made_by = read_png_metadata(path)
    except ValueError:
        return ["program"]
    asked = json.loads(json.dumps(asked))
    if not isinstance(held, Mapping):
        return ["program"]
    keys = sorted((held.keys() | asked.keys()) - {"sha256"})
    told = [key for key in keys if held.get(key) != asked.get(key)]
    before = held.get("sha256", {})
    told += [f"file {name}" for name, digest in asked["sha256"].items() if before.get(name, digest) != digest]
    return told + ["weights"] * (made_by != weights)


class _Weights(dict[str, str]):
    """The digest of the weights of each model that is asked for."""

    def __missing__(self, model: str) -> str:
        self[model] = _weights(model)
        return self[model]


def _load(model: str, dtype: str | None) -> "Composer":
    # Here, because it takes seconds that a request with a mistake need not wait for.
    from fcjax.composer import Composer

    return Composer.load(model, dtype=dtype)


def _weights(model: str) -> str:
    from fcjax.pretrained import locate

    return weights_digest(locate(model))


def panels(request: TryOnRequest, fitting: "Fitting", person: Person, assets: Sequence[Asset]) -> list[Any]:
    """One row of a sheet: assets, person, what is repainted, result."""
    hidden = np.where(person.mask[..., None], np.uint8(128), person.image)
    garments = [(asset.phrase, asset.image) for asset in assets]
    return [*garments, ("person", person.image), ("what stays", hidden), (request.prompt, fitting.image)]


def main(flags: Flags) -> None:
    """Try on what the flags ask for."""
    if flags.pairs is not None:
        try_on_pairs(flags)
        return
    request = TryOnRequest.from_dict(given_by(flags), "the request")
    for path in (flags.out, *([flags.sheet] if flags.sheet is not None else [])):
        prepare_output(path)
    person, assets = opened(request)
    composer = _load(request.model, request.dtype)
    with tqdm(total=request.steps, unit="step", desc="trying on") as bar:
        fitting = fit(request, composer, person, assets, progress=lambda done, _: bar.update(done - bar.n))
    save_png(fitting.image, flags.out, request.metadata(_weights(request.model), digests(request)))
    print(flags.out)
    if flags.sheet is not None:
        sheet([panels(request, fitting, person, assets)]).save(flags.sheet)
        print(flags.sheet)


if __name__ == "__main__":
    run(main)
