"""The z-buffer against ray casting by trimesh and Embree on posed bodies, and its rules at edges and ties."""

import numpy as np
import pytest

from fcjax.body import POSES, Camera, embedded_model, frame_full, rasterize
from fcjax.body.rasterizer import vertex_normals

HEIGHT, WIDTH = 256, 192
# Embree's rays and our edge functions round differently, so a pixel centre that lies on an edge may go to either face.
# Over the whole library, each pose from another side, 10 of 221,507 foreground pixels did.
EDGE_SHARE = 1e-3
ON_EDGE = 2e-3  # barycentric

SQUARE = np.array([[1, 1, 5], [1, 7, 5], [7, 7, 5], [7, 1, 5]], np.float32)
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]])


@pytest.fixture(scope="module")
def model():
    return embedded_model()


def cast_rays(vertices, faces, camera):
    """Nearest face and its distance along the camera's axis for a ray through every pixel centre."""
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    across = np.stack([columns.ravel() - camera.center[0], camera.center[1] - rows.ravel()], axis=1) / camera.scale
    if camera.distance is None:
        origins = np.concatenate([across, np.full((len(across), 1), 3.0)], axis=1)
        directions = np.tile([0.0, 0.0, -1.0], (len(across), 1))
    else:
        origins = np.tile([0.0, 0.0, camera.distance], (len(across), 1))
        directions = np.concatenate([across, np.full((len(across), 1), -camera.distance)], axis=1)
    # The mesh goes to the camera's axes, where rays are easy to state.
    local = (vertices - camera.target) @ camera.rotation.T
    mesh = trimesh.Trimesh(local, faces, process=False)
    faces_hit, rays, points = RayMeshIntersector(mesh).intersects_id(
        origins, directions, multiple_hits=False, return_locations=True
    )
    face = np.full(HEIGHT * WIDTH, -1)
    depth = np.full(HEIGHT * WIDTH, np.inf)
    face[rays], depth[rays] = faces_hit, (camera.distance or 0.0) - points[:, 2]
    return face.reshape(HEIGHT, WIDTH), depth.reshape(HEIGHT, WIDTH)


def least_weight(projected, faces, face):
    """Each pixel centre's smallest barycentric weight in a given face: near zero on its edge."""
    rows, columns = np.nonzero(face >= 0)
    corners = projected[faces[face[rows, columns]], :2].astype(np.float64)
    edges = corners[:, [1, 2]] - corners[:, :1]
    offset = np.stack([columns + 0.5, rows + 0.5], axis=1) - corners[:, 0]
    weights = np.linalg.solve(np.swapaxes(edges, 1, 2), offset[..., None])[..., 0]
    least = np.full(face.shape, np.inf)
    least[rows, columns] = np.minimum(weights.min(axis=1), 1 - weights.sum(axis=1))
    return least


@pytest.mark.parametrize(
    ("name", "view", "distance"),
    [("standing", 0, None), ("walking", 35, None), ("sitting", -60, 2.5), ("arms_raised", 160, 3.5)],
)
def test_equal_to_ray_casting(model, name, view, distance):
    vertices = model.pose(model.shape(gender=0.4, weight=0.6), POSES[name].rotations)[model.ranges["body"]]
    faces = model.faces["body"]
    camera = frame_full(vertices, HEIGHT, WIDTH, view=view, distance=distance)
    projected = camera.project(vertices)
    ours = rasterize(projected, faces, HEIGHT, WIDTH, cull=False, perspective=camera.perspective)
    face, depth = cast_rays(vertices, faces, camera)
    differs = ours.face != face
    foreground = (ours.face >= 0).sum()
    assert foreground > 2000
    assert differs.sum() <= EDGE_SHARE * foreground
    on_edge = np.minimum(least_weight(projected, faces, ours.face), least_weight(projected, faces, face)) < ON_EDGE
    assert on_edge[differs].all()
    same = ~differs & (face >= 0)
    np.testing.assert_allclose(ours.depth[same], depth[same], atol=1e-4)


def test_culling_loses_no_pixel_of_a_closed_surface(model):
    vertices = model.pose(model.shape(), POSES["walking"].rotations)[model.ranges["body"]]
    projected = frame_full(vertices, HEIGHT, WIDTH).project(vertices)
    faces = model.faces["body"]
    culled = rasterize(projected, faces, HEIGHT, WIDTH)
    whole = rasterize(projected, faces, HEIGHT, WIDTH, cull=False)
    # Eye sockets and mouth are open, and where the body touches itself an inner side can come first.
    assert (culled.face != whole.face).sum() <= 5e-3 * (whole.face >= 0).sum()


def test_barycentrics_give_back_the_pixel_centre(model):
    vertices = model.pose(model.shape(), POSES["standing"].rotations)[model.ranges["body"]]
    faces = model.faces["body"]
    camera = frame_full(vertices, HEIGHT, WIDTH)
    projected = camera.project(vertices)
    fragments = rasterize(projected, faces, HEIGHT, WIDTH)
    rows, columns = np.nonzero(fragments.face >= 0)
    centres = fragments.interpolate(projected[:, :2], faces)[rows, columns]
    np.testing.assert_allclose(centres, np.stack([columns + 0.5, rows + 0.5], axis=1), atol=2e-3)


def test_perspective_barycentrics_are_those_of_the_surface():
    # A floor that runs away from the camera: halfway up its picture is far less than halfway along it.
    floor = np.array([[-1, -1, 0], [1, -1, 0], [1, -1, -6], [-1, -1, -6]], float)
    camera = Camera(scale=20.0, center=(16.0, 4.0), distance=2.0)
    fragments = rasterize(camera.project(floor), SQUARE_FACES, 32, 32, perspective=True)
    seen = fragments.face >= 0
    assert seen.sum() > 50
    points = fragments.interpolate(floor, SQUARE_FACES)[seen]
    np.testing.assert_allclose(2.0 - points[:, 2], fragments.depth[seen], rtol=1e-5)
    rows, columns = np.nonzero(seen)
    np.testing.assert_allclose(camera.project(points)[:, :2], np.stack([columns + 0.5, rows + 0.5], axis=1), atol=1e-3)


def test_pixel_centres_decide_coverage():
    fragments = rasterize(SQUARE, SQUARE_FACES, 8, 9)
    expected = np.zeros((8, 9), bool)
    expected[1:7, 1:7] = True
    np.testing.assert_array_equal(fragments.face >= 0, expected)
    np.testing.assert_array_equal(np.isfinite(fragments.depth), expected)
    assert (fragments.barycentric[~expected] == 0).all()


def test_nearest_wins_and_ties_go_to_the_lower_face():
    nearer = SQUARE - [0, 0, 6]
    both, faces = np.concatenate([SQUARE, nearer]), np.concatenate([SQUARE_FACES, SQUARE_FACES + 4])
    assert set(np.unique(rasterize(both, faces, 8, 8).face)) == {-1, 2, 3}  # negative depths order too
    twice = rasterize(SQUARE, np.concatenate([SQUARE_FACES, SQUARE_FACES]), 8, 8)
    assert twice.face.max() == 1


def test_back_faces_are_culled():
    reversed_faces = SQUARE_FACES[:, ::-1]
    assert (rasterize(SQUARE, reversed_faces, 8, 8).face == -1).all()
    assert (rasterize(SQUARE, reversed_faces, 8, 8, cull=False).face >= 0).sum() == 36


def test_keep_cuts_fragments_and_shows_what_lies_behind():
    behind = SQUARE + np.array([0, 0, 1])
    both, faces = np.concatenate([SQUARE, behind]), np.concatenate([SQUARE_FACES, SQUARE_FACES + 4])

    def left_half(face, barycentric):
        x = np.einsum("nk,nk->n", barycentric, both[faces[face], 0])
        return (face >= 2) | (x < 4)

    fragments = rasterize(both, faces, 8, 8, keep=left_half)
    assert (fragments.face[1:7, 1:4] < 2).all() and (fragments.face[1:7, 4:7] >= 2).all()


def test_triangles_beyond_the_picture_are_clipped():
    huge = (SQUARE - [4, 4, 0]) * [1000, 1000, 1]
    assert (rasterize(huge, SQUARE_FACES, 8, 8).face >= 0).all()
    assert (rasterize(SQUARE + np.array([100, 0, 0]), SQUARE_FACES, 8, 8).face == -1).all()


def test_nothing_behind_a_perspective_camera_is_drawn():
    assert (rasterize(SQUARE * [1, 1, -1], SQUARE_FACES, 8, 8, perspective=True).face == -1).all()


def test_points_that_are_no_numbers_are_refused():
    broken = SQUARE.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        rasterize(broken, SQUARE_FACES, 8, 8)


def test_normals_point_outwards(model):
    vertices = model.pose(model.shape())[model.ranges["body"]]
    normals = vertex_normals(vertices, model.faces["body"])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    head = vertices[:, 1] > vertices[:, 1].max() - 0.05
    assert (normals[head, 1] > 0).mean() > 0.95
