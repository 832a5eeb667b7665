"""What the rasteriser sees of a body: IUV, the one-atlas UV map, part ids, the face, depth and normals."""

import functools
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from fcjax.body.camera import Camera
from fcjax.body.charts import Charts, embedded_charts, face_of, place_in_atlas
from fcjax.body.embedded import ShapedBody, embedded_model, skin
from fcjax.body.rasterizer import Fragments, rasterize, vertex_normals


@dataclass(frozen=True, eq=False)
class BodyMaps:
    """Images of one posed body, all (height, width, ...)."""

    iuv: UInt8[ndarray, "h w 3"]  # part id 0..24, round(255 u), round(255 v); zeros on the background
    uv: Float[ndarray, "h w 2"]  # float32, charts in one atlas, [0, 1]; -1 on the background
    face_mask: Bool[ndarray, "h w"]
    depth: Float[ndarray, "h w"]  # float32 metres along the view, smaller is nearer, infinite on the background
    fragments: Fragments = field(repr=False)
    posed: Float[ndarray, "v 3"] = field(repr=False)  # vertices in world axes
    faces: Int[ndarray, "f 3"] = field(repr=False)
    camera: Camera = field(repr=False)

    @property
    def part(self) -> UInt8[ndarray, "h w"]:
        """Part ids: 0 background, 1..24 DensePose's parts."""
        return self.iuv[..., 0]

    @property
    def foreground(self) -> Bool[ndarray, "h w"]:
        """Where the body is seen."""
        return self.fragments.face >= 0

    @functools.cached_property
    def normals(self) -> Float[ndarray, "h w 3"]:
        """Unit normals in camera axes (x right, y up, z towards the viewer), float32; zero on the background."""
        turned = vertex_normals(self.posed, self.faces) @ np.asarray(self.camera.rotation, np.float32).T
        shown = self.fragments.interpolate(turned, self.faces)
        return shown / np.maximum(np.linalg.norm(shown, axis=-1, keepdims=True), 1e-6)


def mesh_maps(
    posed: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], charts: Charts, camera: Camera, height: int, width: int
) -> BodyMaps:
    """Maps of any posed mesh that has charts."""
    fragments = rasterize(camera.project(posed), faces, height, width, perspective=camera.perspective)
    seen = fragments.face >= 0
    part, u, v = charts.locate(fragments.face[seen], fragments.barycentric[seen])
    places = np.stack([u, v], axis=-1)
    iuv = np.zeros((height, width, 3), np.uint8)
    iuv[seen] = np.concatenate([part[:, None], np.round(places * 255).astype(np.uint8)], axis=1)
    uv = np.full((height, width, 2), -1, np.float32)
    uv[seen] = place_in_atlas(part, places)
    face_mask = np.zeros((height, width), bool)
    face_mask[seen] = face_of(part, u, v)
    return BodyMaps(iuv, uv, face_mask, fragments.depth, fragments, posed, faces, camera)


def body_maps(
    shaped: ShapedBody, rotations: Float[ndarray, "24 3 3"] | None, camera: Camera, height: int, width: int
) -> BodyMaps:
    """Maps of the embedded body.

    Args:
        shaped: from `embedded_model().shape(...)`.
        rotations: SMPL joint rotations as `EmbeddedModel.bone_transforms` takes them.
        camera: for an image of `height` x `width` pixels.
    """
    model = embedded_model()
    body = model.ranges["body"]
    posed = skin(shaped.vertices[body], model.weights[body], model.bone_transforms(shaped, rotations))
    return mesh_maps(posed, model.faces["body"], embedded_charts(), camera, height, width)
