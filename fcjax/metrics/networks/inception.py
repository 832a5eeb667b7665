"""The Inception-v3 of FID and KID (Szegedy et al. 2015, TensorFlow's weights of 2015-12-05) up to its last pooling.

The makers of FID programs resize differently before it, which moves the number: the name of the resize belongs beside
every figure (`RESIZES`).
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from numpy import ndarray
from PIL import Image

from fcjax.local_devices import everywhere, shared_out
from fcjax.metrics.networks.torchfile import load_torch_file
from fcjax.metrics.networks.weights import find_weights

SIZE, FEATURES = 299, 2048
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
SOURCE = "the releases of mseitzer/pytorch-fid or toshas/torch-fidelity on GitHub"
_EPSILON = 1e-3
# A layer: name, (height, width) of the kernel, output channels, stride, (rows, columns) of padding. A branch is a chain
# of layers; "avg", "max" and "max2" pool (by 3x3, "max2" every second place); a tuple within a chain forks it.
_Layer = tuple[str, tuple[int, int], int, int, tuple[int, int]]


def _conv(
    name: str, kernel: int | tuple[int, int], channels: int, stride: int = 1, padding: int | tuple[int, int] = 0
) -> _Layer:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    return name, size, channels, stride, (padding, padding) if isinstance(padding, int) else padding


def _a(pooled: int) -> list[Any]:
    return [
        [_conv("branch1x1", 1, 64)],
        [_conv("branch5x5_1", 1, 48), _conv("branch5x5_2", 5, 64, padding=2)],
        [
            _conv("branch3x3dbl_1", 1, 64),
            _conv("branch3x3dbl_2", 3, 96, padding=1),
            _conv("branch3x3dbl_3", 3, 96, padding=1),
        ],
        ["avg", _conv("branch_pool", 1, pooled)],
    ]


def _c(width: int) -> list[Any]:
    row: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
    column: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
    return [
        [_conv("branch1x1", 1, 192)],
        [
            _conv("branch7x7_1", 1, width),
            _conv("branch7x7_2", channels=width, **row),
            _conv("branch7x7_3", channels=192, **column),
        ],
        [
            _conv("branch7x7dbl_1", 1, width),
            _conv("branch7x7dbl_2", channels=width, **column),
            _conv("branch7x7dbl_3", channels=width, **row),
            _conv("branch7x7dbl_4", channels=width, **column),
            _conv("branch7x7dbl_5", channels=192, **row),
        ],
        ["avg", _conv("branch_pool", 1, 192)],
    ]


def _e(pool: str) -> list[Any]:
    def fork(name: str) -> tuple[_Layer, _Layer]:
        return _conv(f"{name}a", (1, 3), 384, padding=(0, 1)), _conv(f"{name}b", (3, 1), 384, padding=(1, 0))

    return [
        [_conv("branch1x1", 1, 320)],
        [_conv("branch3x3_1", 1, 384), fork("branch3x3_2")],
        [_conv("branch3x3dbl_1", 1, 448), _conv("branch3x3dbl_2", 3, 384, padding=1), fork("branch3x3dbl_3")],
        [pool, _conv("branch_pool", 1, 192)],
    ]


BLOCKS: tuple[tuple[str, list[Any]], ...] = (
    (
        "",
        [
            [
                _conv("Conv2d_1a_3x3", 3, 32, stride=2),
                _conv("Conv2d_2a_3x3", 3, 32),
                _conv("Conv2d_2b_3x3", 3, 64, padding=1),
                "max2",
                _conv("Conv2d_3b_1x1", 1, 80),
                _conv("Conv2d_4a_3x3", 3, 192),
                "max2",
            ]
        ],
    ),
    ("Mixed_5b", _a(32)),
    ("Mixed_5c", _a(64)),
    ("Mixed_5d", _a(64)),
    (
        "Mixed_6a",
        [
            [_conv("branch3x3", 3, 384, stride=2)],
            [
                _conv("branch3x3dbl_1", 1, 64),
                _conv("branch3x3dbl_2", 3, 96, padding=1),
                _conv("branch3x3dbl_3", 3, 96, stride=2),
            ],
            ["max2"],
        ],
    ),
    ("Mixed_6b", _c(128)),
    ("Mixed_6c", _c(160)),
    ("Mixed_6d", _c(160)),
    ("Mixed_6e", _c(192)),
    (
        "Mixed_7a",
        [
            [_conv("branch3x3_1", 1, 192), _conv("branch3x3_2", 3, 320, stride=2)],
            [
                _conv("branch7x7x3_1", 1, 192),
                _conv("branch7x7x3_2", (1, 7), 192, padding=(0, 3)),
                _conv("branch7x7x3_3", (7, 1), 192, padding=(3, 0)),
                _conv("branch7x7x3_4", 3, 192, stride=2),
            ],
            ["max2"],
        ],
    ),
    # As in TensorFlow's graph: the last block takes maxima where its twin takes means.
    ("Mixed_7b", _e("avg")),
    ("Mixed_7c", _e("max")),
)


# ---------------------------------------------------------------------------------------------------------------------
# The network


def features(params: Mapping[str, Any], images: Float[Array, "b 299 299 3"]) -> Float[Array, "b 2048"]:
    """What its last pooling gives of pictures in [-1, 1]. params: `parameters_of`."""
    x = images
    for block, branches in BLOCKS:
        x = jnp.concatenate([_branch(params, block, chain, x) for chain in branches], axis=-1)
    return x.mean(axis=(1, 2))


def _branch(params: Mapping[str, Any], block: str, chain: list[Any], x: Array) -> Array:
    for layer in chain:
        if isinstance(layer, str):
            x = _pooled(x, layer)
        elif isinstance(layer[0], tuple):
            x = jnp.concatenate([_layer(params, block, one, x) for one in layer], axis=-1)
        else:
            x = _layer(params, block, layer, x)
    return x


def _layer(params: Mapping[str, Any], block: str, layer: _Layer, x: Array) -> Array:
    """A convolution with its batch norm folded in, and ReLU."""
    name, _, _, stride, (rows, columns) = layer
    own = params[_path(block, name)]
    y = jax.lax.conv_general_dilated(
        x,
        own["kernel"],
        (stride, stride),
        ((rows, rows), (columns, columns)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(y + own["bias"])


def _pooled(x: Array, kind: str) -> Array:
    if kind == "max2":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    if kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    # What lies beyond the border does not count.
    counts = jnp.ones((1, *x.shape[1:3], 1))
    total, count = (
        jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") for values in (x, counts)
    )
    return total / count


def _path(block: str, name: str) -> str:
    return f"{block}.{name}" if block else name


def layers() -> dict[str, tuple[int, int, int, int]]:
    """Every convolution by its name in torch's files, with its kernel's shape (out, in, height, width)."""
    found: dict[str, tuple[int, int, int, int]] = {}
    channels = 3

    def walk(block: str, chain: list[Any], given: int) -> int:
        for layer in chain:
            if isinstance(layer, str):
                continue
            if isinstance(layer[0], tuple):
                for name, size, width, _, _ in layer:
                    found[_path(block, name)] = (width, given, *size)
                given = sum(width for _, _, width, _, _ in layer)
            else:
                name, size, width, _, _ = layer
                found[_path(block, name)] = (width, given, *size)
                given = width
        return given

    for block, branches in BLOCKS:
        channels = sum(walk(block, chain, channels) for chain in branches)
    return found


def parameters_of(state: Mapping[str, ndarray], source: str = "the file") -> dict[str, dict[str, Array]]:
    """Kernels (h, w, in, out) and biases of a state dict in torch's names, batch norms folded in, in float64.

    ValueError lists what is missing or of another shape.
    """
    problems, params = [], {}
    for name, shape in layers().items():
        wanted = {
            f"{name}.conv.weight": shape,
            **{f"{name}.bn.{leaf}": (shape[0],) for leaf in ("weight", "bias", "running_mean", "running_var")},
        }
        wrong = [
            f"{key} {np.shape(state[key]) if key in state else 'missing'} instead of {expected}"
            for key, expected in wanted.items()
            if key not in state or np.shape(state[key]) != expected
        ]
        problems += wrong
        if wrong:
            continue
        kernel, scale, shift, mean, variance = (np.asarray(state[key], np.float64) for key in wanted)
        factor = scale / np.sqrt(variance + _EPSILON)
        folded = (kernel * factor[:, None, None, None]).transpose(2, 3, 1, 0)
        params[name] = {
            "kernel": jnp.asarray(folded, jnp.float32),
            "bias": jnp.asarray(shift - mean * factor, jnp.float32),
        }
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"{source} does not hold FID's Inception-v3: {'; '.join(problems[:4])}{more}")
    return params


# ---------------------------------------------------------------------------------------------------------------------
# Resizing


def _clean(image: UInt8[ndarray, "h w 3"]) -> Float32[ndarray, "299 299 3"]:
    """clean-fid: Pillow's bicubic filter on every channel as float, whatever the aspect."""
    return (_filtered(image, Image.Resampling.BICUBIC).clip(0, 255) - 128) / np.float32(128)


def _tensorflow(image: UInt8[ndarray, "h w 3"]) -> Float32[ndarray, "299 299 3"]:
    """torch-fidelity, and torchmetrics before 1.8: TensorFlow 1's bilinear interpolation, pixels at their corners."""
    return (_bilinear(image, 0.0) - 128) / np.float32(128)


def _torch(image: UInt8[ndarray, "h w 3"]) -> Float32[ndarray, "299 299 3"]:
    """pytorch-fid: torch's bilinear interpolation without antialias, in [0, 1] and then in [-1, 1]."""
    return _bilinear(image, 0.5) / np.float32(127.5) - 1


def _antialiased(image: UInt8[ndarray, "h w 3"]) -> Float32[ndarray, "299 299 3"]:
    """torchmetrics since 1.8: a bilinear filter with antialias."""
    return (_filtered(image, Image.Resampling.BILINEAR) - 128) / np.float32(128)


RESIZES: Mapping[str, Callable[[UInt8[ndarray, "h w 3"]], Float32[ndarray, "299 299 3"]]] = {
    "clean": _clean,
    "torch-fidelity": _tensorflow,
    "torchmetrics": _antialiased,
    "pytorch-fid": _torch,
}
"""What each program makes of a picture before the network."""


def _filtered(image: UInt8[ndarray, "h w 3"], by: Image.Resampling) -> Float32[ndarray, "299 299 3"]:
    """By a filter of Pillow's, every channel as float."""
    channels = [Image.fromarray(image[..., number].astype(np.float32)) for number in range(3)]
    return np.stack([np.asarray(one.resize((SIZE, SIZE), by)) for one in channels], axis=-1)


def _bilinear(image: UInt8[ndarray, "h w 3"], center: float) -> Float32[ndarray, "299 299 3"]:
    """Without antialias; pixels lie `center` beyond their index."""
    values = image.astype(np.float32)
    for axis in (0, 1):
        length = values.shape[axis]
        place = ((np.arange(SIZE) + center) * (length / SIZE) - center).clip(0, length - 1)
        low = np.floor(place).astype(int)
        share = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = values.take(low, axis), values.take(np.minimum(low + 1, length - 1), axis)
        values = first + (second - first) * share
    return values


# ---------------------------------------------------------------------------------------------------------------------


class Inception:
    """Pictures to features: batches of 8-bit pictures of one size in, (b, 2048) float32 out."""

    def __init__(self, params: Mapping[str, Any], resize: str = "clean", file: Path | None = None):
        if resize not in RESIZES:
            raise ValueError(f"resize is {resize!r}; expected one of {', '.join(RESIZES)}")
        self.params, self.resize, self.file = everywhere(params), resize, file

    def __call__(self, images: UInt8[ndarray, "b h w 3"]) -> Float32[ndarray, "b 2048"]:
        """ValueError for what are no such pictures."""
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"FID's features are of pictures uint8 (b, h, w, 3), got {images.dtype} {images.shape}")
        resized = np.stack([RESIZES[self.resize](image) for image in images])
        with jax.default_matmul_precision("highest"):
            return np.asarray(_jitted(self.params, shared_out(resized)))


@functools.partial(jax.jit)
def _jitted(params: Mapping[str, Any], images: Float[Array, "b 299 299 3"]) -> Float[Array, "b 2048"]:
    return features(params, images)


def load_inception(weights: str | Path | None = None, resize: str = "clean") -> Inception:
    """FID's network with the weights of a file, by default those in torch's caches (pytorch-fid's or torch-fidelity's).

    clean-fid's own file is a TorchScript program of the same weights, which is not run. ValueError where there are no
    weights, and for those that do not fit.
    """
    path = find_weights(weights, FILES, "weights of FID's Inception-v3", SOURCE)
    return Inception(parameters_of(load_torch_file(path), str(path)), resize, path)
