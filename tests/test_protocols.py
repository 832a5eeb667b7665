"""Protocols against the calls of the scripts that they follow, in the order of those scripts, on small pictures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fcjax.metrics.lpips import LPIPS
from fcjax.metrics.protocols import PROTOCOLS, Protocol, pasted, through_jpeg
from fcjax.metrics.ssim import RADIUS
from fcjax.pictures import open_rgb
from tests.test_metrics_lpips import random_params, reference

torch = pytest.importorskip("torch")
torchmetrics = pytest.importorskip("torchmetrics.functional.image")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A true picture of 128x96, and a prediction of half that size that differs."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 12, 3), np.uint8))
    truth = coarse.resize((96, 128), Image.Resampling.BICUBIC)
    noisy = np.asarray(truth.resize((48, 64))) + rng.normal(size=(64, 48, 3)) * 12
    truth.save(folder / "truth.jpg")
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "prediction.jpg")
    return folder / "prediction.jpg", folder / "truth.jpg"


def small(name: str) -> Protocol:
    """The protocol at an eighth of its size."""
    protocol = PROTOCOLS[name]
    sizes = {field: getattr(protocol, field) for field in ("height", "width")}
    return dataclasses.replace(protocol, **{field: size and 64 * size // 512 for field, size in sizes.items()})


def to_tensor(image: Image.Image):
    """torchvision's ToTensor, with a batch of one."""
    return torch.tensor(np.asarray(image)).permute(2, 0, 1).float()[None] / 255


def ssim_of(first: Image.Image, second: Image.Image, cropped: bool = False) -> float:
    tensors = to_tensor(first), to_tensor(second)
    whole, windows = torchmetrics.structural_similarity_index_measure(*tensors, data_range=1.0, return_full_image=True)
    # Before 1.4.2 it left out what now are the border's windows.
    return float(windows[..., RADIUS:-RADIUS, RADIUS:-RADIUS].mean() if cropped else whole)


def lpips_of(network, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Ours, and the authors' by torch, with the same weights."""
    params = random_params(network)
    with torch.no_grad():
        return float(LPIPS(network, params)(first[None], second[None])[0]), float(
            reference(network, params, first[None], second[None])[0]
        )


def test_catvton(files: tuple[Path, Path], tmp_path: Path):
    # copy_resize_gt, which saves a JPEG of the truth at the prediction's height; then EvalDataset.
    prediction, truth = map(Image.open, files)
    height = prediction.height
    copied = tmp_path / "truth.jpg"
    truth.resize((int(truth.width * height / truth.height), height), Image.LANCZOS).save(copied)
    expected = Image.open(copied)
    made, person = small("catvton-512").pair(*map(open_rgb, files), stored_as_jpeg=(True, True))
    np.testing.assert_array_equal(person, np.asarray(expected))
    np.testing.assert_array_equal(made, np.asarray(prediction))
    ours = small("catvton-512").similarity(made, person)
    assert ours["ssim"] == pytest.approx(ssim_of(prediction, expected), abs=1e-5)
    mean = np.mean((np.asarray(expected, float) - np.asarray(prediction)) ** 2)
    assert ours["psnr"] == pytest.approx(10 * np.log10(255**2 / mean))
    ours, theirs = lpips_of("squeeze", *(small("catvton-512").for_lpips(one) for one in (made, person)))
    assert PROTOCOLS["catvton-512"].lpips == "squeeze" and ours == pytest.approx(theirs, rel=1e-4)


def test_what_is_no_jpeg_becomes_one(files: tuple[Path, Path]):
    prediction, truth = map(open_rgb, files)
    made, _ = small("catvton-512").pair(prediction, truth, stored_as_jpeg=(False, True))
    np.testing.assert_array_equal(made, through_jpeg(prediction))
    assert not np.array_equal(made, prediction)
    np.testing.assert_array_equal(small("catvton-512").alone(prediction, True), prediction)
    np.testing.assert_array_equal(
        small("catvton-512").alone(truth, True), small("catvton-512").pair(prediction, truth)[1]
    )


@pytest.mark.parametrize("name", ["ladi-512", "promptdresser-1024"])
def test_torchvisions_resize(files: tuple[Path, Path], name: str):
    protocol = dataclasses.replace(PROTOCOLS[name], height=64, width=48)
    prediction, truth = map(Image.open, files)
    # transforms.Resize of a Pillow picture is its bilinear filter.
    expected = [image.resize((48, 64), Image.BILINEAR) for image in (prediction, truth)]
    made, person = protocol.pair(*map(open_rgb, files), stored_as_jpeg=(True, True))
    for ours, theirs in zip((made, person), expected, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs))
    assert protocol.similarity(made, person)["ssim"] == pytest.approx(
        ssim_of(*expected, cropped=name == "ladi-512"), abs=1e-5
    )
    assert protocol.for_lpips(made) is made and protocol.lpips == "alex" and protocol.reference == "native"


def test_hr_viton(files: tuple[Path, Path]):
    skimage = pytest.importorskip("skimage.metrics")
    protocol = PROTOCOLS["hrviton"]
    prediction, truth = map(Image.open, files)
    truth = truth.resize(prediction.size, Image.BILINEAR)
    greys = (np.asarray(image.convert("L")) for image in (truth, prediction))
    expected = skimage.structural_similarity(*greys, data_range=255, gaussian_weights=True, use_sample_covariance=False)
    made, person = protocol.pair(*map(open_rgb, files), stored_as_jpeg=(True, True))
    assert protocol.similarity(made, person)["ssim"] == pytest.approx(expected, abs=1e-7)
    # T2: Resize((128, 128)) and Normalize(0.5, 0.5).
    seen = [np.asarray(image.resize((128, 128), Image.BILINEAR)) for image in (prediction, truth)]
    for ours, theirs in zip(map(protocol.for_lpips, (made, person)), seen, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = lpips_of("alex", *map(protocol.for_lpips, (made, person)))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_pasting_as_catvton_repaints(files: tuple[Path, Path]):
    prediction, truth = map(Image.open, files)
    mask = np.zeros((128, 96), bool)
    mask[30:70, 20:60] = True
    person = truth.resize(prediction.size, Image.LANCZOS)
    # repaint(): the kernel is the height's fiftieth, made odd.
    blurred = Image.fromarray(np.uint8(255) * mask).resize(prediction.size, Image.NEAREST)
    blurred = np.array(blurred.filter(ImageFilter.GaussianBlur(1)))[..., None] / 255
    expected = (np.array(person) * (1 - blurred) + np.array(prediction) * blurred).astype(np.uint8)
    protocol = dataclasses.replace(small("catvton-512"), jpeg=False)
    made, beside = protocol.pair(*map(open_rgb, files), mask)
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(made[:8], beside[:8])
    np.testing.assert_array_equal(pasted(np.asarray(prediction), np.asarray(person), np.ones((4, 4), bool)), prediction)
    # It is saved as a JPEG even where the prediction's file was one.
    jpeg, _ = small("catvton-512").pair(*map(open_rgb, files), mask, (True, True))
    np.testing.assert_array_equal(jpeg, through_jpeg(expected))


def test_sizes():
    sizes = {name: protocol.size((1024, 768)) for name, protocol in PROTOCOLS.items()}
    assert sizes == {
        "catvton-512": (512, 384), "ladi-512": (512, 384), "promptdresser-1024": (1024, 768), "hrviton": (1024, 768)
    }  # fmt: skip
    assert PROTOCOLS["catvton-512"].size((1000, 999)) == (512, 511)
    assert PROTOCOLS["ladi-512"].size((1000, 999)) == (512, 384)


def test_what_a_protocol_does_not_do(files: tuple[Path, Path]):
    with pytest.raises(ValueError, match="ladi-512 compares predictions as they are: leave the masks out"):
        PROTOCOLS["ladi-512"].pair(*map(open_rgb, files), np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="hrviton defines no fid and no kid"):
        PROTOCOLS["hrviton"].check(("ssim", "fid", "kid"))
    PROTOCOLS["hrviton"].check(("ssim", "psnr", "lpips"))
