"""The one convolution that all modules use."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = int | tuple[tuple[int, int], tuple[int, int]]
Pairs = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], *, stride: int = 1, padding: Padding = 0
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of an NHWC grid with an HWIO kernel; `padding`: symmetric or (rows, columns) pairs."""
    pairs = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    return _conv(x, kernel, pairs) if stride == 1 else _plain(x, kernel, pairs, stride)


def _plain(x: Array, kernel: Array, padding: Pairs, stride: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, padding: Pairs) -> Array:
    return _plain(x, kernel, padding)


def _forward(x: Array, kernel: Array, padding: Pairs) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, kernel, padding), (x, kernel)


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
    return _plain(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), turned)


_conv.defvjp(_forward, _backward)
