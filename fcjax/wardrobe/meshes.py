"""What never changes about the helper meshes that garments are cut from: topology, neighbours, weights; and small
mesh tools."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from fcjax.body.embedded import EmbeddedModel, ShapedBody, embedded_model


def smoothstep(low: float, high: float, value: ndarray) -> ndarray:
    """0 below `low`, 1 above `high`, smooth between; `low` may be the larger one."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


@dataclass(frozen=True, eq=False)
class HelperMesh:
    """One mesh of the embedded body with indices of its own."""

    vertices: slice  # of ShapedBody.vertices
    faces: Int[ndarray, "f 3"]
    neighbours: Int[ndarray, "v k"]  # padded with the vertex count
    degree: Float[ndarray, "v 1"]
    weights: Float[ndarray, "v 53"]
    arm: dict[str, Float[ndarray, "v"]]  # summed weight of each arm's bones, by side
    used: Bool[ndarray, "v"]

    @property
    def arms(self) -> Float[ndarray, "v"]:
        return self.arm["l"] + self.arm["r"]

    def smooth(self, points: Float[ndarray, "v 3"], passes: int, rate: float = 0.6) -> Float[ndarray, "v 3"]:
        """Laplacian smoothing: `passes` times, move by `rate` towards the mean of the neighbours."""
        for _ in range(passes):
            padded = np.vstack([points, np.zeros((1, 3), points.dtype)])
            points = points + rate * (padded[self.neighbours].sum(axis=1) / self.degree - points)
        return points


def bone_weight(model: EmbeddedModel, rows: slice, *prefixes: str, side: str = "") -> Float[ndarray, "v"]:
    """Summed weight of the bones whose names start with one of `prefixes` (and end with `_side`)."""
    ending = f"_{side}" if side else ""
    bones = [
        index for index, name in enumerate(model.bone_names) if name.startswith(prefixes) and name.endswith(ending)
    ]
    return model.weights[rows][:, bones].sum(axis=1)


ARM = ("upperarm", "lowerarm", "hand", "index", "middle", "ring", "pinky", "thumb")


@functools.lru_cache(maxsize=4)
def helper_mesh(name: str) -> HelperMesh:
    model = embedded_model()
    rows = model.ranges[name]
    faces = model.faces[name] - rows.start
    count = rows.stop - rows.start
    edges = np.unique(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=0)
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    degree = np.bincount(edges[:, 0], minlength=count)
    neighbours = np.full((count, degree.max()), count)
    place = np.arange(len(edges)) - np.repeat(np.cumsum(degree) - degree, degree)
    neighbours[edges[:, 0], place] = edges[:, 1]
    return HelperMesh(
        vertices=rows,
        faces=faces,
        neighbours=neighbours,
        degree=np.maximum(degree, 1)[:, None].astype(np.float32),
        weights=model.weights[rows],
        arm={side: bone_weight(model, rows, *ARM, side=side) for side in "lr"},
        used=np.bincount(faces.ravel(), minlength=count) > 0,
    )


@dataclass(frozen=True)
class Landmarks:
    """Heights (rest pose, metres) and joints that cuts are measured from."""

    neck: float
    neck_depth: float  # z
    shoulder: float
    chest: float
    waist: float
    hip: float
    knee: float
    ankle: float
    floor: float
    unit: float  # size of this body relative to the average woman's shoulders
    joints: dict[str, Float[ndarray, "3"]]


def landmarks(shaped: ShapedBody) -> Landmarks:
    joints = dict(zip(embedded_model().bone_names, shaped.joints, strict=True))
    return Landmarks(
        neck=float(joints["neck_01"][1]),
        neck_depth=float(joints["neck_01"][2]),
        shoulder=float(joints["upperarm_l"][1]),
        chest=float(joints["spine_03"][1]),
        waist=float(joints["spine_02"][1]),
        hip=float(joints["thigh_l"][1]),
        knee=float(joints["calf_l"][1]),
        ankle=float(joints["foot_l"][1]),
        floor=float(shaped.vertices[embedded_model().ranges["body"], 1].min()),
        unit=float(joints["upperarm_l"][0]) / 0.168,
        joints=joints,
    )


def sleeve_coordinate(mesh: HelperMesh, points: Float[ndarray, "v 3"], marks: Landmarks) -> Float[ndarray, "v"]:
    """Along the arm: 0 at the shoulder, 1 at the elbow, 2 at the wrist; negative towards the torso, at least -1."""
    coordinate = np.full(len(points), -1.0, np.float32)
    for side in "lr":
        shoulder, elbow, wrist = (marks.joints[f"{bone}_{side}"] for bone in ("upperarm", "lowerarm", "hand"))
        upper, lower = elbow - shoulder, wrist - elbow
        along_upper = (points - shoulder) @ upper / (upper @ upper)
        along_lower = (points - elbow) @ lower / (lower @ lower)
        along = np.where(along_lower > 0, 1 + along_lower, np.minimum(along_upper, 1))
        weight = mesh.arm[side]
        blend = smoothstep(0, 0.6, weight)
        coordinate = np.maximum(coordinate, np.where(weight > 0.02, along * blend - 0.3 * (1 - blend), -1))
    return coordinate.astype(np.float32)
