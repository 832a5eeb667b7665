"""The training state and the pure step: losses in, the next state out. Nothing here reads a file or places an array."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from fcjax import trees
from fcjax.config import ComposerConfig, DiffusionConfig
from fcjax.diffusion import add_noise, loss_weight, make_alphas_cumprod, to_clean, training_target
from fcjax.models import composer
from fcjax.models.attend import split_heads
from fcjax.models.layers import Dtype
from fcjax.models.unet import LAYER_OUTPUT, UNet
from fcjax.models.vae import VAE
from fcjax.network_config import UNetConfig
from fcjax.optim import make_optimizer, update_ema
from train.config import LossConfig, OptimizerConfig, TrainConfig, VAELossConfig
from train.draws import drawn_noise, drawn_timesteps, dropped, own_noise
from train.reading import reading_loss
from train.texture import texture_loss

Tree = dict[str, Any]
Metrics = dict[str, Array]
# What is kept for the backward pass, by `TrainConfig.remat`.
REMAT: dict[str, Any] = {
    "layers": jax.checkpoint_policies.save_only_these_names(LAYER_OUTPUT),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all": jax.checkpoint_policies.nothing_saveable,
}
# Samples whose matching losses an accelerator takes at once: launching kernels for each would cost it more.
_MATCHED_TOGETHER = 16
# The metric that is no scalar: see `composing_loss`.
SAMPLE_LOSSES = "sample_losses"
# TPUs' compiler takes products of gathered weights, or with scattered results, apart into rings of small ones. That is
# dear for these networks: by the planner SD1.5's step by fsdp on 8 v5p takes 350 ms with such rings, 194 without.
_GATHERED_WHOLE = {
    f"xla_tpu_enable_windowed_einsum_for_{collective}": False for collective in ("all_gather", "reduce_scatter")
}
Loss = Callable[[Tree, Mapping[str, Array], Key[Array, ""]], tuple[Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds. `frozen` parameters have no gradient, no optimiser state and no average.

    average: empty with an `ema_decay` of 0, as it would be `trained` again.
    """

    step: Int[Array, ""]
    trained: Tree
    frozen: Tree
    average: Tree
    optimizer: Any


def parameters(state: TrainState, averaged: bool = False) -> Tree:
    """The whole parameter tree, with the moving average of the trained part or its last value."""
    return trees.merge((averaged and state.average) or state.trained, state.frozen)


def initial_state(config: OptimizerConfig, steps: int, params: Tree, frozen_dtype: Dtype | None = None) -> TrainState:
    """Splits `params` by the path rules of `config.trainable`; ValueError names every path that no rule covers.

    frozen_dtype: what frozen parameters are kept in; None: as they are.
    """
    # An autoencoder that encodes pictures for the UNets is not trained with them.
    rules = ((r"vae/.*", False), *config.trainable) if "unet" in params else config.trainable
    trainable = trees.match_rules(params, rules)
    trained = trees.select(params, trainable)
    frozen = trees.select(params, trees.map_paths(lambda _, keep: not keep, trainable))
    if not trees.flatten(trained):
        raise ValueError("the rules of `trainable` freeze every parameter: let at least one be trained")
    if frozen_dtype is not None:
        frozen = jax.tree.map(lambda leaf: jnp.asarray(leaf, frozen_dtype), frozen)
    optimizer = _optimizer(config, steps).init(trained)
    average = jax.tree.map(jnp.copy, trained) if config.ema_decay else {}
    return TrainState(jnp.int32(0), trained, frozen, average, optimizer)


def _optimizer(config: OptimizerConfig, steps: int):
    fields = ("name", "learning_rate", "warmup_steps", "final_rate", "beta2", "weight_decay", "clip_norm")
    return make_optimizer(steps=steps, **{name: getattr(config, name) for name in fields})


def train_step(
    state: TrainState, batch: Mapping[str, Array], *, loss: Loss, config: TrainConfig
) -> tuple[TrainState, Metrics]:
    """One update. All randomness comes from the run's seed and the step's number, so that resuming repeats it."""
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)

    def objective(trained: Tree, part: Mapping[str, Array], key: Key[Array, ""]) -> tuple[Array, Metrics]:
        return loss(trees.merge(trained, state.frozen), part, key)

    differentiate = jax.value_and_grad(objective, has_aux=True)
    if config.accumulate == 1:
        (value, metrics), gradients = differentiate(state.trained, batch, key)
    else:
        (value, metrics), gradients = _accumulated(functools.partial(differentiate, state.trained), batch, key, config)
    updates, optimizer = _optimizer(config.optimizer, config.steps).update(gradients, state.optimizer, state.trained)
    trained = jax.tree.map(lambda leaf, update: leaf + update.astype(leaf.dtype), state.trained, updates)
    decay = config.optimizer.ema_decay
    average = update_ema(state.average, trained, decay, state.step) if decay else {}
    metrics = {"loss": value, **metrics, "gradient_norm": optax.tree.norm(gradients)}
    return TrainState(state.step + 1, trained, state.frozen, average, optimizer), metrics


def _accumulated(
    differentiate: Callable[..., Any], batch: Mapping[str, Array], key: Key[Array, ""], config: TrainConfig
):
    """Means over `config.accumulate` parts of the batch, one after the other.

    Part i has every so many-th sample from the i-th, so that on a mesh each device goes on with samples of its own.
    """
    parts = {name: rows.reshape(-1, config.accumulate, *rows.shape[1:]).swapaxes(0, 1) for name, rows in batch.items()}

    def add(total: Any, given: tuple[Mapping[str, Array], Key[Array, ""]]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(*given)), None

    keys = jax.random.split(key, config.accumulate)
    first = jax.eval_shape(differentiate, {name: rows[0] for name, rows in parts.items()}, keys[0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    total, _ = jax.lax.scan(add, nothing, (parts, keys))
    return jax.tree.map(lambda leaf: leaf / config.accumulate, total)


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


def composing_loss(
    model: ComposerConfig,
    config: LossConfig,
    dtype: Dtype,
    channel_weights: Float[np.ndarray, "c"] | float = 1.0,
    remat: str = "none",
) -> Loss:
    """The denoising loss of all networks but the VAE together.

    channel_weights: what an error in each latent channel counts, 1 on average.
    remat: what the backward pass computes anew, a key of REMAT.

    batch: `latents` (b, h, w, c) scaled and `canvas` as `read_canvas` gives it, or pictures as `with_latents` takes
    them; `ids`, `empty_ids` (b, 77), and of a frozen text encoder maybe `text` (b, 77, e), what it says of `ids`;
    `spans` (b, a, 77); `masks` (b, a, h, w); for a model that takes a pose `uv` and `places` (b, H, W, 2 and 3) as
    `pose_channels` takes them, and for one that tries on `person_latents` (b, h, w, c) of the cloth-agnostic person and
    `person_masks` (b, H, W) in [0, 1];
    `foreground` (b, h, w) in [0, 1]; `matches` (b, h, w, 2) as `matching_loss` takes them.
    Every reference pass serves `config.noises` noise levels of its sample, which are drawn, or given as `timesteps`
    (b, noises); then the metrics have the denoising loss of each as SAMPLE_LOSSES (b * noises).
    """
    schedule = make_alphas_cumprod(model.diffusion)

    def network(function: Callable[..., Any]) -> Callable[..., Any]:
        """With the model's settings, and with what `remat` says."""
        bound = functools.partial(function, config=model, dtype=dtype)
        return jax.checkpoint(bound, policy=REMAT[remat]) if remat != "none" else bound

    def loss(params: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> tuple[Array, Metrics]:
        keys = dict(zip(("time", "noise", "drop", "pose"), jax.random.split(key, 4), strict=True))
        batch = with_latents(params, model, batch, dtype)
        samples = batch["latents"].shape[0]
        # The same in every row.
        empty = batch["empty_ids"][:1]
        if "text" in batch:
            no_text = composer.encode_prompt(params, model, empty, dtype=dtype)
            text = batch["text"].astype(no_text.dtype)
        else:
            text, no_text = composer.encode_prompts(params, model, batch["ids"], empty, dtype=dtype)
        read = network(composer.appearance_features)
        given = {name: batch[name] for name in ("canvas", "spans", "masks")}
        own = read(params, text=text, **given)

        def repeat(array: Array) -> Array:
            return jnp.repeat(array, config.noises, axis=0)

        count = samples * config.noises
        features = composer.repeat_features(own, config.noises)
        no_words, no_assets = dropped(config, keys["drop"], count)
        features = composer.keep_assets(features, ~no_assets)
        text = jnp.where(no_words[:, None, None], no_text, repeat(text))
        condition = repeat(composer.condition_channels(model, batch))
        if model.takes_pose and config.drop_pose:
            blind = jax.random.uniform(keys["pose"], (count,)) < config.drop_pose
            nobody = composer.condition_channels(model, {**batch, "uv": jnp.full_like(batch["uv"], -1.0)})
            condition = jnp.where(blind[:, None, None, None], repeat(nobody), condition)

        clean = repeat(batch["latents"])
        fixed = batch.get("timesteps")
        timesteps = drawn_timesteps(config, keys["time"], count, len(schedule)) if fixed is None else fixed.reshape(-1)
        noise = drawn_noise(config, keys["noise"], clean.shape)
        kind, denoise = model.diffusion.prediction_type, network(composer.denoise_with_queries)
        shown = {"text": text, "condition": condition, "features": features}
        # Held-out losses, of fixed timesteps, are those of plain noise, so that they compare between steps and runs.
        if config.rollout and fixed is None:
            stopped = jax.lax.stop_gradient({"params": composer.denoising_parameters(params), **shown})

            def restore(noisy: Array, timesteps: Array) -> Array:
                said, _ = denoise(noisy=noisy, timesteps=timesteps, **stopped)
                return to_clean(kind, schedule, said, noisy, timesteps)

            # A child of the noise's key, so that runs without rollouts keep their draws.
            draw = jax.random.fold_in(keys["noise"], 3)
            noise = own_noise(config, schedule, restore, clean, noise, timesteps, draw)
        noisy = add_noise(schedule, clean, noise, timesteps)
        prediction, queries = denoise(params, noisy=noisy, timesteps=timesteps, **shown)
        target = training_target(kind, schedule, clean, noise, timesteps)
        emphasis = 1.0 + config.foreground_weight * repeat(batch["foreground"])[..., None]
        emphasis = emphasis / jnp.mean(emphasis)
        error = jnp.mean(channel_weights * emphasis * jnp.square(prediction - target), axis=(1, 2, 3))
        weight = loss_weight(config.weighting, kind, schedule, timesteps, config.min_snr)
        restored = to_clean(kind, schedule, prediction, noisy, timesteps)
        total, metrics = jnp.mean(weight * error), {"clean_error": jnp.mean(jnp.square(restored - clean))}
        if config.texture:
            # A child of the noise's key, so that runs without it keep their draws.
            drawn = (channel_weights, config.foreground_weight, jax.random.fold_in(keys["noise"], 2))
            of_clean = loss_weight(config.weighting, "sample", schedule, timesteps, config.min_snr)
            texture = jnp.mean(of_clean * texture_loss(restored, clean, repeat(batch["foreground"]) > 0.5, *drawn))
            total, metrics = total + config.texture * texture, {**metrics, "texture": texture}
        if fixed is not None:
            metrics[SAMPLE_LOSSES] = weight * error
        if config.matching and isinstance(own, composer.ReferenceFeatures):
            # One noise level of each sample tells enough.
            matching = matching_loss(model, [query[:: config.noises] for query in queries], own, batch["matches"])
            total, metrics = total + config.matching * matching, {**metrics, "matching": matching}
        if config.reading and isinstance(own, composer.ReferenceFeatures):
            reading = reading_loss(own, batch["canvas"], channel_weights)
            total, metrics = total + config.reading * reading, {**metrics, "reading": reading}
        return total, metrics

    return loss


def denoising_loss(
    unet: UNetConfig, diffusion: DiffusionConfig, config: LossConfig, dtype: Dtype, remat: str = "none"
) -> Loss:
    """Stable Diffusion's own: a UNet alone. batch: `latents` (b, h, w, c) scaled; `text` (b, k, e), encoded."""
    schedule = make_alphas_cumprod(diffusion)

    def predict(params: Tree, noisy: Array, timesteps: Array, text: Array) -> Array:
        return cast(Array, UNet(unet, dtype=dtype).apply({"params": params}, noisy, timesteps, text))

    network = jax.checkpoint(predict, policy=REMAT[remat]) if remat != "none" else predict

    def loss(params: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> tuple[Array, Metrics]:
        time, noises = jax.random.split(key)
        clean = batch["latents"]
        timesteps = drawn_timesteps(config, time, len(clean), len(schedule))
        noise = drawn_noise(config, noises, clean.shape)
        prediction = network(params["unet"], add_noise(schedule, clean, noise, timesteps), timesteps, batch["text"])
        target = training_target(diffusion.prediction_type, schedule, clean, noise, timesteps)
        weight = loss_weight(config.weighting, diffusion.prediction_type, schedule, timesteps, config.min_snr)
        return jnp.mean(weight * jnp.mean(jnp.square(prediction - target), axis=(1, 2, 3))), {}

    return loss


def with_latents(params: Tree, model: ComposerConfig, batch: Mapping[str, Array], dtype: Dtype) -> dict[str, Array]:
    """The batch with latents for its `images` and `canvases` uint8 (b, H, W, 3), if it holds those.

    Choice: the distribution's mean, as prepared latents hold it.
    """
    batch = dict(batch)
    for pictures, latents, read in (
        ("images", "latents", composer.encode_images),
        ("canvases", "canvas", composer.read_canvas),
        ("persons", "person_latents", composer.encode_images),
    ):
        if pictures in batch:
            scaled = batch.pop(pictures).astype(jnp.float32) / 127.5 - 1.0
            batch[latents] = read(params, model, scaled, dtype=dtype).astype(jnp.float32)
    return batch


def matched_tokens(matches: Float[Array, "b h w 2"]) -> tuple[Int[Array, "b q"], Bool[Array, "b q"]]:
    """The canvas' token in which each of the person's h * w places lies, and which have one (`matching_loss`).

    That token alone: were its neighbours right in part, attention at its best would blur patterns.
    """
    batch, height, width, _ = matches.shape
    place = matches.reshape(batch, -1, 2)
    column, row = (
        jnp.clip(place[..., axis] * size, 0, size - 1).astype(jnp.int32) for axis, size in ((0, width), (1, height))
    )
    return row * width + column, place[..., 0] >= 0


def matching_loss(
    model: ComposerConfig,
    queries: Sequence[Float[Array, "b q _"]],
    features: composer.ReferenceFeatures,
    matches: Float[Array, "b h w 2"],
) -> Float[Array, ""]:
    """Cross entropy between where the denoiser looks on the asset canvas and where the same cloth lies there.

    At the finest level that has self-attention, of the attention within the canvas, averaged over heads: some head
    should find the place, others may look elsewhere. queries: of all layers, in forward order; matches: (x, y) of the
    canvas as shares of its size for every token of the person at that level, -1 where there is none.
    """
    finest = min(model.unet.attention_levels)
    _, height, width, _ = matches.shape
    tokens, known = matched_tokens(matches)
    # Every fifth of many tokens tells enough; it runs through all columns.
    sparse = 1 if height * width < 2048 else 5

    def entropy(
        query: Float[Array, "n q d"],
        key: Float[Array, "n k d"],
        seen: Bool[Array, "k"],
        tokens: Int[Array, "q"],
        known: Bool[Array, "q"],
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Sum over one sample's tokens, and their number."""
        scores = jnp.stack([q @ k.T for q, k in zip(query, key, strict=True)]) * query.shape[-1] ** -0.5
        log_attention = jax.nn.log_softmax(jnp.where(seen, scores, -1e9))
        log_attention = jax.nn.logsumexp(log_attention, axis=0) - jnp.log(len(query))
        found = jnp.take_along_axis(log_attention, tokens[:, None], axis=-1)[:, 0]
        valid = known & seen[tokens]
        return -jnp.sum(jnp.where(valid, found, 0.0)), jnp.sum(valid)

    losses = []
    for level, query, (key, _), seen in zip(
        model.unet.attention_levels, queries, features.layers, features.masks, strict=True
    ):
        if level == finest:
            # In float32 and, as a CPU is slow at large products of several heads or precisions, there sample by sample.
            heads = model.unet.heads(level)
            query, key = (split_heads(x.astype(jnp.float32), heads).swapaxes(1, 2) for x in (query, key))
            given = (query[:, :, ::sparse], key, seen, *(x[:, ::sparse] for x in (tokens, known)))
            each = functools.partial(jax.lax.map, jax.checkpoint(lambda sample: entropy(*sample)))
            together = functools.partial(each, batch_size=_MATCHED_TOGETHER)
            sums, counts = jax.lax.platform_dependent(given, cpu=each, default=together)
            losses.append(jnp.sum(sums) / jnp.maximum(jnp.sum(counts), 1))
    return jnp.mean(jnp.stack(losses))


def make_step(config: TrainConfig, loss: Loss, shardings: tuple[Any, Any] | None = None):
    """The step jitted, with its state donated.

    shardings: of the state and of a batch's arrays on a mesh, which must be set (`jax.set_mesh`) where the step is
      called; None: one device.
    """

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, loss=loss, config=config)

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    mesh = shardings[1].mesh
    gathers = mesh.devices.flat[0].platform == "tpu" and mesh.shape["fsdp"] > 1
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=shardings,
        out_shardings=(shardings[0], None),
        compiler_options=_GATHERED_WHOLE if gathers else None,
    )
