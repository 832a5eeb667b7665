"""The one convolution that all modules use, and the algorithms that it picks from on CPUs."""

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
Algorithm = Callable[[Array, Array, Pairs], Array]


def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], *, stride: int = 1, padding: Padding = 0
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of an NHWC grid with an HWIO kernel; `padding`: symmetric or (rows, columns) pairs."""
    pairs = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    return _conv(x, kernel, pairs) if stride == 1 else _plain(x, kernel, pairs, stride)


# Which algorithm CPUs take (benchmarks/conv.py). In float32 Winograd's is 1.6 to 2.1 times as fast as the plain
# convolution for two of Stable Diffusion's 64x48 grids and 1.1 to 1.8 times for two of 32x24; for fewer places, all
# samples' together, or fewer channels the transforms cost more than they spare. They hold arrays of 2.25 times the grid
# and of 4 times the kernel, which are bounded, and work by whole tiles, which must not be much more than the grid.
_TILE = 4
_WINOGRAD_PLACES = 1024
_WINOGRAD_CHANNELS = 256
_WINOGRAD_ELEMENTS = 2**26
_WINOGRAD_FILLED = 1.2
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


def _winograd_matrices() -> tuple[Float[np.ndarray, "36 36"], Float[np.ndarray, "36 9"], Float[np.ndarray, "16 36"]]:
    """The transforms of inputs, of kernels and of outputs of F(4x4, 3x3), each along both sides at once.

    By Toom and Cook: polynomials multiplied by their values at some points and at infinity. Choice: among small points
    these five have the least error, 5e-6 of a convolution's scale where a plain sum has 6e-7.
    """
    points = (0.0, 1.0, -1.0, 2.0, -0.5)
    others = [[other for other in points if other != point] for point in points]
    scales = [math.prod(point - other for other in rest) for point, rest in zip(points, others, strict=True)]
    of_input, of_kernel, of_output = (
        # Polynomials by their roots, the constant first.
        [[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]],
        [[point**power / scale for power in range(3)] for point, scale in zip(points, scales, strict=True)]
        + [[0, 0, 1]],
        [[*(point**power for point in points), power == _TILE - 1] for power in range(_TILE)],
    )

    def both_sides(matrix: list) -> np.ndarray:
        return np.kron(np.array(matrix, np.float64), np.array(matrix, np.float64)).astype(np.float32)

    return both_sides(of_input), both_sides(of_kernel), both_sides(of_output)


def winograd(x: Array, kernel: Array, padding: Pairs) -> Array:
    """A 3x3 convolution by tiles of 4x4 outputs (Lavin and Gray, arXiv 1509.09308): a quarter of the products."""
    inputs, outputs = kernel.shape[2:]
    (top, bottom), (left, right) = padding
    height, width = x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    below, beside = rows * _TILE - height, columns * _TILE - width
    padded = jnp.pad(x, ((0, 0), (top, bottom + below), (left, right + beside), (0, 0)))
    size, last_row, last_column = _TILE + 2, _TILE * (rows - 1) + 1, _TILE * (columns - 1) + 1
    # Every tile's window, its places first.
    windows = jnp.stack(
        [
            padded[:, row : row + last_row : _TILE, column : column + last_column : _TILE]
            for row in range(size)
            for column in range(size)
        ]
    )
    of_input, of_kernel, of_output = _winograd_matrices()
    transformed = jnp.dot(of_input, windows.reshape(size**2, -1)).reshape(size**2, -1, inputs)
    # Tied to the grid: XLA would move what depends on weights alone out of the sampling loop, and hold all layers'.
    tied = of_kernel + 0 * x[0, 0, 0, 0]
    kernels = jnp.dot(tied, kernel.reshape(9, -1)).reshape(size**2, inputs, outputs)
    products = jnp.einsum("pti,pio->pto", transformed, kernels)
    tiles = jnp.dot(of_output, products.reshape(size**2, -1)).reshape(_TILE, _TILE, len(x), rows, columns, outputs)
    grid = tiles.transpose(2, 3, 0, 4, 1, 5).reshape(len(x), rows * _TILE, columns * _TILE, outputs)
    return grid[:, :height, :width]


def algorithm(x: Any, kernel: Any, padding: Pairs) -> Algorithm:
    """What a CPU takes for a convolution of stride 1 of arrays of these shapes and dtypes."""
    rows, columns, inputs, outputs = kernel.shape
    # On a mesh samples and rows of the grid stay apart, as each may be split. Gradients may have a negative padding.
    if rows * columns == 1 or layout.is_set() or min(*padding[0], *padding[1]) < 0:
        return _plain
    if (rows, columns) == (3, 3) and x.dtype == jnp.float32 and min(inputs, outputs) >= _WINOGRAD_CHANNELS:
        sides = [side + sum(pair) - 2 for side, pair in zip(x.shape[1:3], padding, strict=True)]
        places = x.shape[0] * math.prod(sides)
        tiled = x.shape[0] * math.prod(-(-side // _TILE) * _TILE for side in sides)
        elements = 36 * max(tiled // 16 * max(inputs, outputs), inputs * outputs)
        if places >= _WINOGRAD_PLACES and tiled <= _WINOGRAD_FILLED * places and elements <= _WINOGRAD_ELEMENTS:
            return winograd
    return product_of_windows if outputs >= _PRODUCT_OUTPUTS else _plain


def _fastest(x: Array, kernel: Array, padding: Pairs) -> Array:
    here = algorithm(x, kernel, padding)
    if here is _plain:
        return _plain(x, kernel, padding)
    return jax.lax.platform_dependent(
        x, kernel, cpu=lambda x, kernel: here(x, kernel, padding), default=partial(_plain, padding=padding)
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
