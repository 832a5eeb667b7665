"""Real data sets in miniature: a few drawn people in exactly the folders and files that the sets' makers give out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.body import Body
from fcjax.data.sources import LABELS, Part, RawSample, Source, check
from fcjax.data.sources.files import CHART_COLOURS

HEIGHT, WIDTH = 128, 96
COLORS = {
    Part.UPPER: (200, 30, 40), Part.PANTS: (40, 70, 180), Part.HAIR: (70, 40, 23), Part.FACE: (224, 172, 140),
    Part.NECK: (214, 162, 130), Part.LEFT_ARM: (220, 168, 136), Part.RIGHT_ARM: (220, 168, 136),
    Part.LEFT_SHOE: (33, 33, 35), Part.RIGHT_SHOE: (33, 33, 35),
}  # fmt: skip
# Where OpenPose's points lie about, as charts: nose, neck, right and left arm, right and left leg.
_NEAR = {0: 23, 1: 2, 2: 16, 3: 20, 4: 3, 5: 15, 6: 19, 7: 4, 8: 9, 9: 11, 10: 6, 11: 10, 12: 12, 13: 5}


@dataclass(frozen=True)
class Drawn:
    """A person with short sleeves, trousers and shoes, and the maps of them."""

    image: np.ndarray
    parse: np.ndarray
    iuv: np.ndarray
    keypoints: np.ndarray


@cache
def drawn() -> Drawn:
    iuv = Body(pose="standing").render(HEIGHT, WIDTH).iuv
    chart = iuv[..., 0]
    parse = np.zeros(chart.shape, np.uint8)
    for charts, part in (
        ((1, 2, 15, 16, 17, 18), Part.UPPER), ((19, 21, 4), Part.LEFT_ARM), ((20, 22, 3), Part.RIGHT_ARM),
        (range(7, 15), Part.PANTS), ((5,), Part.LEFT_SHOE), ((6,), Part.RIGHT_SHOE), ((23, 24), Part.FACE),
    ):  # fmt: skip
        parse[np.isin(chart, list(charts))] = part
    head = np.nonzero(parse == Part.FACE)[0]
    rows = np.arange(HEIGHT)[:, None]
    parse[(parse == Part.FACE) & (rows < head.min() + 5)] = Part.HAIR
    parse[(parse == Part.FACE) & (rows > head.max() - 2)] = Part.NECK
    image = np.full((HEIGHT, WIDTH, 3), 190, np.uint8)
    for part, color in COLORS.items():
        image[parse == part] = color
    points = np.zeros((18, 3))
    for joint, number in _NEAR.items():
        row, column = np.argwhere(chart == number).mean(axis=0)
        points[joint] = column, row, 0.9
    return Drawn(image, parse, iuv, points)


def flat(color: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A shop's picture of a garment on white, and its mask."""
    mask = np.zeros((40, 30), np.uint8)
    mask[6:34, 5:25] = 255
    return np.where(mask[..., None] > 0, np.array(color, np.uint8), np.uint8(255)), mask


def labels(parse: np.ndarray, kind: str) -> np.ndarray:
    """Our parse map with a data set's numbers."""
    table = LABELS[kind]
    near = {Part.LEFT_ARM: Part.SKIN, Part.RIGHT_ARM: Part.SKIN, Part.RIGHT_SHOE: Part.LEFT_SHOE, Part.NECK: Part.SKIN}
    out = np.zeros_like(parse)
    for part in np.unique(parse):
        part = Part(int(part))
        out[parse == part] = table.index(part if part in table else near[part])
    return out


def save(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette([value for number in range(256) for value in (number * 37 % 256, number * 91 % 256, number)])
    image.save(path, quality=95) if path.suffix == ".jpg" else image.save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rendered(charts: np.ndarray) -> np.ndarray:
    """VITON-HD's rendering of the body's parts."""
    return np.array(((0, 0, 0), *CHART_COLOURS), np.uint8)[charts]


def openpose(points: np.ndarray, body_25: bool = True) -> str:
    """What OpenPose writes: a passer-by that it is less sure of, and the person."""
    if body_25:
        points = np.insert(np.concatenate([points, np.zeros((6, 3))]), 8, (1, 1, 0.1), axis=0)
    faint = points * (0.5, 0.5, 0.1)
    return json.dumps({"people": [{"pose_keypoints_2d": one.ravel().tolist()} for one in (faint, points)]})


def viton_hd(root: Path, names: Sequence[str] = ("00001_00", "00002_00", "00003_00"), aliases: bool = False) -> Path:
    """VITON-HD's two splits with the same people; `aliases` takes the other names of its folders."""
    person = drawn()
    parse, pose, mask = ("image-parse", "openpose-json", "cloth_mask") if aliases else (
        "image-parse-v3", "openpose_json", "cloth-mask"
    )  # fmt: skip
    for split in ("train", "test"):
        folder = root / split
        for number, name in enumerate(names):
            picture, covered = flat((200, 30 + 60 * number, 40))
            save(folder / f"image/{name}.jpg", person.image)
            save(folder / f"cloth/{name}.jpg", picture)
            save(folder / f"{mask}/{name}.jpg", covered)
            save(folder / f"{parse}/{name}.png", labels(person.parse, "viton-hd"), palette=True)
            save(folder / f"image-densepose/{name}.jpg", rendered(person.iuv[..., 0]))
            save(folder / f"image-densepose-iuv/{name}.png", person.iuv)
            write(folder / f"{pose}/{name}_keypoints.json", openpose(person.keypoints))
        lines = (f"{a}.jpg {b}.jpg\n" for a, b in zip(names, [*names[1:], names[0]], strict=True))
        write(root / f"{split}_pairs.txt", "".join(lines))
    return root


def tagged(root: Path, name: str) -> None:
    """The tags that a peer published for VITON-HD's training set."""
    said = {"item": "T-shirts", "colors": None, "sleeveLength": "Short Sleeve", "neckLine": "Round Neck"}
    tags = [{"tag_name": key, "tag_category": value} for key, value in said.items()]
    write(root / "train/vitonhd_train_tagged.json", json.dumps({"data": [{"file_name": name, "tag_info": tags}]}))


def dresscode(root: Path, categories: Sequence[str] = ("upper_body", "lower_body", "dresses")) -> Path:
    person = drawn()
    parse = person.parse
    as_dress = np.where(np.isin(parse, (Part.UPPER, Part.PANTS)), Part.DRESS, parse).astype(np.uint8)
    for number, category in enumerate(categories):
        folder = root / category
        names = [f"{10 * number + i:06d}" for i in range(2)]
        for name in names:
            picture, mask = flat((30, 120, 50))
            save(folder / f"images/{name}_0.jpg", person.image)
            save(folder / f"images/{name}_1.jpg", picture)
            save(folder / f"masks/{name}_1.png", mask)
            save(folder / f"label_maps/{name}_4.png", labels(as_dress if category == "dresses" else parse, "atr"))
            save(folder / f"dense/{name}_5.png", person.iuv[..., 0])
            uv = np.moveaxis(person.iuv[..., 1:] / np.float32(255), -1, 0)
            np.savez(folder / f"dense/{name}_5_uv.npz", uv=uv)
            rows = np.full((18, 4), -1.0)
            seen = person.keypoints[:, 2] > 0
            rows[seen, :2] = person.keypoints[seen, :2] * (384 / WIDTH, 512 / HEIGHT)
            write(folder / f"keypoints/{name}_2.json", json.dumps({"keypoints": rows.tolist()}))
        for file in ("train_pairs.txt", "test_pairs_paired.txt"):
            write(folder / file, "".join(f"{name}_0.jpg\t{name}_1.jpg\n" for name in names))
        write(folder / "test_pairs_unpaired.txt", f"{names[0]}_0.jpg\t{names[1]}_1.jpg\n")
    return root


def deepfashion(root: Path) -> Path:
    person = drawn()
    stems = [
        "MEN-Denim-id_00000080-01_7_additional",
        "WOMEN-Tees_Tanks-id_00000390-13_1_front",
        "WOMEN-Skirts-unparsed",
    ]
    for stem in stems:
        save(root / f"images/{stem}.jpg", person.image)
    for stem in stems[:2]:
        save(root / f"segm/{stem}_segm.png", labels(person.parse, "deepfashion"))
        # As OpenCV wrote it: blue first.
        save(root / f"densepose/{stem}_densepose.png", np.ascontiguousarray(person.iuv[..., ::-1]))
    write(root / "captions.json", json.dumps({f"{stems[0]}.jpg": "His shirt has short sleeves, cotton fabric."}))
    write(root / "labels/shape/shape_anno_all.txt", f"{stems[0]}.jpg 1 0 0 0 0 0 0 0 3 2 2 0\n")
    write(root / "labels/texture/fabric_ann.txt", f"{stems[0]}.jpg 1 0 7\n")
    write(root / "labels/texture/pattern_ann.txt", f"{stems[0]}.jpg 2 3 7\n")
    write(root / "keypoints/keypoints_loc.txt", f"{stems[0]}.jpg " + "10 10 " * 21 + "\n")
    return root


def own_folder(root: Path) -> Path:
    person = drawn()
    for name in ("ann.jpg", "ben.png", "cleo.jpg"):
        save(root / "images" / name, person.image)
    shirt, _ = flat((200, 30, 40))
    skirt, mask = flat((40, 70, 180))
    save(root / "assets/ann/1_a_red_t-shirt.png", shirt)
    save(root / "assets/ann/skirt.png", np.dstack([skirt, mask]))
    said = {"caption": "Ann in a red t-shirt and a blue skirt.", "phrases": {"skirt.png": "a blue skirt"}}
    write(root / "images/ann.json", json.dumps(said))
    save(root / "parse/ben.png", labels(person.parse, "atr"))
    for name in ("ann", "ben"):
        save(root / f"iuv/{name}.png", person.iuv)
    write(root / "keypoints/ben.json", openpose(person.keypoints, body_25=False))
    return root


def symmetry(path: Path) -> Path:
    """A file laid out as DensePose's UV_symmetry_transforms.mat, of a rule that is nobody's: each part's is another,
    and new u and v depend on old v and u as well. Needs scipy, without which the test is skipped."""
    savemat = pytest.importorskip("scipy.io").savemat
    v, u = np.mgrid[:256, :256]
    cells = np.empty((1, 24), object), np.empty((1, 24), object)
    for part in range(1, 25):
        cells[0][0, part - 1] = (u + 2 * v + 3 * part) % 256 / 255
        cells[1][0, part - 1] = (3 * u + v + 5 * part) % 256 / 255
    savemat(path, {"U_transforms": cells[0], "V_transforms": cells[1]})
    return path


def kinds(sample: RawSample) -> list[str]:
    return [asset.kind for asset in sample.assets]


def report(source: Source) -> str:
    """What `check` says, one text."""
    return "\n".join(check(source)[0])
