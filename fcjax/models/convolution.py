"""The one convolution that all modules use."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fcjax.models import layout
from fcjax.traces import traced_once

Padding = int | tuple[tuple[int, int], tuple[int, int]]
Pairs = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], *, stride: int = 1, padding: Padding = 0
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of an NHWC grid with an HWIO kernel; `padding`: symmetric or (rows, columns) pairs."""
    pairs = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    return _conv(x, kernel, pairs) if stride == 1 else _plain(x, kernel, pairs, stride)


# With so many outputs and more, one product of all windows is taken on CPUs, although it copies the grid nine times: in
# float32 it is as fast on 32x24 grids of Stable Diffusion, 1.4 times on 16x12, 3.2 times on 8x6 (benchmarks/conv.py).
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


def _fastest(x: Array, kernel: Array, padding: Pairs) -> Array:
    rows, columns, _, outputs = kernel.shape
    # On a mesh samples and rows of the grid stay apart, as each may be split.
    if rows * columns == 1 or outputs < _PRODUCT_OUTPUTS or layout.is_set():
        return _plain(x, kernel, padding)
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(product_of_windows, padding=padding), default=partial(_plain, padding=padding)
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
