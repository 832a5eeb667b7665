"""The body stage: a body in a pose becomes the maps that conditions are made of. NumPy alone."""

from fcjax.body.camera import Camera, frame_full, frame_upper
from fcjax.body.charts import PART_NAMES, Charts, atlas_uv, charts_from_skinning, flip_iuv, rest_places
from fcjax.body.densepose_mat import load_densepose_charts, load_densepose_symmetry
from fcjax.body.embedded import SMPL_JOINTS, EmbeddedModel, ShapedBody, embedded_model
from fcjax.body.maps import BodyMaps, body_maps, mesh_maps
from fcjax.body.poses import POSES, Pose, pose
from fcjax.body.rasterizer import Fragments, rasterize
from fcjax.body.request import Body
from fcjax.body.smpl import SMPL, load_smpl

__all__ = [
    "PART_NAMES",
    "POSES",
    "SMPL",
    "SMPL_JOINTS",
    "Body",
    "BodyMaps",
    "Camera",
    "Charts",
    "EmbeddedModel",
    "Fragments",
    "Pose",
    "ShapedBody",
    "atlas_uv",
    "body_maps",
    "charts_from_skinning",
    "embedded_model",
    "flip_iuv",
    "frame_full",
    "frame_upper",
    "load_densepose_charts",
    "load_densepose_symmetry",
    "load_smpl",
    "mesh_maps",
    "pose",
    "rasterize",
    "rest_places",
]
