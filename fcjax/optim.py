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

    Vectors (biases, norm scales) take no weight decay. Muon (arXiv 2502.16982, whose scale lets it take AdamW's rate)
    moves the `kernel`s, AdamW the rest: vectors and embeddings. Adafactor (arXiv 1804.04235) keeps of a matrix's second
    moment its row and column means and no first moment; Lion (arXiv 2302.06675) keeps one moment and wants a third to a
    tenth of AdamW's rate. beta2 is AdamW's, Lion's and Muon's AdamW's.
    """
    warmup_steps = min(warmup_steps, max(steps - 1, 1))
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
    """`rule` of a tree in which all kernels of one size, as matrices of what they read and write, are one stack.

    Muon's products would else be some thousands of small ones, which take long to compile and to launch. On a mesh the
    stacks' moments are whole everywhere.
    """

    def init(parameters: Tree) -> Any:
        return rule.init(_stacked(parameters))

    def update(updates: Tree, state: Any, parameters: Tree | None = None) -> tuple[Tree, Any]:
        given = None if parameters is None else _stacked(parameters)
        moved, state = rule.update(_stacked(updates), state, given)
        return _unstacked(moved, updates), state

    return optax.GradientTransformation(init, update)


def _stacked(tree: Tree) -> Tree:
    flat = trees.flatten(tree)
    return {
        "stacks": {
            name: jnp.stack([flat[path].reshape(-1, flat[path].shape[-1]) for path in paths])
            for name, paths in _stacks(flat).items()
        },
        "others": {path: leaf for path, leaf in flat.items() if not _is_kernel(path)},
    }


def _unstacked(stacked: Tree, like: Tree) -> Tree:
    """The reverse of `_stacked`, in the shapes of `like`."""
    flat, found = trees.flatten(like), dict(stacked["others"])
    for name, paths in _stacks(flat).items():
        for path, kernel in zip(paths, stacked["stacks"][name], strict=True):
            found[path] = kernel.reshape(flat[path].shape)
    return trees.map_paths(lambda path, _: found[path], like)


def _stacks(flat: Mapping[str, jax.Array]) -> dict[str, list[str]]:
    """The paths of the kernels of every size, in an order that does not depend on the tree's."""
    found: dict[str, list[str]] = {}
    for path in sorted(filter(_is_kernel, flat)):
        written = flat[path].shape[-1]
        found.setdefault(f"{flat[path].size // written}x{written}", []).append(path)
    return found


def _is_kernel(path: str) -> bool:
    return path.split("/")[-1] == "kernel"


def _stack_axes(stacked: Tree) -> Tree:
    """Of every stack the axes of what its kernels read and of what they write; None for all else."""
    axes = optax.contrib.MuonDimensionNumbers((1,), (2,))
    return {"stacks": dict.fromkeys(stacked["stacks"], axes), "others": dict.fromkeys(stacked["others"])}


def update_ema(average: Tree, parameters: Tree, decay: float, step: jax.Array) -> Tree:
    """One step of the moving average; early steps use (1 + step) / (10 + step) where that is smaller."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda mean, value: mean * rate + value.astype(mean.dtype) * (1.0 - rate), average, parameters)
