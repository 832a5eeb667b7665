"""Optimiser over the trained part of a parameter tree, and the exponential moving average beside it."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

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
        rule = optax.contrib.muon(
            rate,
            weight_decay=weight_decay,
            adam_b2=beta2,
            muon_weight_dimension_numbers=_kernel_axes,
            consistent_rms=0.2,
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


def _kernel_axes(parameters: Tree) -> Tree:
    """Of every kernel the axes of what it reads and of what it writes; None for all else."""

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, parameters)


def update_ema(average: Tree, parameters: Tree, decay: float, step: jax.Array) -> Tree:
    """One step of the moving average; early steps use (1 + step) / (10 + step) where that is smaller."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda mean, value: mean * rate + value.astype(mean.dtype) * (1.0 - rate), average, parameters)
