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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from fcjax.agnostic import Category
from fcjax.assets import Asset
from fcjax.cli import run
from fcjax.data.sources.sample import Labels
from fcjax.person import Person
from fcjax.pictures import icc_profile
from infer.compose import prepare_outputs, save_png, show_progress
from infer.densepose import chart_colours
from infer.flags import OptionalPath, Switch, flag, flag_of
from infer.request import AssetFile, warn_of_other_weights, weights_digest
from infer.sampling_request import SamplingFlags, settled
from infer.sheet import sheet
from infer.tryon_fit import digests, fit, load, opened
from infer.tryon_pairs import try_on_pairs
from infer.tryon_request import FILES, TryOnRequest, put_over
from infer.values import changed

if TYPE_CHECKING:
    from fcjax.composer import Fitting


def _of_request(metavar: str, name: str) -> Any:
    return flag_of(TryOnRequest, metavar, name)


@dataclass(frozen=True)
class Flags:
    """What to try on, and where it goes. What is not given has the default of `TryOnRequest`."""

    out: Path = Path("outputs/tryon.png")
    """The picture, a PNG; with --pairs a folder."""
    sheet: OptionalPath = None
    """Another picture that shows assets, person, body map, mask and result side by side."""
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


def panels(request: TryOnRequest, fitting: "Fitting", person: Person, assets: Sequence[Asset]) -> list[Any]:
    """One row of a sheet: assets, person, body map, what is repainted, result."""
    hidden = np.where(person.mask[..., None], np.uint8(128), person.image)
    garments = [(asset.phrase, asset.image) for asset in assets]
    pose = [] if person.iuv is None else [("body map", chart_colours(person.iuv))]
    return [*garments, ("person", person.image), *pose, ("what stays", hidden), (request.prompt, fitting.image)]


def _check_many(flags: Flags) -> None:
    """ValueError for flags that concern one picture."""
    if flags.out.suffix and not flags.out.is_dir():
        raise ValueError(f"with --pairs, --out is a folder; got {flags.out}")
    if flags.sheet is not None:
        raise ValueError("--sheet shows one request; leave it out with --pairs")
    if flags.request is not None:
        raise ValueError(
            "--request says what one picture shows, with --pairs the list does: leave it out, and say by flags what "
            "the lines have in common"
        )


def main(flags: Flags) -> None:
    """Try on what the flags ask for."""
    if flags.pairs is not None:
        _check_many(flags)
        try_on_pairs(flags.pairs, given_by(flags), flags.out)
        return
    request, expected_weights = requested(flags)
    read = [*(getattr(request, name) for name in FILES), *(asset.path for asset in request.assets)]
    prepare_outputs([flags.out, flags.sheet], [*read, flags.request])
    person, assets = opened(request)
    composer = load(request.model, request.dtype)
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
