"""How long a 3x3 convolution takes forward and backward, by the algorithms that were weighed for CPUs.

    XLA_FLAGS=--xla_cpu_experimental_onednn_custom_call=true python -m benchmarks.conv --batch 16
    python -m benchmarks.conv --batch 16
    python -m benchmarks.conv --preset sd15 --batch 2

Columns: forward; forward as one product of all windows; forward by tiles (Winograd); the gradient with respect to the
input as XLA derives it ("reversed window") and as a convolution with the turned kernel; the gradient with respect to
the kernel as XLA derives it and as nine products of shifted grids; forward and backward of
`fcjax.models.convolution.conv2d`, and of the plain convolution. Printed is the fastest of the repeats, in milliseconds:
other work on the machine can only add to it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from fcjax.models.convolution import conv2d, product_of_windows, winograd

# (height, width, input channels, output channels): those of a UNet that take most of its time.
SHAPES = {
    "mini": ((32, 24, 64, 64), (32, 24, 160, 64), (16, 12, 224, 96), (32, 24, 192, 192)),
    "sd15": (
        (64, 48, 320, 320),
        (32, 24, 640, 640),
        (32, 24, 1280, 1280),
        (16, 12, 1280, 1280),
        (16, 12, 2560, 1280),
        (8, 6, 1280, 1280),
        (8, 6, 2560, 1280),
    ),
}


@dataclass
class Settings:
    """What to time and how often."""

    preset: Literal["mini", "sd15"] = "mini"
    batch: int = 16
    repeats: int = 15


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution without a backward pass of its own."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def turned(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    return plain(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def shifted(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    height, width, channels = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    of_outputs = gradient.reshape(-1, gradient.shape[-1])
    products = [
        padded[:, row : row + height, column : column + width].reshape(-1, channels).T @ of_outputs
        for row in range(3)
        for column in range(3)
    ]
    return jnp.stack(products).reshape(kernel.shape)


def both_ways(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    def run(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        y, backward = jax.vjp(function, x, kernel)
        return y, backward(gradient)

    return run


CANDIDATES: dict[str, Callable[..., Any]] = {
    "forward": lambda x, kernel, gradient: plain(x, kernel),
    "forward, product": lambda x, kernel, gradient: product_of_windows(x, kernel, ((1, 1), (1, 1))),
    "forward, tiles": lambda x, kernel, gradient: winograd(x, kernel, ((1, 1), (1, 1))),
    "input, XLA": lambda x, kernel, gradient: jax.vjp(lambda x: plain(x, kernel), x)[1](gradient),
    "input, turned": turned,
    "kernel, XLA": lambda x, kernel, gradient: jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](gradient),
    "kernel, shifted": shifted,
    "conv2d": both_ways(lambda x, kernel: conv2d(x, kernel, padding=1)),
    "plain": both_ways(plain),
}


def milliseconds(function: Callable[..., Any], arguments: tuple[jax.Array, ...], repeats: int) -> float:
    """The fastest of the calls behind the first, which compiles."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main(settings: Settings) -> None:
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, batch {settings.batch}")
    print(f"{'shape':>22} {'dtype':>9}", *(f"{name:>17}" for name in CANDIDATES))
    generator = np.random.default_rng(0)
    for height, width, inputs, outputs in SHAPES[settings.preset]:
        for dtype in (jnp.bfloat16, jnp.float32):
            grids = (settings.batch, height, width)
            arguments = tuple(
                jnp.asarray(generator.standard_normal(shape), dtype)
                for shape in ((*grids, inputs), (3, 3, inputs, outputs), (*grids, outputs))
            )
            figures = [milliseconds(function, arguments, settings.repeats) for function in CANDIDATES.values()]
            name = f"{height}x{width}x{inputs} to {outputs}"
            print(f"{name:>22} {jnp.dtype(dtype).name:>9}", *(f"{figure:>17.1f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
