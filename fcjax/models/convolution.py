"""The one convolution that all modules use."""

import jax
from jaxtyping import Array, Float

Padding = int | tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], *, stride: int = 1, padding: Padding = 0
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation of an NHWC grid with an HWIO kernel; `padding`: symmetric or (rows, columns) pairs."""
    pairs = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pairs, dimension_numbers=("NHWC", "HWIO", "NHWC"))
