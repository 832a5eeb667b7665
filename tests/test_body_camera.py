"""Cameras: where points land, what framing guarantees, and that both kinds agree where they must."""

import numpy as np
import pytest

from fcjax.body import Camera, frame_full, frame_upper
from fcjax.body.camera import LEAST_EXTENT, view_rotation

HEIGHT, WIDTH = 320, 240


@pytest.fixture(scope="module")
def points():
    """A cloud of about a person's size, off the origin."""
    return np.random.default_rng(0).uniform(-1, 1, (300, 3)) * [0.4, 0.85, 0.2] + [0.1, 0.3, -0.2]


def test_pixels_point_right_and_down():
    camera = Camera(scale=100.0, center=(50.0, 60.0))
    projected = camera.project(np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]]))
    np.testing.assert_allclose(projected, [[50, 60, 0], [60, 60, 0], [50, 50, 0], [50, 60, -0.1]], atol=1e-5)


@pytest.mark.parametrize(("view", "nearest"), [(0, [0, 0, 1]), (90, [1, 0, 0]), (180, [0, 0, -1]), (270, [-1, 0, 0])])
def test_view_walks_around_towards_the_left_side(view, nearest):
    np.testing.assert_allclose(view_rotation(view) @ nearest, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(view_rotation(view) @ [0, 1, 0], [0, 1, 0], atol=1e-12)


def test_elevation_looks_down():
    camera = Camera(scale=1.0, center=(0.0, 0.0), rotation=view_rotation(elevation=30))
    near, far = camera.project(np.array([[0, 0, 1.0], [0, 0, -1.0]]))
    assert near[1] > far[1]  # the nearer end of a floor is lower in the picture


@pytest.mark.parametrize("distance", [None, 2.5])
@pytest.mark.parametrize("view", [0, 70, -135])
def test_full_framing_shows_all_and_fills_the_picture(points, view, distance):
    projected = frame_full(points, HEIGHT, WIDTH, view=view, distance=distance).project(points)[:, :2]
    low, high = projected.min(axis=0), projected.max(axis=0)
    usable = 0.9 * np.array([WIDTH, HEIGHT])
    np.testing.assert_allclose((low + high) / 2, [WIDTH / 2, HEIGHT / 2], atol=1e-2)
    assert (high - low <= usable + 1e-2).all()
    assert np.isclose(high - low, usable, atol=1e-2).any()


def test_small_things_are_not_blown_up(points):
    camera = frame_full(points * 0.1, HEIGHT, WIDTH)
    assert camera.scale == pytest.approx(0.9 * HEIGHT / LEAST_EXTENT)
    assert frame_upper(points * 0.1, HEIGHT, WIDTH).scale > camera.scale


def test_perspective_enlarges_what_is_near(points):
    camera = frame_full(points, HEIGHT, WIDTH, distance=2.0)
    ends = camera.target + np.array([[0.1, 0, 0.3], [0.1, 0, 0], [0.1, 0, -0.3]])
    projected = camera.project(ends)
    assert (np.diff(np.abs(projected[:, 0] - camera.project(np.array([camera.target]))[0, 0])) < 0).all()
    np.testing.assert_allclose(projected[:, 2], [1.7, 2.0, 2.3], atol=1e-5)


def test_a_distant_perspective_is_weak_perspective(points):
    weak = frame_full(points, HEIGHT, WIDTH, view=25)
    far = frame_full(points, HEIGHT, WIDTH, view=25, distance=1e5)
    np.testing.assert_allclose(far.project(points)[:, :2], weak.project(points)[:, :2], atol=2e-2)


def test_a_camera_inside_the_body_is_refused(points):
    with pytest.raises(ValueError, match="larger distance"):
        frame_full(points, HEIGHT, WIDTH, distance=0.3)


def test_resized_scales_pixels_alone(points):
    camera = frame_full(points, HEIGHT, WIDTH, distance=3.0)
    large, small = camera.resized(2).project(points), camera.project(points)
    np.testing.assert_allclose(large, small * [2, 2, 1], rtol=1e-5)


def test_pinhole_is_the_intrinsics_of_computer_vision(points):
    focal, principal, translation = 900.0, (130.0, 150.0), np.array([0.1, -0.2, 4.0])
    projected = Camera.pinhole(focal, principal, tuple(translation)).project(points)
    moved = points + translation
    expected = np.stack([focal * moved[:, 0] / moved[:, 2], focal * moved[:, 1] / moved[:, 2]], axis=1) + principal
    np.testing.assert_allclose(projected[:, :2], expected, atol=1e-3)
    np.testing.assert_allclose(projected[:, 2], moved[:, 2], atol=1e-5)


@pytest.mark.parametrize(("focal", "depth"), [(0.0, 3.0), (900.0, -1.0), (float("nan"), 3.0)])
def test_pinhole_refuses_what_sees_nothing(focal, depth):
    with pytest.raises(ValueError, match="focal > 0"):
        Camera.pinhole(focal, (0.0, 0.0), (0.0, 0.0, depth))
