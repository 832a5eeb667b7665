"""Scores of real pictures against the programs of the field, weights read as users' are: distances, and one protocol
from the command line.

Their networks have the same random weights as ours. Tolerances: 1e-5 for distances of the same features, 1e-4 for SSIM
and LPIPS, and for FID and KID from files 1e-3 of the value (float32 features of two implementations).
"""

import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fcjax.cli import run
from fcjax.metrics import frechet_distance, kernel_distance
from fcjax.metrics.networks import load_inception
from fcjax.metrics.networks.inception import FILES
from infer.evaluate import main
from tests.published import afresh, module_of
from tests.test_metrics_lpips import filled, squeezenet, store_squeezenet

torch = pytest.importorskip("torch")
skimage = pytest.importorskip("skimage.data")
torchmetrics = pytest.importorskip("torchmetrics.functional.image")


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the programs import of torchvision and do not use here, where that is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        return

    def nothing(attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})

    def module(name: str) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__getattr__ = nothing
        monkeypatch.setitem(sys.modules, name, made)
        return made

    afresh("lpips", monkeypatch)
    top = module("torchvision")
    for name in ("datasets", "models", "transforms", "transforms.functional"):
        setattr(top, name, module(f"torchvision.{name}"))
    top.models.squeezenet1_1 = lambda **_: types.SimpleNamespace(features=squeezenet())
    # clean-fid's other network derives from torchvision's, and torch-fidelity's utilities need all of their package.
    module("cleanfid.inception_pytorch")
    module("torch_fidelity.utils")


@pytest.fixture
def astronauts() -> list[np.ndarray]:
    """Parts of a photograph, 256x192."""
    rng, picture = np.random.default_rng(0), skimage.astronaut()
    corners = zip(rng.integers(0, 256, 6), rng.integers(0, 320, 6), strict=True)
    return [picture[top : top + 256, left : left + 192] for top, left in corners]


def quietly(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """A program's result, whatever it is told of newer versions of what it calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **settings)


def statistics(features: np.ndarray) -> dict[str, np.ndarray]:
    return {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False)}


def in_their_span(*features: np.ndarray) -> list[np.ndarray]:
    """The features in coordinates of the space that they span, which leaves Fréchet distances as they are: the matrix
    roots of 2,048 dimensions take the programs minutes.
    """
    basis = np.linalg.qr(np.concatenate(features).astype(np.float64).T)[0]
    return [part @ basis for part in features]


def test_distances_are_those_of_clean_fid_and_torch_fidelity(inception, astronauts: list[np.ndarray]) -> None:
    """Of an Inception's features of photographs, fewer than dimensions and as many as that."""
    clean, fidelity = module_of("cleanfid", "fid"), module_of("torch_fidelity", "metric_fid")
    kernels = module_of("torch_fidelity", "metric_kid")
    network = load_inception(inception[1], "clean")
    blurred = [np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(2))) for one in astronauts[:5]]
    first, second = (network(np.stack(pictures)) for pictures in (blurred, astronauts))
    made, true = in_their_span(first, second)
    ours = frechet_distance(first, second)
    one, other = statistics(made), statistics(true)
    theirs = quietly(clean.frechet_distance, one["mu"], one["sigma"], other["mu"], other["sigma"])
    assert ours == pytest.approx(theirs, rel=1e-5)
    found = fidelity.fid_statistics_to_metric(one, other, verbose=False)
    assert ours == pytest.approx(found[fidelity.KEY_METRIC_FID], rel=1e-5)
    # Both draw subsets; that of all pictures is the same whatever the seed.
    first, second = first.astype(np.float64), second[:5].astype(np.float64)
    ours = kernel_distance(first, second).exact
    assert ours == pytest.approx(clean.kernel_distance(first, second, num_subsets=3), rel=1e-5)
    assert ours == pytest.approx(kernels.kernel_mmd(first, second), rel=1e-5)


def test_catvtons_protocol_from_the_command_line(
    inception,
    astronauts: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pictures in files against torchmetrics, lpips, and clean-fid's resize and distances on torch-fidelity's net."""
    import lpips

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    params = store_squeezenet(tmp_path)
    (tmp_path / "hub/checkpoints" / FILES[0]).symlink_to(inception[1])
    for folder in ("made", "true", "saved"):
        (tmp_path / folder).mkdir()
    for number, one in enumerate(astronauts):
        truth = Image.fromarray(one).resize((480, 640), Image.Resampling.BICUBIC)
        truth.save(tmp_path / f"true/{number}.jpg", quality=95)
        made = truth.filter(ImageFilter.GaussianBlur(1 + number)).resize((384, 512), Image.Resampling.LANCZOS)
        made.save(tmp_path / f"made/{number}.png")
    flags = ["--predictions", tmp_path / "made", "--truth", tmp_path / "true", "--protocol", "catvton-512"]
    run(main, [str(flag) for flag in (*flags, "--json", tmp_path / "out.json")])
    assert "catvton-512, paired, 6 pictures" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())

    # Its script: the truth at the predictions' height, and both as JPEGs of Pillow's default quality.
    def saved(picture: Image.Image, name: str) -> np.ndarray:
        picture.save(tmp_path / "saved" / name)
        return np.asarray(Image.open(tmp_path / "saved" / name))

    pairs = []
    for number in range(len(astronauts)):
        with Image.open(tmp_path / f"made/{number}.png") as made, Image.open(tmp_path / f"true/{number}.jpg") as truth:
            resized = truth.resize((int(truth.width * made.height / truth.height), made.height), Image.LANCZOS)
            pairs.append((saved(made, f"made{number}.jpg"), saved(resized, f"true{number}.jpg")))

    def tensor(picture: np.ndarray) -> Any:
        return torch.tensor(picture).permute(2, 0, 1).float()[None] / 255

    network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    weights = filled("squeeze", params).state_dict()
    with torch.no_grad():
        for own, value in zip(network.net.parameters(), weights.values(), strict=True):
            own.copy_(value)
        expected = {
            "ssim": [
                float(torchmetrics.structural_similarity_index_measure(*map(tensor, pair), data_range=1.0))
                for pair in pairs
            ],
            "lpips": [float(network(*(2 * tensor(one) - 1 for one in pair))) for pair in pairs],
        }
    for name, values in expected.items():
        assert [one[name] for one in found["pairs"]] == pytest.approx(values, rel=1e-4)
        assert found["figures"][name]["mean"] == pytest.approx(np.mean(values), rel=1e-4)

    # clean-fid's resize before torch-fidelity's network, whose own would be another.
    clean = module_of("cleanfid", "fid")
    extractor, resize = module_of("torch_fidelity", "feature_extractor_inceptionv3"), module_of("cleanfid", "resize")
    resizer = quietly(resize.build_resizer, "clean")

    def features(picture: np.ndarray) -> np.ndarray:
        resized = torch.tensor(quietly(resizer, picture)).permute(2, 0, 1)[None].float()
        monkeypatch.setattr(extractor, "interpolate_bilinear_2d_like_tensorflow1x", lambda x, **_: resized)
        with torch.no_grad():
            [found] = inception[0](torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        return found[0].numpy()

    made, true = (np.stack([features(pair[side]) for pair in pairs]).astype(np.float64) for side in (0, 1))
    one, other = map(statistics, in_their_span(made, true))
    theirs = quietly(clean.frechet_distance, one["mu"], one["sigma"], other["mu"], other["sigma"])
    assert found["distances"]["fid"] == pytest.approx(theirs, rel=1e-3)
    kid = 1000 * clean.kernel_distance(made, true, num_subsets=1)
    assert found["distances"]["kid_exact"] == pytest.approx(kid, rel=1e-3)
    assert "squeeze.pth sha256" in found["networks"]["lpips"] and FILES[0] in found["networks"]["inception"]
