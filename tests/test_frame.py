"""Pictures brought to another size, and back."""

import numpy as np
import pytest

from fcjax.frame import Fit, Frame


@pytest.mark.parametrize(("height", "width"), [(100, 60), (50, 90), (64, 48), (128, 96), (3, 500)])
@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_pictures_and_labels_stay_together(height: int, width: int, fit: Fit):
    frame = Frame.of((height, width), 64, 48, fit)
    rows, columns = np.mgrid[:height, :width]
    values = (255 * (rows + columns) / (height + width)).astype(np.uint8)
    picture, labels = frame.picture(np.dstack([values] * 3)), frame.labels(np.maximum(values, 1))
    assert picture.shape == (64, 48, 3) and labels.shape == (64, 48)
    seen = labels > 0
    assert seen.all() == (fit == "crop" or height * 48 == width * 64)
    if min(height, width) > 8:
        assert np.abs(picture[..., 0].astype(int) - labels)[seen].max() < 16
    if fit == "letterbox":
        # The whole picture is seen, at one scale.
        assert seen.any(axis=1).sum() == 64 or seen.any(axis=0).sum() == 48


def test_padding_goes_on_with_the_edges_colour():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:4], image[-4:] = (10, 20, 30), (200, 100, 50)
    picture = Frame.of((20, 60), 64, 48).picture(image)
    assert np.allclose(picture[0], (10, 20, 30), atol=3) and np.allclose(picture[-1], (200, 100, 50), atol=3)
    # Every row of the padding alike.
    assert (picture[:20] == picture[0]).all() and (picture[-20:] == picture[-1]).all()


def test_keypoints_follow_the_picture():
    points = np.array([[30.0, 50.0, 0.9], [59.0, 99.0, 0.8], [0.0, 0.0, 0.7]])
    framed = Frame.of((100, 60), 64, 48).points(points)
    np.testing.assert_allclose(framed[0], [24, 32, 0.9])
    np.testing.assert_allclose(framed[:, 2], points[:, 2])
    crop = Frame.of((100, 60), 64, 48, "crop")
    np.testing.assert_allclose(crop.points(points)[:, 2], [0.9, 0, 0])


@pytest.mark.parametrize(("height", "width"), [(100, 60), (50, 90), (64, 48), (129, 97), (300, 40)])
def test_a_picture_comes_back_at_its_own_size(height: int, width: int):
    frame = Frame.of((height, width), 64, 48)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([255 * rows / height, 255 * columns / width, 0 * rows + 90], axis=-1).astype(np.uint8)
    restored = frame.restored(frame.picture(smooth))
    assert restored.shape == smooth.shape
    # A letterbox loses what lies between pixels only.
    assert np.abs(restored.astype(int) - smooth).mean() < 255 * (0.5 / min(frame.rows, frame.columns) + 0.01)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the picture is 100x60, its map 50x30"):
        Frame.of((100, 60), 64, 48).labels(np.zeros((50, 30), np.uint8))


def test_a_cropped_picture_does_not_come_back():
    with pytest.raises(ValueError, match="cropped"):
        Frame.of((100, 60), 64, 48, "crop").restored(np.zeros((64, 48, 3), np.uint8))
