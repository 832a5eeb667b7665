"""A request for a picture as plain data: JSON in and out, and inside the PNG that was made from it.

The help of `infer.compose` shows one. Whatever is left out has its default. In place of a pose, a body may name a file
of SMPL parameters, which may lie beside the request, as {"params": "walk.npz", "frame": 12, "up": "z", "subject": "0"}
(all but params may be left out). A PNG's own request also holds the SHA-256 of every asset file, or the files, and a
file's pose as joint_rotations.
"""

import base64
import binascii
import dataclasses
import hashlib
import io
import json
import numbers
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

import fcjax
from fcjax.assets import Asset
from fcjax.body import Body
from infer.parameters import UPRIGHT, Parameters, read_parameters, warn_of_betas
from infer.sampling_request import SamplingRequest
from infer.values import changed, check, check_whole_numbers, key_problems, tuples

KEY = "fcjax"
"""The PNG text chunk that holds {"fcjax": version, "weights": digest, "request": {...}}, JSON."""
POSE_FILE = ("params", "frame", "up", "subject")
"""Keys of a body whose pose a file of SMPL parameters gives."""
MOST_TEXT = 48 * 2**20
"""Pillow reads at most 64 MiB of text from a PNG."""
MOST_IMAGES = 1000
"""Of one request: all of them are held until the last is made."""


@dataclasses.dataclass(frozen=True)
class AssetFile:
    """A picture file and its phrase.

    whole: the picture is the asset from edge to edge (a fabric swatch), nothing is cut away. sha256: of the file, which
    must match if given. data: the file itself in base64; `path` is then only its name.
    """

    path: str
    phrase: str
    whole: bool = False
    sha256: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError(f"the phrase {self.phrase!r} has no asset file: write it as FILE=PHRASE")
        if not self.phrase.strip():
            raise ValueError(f"the asset {self.path} has no phrase: write it as {self.path}='a red striped shirt'")

    @classmethod
    def parse(cls, words: str, whole: bool = False) -> "AssetFile":
        """An asset as FILE=PHRASE. Where there are several equals signs, the file is the first part that exists."""
        cuts = [place for place, letter in enumerate(words) if letter == "="]
        if not cuts:
            lacks = "has no phrase" if Path(words).is_file() else "names no file"
            raise ValueError(f"the asset {words!r} {lacks}: write it as FILE=PHRASE, shirt.png='a red striped shirt'")
        cut = next((place for place in cuts if Path(words[:place]).is_file()), cuts[0])
        return cls(words[:cut], words[cut + 1 :], whole)

    def read(self, beside: Path | None = None) -> bytes:
        """The file's content; a relative path is looked for in the folder `beside` first, then in the working one."""
        return self.found(beside)[1]

    def found(self, beside: Path | None = None) -> tuple["AssetFile", bytes]:
        """The same with the path where it lies, and its content, see `read`."""
        place = Path(self.path)
        if self.data is not None:
            try:
                content = base64.b64decode(self.data, validate=True)
            except binascii.Error as error:
                raise ValueError(f"the embedded asset {self.path} is no base64: {error}") from error
        else:
            there = places(self.path, beside, "asset file")
            contents = [(place, _content(place)) for place in there]
            place, content = next((one for one in contents if self.sha256 in (None, _sha256(one[1]))), contents[0])
        if self.sha256 is not None and self.sha256 != _sha256(content):
            raise ValueError(
                f"{self.path} is not the file that the request was made with: its SHA-256 is {_sha256(content)}, "
                f"{self.sha256} was expected; find the old file, or give it anew with --asset"
            )
        return dataclasses.replace(self, path=str(place)), content

    def open(self, content: bytes) -> Asset:
        """The asset of the file's content."""
        # The very way of Asset.open on a path, so that a picture does not depend on where its asset came from.
        return Asset.open(_NamedBytes(content, self.path), self.phrase, self.whole)  # type: ignore[arg-type]

    def sealed(self, content: bytes, embed: bool) -> "AssetFile":
        """The same with the content's hash, and the content itself if `embed` or where it was embedded before."""
        data = base64.b64encode(content).decode("ascii") if embed or self.data is not None else None
        return dataclasses.replace(self, sha256=_sha256(content), data=data)


class _NamedBytes(io.BytesIO):
    """Bytes that error messages call by the name of their file."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self._name = name

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return repr(self._name)


@dataclasses.dataclass(frozen=True)
class ComposeRequest(SamplingRequest):
    """What `Composer.compose` is asked for, with its assets as files."""

    prompt: str
    assets: tuple[AssetFile, ...] = ()
    body: Body = dataclasses.field(default_factory=Body)
    num_images: int = 1
    boxes: tuple[tuple[int, int, int, int], ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"prompt is {self.prompt!r}; expected words such as 'a woman in blue jeans'")
        check("num_images", self.num_images, numbers.Integral, "a whole number")
        self.check_values()
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {self.num_images}")
        if self.num_images > MOST_IMAGES:
            raise ValueError(
                f"num_images must be at most {MOST_IMAGES}, got {self.num_images}: ask for the others apart, by other "
                "seeds"
            )
        if not 0 <= self.seed <= 2**32 - self.num_images:
            raise ValueError(f"seeds must lie between 0 and {2**32 - 1}, got {self.seed} for {self.num_images} images")
        if self.boxes is not None:
            check("boxes", self.boxes, tuple, "a list of boxes, one for each asset")
        for box in self.boxes or ():
            check_whole_numbers("a box", box, 4, "top, left, bottom and right")

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `Composer.compose`."""
        return {**self.sampling, "num_images": self.num_images, "boxes": self.boxes}

    def asdict(self) -> dict[str, Any]:
        """Plain data for JSON, without what is at its default (model and seed are always said)."""
        said = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in ("model", "prompt", "seed") or getattr(self, field.name) != field.default
        }
        said["assets"] = [changed(asset) for asset in self.assets]
        said["body"] = changed(self.body)
        return said

    @classmethod
    def from_dict(
        cls, given: Mapping[str, Any], source: str = "the request", beside: Path | None = None
    ) -> "ComposeRequest":
        """The request of plain data; ValueError names every unknown or missing key at once, and `source`.

        beside: a folder where the body's file may lie as well.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"{source} must be a JSON object with a prompt, not {type(given).__name__}")
        problems = [*key_problems(cls, given, ""), *asset_problems(given), *body_problems(given)]
        if problems:
            raise ValueError(f"{source}: {'; '.join(problems)}")
        try:
            body, parameters = read_body(given.get("body", {}), beside)
            values = {**given, "assets": asset_files(given), "body": body}
            for name in ("size", "boxes"):
                values[name] = tuples(values.get(name))
            request = cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        warn_of_betas(parameters)
        return request

    @classmethod
    def read(cls, path: Path) -> tuple["ComposeRequest", str | None]:
        """The request in a file, as `read_request` finds it."""
        given, weights = read_request(path)
        return cls.from_dict(given, str(path), path.parent), weights

    def metadata(self, weights: str) -> PngImagePlugin.PngInfo:
        """The PNG text chunks from which `read` gets this request back."""
        return png_metadata(self.asdict(), weights)


def png_metadata(request: Mapping[str, Any], weights: str) -> PngImagePlugin.PngInfo:
    """The PNG text chunks that hold a request and the digest of the weights that met it."""
    content = json.dumps({"fcjax": fcjax.__version__, "weights": weights, "request": request})
    if len(content) > MOST_TEXT:
        raise ValueError(
            f"the embedded assets take {len(content) / 2**20:.0f} MiB of the PNG's metadata, at most "
            f"{MOST_TEXT / 2**20:.0f} can be read again: shrink the files, or leave out --embed-assets"
        )
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", f"fcjax {fcjax.__version__}")
    info.add_text(KEY, content)
    return info


def read_request(path: Path) -> tuple[Any, str | None]:
    """The plain data of a request in a JSON file or inside a PNG, and the digest of the weights that made the PNG.

    ValueError for another file.
    """
    if not path.is_file():
        raise ValueError(f"no such request file: {path}")
    content = path.read_bytes()
    if content.startswith(b"\x89PNG"):
        return read_png_metadata(path)
    try:
        return json.loads(content), None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither JSON nor a PNG of fcjax: {error}") from error


def read_png_metadata(path: Path) -> tuple[Any, str | None]:
    """The request and the digest that `png_metadata` put into a PNG. ValueError for another file."""
    try:
        with Image.open(path) as image:
            image.load()
            text = getattr(image, "text", {})
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read {path} as a PNG: {error}") from error
    if KEY not in text:
        raise ValueError(f"{path} holds no request: no program of fcjax wrote it, or its metadata were dropped since")
    try:
        held = json.loads(text[KEY])
        return held["request"], held.get("weights")
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"the metadata of {path} is not what fcjax writes: {error}") from error


def weights_digest(model: str | Path) -> str:
    """SHA-256 of the weights of a model, by which a picture knows what made it.

    model: a name, a folder or a single file, as `fcjax.pretrained.locate` takes it.
    """
    # Here, because it takes seconds that a request with a mistake need not wait for.
    from fcjax import folder, pretrained

    return folder.weights_digest(pretrained.locate(model))


def own_sampling(model: str | Path) -> dict[str, Any]:
    """How a model's pictures are sampled where nothing else is asked for (`ComposerConfig.own_sampling`).

    model: a name, a folder or a single file, as `fcjax.pretrained.locate` takes it.
    """
    from fcjax import pretrained

    return pretrained.own_sampling(pretrained.locate(model))


def warn_of_other_weights(model: str, weights: str, expected: str | None) -> None:
    """Warns where the weights' digest is not the one that a request's file names."""
    if expected is not None and weights != expected:
        warnings.warn(f"the weights of {model} are not those that made this picture before", stacklevel=3)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def asset_problems(given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What is wrong with a request's list of assets."""
    assets = given.get("assets", [])
    if isinstance(assets, list) and all(isinstance(asset, Mapping) for asset in assets):
        for index, asset in enumerate(assets):
            yield from key_problems(AssetFile, asset, f"{prefix}assets[{index}].")
    else:
        yield f"{prefix}assets must be a list of objects with path and phrase"


def asset_files(given: Mapping[str, Any]) -> tuple[AssetFile, ...]:
    """A request's assets, which have no `asset_problems`. ValueError for values of a wrong kind."""
    files = []
    for asset in given.get("assets", []):
        for name, kind in (("path", str), ("phrase", str), ("whole", bool), ("sha256", str), ("data", str)):
            if name in asset:
                expected = "text" if kind is str else "true or false"
                check(f"an asset's {name}", asset[name], kind, expected)
        files.append(AssetFile(**asset))
    return tuple(files)


def body_problems(given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What is wrong with a request's body."""
    body = given.get("body", {})
    if isinstance(body, Mapping):
        yield from key_problems(Body, {key: body[key] for key in body if key not in POSE_FILE}, f"{prefix}body.")
    else:
        yield f"{prefix}body must be an object such as {{'pose': 'walking'}}"


def read_body(given: Mapping[str, Any], beside: Path | None = None) -> tuple[Body, Parameters | None]:
    """A request's body, which has no `body_problems`; its pose may be one frame of a file. ValueError for wrong values.

    The parameters of that file are given too, to `warn_of_betas`. beside: a folder where the file may lie as well.
    """
    file = {name: given[name] for name in POSE_FILE if name in given}
    fields = {name: value for name, value in given.items() if name not in file}
    if not file:
        return Body(**fields), None
    if "params" not in file:
        raise ValueError(f"{' and '.join(file)}: of a file of SMPL parameters, which must be named as params")
    others = [name for name in ("pose", "joint_rotations") if name in fields]
    if others:
        raise ValueError(f"params and {others[0]} both give a pose; leave one out")
    path, frame, up, subject = file["params"], file.get("frame", 0), file.get("up"), file.get("subject")
    check("params", path, str, "a file's name")
    check("frame", frame, numbers.Integral, "a whole number")
    if up is not None and not (isinstance(up, str) and up in UPRIGHT):
        raise ValueError(f"up is {up!r}; expected one of {', '.join(UPRIGHT)}")
    if subject is not None:
        check("subject", subject, str, "a name such as '0'")
    place = found(path, beside, "file of SMPL parameters")
    try:
        parameters = read_parameters(place, frame, up, subject)
    except OSError as error:
        raise ValueError(f"cannot read the SMPL parameters {place}: {error.strerror}") from error
    return Body(**fields, joint_rotations=parameters.rotations), parameters


def pose_words(body: Body) -> str:
    """What a sheet calls a body's pose."""
    return body.pose if body.joint_rotations is None else "own pose"


def found(name: str, beside: Path | None, what: str = "file") -> Path:
    """The file, in the folder `beside` if it is there, else in the working one. ValueError where it is in neither."""
    return places(name, beside, what)[0]


def places(name: str, beside: Path | None, what: str) -> list[Path]:
    """Where a file of this name is: in the folder `beside`, in the working one, or in both.

    ValueError names them where it is in neither.
    """
    tried = [Path(name)] if beside is None else list(dict.fromkeys((beside / name, Path(name))))
    there = [place for place in tried if _exists(place)]
    if not there:
        raise ValueError(f"no such {what}: {' or '.join(map(str, tried))}")
    return there


def _exists(path: Path) -> bool:
    """Whether there is such a file. ValueError for a name that no file can have."""
    try:
        return path.exists()
    except OSError as error:
        raise ValueError(f"{str(path)[:80]!r} is no file's name: {error.strerror}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the asset file {path}: {error.strerror}") from error
