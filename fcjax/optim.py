"""Optimiser over the trained part of a parameter tree, and the exponential moving average beside it."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from fcjax import trees

Tree = Any
OptimizerName = Literal["adamw", "muon", "adafactor", "lion"]
_KERNELS = "kernels of "


def make_optimizer(
    name: OptimizerName,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 500,
    final_rate: float = 1.0,
    beta2: float = 0.99,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """An optimiser, clipped by the global norm, with linear warm-up and cosine decay to `final_rate` of the peak.

    With a `final_rate` of 1 the number of steps changes nothing. Fewer steps than the warm-up's never reach the peak.

    Vectors (biases, norm scales) take no weight decay. Muon (arXiv 2502.16982, whose scale lets it take AdamW's rate)
    moves the `kernel`s, AdamW the rest: vectors and embeddings. Adafactor (arXiv 1804.04235) keeps of a matrix's second
    moment its row and column means and no first moment; Lion (arXiv 2302.06675) keeps one moment and wants a third to a
    tenth of AdamW's rate. beta2 is AdamW's, Lion's and Muon's AdamW's.
    """
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=learning_rate * final_rate,
    )

    def is_matrix(parameters: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, parameters)

    if name == "muon":
        rule = _of_stacks(
            optax.contrib.muon(
                rate,
                weight_decay=weight_decay,
                adam_b2=beta2,
                muon_weight_dimension_numbers=_stack_axes,
                consistent_rms=0.2,
            )
        )
    elif name == "adafactor":
        rule = optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            clipping_threshold=None,
            weight_decay_rate=weight_decay * learning_rate or None,
            weight_decay_mask=is_matrix,
        )
    elif name == "lion":
        rule = optax.lion(rate, b2=beta2, weight_decay=weight_decay, mask=is_matrix)
    else:
        rule = optax.adamw(rate, b2=beta2, weight_decay=weight_decay, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(clip_norm), rule)


def _of_stacks(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """`rule` of a tree in which leaves alike are one stack: kernels of one size, as matrices, and others of one shape.

    Muon's products and AdamW's sums would else be many thousands of small ones, which take long to compile and to
    launch. On a mesh the stacks' moments are whole everywhere.
    """

    def init(params: Tree) -> Any:
        return rule.init(_stacked(params))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        given = None if params is None else _stacked(params)
        moved, state = rule.update(_stacked(updates), state, given)
        return _unstacked(moved, updates), state

    return optax.GradientTransformation(init, update)


def _stacked(tree: Tree) -> Tree:
    flat = trees.flatten(tree)
    return {
        name: jnp.stack([flat[path].reshape(shape) for path in paths]) for (name, shape), paths in _stacks(flat).items()
    }


def _unstacked(stacked: Tree, like: Tree) -> Tree:
    """The reverse of `_stacked`, in the shapes of `like`."""
    flat, found = trees.flatten(like), {}
    for (name, _), paths in _stacks(flat).items():
        for path, leaf in zip(paths, stacked[name], strict=True):
            found[path] = leaf.reshape(flat[path].shape)
    return trees.map_paths(lambda path, _: found[path], like)


def _stacks(flat: Mapping[str, jax.Array]) -> dict[tuple[str, tuple[int, ...]], list[str]]:
    """The paths of each stack's leaves, in an order that does not depend on the tree's, by its name and their shape."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for path in sorted(flat):
        shape = flat[path].shape
        if path.split("/")[-1] == "kernel":
            shape = (flat[path].size // shape[-1], shape[-1])
            name = f"{_KERNELS}{shape[0]}x{shape[1]}"
        else:
            name = "x".join(map(str, shape))
        found.setdefault((name, shape), []).append(path)
    return found


def _stack_axes(stacked: Tree) -> Tree:
    """Of every stack of kernels the axes of what they read and of what they write; None for others."""
    axes = optax.contrib.MuonDimensionNumbers((1,), (2,))
    return {name: axes if name.startswith(_KERNELS) else None for name in stacked}


def update_ema(average: Tree, parameters: Tree, decay: float, step: jax.Array) -> Tree:
    """One step of the moving average; early steps use (1 + step) / (10 + step) where that is smaller."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda mean, value: mean * rate + value.astype(mean.dtype) * (1.0 - rate), average, parameters)
