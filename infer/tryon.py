"""Try garments on a person's picture: whole outfits in one pass, everything outside the mask as it was.

python -m infer.tryon --person person.png --mask mask.png --prompt "a woman in a striped shirt"
--asset top.png="a striped shirt" --out out.png

The model is mini-tryon, the small one in the package, or any that --model names. White in the mask is repainted. A
model that takes a pose, as mini-tryon does, reads it from the body map (--iuv), or guesses without. The map's u and v
must follow the charts that the model was trained with; mini-tryon's are those of infer.densepose without
--uv-processed.
Without a mask, one is made as infer.mask makes it, of --iuv (a DensePose map, or the body map of infer.densepose) or
--parse (a parse map); with nothing but the photograph, --estimate guesses the body, which is second best
(fcjax.estimate says what to install). It covers what the garments' phrases name, such as the upper body for a shirt, or
the whole outfit where no garment is named that is known; --category says another, --shoes and --hat add feet and head.

The result has the size of the person's own picture, which is read as its EXIF turns it. Masks and maps must be of the
turned picture: one of the picture as the camera stored it is told by its shape, but not where the turn is by half or
the picture square. Turn such a picture for good before its maps are made.

The PNG holds its own request, with the SHA-256 of every file: python -m infer.tryon --request out.png --out again.png
makes it again. Flags change what a request says: --no-shoes and its like take it back; --mask replaces the parse map,
--category and all else that a mask was made of, --parse a mask, --feather --raw and the reverse; its body map stays, or
is added; --asset replaces all its assets.

Many at once: python -m infer.tryon --pairs pairs.jsonl --out FOLDER, each line such as

{"name": "1.png", "person": "a.jpg", "mask": "a_mask.png", "prompt": "a woman in a red dress",
 "assets": [{"path": "dress.jpg", "phrase": "a red dress"}]}

with any other flag as a further key; flags say what lines leave out. Files may lie beside the list, where they are
looked for first. Pictures that are there already stay, so that a stopped run goes on, and are refused where another
request, another file or other weights made them; what fails is listed in FOLDER/failed.json, and the rest is made.
"""

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from fcjax.agnostic import Category
from fcjax.assets import Asset
from fcjax.cli import one_line, run
from fcjax.data.sources.files import read_iuv
from fcjax.data.sources.sample import Labels
from fcjax.person import Person
from fcjax.pictures import icc_profile, open_rgb
from infer.compose import prepare_outputs, save_png, show_progress
from infer.flags import OptionalPath, Switch, flag, flag_of
from infer.mask import make_mask
from infer.request import AssetFile, own_sampling, read_png_metadata, warn_of_other_weights, weights_digest
from infer.sampling_request import SamplingFlags, settled
from infer.sheet import sheet
from infer.tryon_request import FILES, TryOnRequest, as_made, put_over
from infer.values import changed

if TYPE_CHECKING:
    from fcjax.composer import Composer, Fitting


def _of_request(metavar: str, name: str) -> Any:
    return flag_of(TryOnRequest, metavar, name)


@dataclass(frozen=True)
class Flags:
    """What to try on, and where it goes. What is not given has the default of `TryOnRequest`."""

    out: Path = Path("outputs/tryon.png")
    """The picture, a PNG; with --pairs a folder."""
    sheet: OptionalPath = None
    """Another picture that shows assets, person, mask and result side by side."""
    request: OptionalPath = None
    """A JSON file, or a PNG of this program, that says what the flags below leave out."""
    pairs: OptionalPath = None
    """A file with one request a line."""
    model: Annotated[str | None, _of_request("FOLDER", "model")] = None
    """A model folder that tries on, or mini-tryon, the one in the package."""
    person: Annotated[str | None, flag("PATH", "none")] = None
    """The person's picture, of any size."""
    mask: Annotated[str | None, flag("PATH", "none")] = None
    """Of the person's size; white is repainted."""
    parse: Annotated[str | None, flag("PATH", "none")] = None
    """A parse map of the person: a PNG of labels, from which a mask is made where there is none."""
    labels: Annotated[Labels | None, _of_request("NAME", "labels")] = None
    """Whose labels the parse map has: viton-hd, lip, atr or deepfashion."""
    iuv: Annotated[str | None, flag("PATH", "none")] = None
    """The person's body map (part ids, u, v), of the shape of the picture as its EXIF turns it: the pose, for a model
    that takes one, and where there is no mask one is made of it."""
    keypoints: Annotated[str | None, flag("PATH", "none")] = None
    """OpenPose's JSON, or DressCode's, of the person beside a parse map or a body map: where sleeves may come."""
    estimate: Switch = None
    """The body is guessed from the photograph alone."""
    category: Annotated[Category | None, flag("upper|lower|dress|outfit", "as the garments' phrases say")] = None
    """What a made mask covers."""
    margin: Annotated[float | None, _of_request("FLOAT", "margin")] = None
    """How far a made mask reaches beyond what it must cover, as a share of the picture's height."""
    shoes: Switch = None
    """A made mask covers the feet as well."""
    hat: Switch = None
    """A made mask covers the top of the head as well."""
    prompt: Annotated[str | None, flag("WORDS", "required")] = None
    """What the picture shows; it should contain every asset's phrase."""
    asset: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE=PHRASE")] = ()
    """A garment's picture and the phrase that describes it; once for every garment."""
    swatch: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE=PHRASE")] = ()
    """The same for a picture that is its asset from edge to edge, such as fabric."""
    feather: Annotated[int | None, flag("PIXELS", "the longer side / 128")] = None
    """Pixels inside the mask over which old becomes new."""
    raw: Switch = None
    """The model's own picture everywhere, not only inside the mask."""
    sampling: Annotated[SamplingFlags, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=SamplingFlags)


def given_by(flags: Flags) -> dict[str, Any]:
    """What the flags say of a request, as plain data."""
    given = vars(flags) | vars(flags.sampling)
    names = [field.name for field in dataclasses.fields(TryOnRequest) if field.name in given]
    said = {name: given[name] for name in names if given[name] is not None}
    files = [AssetFile.parse(words) for words in flags.asset]
    files += [AssetFile.parse(words, whole=True) for words in flags.swatch]
    return {**said, "assets": [changed(file) for file in files]} if files else said


def person_of(request: TryOnRequest, beside: Path | None = None) -> Person:
    """The person, the mask (the file's, or one made of maps) and the body map. ValueError for files that do not fit."""
    picture = request.file("person", beside)
    iuv = None if request.iuv is None else request.file("iuv", beside)
    if request.mask is not None:
        return Person.open(picture, request.file("mask", beside), iuv)
    for problem in request.oddities():
        warnings.warn(problem, stacklevel=2)
    made = request.made
    files = {name: request.file(name, beside) for name in FILES if made.get(name) is not None}
    image = open_rgb(picture)
    mask = make_mask(image, **{**made, **files})
    return Person(image, mask, None if iuv is None else read_iuv(iuv, image.shape[:2], parts_alone=True))


def opened(request: TryOnRequest) -> tuple[Person, list[Asset]]:
    """The person, the mask and the assets of a request's files. ValueError for what cannot be read or does not fit, and
    for a sampler that there is not.
    """
    request.check_sampler()
    return person_of(request), [file.open(file.read()) for file in request.assets]


def fit(
    request: TryOnRequest, composer: "Composer", person: Person, assets: Sequence[Asset], progress: Any = None
) -> "Fitting":
    """The picture of a request. Warns of a body map that serves nothing."""
    if request.mask is not None and request.iuv is not None and not composer.config.takes_pose:
        warnings.warn(f"{request.model} takes no pose: beside --mask it makes no use of --iuv", stacklevel=2)
    [fitting] = composer.try_on(request.prompt, assets, person, **request.settings, progress=progress)
    return fitting


def digests(request: TryOnRequest, beside: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file that the request names."""
    named = [name for name in FILES if getattr(request, name) is not None]
    contents = {getattr(request, name): request.file(name, beside).read_bytes() for name in named}
    contents |= {asset.path: asset.read(beside) for asset in request.assets}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def requested(flags: Flags) -> tuple[TryOnRequest, str | None]:
    """The request of a file with the flags put over it, files by their places, and the digest of weights that it names.

    ValueError for a request that cannot be, and for files that are not those which it was made with.
    """
    given = given_by(flags)
    if flags.request is None:
        missing = [f"--{name}" for name in ("person", "prompt") if name not in given]
        if missing:
            raise ValueError(
                f"expected {' and '.join(missing)}, or --request with a file that says so, or --pairs with a list"
            )
        return TryOnRequest.from_dict(given, "the request"), None
    beside = flags.request.parent
    held, hashes, weights = TryOnRequest.read(flags.request)
    request = TryOnRequest.from_dict(put_over(held, given), str(flags.request))
    anew = {*(given.get(name) for name in FILES), *(file["path"] for file in given.get("assets", ()))}
    others = [
        name
        for name, digest in digests(request, beside).items()
        if name not in anew and hashes.get(name, digest) != digest
    ]
    if others:
        raise ValueError(
            f"not the files that {flags.request} was made with: {', '.join(others)}; find the old ones, or give them "
            "anew by flags"
        )
    return request.found(beside), weights


# ---------------------------------------------------------------------------------------------------------------------
# Many


def read_pairs(path: Path, flags: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], TryOnRequest]]]:
    """Names of pictures and what makes their requests. ValueError for a list that cannot be read, or twice one name."""
    if not path.is_file():
        raise ValueError(f"no such list of pairs: {path}")
    seen = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}): save it so") from error
    for number, line in enumerate(lines, 1):
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
        yield name, lambda given=given, place=place: TryOnRequest.from_dict(put_over(flags, given), place)
    if not seen:
        raise ValueError(f"{path} holds no pair")


def try_on_pairs(flags: Flags) -> None:
    """One picture a line into the folder; those that are there stay."""
    assert flags.pairs is not None
    if flags.out.suffix and not flags.out.is_dir():
        raise ValueError(f"with --pairs, --out is a folder; got {flags.out}")
    if flags.sheet is not None:
        raise ValueError("--sheet shows one request; leave it out with --pairs")
    if flags.request is not None:
        raise ValueError(
            "--request says what one picture shows, with --pairs the list does: leave it out, and say by flags what "
            "the lines have in common"
        )
    # All names first, so that a mistake in the list is told before any work.
    pairs = list(read_pairs(flags.pairs, given_by(flags)))
    flags.out.mkdir(parents=True, exist_ok=True)
    beside, weights = flags.pairs.parent.absolute(), _Weights()
    left = left_to_make(pairs, flags.out, beside, weights)
    failed: dict[str, str] = {}
    composers: dict[tuple[str, str | None], Composer | ValueError] = {}
    with tqdm(total=len(pairs), initial=len(pairs) - len(left), unit="pair") as bar:
        for name, make in left:
            try:
                request = _placed(make(), beside)
                person, assets = opened(request)
                model = request.model, request.dtype
                if model not in composers:
                    composers = {model: _loaded(*model)}
                composer = composers[model]
                if isinstance(composer, ValueError):
                    raise composer
                request = settled(request, composer.config.own_sampling)
                fitting = fit(request, composer, person, assets)
                info = request.metadata(weights[request.model], digests(request))
                save_png(fitting.image, flags.out / name, info, icc_profile(Path(request.person)))
            except (ValueError, OSError) as error:
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


def _placed(request: TryOnRequest, beside: Path) -> TryOnRequest:
    """The request with whole paths, so that its picture finds its files again from any folder."""
    return request.found(beside).found(Path.cwd())


def left_to_make(
    pairs: Sequence[tuple[str, Callable[[], TryOnRequest]]], out: Path, beside: Path, weights: "_Weights"
) -> list[tuple[str, Callable[[], TryOnRequest]]]:
    """The pairs without a picture in the folder, or with a request that cannot be met.

    ValueError names pictures that are there and that their line does not ask for, and in what they differ.
    """
    left, others = [], {}
    own = functools.cache(own_sampling)
    for name, make in pairs:
        if not (out / name).exists():
            left.append((name, make))
            continue
        try:
            request = _placed(make(), beside)
            request = settled(request, own(request.model))
            asked = request.asdict(digests(request)), weights[request.model]
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
    """In what the request inside a PNG, its files or the weights that met it are not those that are asked for.

    Files are told by name and content, so that they may have been moved, list and all.
    """
    try:
        held, made_by = read_png_metadata(path)
    except ValueError:
        return ["program"]
    if not isinstance(held, Mapping) or "person" not in held:
        return ["program"]
    asked = json.loads(json.dumps(asked))
    (before, files), (now, others) = (_by_name(as_made(said)) for said in (held, asked))
    told = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    digests = held.get("sha256", {})
    for role, file in others.items():
        old = files.get(role, "")
        if Path(old).name == Path(file).name and digests.get(old) not in (None, asked["sha256"][file]):
            told.append(f"file {file}")
    return told + ["weights"] * (made_by != weights)


def _by_name(said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A request's plain data with files by their names alone and without digests, and each file's path by its role."""
    assets = said.get("assets", [])
    paths = {role: said[role] for role in FILES if said.get(role) is not None}
    names: dict[str, Any] = {role: Path(path).name for role, path in paths.items()}
    names["assets"] = [{**asset, "path": Path(asset["path"]).name} for asset in assets]
    paths |= {f"asset {number}": asset["path"] for number, asset in enumerate(assets)}
    return {name: value for name, value in said.items() if name != "sha256"} | names, paths


class _Weights(dict[str, str]):
    """The digest of the weights of each model that is asked for."""

    def __missing__(self, model: str) -> str:
        self[model] = weights_digest(model)
        return self[model]


def _load(model: str, dtype: str | None) -> "Composer":
    # Here, because it takes seconds that a request with a mistake need not wait for.
    from fcjax.composer import Composer

    return Composer.load(model, dtype=dtype)


def _loaded(model: str, dtype: str | None) -> "Composer | ValueError":
    """The model, or why it cannot be had, which is the same for every pair."""
    try:
        return _load(model, dtype)
    except ValueError as error:
        return error


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
    request, expected_weights = requested(flags)
    read = [*(getattr(request, name) for name in FILES), *(asset.path for asset in request.assets)]
    prepare_outputs([flags.out, flags.sheet], [*read, flags.request])
    person, assets = opened(request)
    composer = _load(request.model, request.dtype)
    request = settled(request, composer.config.own_sampling)
    weights = weights_digest(request.model)
    warn_of_other_weights(request.model, weights, expected_weights)
    with tqdm(unit="step", desc="trying on") as bar:
        fitting = fit(request, composer, person, assets, progress=functools.partial(show_progress, bar))
    info = request.metadata(weights, digests(request))
    save_png(fitting.image, flags.out, info, icc_profile(Path(request.person)))
    print(flags.out)
    if flags.sheet is not None:
        sheet([panels(request, fitting, person, assets)]).save(flags.sheet)
        print(flags.sheet)


if __name__ == "__main__":
    run(main)
