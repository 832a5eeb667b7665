"""Compose a picture from a prompt, pictures of garments and a body.

python -m infer.compose --prompt "a woman in a red striped shirt and blue jeans" --asset shirt.png="a red striped shirt"
--asset jeans.png="blue jeans" --pose walking --seed 0 --out out.png

The PNG holds its own request, with the SHA-256 of every asset file (or, with --embed-assets, the files), so that

python -m infer.compose --request out.png --out again.png

makes it again. A request may also be a JSON file, which may lie beside its assets:

{
  "prompt": "a woman in a red striped shirt and blue jeans",
  "assets": [{"path": "shirt.png", "phrase": "a red striped shirt"}, {"path": "jeans.png", "phrase": "blue jeans"}],
  "body": {"pose": "walking"},
  "seed": 0
}

Flags change what a request says, and its boxes for assets are left out with --layout-seed or another number of assets.
Several images become out_0.png, out_1.png ..., each with its own seed in its request.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from PIL import Image
from tqdm import tqdm

from fcjax.assets import Asset
from fcjax.body import POSES, Body
from fcjax.cli import run
from fcjax.whole_files import written_whole
from infer.densepose import parts
from infer.flags import OptionalPath, Switch, flag, flag_of
from infer.parameters import read_parameters, warn_of_betas
from infer.request import AssetFile, ComposeRequest, found, pose_words, warn_of_other_weights, weights_digest
from infer.sampling_request import SamplingFlags, settled
from infer.sheet import Panel, sheet

if TYPE_CHECKING:
    from fcjax.composer import Composer, Composition

DEFAULT = ComposeRequest("nothing")


def _of_body(metavar: str, name: str) -> Any:
    return flag_of(Body, metavar, name)


def _of_request(metavar: str, name: str) -> Any:
    return flag_of(ComposeRequest, metavar, name)


@dataclass(frozen=True)
class Flags:
    """What to compose, and where it goes."""

    out: Path = Path("outputs/compose.png")
    """The picture, a PNG; its folder is made."""
    sheet: OptionalPath = None
    """Another picture that shows assets, pose and result side by side."""
    request: OptionalPath = None
    """A JSON file, or a PNG of this program, that says what the flags below leave out."""
    embed_assets: Annotated[Switch, flag(None, "as in the request, else False")] = None
    """Keep the asset files themselves in the PNG."""

    model: Annotated[str | None, _of_request("FOLDER", "model")] = None
    """A model folder, or mini, the model in the package."""
    prompt: Annotated[str | None, flag("WORDS", "required")] = None
    """What the picture shows; it should contain every asset's phrase."""
    asset: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE=PHRASE")] = ()
    """A picture (transparent or near-white around) and the phrase that describes it; once for every asset."""
    swatch: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE=PHRASE")] = ()
    """The same for a picture that is its asset from edge to edge, such as fabric."""
    num_images: Annotated[int | None, _of_request("INT", "num_images")] = None
    """At most 1000; image i has the seed SEED + i."""
    sampling: Annotated[SamplingFlags, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=SamplingFlags)

    pose: Annotated[str | None, _of_body(f"{{{','.join(POSES)}}}", "pose")] = None
    """A named pose (`fcjax.body.POSES`)."""
    gender: Annotated[float | None, _of_body("0..1", "gender")] = None
    """0 female, 1 male."""
    age: Annotated[float | None, _of_body("0..1", "age")] = None
    """0 young adult, 1 old."""
    height: Annotated[float | None, _of_body("0..1", "height")] = None
    """Of the body."""
    weight: Annotated[float | None, _of_body("0..1", "weight")] = None
    muscle: Annotated[float | None, _of_body("0..1", "muscle")] = None
    proportions: Annotated[float | None, _of_body("0..1", "proportions")] = None
    """0 uncommon, 1 idealised."""
    view: Annotated[float | None, _of_body("DEGREES", "view")] = None
    """How far the camera walks around the body towards its left side."""
    elevation: Annotated[float | None, _of_body("DEGREES", "elevation")] = None
    """How far the camera rises."""
    distance: Annotated[float | None, flag("METRES", "no perspective")] = None
    """Of the camera."""
    framing: Annotated[Literal["full", "upper"] | None, _of_body("full|upper", "framing")] = None
    params: OptionalPath = None
    """SMPL pose parameters, .npz or .pkl, instead of --pose."""
    frame: Annotated[int | None, flag("INT", "0")] = None
    """Which frame of --params."""
    subject: Annotated[str | None, flag("NAME", "the only one")] = None
    """Whose parameters of --params, where it has several people's (WHAM)."""
    up: Annotated[Literal["y", "-y", "z"] | None, flag("y|-y|z", "as the file's keys tell")] = None
    """Which axis points up in --params: z in AMASS, -y in what cameras saw, else y."""


def requested(flags: Flags) -> tuple[ComposeRequest, str | None]:
    """The request of a file with the flags that were given put over it, and the digest of weights that the file names.

    Raises ValueError for a request that cannot be.
    """
    held: dict[str, Any] = {}
    weights = None
    if flags.request is not None:
        read, weights = ComposeRequest.read(flags.request)
        held = {field.name: getattr(read, field.name) for field in dataclasses.fields(read)}
    given = {name: value for name, value in (vars(flags) | vars(flags.sampling)).items() if value is not None}
    over = {field.name: given[field.name] for field in dataclasses.fields(ComposeRequest) if field.name in given}
    if flags.asset or flags.swatch:
        files = [AssetFile.parse(words) for words in flags.asset]
        over["assets"] = (*files, *(AssetFile.parse(words, whole=True) for words in flags.swatch))
    fewer_or_more = "assets" in over and len(over["assets"]) != len(held.get("assets", ()))
    if fewer_or_more or flags.sampling.layout_seed is not None:
        # Boxes are those of the request's own assets, and go before any layout.
        over["boxes"] = None
    shape = {field.name: given[field.name] for field in dataclasses.fields(Body) if field.name in given}
    if flags.params is not None:
        if flags.pose is not None:
            raise ValueError("--pose and --params both give a pose; leave one out")
        parameters = read_parameters(flags.params, flags.frame or 0, flags.up, flags.subject)
        warn_of_betas(parameters)
        shape["joint_rotations"] = parameters.rotations
    elif unused := [f"--{name}" for name in ("frame", "subject", "up") if getattr(flags, name) is not None]:
        raise ValueError(f"{', '.join(unused)} tell how --params are to be read: give --params, too, or leave them out")
    elif flags.pose is not None:
        shape["joint_rotations"] = None
    over["body"] = dataclasses.replace(held.get("body", DEFAULT.body), **shape)
    if "prompt" not in held | over:
        raise ValueError("expected --prompt, or --request with a file that holds one")
    return ComposeRequest(**{**held, **over}), weights


@dataclass(frozen=True, eq=False)
class Result:
    """Pictures with the requests that make each of them again."""

    assets: tuple[Asset, ...]
    compositions: "list[Composition]"
    requests: list[ComposeRequest]
    weights: str


def make(
    request: ComposeRequest,
    composer: "Composer | None" = None,
    *,
    beside: Path | None = None,
    embed_assets: bool | None = None,
    expected_weights: str | None = None,
    quiet: bool = False,
) -> Result:
    """The pictures of a request.

    Args:
        composer: the request's model, where it is loaded already.
        beside: a folder where asset files may lie as well.
        embed_assets: into the pictures' requests; None leaves those embedded that are.
        expected_weights: the digest of the weights that made the picture before; others are warned of.
        quiet: no progress bar on stderr.
    """
    files = [file.found(beside) for file in request.assets]
    assets = tuple(file.open(content) for file, content in files)
    # Here, because it takes seconds that a request with a mistake need not wait for.
    from fcjax.composer import Composer

    request.check_sampler()
    if composer is None:
        composer = Composer.load(request.model, dtype=request.dtype)
    request = settled(request, composer.config.own_sampling)
    weights = weights_digest(request.model)
    warn_of_other_weights(request.model, weights, expected_weights)
    if embed_assets is False:
        files = [(dataclasses.replace(file, data=None), content) for file, content in files]
    sealed = tuple(file.sealed(content, bool(embed_assets)) for file, content in files)
    requests = [
        dataclasses.replace(request, assets=sealed, seed=request.seed + index, num_images=1)
        for index in range(request.num_images)
    ]
    # Which may be too large; told before the work.
    dataclasses.replace(request, assets=sealed).metadata(weights)
    with tqdm(unit="step", desc="composing", disable=quiet) as bar:
        compositions = composer.compose(
            request.prompt, assets, request.body, **request.settings, progress=functools.partial(show_progress, bar)
        )
    return Result(assets, compositions, requests, weights)


def show_progress(bar: tqdm, done: int, steps: int) -> None:
    """On the bar, with `functools.partial`."""
    bar.total = steps
    bar.update(done - bar.n)


def files_of(out: Path, count: int) -> list[Path]:
    """The pictures to write; several become out_0.png, out_1.png ..."""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}_{index}") for index in range(count)]


def save(result: Result, out: Path) -> list[Path]:
    """Write each picture (`files_of`) with its request."""
    paths = files_of(out, len(result.compositions))
    for path, composition, request in zip(paths, result.compositions, result.requests, strict=True):
        save_png(composition.image, path, request.metadata(result.weights))
    return paths


def panels(result: Result, pose: str) -> list[Panel]:
    """One row of a sheet: assets, pose and pictures."""
    row: list[Panel] = [(asset.phrase, asset.image) for asset in result.assets]
    row.append((pose, parts(result.compositions[0].maps)))
    return row + [(f"seed {made.seed}: {made.tokens.prompt}", made.image) for made in result.compositions]


def prepare_folder(path: Path) -> None:
    """Makes the folder of pictures to come. ValueError where it cannot be written into."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"cannot write into {path}: {error.strerror}") from error


def prepare_output(path: Path) -> None:
    """Make the folder of a picture; ValueError before any work is done if nothing can be written there."""
    _check_name(path)
    prepare_folder(path.parent)


def _check_name(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is no PNG: its name must end in .png")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")


def prepare_outputs(outputs: Sequence[Path | None], inputs: Sequence[str | Path | None] = ()) -> None:
    """`prepare_output` of each; ValueError also where two are one file, or one is among the files that are read."""
    read = {Path(given).resolve() for given in inputs if given is not None}
    folders: set[Path] = set()
    written: set[Path] = set()
    for path in (path for path in outputs if path is not None):
        _check_name(path)
        if path.parent not in folders:
            prepare_folder(path.parent)
            folders.add(path.parent)
        place = path.resolve()
        if place in written:
            raise ValueError(f"{path} is named for two pictures: give each a file of its own")
        if place in read:
            raise ValueError(f"{path} is read and would be written over: name another file to write")
        written.add(place)


def save_png(image: Image.Image, path: Path, info: Any, icc_profile: bytes | None = None) -> None:
    """Writes a PNG whole or not at all."""
    with written_whole(path) as aside:
        image.save(aside, format="PNG", pnginfo=info, icc_profile=icc_profile)


def _located(asset: AssetFile, beside: Path | None) -> Path:
    try:
        return found(asset.path, beside, "asset file")
    except ValueError as error:
        if asset.sha256 is None:
            raise
        # A picture's request, which was made where the file lay.
        raise ValueError(
            f"{error}; find it, or give all assets anew with --asset (pictures of --embed-assets hold theirs)"
        ) from error


def main(flags: Flags) -> None:
    """Compose the pictures that the flags ask for and write them."""
    request, weights = requested(flags)
    pictures = files_of(flags.out, request.num_images)
    beside = flags.request.parent if flags.request is not None else None
    read = [_located(asset, beside) for asset in request.assets if asset.data is None]
    prepare_outputs([*pictures, flags.sheet], [*read, flags.request, flags.params])
    result = make(request, beside=beside, embed_assets=flags.embed_assets, expected_weights=weights)
    paths = save(result, flags.out)
    if flags.sheet is not None:
        sheet([panels(result, pose_words(request.body))]).save(flags.sheet)
        paths.append(flags.sheet)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    run(main)
