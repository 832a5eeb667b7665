"""The one convolution that all modules use, and the formulations that it picks from on CPUs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fcjax.models import layout
from fcjax.traces import traced_once

Padding = int | tuple[tuple[int, int], tuple[int, int]]
Pairs = tuple[tuple[int, int], tuple[int, int]]
Formulation = Callable[..., Array]


def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], *, stride: int = 1, padding: Padding = 0
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of an NHWC grid with an HWIO kernel; `padding`: symmetric or (rows, columns) pairs."""
    pairs = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    return _conv(x, kernel, pairs) if stride == 1 else _plain(x, kernel, pairs, stride)


# Which formulation CPUs take (benchmarks/conv.py). In float32 tiles are 1.6 to 2.1 times as fast as the plain
# convolution on Stable Diffusion's 64x48 grids and 1.1 to 1.8 times on 32x24; on fewer places, and with fewer channels,
# taking grids and kernels there and back costs more than it spares. Three arrays 2.25 times as large as the grid are
# held, so that larger grids are left alone.
TILE = 4
_WINOGRAD_PLACES = 1024
_WINOGRAD_CHANNELS = 256
_WINOGRAD_NUMBERS = 2**25
# With so many outputs and more one product of all windows, although it copies the grid nine times: in float32 1.4 times
# as fast on 16x12 grids, 3.2 times on 8x6.
_PRODUCT_OUTPUTS = 1024


def _plain(x: Array, kernel: Array, padding: Pairs, stride: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def product_of_windows(x: Array, kernel: Array, padding: Pairs) -> Array:
    """The convolution as a product of every window, laid out flat, with the kernel."""
    rows, columns, inputs, outputs = kernel.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    windows = [
        padded[:, row : row + height, column : column + width] for row in range(rows) for column in range(columns)
    ]
    flat = jnp.concatenate(windows, axis=-1).reshape(-1, rows * columns * inputs)
    return jnp.dot(flat, kernel.reshape(-1, outputs)).reshape(len(x), height, width, outputs)


def _winograd_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What takes windows of 6x6, kernels of 3x3 and their 36 products to where 4x4 outputs are one product.

    By Toom and Cook: polynomials multiplied by their values at some points and at infinity. Choice: among small points
    these five have the least error, 5e-6 of a convolution's scale where a plain sum has 6e-7.
    """
    points = (0.0, 1.0, -1.0, 2.0, -0.5)
    others = [[other for other in points if other != point] for point in points]
    scales = [math.prod(point - other for other in rest) for point, rest in zip(points, others, strict=True)]
    matrices = (
        # Polynomials by their roots, the constant first.
        [[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]],
        [[point**power / scale for power in range(3)] for point, scale in zip(points, scales, strict=True)]
        + [[0, 0, 1]],
        [[*(point**power for point in points), power == TILE - 1] for power in range(TILE)],
    )
    # Along both sides at once.
    windows, kernels, outputs = (np.kron(*[np.array(matrix, np.float64)] * 2).astype(np.float32) for matrix in matrices)
    return windows, kernels, outputs


def winograd(x: Array, kernel: Array, padding: Pairs) -> Array:
    """A 3x3 convolution by tiles of 4x4 outputs (Lavin and Gray, arXiv 1509.09308): a quarter of the products."""
    inputs, outputs = kernel.shape[2:]
    (top, bottom), (left, right) = padding
    height, width = x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2
    rows, columns = -(-height // TILE), -(-width // TILE)
    below, beside = rows * TILE - height, columns * TILE - width
    padded = jnp.pad(x, ((0, 0), (top, bottom + below), (left, right + beside), (0, 0)))
    size = TILE + 2
    windows = [
        padded[:, row : row + TILE * rows - TILE + 1 : TILE, column : column + TILE * columns - TILE + 1 : TILE]
        for row in range(size)
        for column in range(size)
    ]
    of_windows, of_kernels, of_outputs = _winograd_matrices()
    left_factors = jnp.dot(of_windows, jnp.stack(windows).reshape(size**2, -1)).reshape(size**2, -1, inputs)
    right_factors = jnp.dot(of_kernels, kernel.reshape(9, -1)).reshape(size**2, inputs, outputs)
    products = jnp.einsum("pti,pio->pto", left_factors, right_factors)
    tiles = jnp.dot(of_outputs, products.reshape(size**2, -1)).reshape(TILE, TILE, len(x), rows, columns, outputs)
    grid = tiles.transpose(2, 3, 0, 4, 1, 5).reshape(len(x), rows * TILE, columns * TILE, outputs)
    return grid[:, :height, :width]


def formulation(x: Any, kernel: Any) -> Formulation:
    """What a CPU takes for a convolution of stride 1 of arrays of these shapes and dtypes."""
    rows, columns, inputs, outputs = kernel.shape
    # On a mesh samples and rows of the grid stay apart, as each may be split.
    if rows * columns == 1 or layout.is_set():
        return _plain
    places = math.prod(x.shape[:3])
    if (
        (rows, columns) == (3, 3)
        and x.dtype == jnp.float32
        and places >= _WINOGRAD_PLACES
        and min(inputs, outputs) >= _WINOGRAD_CHANNELS
        and places * max(inputs, outputs) <= _WINOGRAD_NUMBERS
    ):
        return winograd
    return product_of_windows if outputs >= _PRODUCT_OUTPUTS else _plain


def _fastest(x: Array, kernel: Array, padding: Pairs) -> Array:
    here = formulation(x, kernel)
    if here is _plain:
        return _plain(x, kernel, padding)
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(here, padding=padding), default=partial(_plain, padding=padding)
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolved(x: Array, kernel: Array, padding: Pairs) -> Array:
    return _fastest(x, kernel, padding)


@traced_once(2)
def _forward(x: Array, kernel: Array, padding: Pairs) -> tuple[Array, tuple[Array, Array]]:
    return _fastest(x, kernel, padding), (x, kernel)


@traced_once(0)
def _backward(padding: Pairs, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_x = jax.lax.platform_dependent(
        gradient,
        kernel,
        cpu=partial(_input_gradient, padding),
        default=lambda g, k: jax.linear_transpose(lambda x: _plain(x, k, padding), x)(g)[0],
    )
    of_kernel = jax.linear_transpose(lambda kernel: _plain(x, kernel, padding), kernel)(gradient)[0]
    return of_x, of_kernel


def _input_gradient(padding: Pairs, gradient: Array, kernel: Array) -> Array:
    """The gradient as a convolution with the turned kernel.

    XLA's own gradient says "reversed window" instead, for which the CPU's bfloat16 kernels have no case: they fall
    back to float32 (benchmarks/conv.py).
    """
    rows, columns = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    turned = ((rows - 1 - top, rows - 1 - bottom), (columns - 1 - left, columns - 1 - right))
    return _fastest(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), turned)


_convolved.defvjp(_forward, _backward)
_conv = traced_once(2)(_convolved)
