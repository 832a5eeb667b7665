"""DensePose maps of a body: iuv.png, uv.npz and preview.png.

python -m infer.densepose --pose walking --out outputs/densepose

The body is the one that ships with fcjax, shaped by sliders from 0 to 1, or your own SMPL file:

python -m infer.densepose --smpl SMPL_NEUTRAL.pkl --params pose.npz --out outputs/densepose

(or an SMPL-X file with SMPL-X parameters). With --image, the picture that the parameters were estimated from, the body
is drawn through the estimator's camera, and overlay.png shows it on the picture.

With the same pose, shape, camera and aspect this is the map that composing uses. iuv.png holds the part (0 background,
1 to 24), u and v in its three channels; uv.npz the arrays uv (one atlas, -1 on the background), face_mask, depth in
metres and normals; preview.png shows parts with squares of u and v beside the atlas's map.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from fcjax.body import BodyMaps, charts_from_skinning, frame_full, frame_upper, mesh_maps
from fcjax.body.densepose_mat import load_densepose_charts
from fcjax.body.poses import pose as named_pose
from fcjax.body.request import LEGS, Body
from fcjax.body.rotations import as_rotation_matrices
from fcjax.body.smpl import load_smpl
from fcjax.cli import run
from fcjax.pictures import open_rgb
from infer.flags import flag
from infer.parameters import Parameters, camera_of, read_parameters, warn_of_betas

CHECKS = 10  # squares of the preview along u and along v of each chart
SMALLEST, LARGEST = 16, 4096  # pixels on a side


@dataclass(frozen=True)
class Request:
    """Which body to draw, and how."""

    out: Path = Path("outputs/densepose")
    """Folder for the three files."""
    size: tuple[int, int] = (512, 384)
    """Height and width in pixels."""

    pose: str | None = None
    """A named pose; standing where neither this nor --params is given."""
    gender: float = 0.0
    """0 female, 1 male."""
    age: float = 0.0
    """0 young adult, 1 old."""
    height: float = 0.5
    """Of the body, 0.5 is average."""
    weight: float = 0.5
    muscle: float = 0.5
    proportions: float = 0.5
    """0 uncommon, 1 idealised."""

    view: float = 0.0
    """Degrees that the camera walks around the body towards its left side."""
    framing: Literal["full", "upper"] = "full"
    """The whole person, or head, trunk and arms."""
    elevation: float = 0.0
    """Degrees that the camera rises."""
    distance: float | None = None
    """Metres from a perspective camera to the person; left out, the camera is infinitely distant."""

    params: Path | None = None
    """SMPL parameters, .npz or .pkl: poses, or body_pose and global_orient; betas and transl with --smpl."""
    frame: int = 0
    """Which frame of --params."""
    subject: str | None = None
    """Whose parameters of --params, where it has several people's (WHAM)."""
    betas: int | None = None
    """How many of the betas in --params to use, the first ones; all by default. AMASS has 16, many SMPL files 10."""
    beta: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NUMBER=VALUE puts a value in the place of one of the betas, in standard deviations, on the same pose; may be
    repeated. In the official SMPL files 0 is mostly height and 1 mostly weight; which way, preview.png shows."""
    up: Annotated[Literal["y", "-y", "z"] | None, flag("y|-y|z", "as the file's keys tell")] = None
    """Which axis points up in --params: z in AMASS, -y in what cameras saw, else y."""
    smpl: Path | None = None
    """Your SMPL or SMPL-X model file; without it --params moves the body that ships with fcjax."""
    image: Path | None = None
    """The picture that --params were estimated from, for its size and the camera in --params."""
    focal: float | None = None
    """Of that camera in pixels, where it is not the estimator's own."""
    uv_processed: Path | None = None
    """DensePose's own charts for --smpl, UV_Processed.mat (needs scipy); left out, charts follow from the skinning."""


DEFAULT = Request()


def render(request: Request) -> BodyMaps:
    """The maps that a request asks for; raises ValueError where it asks for what cannot be."""
    _check_together(request)
    height, width = request.size
    if request.image is None and not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise ValueError(f"--size is {height} {width}; expected height and width from {SMALLEST} to {LARGEST} pixels")
    if request.pose is not None and request.params is not None:
        raise ValueError("--pose and --params both give a pose; leave one out")
    parameters = None
    if request.params is not None:
        # A picture's camera is said in the file's own axes.
        up = request.up if request.image is None else "y"
        parameters = read_parameters(request.params, request.frame, up, request.subject)
    if request.beta and request.smpl is None:
        raise ValueError("--beta shapes your own SMPL body: give --smpl, too, or use --height, --weight and their like")
    if request.betas is not None and request.betas < 0:
        raise ValueError(f"--betas is how many to use: it must be 0 or more, got {request.betas}")
    if request.uv_processed is not None and request.smpl is None:
        raise ValueError("--uv-processed belongs to SMPL's mesh: give --smpl too")
    if request.image is not None and (request.smpl is None or parameters is None):
        raise ValueError("--image shows your SMPL body through its estimator's camera: give --smpl and --params, too")
    if request.smpl is not None:
        return _smpl_maps(request, parameters)
    warn_of_betas(parameters)
    body = Body(
        pose=request.pose or "standing",
        gender=request.gender,
        age=request.age,
        height=request.height,
        weight=request.weight,
        muscle=request.muscle,
        proportions=request.proportions,
        view=request.view,
        framing=request.framing,
        elevation=request.elevation,
        distance=request.distance,
        joint_rotations=None if parameters is None else parameters.rotations,
    )
    return body.render(height, width)


def _check_together(request: Request) -> None:
    """ValueError for flags that say nothing beside others, or without them."""

    def given(*names: str) -> str:
        return ", ".join(f"--{name}" for name in names if getattr(request, name) != getattr(DEFAULT, name))

    if request.params is None and (flags := given("frame", "subject", "betas", "up")):
        raise ValueError(f"{flags} tell how --params are to be read: give --params, too, or leave them out")
    if request.image is None:
        if request.focal is not None:
            raise ValueError("--focal is of the camera that saw --image: give --image, too")
    elif flags := given("view", "framing", "elevation", "distance", "up"):
        raise ValueError(
            f"with --image the body is seen as its estimator's camera saw it, in the file's own axes: leave {flags} out"
        )


def _smpl_maps(request: Request, parameters: Parameters | None) -> BodyMaps:
    """The same for the user's SMPL or SMPL-X file, framed by the same rules or seen through the picture's camera."""
    changed = [
        f"--{name}"
        for name in ("gender", "age", "height", "weight", "muscle", "proportions")
        if getattr(request, name) != getattr(DEFAULT, name)
    ]
    if changed:
        raise ValueError(f"{', '.join(changed)} shape the body of fcjax; SMPL takes its shape from betas in --params")
    model = load_smpl(request.smpl or "")
    if parameters is None:
        parameters = Parameters(as_rotation_matrices(named_pose(request.pose or "standing").rotations, 24)[:22])
    betas, known = parameters.betas, model.shape_count
    if betas is not None:
        betas = betas[: request.betas]
        if len(betas) > known:
            raise ValueError(
                f"{request.params} has {len(betas)} betas, {request.smpl} takes {known}: --betas {known} uses the first"
            )
    betas = with_betas(betas, request.beta, known)
    posed = model(parameters.rotations_for(model), betas, parameters.translation, parameters.expression).vertices[0]
    if request.uv_processed is not None:
        if model.name != "SMPL":
            raise ValueError(f"{request.uv_processed} describes SMPL's mesh, {request.smpl} is {model.name}")
        charts, faces = load_densepose_charts(request.uv_processed)
        if faces.max() >= len(model.template):
            raise ValueError(f"{request.uv_processed} describes SMPL's 6890 vertices, {request.smpl} has {len(posed)}")
    else:
        faces = model.faces
        charts = charts_from_skinning(model.rest()[0][0], faces, *model.on_smpl_joints())
    if request.image is not None:
        return mesh_maps(posed, faces, charts, camera_of(parameters, *request.size, request.focal), *request.size)
    # The camera's flags have the meaning, and the bounds, that they have for the other body.
    asked = Body(view=request.view, framing=request.framing, elevation=request.elevation, distance=request.distance)
    full = asked.framing == "full"
    shown = posed if full else posed[np.unique(faces[~np.isin(charts.part, LEGS)])]
    frame = frame_full if full else frame_upper
    camera = frame(shown, *request.size, view=asked.view, elevation=asked.elevation, distance=asked.distance)
    return mesh_maps(posed, faces, charts, camera, *request.size)


def with_betas(betas: Float[ndarray, "s"] | None, edits: Sequence[str], known: int) -> Float[ndarray, "b"] | None:
    """The betas, zeros up to `known` where there are none, with those that NUMBER=VALUE names put in their places.

    ValueError for other words, and for a number that is not known.
    """
    if not edits:
        return betas
    whole = np.zeros(known)
    if betas is not None:
        whole[: len(betas)] = betas
    for words in edits:
        number, _, value = words.partition("=")
        try:
            place, amount = int(number), float(value)
        except ValueError:
            raise ValueError(f"--beta is {words!r}; expected NUMBER=VALUE, such as 0=2") from None
        if not 0 <= place < known or not np.isfinite(amount):
            raise ValueError(f"--beta is {words!r}; expected a finite value of one of the betas 0 to {known - 1}")
        whole[place] = amount
    return whole


def chart_colours(iuv: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h w 3"]:
    """A map's parts, 0 to 24, in colours with squares of u and v; part 0, the background, is black."""
    colours = [(0.0, 0.0, 0.0)] + [
        colorsys.hsv_to_rgb((part * 0.381966) % 1, 0.55 if part % 2 else 0.75, 0.9) for part in range(1, 25)
    ]
    part, u, v = np.moveaxis(iuv.astype(np.int32), -1, 0)
    squares = (u * CHECKS // 256 + v * CHECKS // 256) % 2
    return np.round(np.array(colours)[part] * (0.7 + 0.3 * squares)[..., None] * 255).astype(np.uint8)


def parts(maps: BodyMaps) -> UInt8[ndarray, "h w 3"]:
    """The body's parts in colours, with squares of u and v, the face lighter."""
    shown = chart_colours(maps.iuv)
    return np.where(maps.face_mask[..., None], 128 + shown // 2, shown)


def preview(maps: BodyMaps) -> UInt8[ndarray, "h w2 3"]:
    """Two pictures side by side: the body's parts, and the map of the atlas.

    The second is what the denoiser sees of the body: red is the atlas's u, green its v, blue the rest of u.
    """
    atlas = np.stack([maps.uv[..., 0], maps.uv[..., 1], 1 - maps.uv[..., 0]], axis=-1)
    atlas = np.where(maps.foreground[..., None], atlas, 0.0)
    return np.concatenate([parts(maps), np.round(atlas * 255).astype(np.uint8)], axis=1)


def overlay(maps: BodyMaps, photo: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h w 3"]:
    """The parts on the picture, half seen through."""
    return np.where(maps.foreground[..., None], photo // 2 + parts(maps) // 2, photo)


def main(request: Request) -> None:
    """Write the maps of one body."""
    photo = None
    if request.image is not None:
        photo = open_rgb(request.image)
        if request.size != DEFAULT.size:
            raise ValueError("with --image the maps have that picture's size: leave --size out")
        request = replace(request, size=(photo.shape[0], photo.shape[1]))
    maps = render(request)
    request.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(maps.iuv).save(request.out / "iuv.png")
    np.savez_compressed(
        request.out / "uv.npz", uv=maps.uv, face_mask=maps.face_mask, depth=maps.depth, normals=maps.normals
    )
    Image.fromarray(preview(maps)).save(request.out / "preview.png")
    written = ["iuv.png", "uv.npz", "preview.png"]
    if photo is not None:
        Image.fromarray(overlay(maps, photo)).save(request.out / "overlay.png")
        written.append("overlay.png")
    print(f"{request.out}: {', '.join(written)} ({maps.foreground.mean():.0%} of the picture is body)")


if __name__ == "__main__":
    run(main)
