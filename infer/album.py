"""An album: several pictures of one person, each in a pose, a view and an outfit of its own.

python -m infer.album --request album.json --out outputs/album

{
  "prompt": "a woman in a red striped shirt and blue jeans",
  "assets": [{"path": "shirt.png", "phrase": "a red striped shirt"}, {"path": "jeans.png", "phrase": "blue jeans"}],
  "body": {"gender": 0.0, "height": 0.6},
  "pages": [{"body": {"pose": "standing"}}, {"body": {"pose": "walking", "view": 30}},
            {"prompt": "a woman in a green dress", "assets": [{"path": "dress.png", "phrase": "a green dress"}]}],
  "seed": 0
}

"turntable": 8 in place of "pages" makes eight views around the album's body. A page has its own prompt, assets and
parts of the body where it names them, else the album's. A pose may be a frame of a file of SMPL parameters (AMASS,
4D-Humans, WHAM, SMPLify-X): {"body": {"params": "walk.npz", "frame": 12, "up": "z", "subject": "0"}}, all but params
as the case needs it; with params in the album's body, pages can name frames alone. Further keys are those of
`fcjax.make_album`. Written are page_1.png ..., each of which holds the request, a contact sheet, and album.json with
the request and the shares of tokens that look at the first page; a page or album.json given as --request makes the
album again. Files may lie beside the request, where they are looked for first.
"""

import dataclasses
import functools
import json
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from fcjax.body import Body
from fcjax.cli import run
from infer.compose import prepare_folder, save_png, show_progress
from infer.densepose import parts
from infer.flags import flag, flag_of
from infer.parameters import Parameters, warn_of_betas
from infer.request import (
    POSE_FILE,
    AssetFile,
    asset_files,
    asset_problems,
    body_problems,
    png_metadata,
    pose_words,
    read_body,
    read_request,
    weights_digest,
)
from infer.sampling_request import SamplingFlags, SamplingRequest, settled
from infer.sheet import Panel, sheet
from infer.values import changed, check, key_problems, tuples

ALBUM = "album.json"

if TYPE_CHECKING:
    from fcjax.album import Album, Page, Sharing


@dataclass(frozen=True)
class PageRequest:
    """One picture of an album."""

    prompt: str
    assets: tuple[AssetFile, ...] = ()
    body: Body = dataclasses.field(default_factory=Body)

    def asdict(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "assets": [changed(asset) for asset in self.assets], "body": changed(self.body)}


@dataclass(frozen=True)
class AlbumRequest(SamplingRequest):
    """What `fcjax.make_album` is asked for, with assets as files."""

    pages: tuple[PageRequest, ...]
    sharing: "Sharing" = "correspondence"
    align: bool | None = None
    same_noise: bool = True
    batch_size: int = 4

    def __post_init__(self) -> None:
        self.check_values()
        check("sharing", self.sharing, str, "a name")
        check("batch_size", self.batch_size, numbers.Integral, "a whole number")
        for name in ("same_noise", *(["align"] if self.align is not None else [])):
            check(name, getattr(self, name), bool, "true or false")
        from fcjax.album import check_batch_size, check_sharing

        check_sharing(self.sharing, self.align)
        check_batch_size(self.batch_size, len(self.pages))

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `fcjax.make_album`."""
        own = ("sharing", "align", "same_noise", "batch_size")
        return {**self.sampling, **{name: getattr(self, name) for name in own}}

    def asdict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "pages": [page.asdict() for page in self.pages],
            **self.settings,
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], source: str, beside: Path | None = None) -> "AlbumRequest":
        """The request of plain data; ValueError names every unknown key at once, and `source`.

        beside: a folder where bodies' files may lie as well.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"{source} must be a JSON object with pages, not {type(given).__name__}")
        common = {name: given[name] for name in ("prompt", "assets", "body") if name in given}
        own = {name: value for name, value in given.items() if name not in common}
        if "turntable" in own:
            if "pages" in own:
                raise ValueError(f"{source}: turntable makes the pages; leave one of the two out")
            try:
                own["pages"] = turntable(own.pop("turntable"), common.get("body"))
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from error
        pages = own.get("pages")
        if not isinstance(pages, list) or not pages or not all(isinstance(page, Mapping) for page in pages):
            raise ValueError(f"{source}: pages must be a list of objects, one at least, such as {{'body': {{...}}}}")
        problems = [*key_problems(cls, own, ""), *_page_problems(common, "")]
        for number, page in enumerate(pages):
            problems += _page_problems(page, f"pages[{number}].")
        if problems:
            raise ValueError(f"{source}: {'; '.join(problems)}")
        read = [_page(common, page, f"{source}: pages[{number}]", beside) for number, page in enumerate(pages)]
        made = tuple(page for page, _ in read)
        try:
            request = cls(**{**own, "pages": made, "size": tuples(own.get("size"))})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        warn_of_betas(*(parameters for _, parameters in read))
        return request

    @classmethod
    def read(cls, path: Path) -> "AlbumRequest":
        """The request in a JSON file, in the album.json of an album, or inside one of its pages."""
        given, _ = read_request(path)
        made = isinstance(given, Mapping) and given.keys() == {"request", "matched"}
        return cls.from_dict(given["request"] if made else given, str(path), path.parent)


def turntable(views: Any, body: Any) -> list[dict[str, Any]]:
    """Pages that look at the body from so many sides, from its own view on."""
    check("turntable", views, numbers.Integral, "a whole number of views")
    if views < 1:
        raise ValueError(f"turntable must be at least 1, got {views}")
    first = body.get("view", 0.0) if isinstance(body, Mapping) else 0.0
    check("body.view", first, numbers.Real, "degrees")
    return [{"body": {"view": (first + 360 * number / views) % 360}} for number in range(views)]


def _page_problems(given: Mapping[str, Any], prefix: str) -> Iterator[str]:
    # Nothing is missing: what a page leaves out the album may say.
    yield from key_problems(PageRequest, {"prompt": "", **given}, prefix)
    yield from asset_problems(given, prefix)
    yield from body_problems(given, prefix)


def _page(
    common: Mapping[str, Any], given: Mapping[str, Any], place: str, beside: Path | None
) -> tuple[PageRequest, Parameters | None]:
    """A page with what the album says for all, and the file's parameters that gave its pose."""
    whole = {**common, **given, "body": _merged(common.get("body", {}), given.get("body", {}))}
    prompt = whole.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{place} has no prompt, nor has the album")
    try:
        body, parameters = read_body(whole["body"], beside)
        return PageRequest(prompt, asset_files(whole), body), parameters
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A page's body over the album's, of whose pose nothing is left where the page has one."""
    poses = {"pose", "joint_rotations", "params"}
    replaced = {*poses, *POSE_FILE} if poses & own.keys() else set()
    return {**{name: value for name, value in common.items() if name not in replaced}, **own}


def _of_request(metavar: str, name: str) -> Any:
    return flag_of(AlbumRequest, metavar, name)


@dataclass(frozen=True)
class Flags:
    """What to make, and where it goes. What is given here goes before what the request says."""

    request: Path
    """A JSON file, or what holds the request of an album that was made: its album.json or a page."""
    out: Path = Path("outputs/album")
    """A folder, which is made."""
    model: Annotated[str | None, _of_request("FOLDER", "model")] = None
    sharing: Annotated[str | None, _of_request("none|cross_frame|correspondence", "sharing")] = None
    """How pages use the keys and values of the first."""
    align: Annotated[bool | None, flag("True|False", "where pages share by correspondence")] = None
    """Put the faces of a cross-frame album into this one."""
    batch_size: Annotated[int | None, _of_request("INT", "batch_size")] = None
    """Pages sampled at once, the first included."""
    sampling: Annotated[SamplingFlags, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=SamplingFlags)


def requested(flags: Flags) -> AlbumRequest:
    """The file's request with the flags put over it."""
    request = AlbumRequest.read(flags.request)
    given = vars(flags) | vars(flags.sampling)
    over = {field.name: given[field.name] for field in dataclasses.fields(request) if field.name in given}
    return dataclasses.replace(request, **{name: value for name, value in over.items() if value is not None})


def read_pages(request: AlbumRequest, beside: Path) -> "tuple[AlbumRequest, list[Page]]":
    """The pages with their assets opened, and the request with the files' places and hashes."""
    from fcjax.album import Page

    sealed, opened = [], []
    for number, page in enumerate(request.pages):
        try:
            files = [file.found(beside) for file in page.assets]
            opened.append(Page(page.body, page.prompt, [file.open(content) for file, content in files]))
        except ValueError as error:
            raise ValueError(f"pages[{number}]: {error}") from error
        assets = tuple(file.sealed(content, embed=False) for file, content in files)
        sealed.append(dataclasses.replace(page, assets=assets))
    return dataclasses.replace(request, pages=tuple(sealed)), opened


def rows(request: AlbumRequest, pages: "list[Page]", album: "Album") -> list[list[Panel]]:
    """One row a page of a contact sheet: assets, body, picture."""
    made = []
    for page, given, picture, matched in zip(request.pages, pages, album.pictures, album.matched, strict=True):
        garments: list[Panel] = [(asset.phrase, asset.image) for asset in given.assets]
        pose = pose_words(page.body)
        # The first is what the others look at.
        label = pose if not made else f"{pose}, {100 * matched[0]:.0f} % of its tokens matched"
        made.append([*garments, (label, parts(picture.maps)), (page.prompt, picture.image)])
    return made


def _remove_pages(out: Path, count: int) -> None:
    """Those of an album that this one replaces, and that had more of them."""
    number = count + 1
    while (page := out / f"page_{number}.png").exists():
        page.unlink()
        number += 1


def main(flags: Flags) -> None:
    """Make the album that the request asks for and write it."""
    request, pages = read_pages(requested(flags), flags.request.parent)
    prepare_folder(flags.out)
    # Here, because it takes seconds that a request with a mistake need not wait for.
    from fcjax.album import make_album
    from fcjax.composer import Composer

    request.check_sampler()
    composer = Composer.load(request.model, dtype=request.dtype)
    request = settled(request, composer.config.own_sampling)
    info = png_metadata(request.asdict(), weights_digest(request.model))
    with tqdm(unit="step", desc="album") as bar:
        album = make_album(composer, pages, **request.settings, progress=functools.partial(show_progress, bar))
    for number, picture in enumerate(album.pictures, 1):
        save_png(picture.image, flags.out / f"page_{number}.png", info)
    if (flags.out / ALBUM).exists():
        _remove_pages(flags.out, len(album.pictures))
    sheet(rows(request, pages, album)).save(flags.out / "sheet.png")
    told = {"request": request.asdict(), "matched": np.round(album.matched, 4).tolist()}
    (flags.out / ALBUM).write_text(json.dumps(told, indent=2) + "\n")
    print(f"{len(album.pictures)} pages: {flags.out / 'sheet.png'}")


if __name__ == "__main__":
    run(main)
