"""The training state and the pure step: losses in, the next state out. Nothing here reads a file or places an array."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from fcjax import trees
from fcjax.config import ComposerConfig
from fcjax.diffusion import add_noise, loss_weight, make_alphas_cumprod, to_clean, training_target
from fcjax.models import composer
from fcjax.models.layers import Dtype
from fcjax.models.vae import VAE
from fcjax.optim import adamw, update_ema
from train.config import LossConfig, OptimizerConfig, TrainConfig, VAELossConfig

Tree = dict[str, Any]
Metrics = dict[str, Array]
Loss = Callable[[Tree, Mapping[str, Array], Key[Array, ""]], tuple[Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds. `frozen` parameters have no gradient, no optimiser state and no average."""

    step: Int[Array, ""]
    trained: Tree
    frozen: Tree
    average: Tree
    optimizer: Any


def parameters(state: TrainState, averaged: bool = False) -> Tree:
    """The whole parameter tree, with the moving average of the trained part or its last value."""
    return trees.merge(state.average if averaged else state.trained, state.frozen)


def initial_state(config: OptimizerConfig, steps: int, params: Tree) -> TrainState:
    """Splits `params` by the path rules of `config.trainable`; ValueError names every path that no rule covers."""
    trainable = trees.match_rules(params, config.trainable)
    trained = trees.select(params, trainable)
    frozen = trees.select(params, trees.map_paths(lambda _, keep: not keep, trainable))
    if not trees.flatten(trained):
        raise ValueError("the rules of `trainable` freeze every parameter: let at least one be trained")
    optimizer = _optimizer(config, steps).init(trained)
    return TrainState(jnp.int32(0), trained, frozen, jax.tree.map(jnp.copy, trained), optimizer)


def _optimizer(config: OptimizerConfig, steps: int):
    fields = ("learning_rate", "warmup_steps", "final_rate", "beta2", "weight_decay", "clip_norm")
    return adamw(steps=steps, **{name: getattr(config, name) for name in fields})


def train_step(
    state: TrainState, batch: Mapping[str, Array], *, loss: Loss, config: TrainConfig
) -> tuple[TrainState, Metrics]:
    """One update. All randomness comes from the run's seed and the step's number, so that resuming repeats it."""
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)

    def objective(trained: Tree) -> tuple[Array, Metrics]:
        return loss(trees.merge(trained, state.frozen), batch, key)

    (value, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(state.trained)
    updates, optimizer = _optimizer(config.optimizer, config.steps).update(gradients, state.optimizer, state.trained)
    trained = jax.tree.map(lambda leaf, update: leaf + update.astype(leaf.dtype), state.trained, updates)
    average = update_ema(state.average, trained, config.optimizer.ema_decay, state.step)
    squares = jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32))), gradients)
    metrics = {"loss": value, **metrics, "gradient_norm": jnp.sqrt(sum(jax.tree.leaves(squares)))}
    return TrainState(state.step + 1, trained, state.frozen, average, optimizer), metrics


def autoencoder_loss(model: ComposerConfig, weights: VAELossConfig, dtype: Dtype) -> Loss:
    """Reconstruction of pictures in [-1, 1] by a latent drawn from the encoder's distribution.

    batch: `images` uint8 (b, H, W, 3).
    """

    def loss(params: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> tuple[Array, Metrics]:
        images = batch["images"].astype(jnp.float32) / 127.5 - 1.0
        vae = VAE(model.vae, dtype=dtype)
        keys = dict(zip(("latent", "level"), jax.random.split(key), strict=True))
        mean, log_variance = vae.apply({"params": params["vae"]}, images, method=VAE.encode)
        level = weights.latent_noise * jax.random.uniform(keys["level"], (len(images), 1, 1, 1))
        deviation = jnp.sqrt(jnp.exp(log_variance) + jnp.square(level))
        latents = mean + deviation * jax.random.normal(keys["latent"], mean.shape)
        restored = vae.apply({"params": params["vae"]}, latents, method=VAE.decode)
        error = restored - images
        absolute, squared = jnp.mean(jnp.abs(error)), jnp.mean(jnp.square(error))
        # The gradient term asks for edges as sharp as the picture's, which L1 and L2 alone blur.
        edges = sum(jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))
        # Group norm takes a crop's mean away, so plain colours come late; their own term brings them early.
        batch_size, height, width, channels = error.shape
        cells = error.reshape(batch_size, height // 8, 8, width // 8, 8, channels)
        colours = jnp.mean(jnp.abs(jnp.mean(cells, axis=(2, 4))))
        divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
        total = weights.l1 * absolute + weights.l2 * squared + weights.gradient * edges
        total += weights.colour * colours + weights.kl * divergence
        return total, {"psnr": 10.0 * jnp.log10(4.0 / squared), "colours": colours, "kl": divergence}

    return loss


def composing_loss(model: ComposerConfig, config: LossConfig, dtype: Dtype) -> Loss:
    """The denoising loss of both UNets, the binder and the text encoder together.

    batch: `latents`, `canvas_latents` (b, h, w, c) scaled; `ids`, `empty_ids` (b, 77); `spans` (b, a, 77);
    `masks` (b, a, h, w); `condition` (b, h, w, p), the pose channels; `foreground` (b, h, w) in [0, 1].
    Every reference pass serves `config.noises` noise levels of its sample.
    """
    schedule = make_alphas_cumprod(model.diffusion)

    def loss(params: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> tuple[Array, Metrics]:
        keys = dict(zip(("time", "noise", "drop", "pose"), jax.random.split(key, 4), strict=True))
        samples = batch["latents"].shape[0]
        # The empty prompt is the same in every row.
        ids = jnp.concatenate([batch["ids"], batch["empty_ids"][:1]])
        embedded = composer.encode_prompt(params, model, ids, dtype=dtype)
        text, no_text = embedded[:-1], embedded[-1:]
        features = composer.reference_features(
            params, model, batch["canvas_latents"], text, batch["spans"], batch["masks"], dtype=dtype
        )

        def repeat(array: Array) -> Array:
            return jnp.repeat(array, config.noises, axis=0)

        count = samples * config.noises
        features = composer.repeat_reference(features, config.noises)
        no_words, no_assets = dropped(config, keys["drop"], count)
        features = composer.keep_reference(features, ~no_assets)
        text = jnp.where(no_words[:, None, None], no_text, repeat(text))
        blind = jax.random.uniform(keys["pose"], (count,)) < config.drop_pose
        condition = jnp.where(blind[:, None, None, None], -1.0, repeat(batch["condition"]))

        clean = repeat(batch["latents"])
        timesteps = jax.random.randint(keys["time"], (count,), 0, len(schedule))
        noise = jax.random.normal(keys["noise"], clean.shape)
        noisy = add_noise(schedule, clean, noise, timesteps)
        prediction = composer.denoise(params, model, noisy, timesteps, text, condition, features, dtype=dtype)
        target = training_target(model.diffusion.prediction_type, schedule, clean, noise, timesteps)
        emphasis = 1.0 + config.foreground_weight * repeat(batch["foreground"])[..., None]
        emphasis = emphasis / jnp.mean(emphasis)
        error = jnp.mean(emphasis * jnp.square(prediction - target), axis=(1, 2, 3))
        weight = loss_weight(model.diffusion.prediction_type, schedule, timesteps, config.min_snr)
        restored = to_clean(model.diffusion.prediction_type, schedule, prediction, noisy, timesteps)
        return jnp.mean(weight * error), {"clean_error": jnp.mean(jnp.square(restored - clean))}

    return loss


def dropped(config: LossConfig, key: Key[Array, ""], count: int) -> tuple[Bool[Array, "b"], Bool[Array, "b"]]:
    """Whose text and whose assets the denoiser does not see: disjoint shares of the samples, by one draw each."""
    draw = jax.random.uniform(key, (count,))
    both, text = config.drop_both, config.drop_both + config.drop_text
    return draw < text, (draw < both) | ((draw >= text) & (draw < text + config.drop_reference))


def make_step(config: TrainConfig, loss: Loss):
    """The step jitted, with its state donated."""

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, loss=loss, config=config)

    return jax.jit(step, donate_argnums=0)
