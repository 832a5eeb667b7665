"""A request of try-on met: its files opened, its model loaded, its picture made."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcjax.assets import Asset
from fcjax.data.sources.files import read_iuv
from fcjax.person import Person
from fcjax.pictures import open_rgb
from infer.mask import make_mask
from infer.tryon_request import FILES, TryOnRequest

if TYPE_CHECKING:
    from fcjax.composer import Composer, Fitting


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


def load(model: str, dtype: str | None) -> "Composer":
    """The model of a request."""
    # Here, because it takes seconds that a request with a mistake need not wait for.
    from fcjax.composer import Composer

    return Composer.load(model, dtype=dtype)
