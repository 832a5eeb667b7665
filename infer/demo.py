"""A full look on two poses, tried on, and an album: files a user would give, requests, pictures and sheets of it all.

python -m infer.demo --out outputs/demo

The look (garments and a face as cut-out pictures, and the prompt) is one that Wardrobe draws in its held-out split, so
that no model was trained on it. The person of another look tries its garments on. The album shows its person in four
poses, in the last of them in another look.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from fcjax.agnostic import agnostic_mask
from fcjax.body import Body
from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.wardrobe import Sample, Wardrobe
from fcjax.wardrobe.undressing import parse_of, worn_kinds
from infer import album, tryon
from infer.compose import make, panels, prepare_folder, save
from infer.flags import flag
from infer.request import AssetFile, ComposeRequest
from infer.sampling_request import SamplingFlags
from infer.sets import worn_by
from infer.sheet import Panel, sheet
from infer.values import changed

POSES = ("catwalk", "one_hand_on_hip")
ALBUM_POSES = ("standing", "walking", "arms_raised", "waving")


@dataclass(frozen=True)
class Flags:
    """What the demo shows."""

    out: Path = Path("outputs/demo")
    """Folder of everything that the demo writes."""
    model: str = "mini"
    """A model folder, or mini, the model in the package."""
    look: int = 0
    """Which full look of the held-out split, counted from 0."""
    steps: Annotated[int | None, flag("INT", "the models'")] = None
    seed: int = 0
    tryon_model: str | None = None
    """A model folder that tries on; by default mini-tryon beside mini, and none beside others."""
    tryon: bool = True
    """Try the look on, too."""
    album: bool = True
    """Make the album, too."""


def full_looks() -> Iterator[Sample]:
    """Held-out samples whose assets are a face and a top and a bottom, or a face and a dress, told by their colours."""
    heldout, index = Wardrobe("heldout"), 0
    while True:
        sample = heldout[index]
        kinds = {asset.kind for asset in sample.assets}
        dressed = "dress" in kinds or ("top" in kinds and kinds & {"trousers", "skirt"})
        if dressed and "face" in kinds and not sample.colorless and "seen from" not in sample.caption:
            yield sample
        index += 1


def full_look(number: int) -> Sample:
    """One of `full_looks`."""
    if number < 0:
        raise ValueError(f"looks count from 0, got {number}")
    return next(sample for index, sample in enumerate(full_looks()) if index == number)


def write_assets(sample: Sample, folder: Path) -> tuple[AssetFile, ...]:
    """The sample's assets as PNG files named by their kind, with paths relative to the folder's parent."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, asset in enumerate(sample.assets):
        name = f"{number}_{asset.kind}.png"
        Image.fromarray(asset.image).save(folder / name)
        files.append(AssetFile(f"{folder.name}/{name}", asset.phrase))
    return tuple(files)


def requests_of(sample: Sample, files: tuple[AssetFile, ...], flags: Flags) -> list[ComposeRequest]:
    """The look on every pose of the demo."""
    bodies = [Body(pose=pose, gender=_gender(sample)) for pose in POSES]
    return [
        ComposeRequest(sample.caption, files, body, model=flags.model, seed=flags.seed, steps=flags.steps)
        for body in bodies
    ]


def main(flags: Flags) -> None:
    """Write the demo."""
    begin = time.monotonic()
    prepare_folder(flags.out)
    sample = full_look(flags.look)
    requests = requests_of(sample, write_assets(sample, flags.out / "assets"), flags)
    for request in requests:
        (flags.out / f"{request.body.pose}.json").write_text(json.dumps(request.asdict(), indent=2) + "\n")
    sheet(_composed(requests, flags)).save(flags.out / "sheet.png")
    print(f"{sample.caption}\n{flags.out / 'sheet.png'} after {time.monotonic() - begin:.0f} seconds")
    tryon_model = flags.tryon_model or ("mini-tryon" if flags.model == "mini" else None)
    if flags.tryon and tryon_model is not None:
        tryon.main(tryon_flags(sample, full_look(flags.look + 1), tryon_model, flags))
        print(f"after {time.monotonic() - begin:.0f} seconds")
    if flags.album:
        request = write_album(sample, full_look(flags.look + 1), flags)
        sampling = SamplingFlags(seed=flags.seed, steps=flags.steps)
        album.main(album.Flags(request, flags.out / "album", flags.model, sampling=sampling))
        print(f"after {time.monotonic() - begin:.0f} seconds")


def tryon_flags(sample: Sample, other: Sample, model: str, flags: Flags) -> tryon.Flags:
    """What `infer.tryon` is to do: the look's garments on the other look's person, whose pictures are written."""
    kinds, parse = worn_kinds(sample), parse_of(other, worn_kinds(other))
    # Shoes and hats of the look come on bare feet and heads, too.
    mask = agnostic_mask(parse, iuv=other.maps.iuv, category="outfit", shoes="shoes" in kinds, hat="hat" in kinds)
    pictures = {"person": other.image, "mask": 255 * mask.astype(np.uint8), "iuv": other.maps.iuv}
    for name, array in pictures.items():
        Image.fromarray(array).save(flags.out / f"{name}.png")
    files = _garments(sample, write_assets(sample, flags.out / "assets"))
    return tryon.Flags(
        out=flags.out / "tryon.png",
        sheet=flags.out / "tryon_sheet.png",
        model=model,
        person=str(flags.out / "person.png"),
        mask=str(flags.out / "mask.png"),
        iuv=str(flags.out / "iuv.png"),
        prompt=worn_by(other.subject, [file.phrase for file in files]),
        asset=tuple(f"{flags.out / file.path}={file.phrase}" for file in files),
        sampling=SamplingFlags(seed=flags.seed, steps=flags.steps),
    )


def write_album(sample: Sample, other: Sample, flags: Flags) -> Path:
    """The request of an album: the look in every pose of ALBUM_POSES, and in the last one the other look's garments."""
    files, others = (
        write_assets(look, flags.out / folder) for look, folder in ((sample, "assets"), (other, "other_assets"))
    )
    face, garments = files[_face(sample)], _garments(other, others)
    pages: list[dict[str, Any]] = [{"body": {"pose": pose}} for pose in ALBUM_POSES]
    prompt = worn_by(sample.subject, [file.phrase for file in garments])
    pages[-1] |= {"prompt": prompt, "assets": [changed(file) for file in (face, *garments)]}
    content = {
        "prompt": sample.caption,
        "assets": [changed(file) for file in files],
        "body": {"gender": _gender(sample)},
        "pages": pages,
    }
    path = flags.out / "album.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _gender(sample: Sample) -> float:
    return float(" man" in f" {sample.caption}".replace("'s", ""))


def _face(sample: Sample) -> int:
    return [asset.kind for asset in sample.assets].index("face")


def _garments(sample: Sample, files: tuple[AssetFile, ...]) -> list[AssetFile]:
    return [file for file, asset in zip(files, sample.assets, strict=True) if asset.kind != "face"]


def _composed(requests: list[ComposeRequest], flags: Flags) -> list[list[Panel]]:
    """The pictures, written beside their requests, as rows of the sheet."""
    composer = Composer.load(flags.model)
    rows = []
    for request in requests:
        result = make(request, composer, beside=flags.out)
        save(result, flags.out / f"{request.body.pose}.png")
        rows.append(panels(result, request.body.pose))
    return rows


if __name__ == "__main__":
    run(main)
