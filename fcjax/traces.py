"""Functions that are traced once for shapes that recur, as those of layer after layer do."""

from collections.abc import Callable
from typing import Any

import jax


def traced_once(*static: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the function's trace is kept by its arguments' shapes, and stands in the caller's program inlined.

    static: places of arguments that are no arrays; they must be hashable.
    """
    return lambda function: jax.jit(function, static_argnums=static, inline=True)
