"""FID's Inception-v3, FID and KID against other programs' on random weights; resizes; missing weights."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from fcjax.metrics import frechet_distance, kernel_distance
from fcjax.metrics.networks import RESIZES, load_inception
from fcjax.metrics.networks.inception import FILES, Inception, parameters_of
from tests.published import module_of, stand_in

PICTURE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)


def test_features_are_those_of_torch_fidelity(inception) -> None:
    torch = pytest.importorskip("torch")
    module, path = inception
    pictures = np.stack([PICTURE, PICTURE[::-1]])
    with torch.no_grad():
        [theirs] = module(torch.tensor(pictures.transpose(0, 3, 1, 2).copy()))
    ours = load_inception(path, "torch-fidelity")(pictures)
    assert ours.shape == (2, 2048)
    assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * np.abs(theirs.numpy()).max()
    # Pictures do not differ by their resize alone to the network, but they do differ.
    assert np.abs(load_inception(path, "clean")(pictures) - ours).max() > 1e-3 * np.abs(ours).max()


@pytest.mark.parametrize("shape", [(90, 70), (400, 310)], ids=["enlarged", "reduced"])
def test_resizes_are_those_of_their_programs(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    tensor = torch.tensor(picture.transpose(2, 0, 1)[None].copy()).float()

    def array(image: Any) -> np.ndarray:
        return image[0].numpy().transpose(1, 2, 0)

    bilinear = {"size": (299, 299), "mode": "bilinear", "align_corners": False}
    interpolate = torch.nn.functional.interpolate
    expected = {
        "pytorch-fid": 2 * array(interpolate(tensor / 255, **bilinear)) - 1,
        "torchmetrics": (array(interpolate(tensor, **bilinear, antialias=True)) - 128) / 128,
    }
    tensorflow = module_of("torch_fidelity", "interpolate_compat_tensorflow")
    resized = tensorflow.interpolate_bilinear_2d_like_tensorflow1x(tensor, size=(299, 299), align_corners=False)
    expected["torch-fidelity"] = (array(resized) - 128) / 128
    clean = module_of("cleanfid", "resize")
    with pytest.warns(DeprecationWarning, match="mode") if _pillow_warns() else _nothing():
        expected["clean"] = (clean.build_resizer("clean")(picture) - 128) / 128
    assert expected.keys() == RESIZES.keys()
    for name, theirs in expected.items():
        assert np.abs(RESIZES[name](picture) - theirs).max() <= 1e-4, name


@pytest.fixture(scope="module")
def tiles(inception) -> tuple[np.ndarray, np.ndarray]:
    """The random network's features of the tiles of two photographs, as clean-fid resizes them."""
    data = pytest.importorskip("skimage.data")
    network = load_inception(inception[1], "clean")
    found = []
    for photo in (data.astronaut(), data.coffee()):
        corners = [(y, x) for y in range(0, 384, 96) for x in range(0, 480, 96)][:12]
        found.append(network(np.stack([photo[y : y + 96, x : x + 72] for y, x in corners])).astype(np.float64))
    return found[0], found[1]


@pytest.fixture
def distances(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """clean-fid's functions, and torch-fidelity's of FID and of KID, which need nothing of the torchvision that they
    import."""
    for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
        monkeypatch.setitem(sys.modules, f"torchvision{name}", MagicMock())
    if not all(map(stand_in, ("cleanfid", "torch_fidelity"))):
        pytest.skip("clean-fid and torch-fidelity are not installed")
    monkeypatch.setattr(sys.modules["torch_fidelity"], "GenerativeModelModuleWrapper", object, raising=False)
    names = ("cleanfid.fid", "torch_fidelity.metric_fid", "torch_fidelity.metric_kid")
    before = set(sys.modules)
    clean, fid, kid = map(importlib.import_module, names)
    # What held on to that torchvision is forgotten.
    for name in sys.modules.keys() - before:
        if name.startswith(("cleanfid.", "torch_fidelity.")):
            sys.modules.pop(name)
    return clean, fid, kid


@pytest.mark.parametrize("step", [256, pytest.param(1, marks=pytest.mark.slow)])
def test_fid_is_that_of_other_programs(tiles, distances, step: int) -> None:
    """Of every 256th feature, as matrices' roots take them half a minute; with all, covariances are singular."""
    first, second = (part[:, ::step] for part in tiles)
    clean, theirs, _ = distances
    held = [(part.mean(axis=0), np.cov(part, rowvar=False)) for part in (first, second)]
    statistics = [{"mu": mu, "sigma": sigma} for mu, sigma in held]
    ours = frechet_distance(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (
            clean.frechet_distance(*held[0], *held[1]),
            theirs.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
        )
    assert ours > 0 and expected == pytest.approx((ours, ours), rel=1e-5)


def test_kid_is_that_of_other_programs(tiles, distances) -> None:
    torch = pytest.importorskip("torch")
    first, second = tiles
    clean, _, theirs = distances
    ours = kernel_distance(first, second)
    assert ours.mean == pytest.approx(clean.kernel_distance(first, second, num_subsets=2), rel=1e-9)
    given = {"kid_subsets": 2, "kid_subset_size": len(first), "verbose": False}
    found = theirs.kid_features_to_metric(torch.tensor(first), torch.tensor(second), **given)
    assert ours.exact == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-9)


def _pillow_warns() -> bool:
    """Whether Pillow deprecates what clean-fid calls."""
    import warnings

    from PIL import Image

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Image.fromarray(np.zeros((2, 2), np.float32), mode="F")
    return bool(seen)


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_weights_lie_in_torchs_caches(inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = inception
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"put pt_inception-2015-12-05-6726825d.pth \(from .*\) into .*own metrics run"
    ):
        load_inception()
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    (folder / FILES[1]).symlink_to(path)
    assert isinstance(load_inception(), Inception)
    with pytest.raises(ValueError, match="no such file of weights of FID's Inception-v3"):
        load_inception(tmp_path / "none.pth")


def test_weights_of_another_network_are_told() -> None:
    state = {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 1, 3, 3))}
    with pytest.raises(
        ValueError, match=r"here does not hold FID's Inception-v3: Conv2d_1a_3x3.conv.weight \(32, 1, 3, 3\)"
    ):
        parameters_of(state, "here")


@pytest.mark.parametrize("pictures", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)])
def test_other_things_than_pictures_are_refused(pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match="are of pictures uint8"):
        Inception({})(pictures)
    with pytest.raises(ValueError, match="resize is 'nearest'; expected one of clean"):
        Inception({}, "nearest")
