"""What is trained: where a task's parameters start, what it reads, its loss, and how its result is written."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcjax import folder, trees
from fcjax.config import OWN_SAMPLING, ComposerConfig
from fcjax.data import Mixed, Prepared
from fcjax.generation import Inputs, decode, generate, make_conditions, to_bytes
from fcjax.metrics.color import ciede2000, lab
from fcjax.models import composer
from fcjax.models.parameters import init_parameters
from fcjax.models.vae import principal_components
from fcjax.pretrained import for_tryon
from fcjax.samplers import sampler_table
from fcjax.sampling import guidance_branches, image_keys, initial_latents, make_guidance
from fcjax.tokenizer import Tokenizer
from train.config import TrainConfig
from train.documents import differing
from train.examples import Transform, example_of, latent_sizes
from train.step import Loss, autoencoder_loss, composing_loss, with_latents

Tree = dict[str, Any]
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of training, put together from a `TrainConfig`."""

    # NumPy arrays, which a `Placement` lays on the devices.
    parameters: Tree
    data: Prepared | Mixed
    # With augmentation, and without, for held-out samples.
    transform: Transform
    plain_transform: Transform
    loss: Loss
    export: Callable[[Tree, Path], None]
    # Of parameters and the b samples of a batch: (b, columns, H, W, 3) uint8, the true picture next to the last.
    pictures: Callable[[Tree, Mapping[str, np.ndarray]], np.ndarray]


def make_task(config: TrainConfig) -> Task:
    """The task that `config.task` names."""
    return (_autoencoder if config.task == "vae" else _compose)(config)


def _dtype(config: TrainConfig):
    return jnp.bfloat16 if config.compute_dtype == "bfloat16" else jnp.float32


def _data(config: TrainConfig) -> Prepared | Mixed:
    """The run's data set, or several mixed."""
    sets = [Prepared(path) for path in (config.data, *config.mixed_with)]
    return Mixed(sets, config.weights) if len(sets) > 1 else sets[0]


def _autoencoder(config: TrainConfig) -> Task:
    """The VAE alone, on crops of people and of canvases; its scaling factor is measured when it is written.

    A linear encoder is fitted once, when the run begins at random; its latents stay what they are then.
    """
    model = config.model
    data = _data(config)
    if data.index["source"] == "latents":
        raise ValueError(f"{config.data} holds latents; an autoencoder is trained on the pictures they were made of")
    size, layouts = config.vae_loss.crop, data.index["settings"]["layouts"]
    names = ["image"] * layouts + [f"canvas{layout}" for layout in range(layouts)]
    # Canvases are encoded only, which a linear encoder does not learn by gradients.
    cropped = ["image"] if model.vae.linear_encoder else names

    def pictures(count: int) -> np.ndarray:
        places = np.linspace(0, len(data) - 1, min(len(data), count)).astype(int)
        return np.stack([data[index][names[turn % len(names)]] for turn, index in enumerate(places)])

    if config.start:
        params = {"vae": folder.load_part(config.start, "vae", model.vae, dtype=jnp.float32, host=True)}
    elif model.vae.linear_encoder:
        params = {"vae": linear_start(init_parameters(model, jax.random.key(config.seed))["vae"], model, pictures(400))}
    else:
        params = {"vae": quiet_start(init_parameters(model, jax.random.key(config.seed))["vae"])}

    def transform(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        picture = sample[cropped[rng.integers(len(cropped))]]
        top, left = (rng.integers(0, length - size + 1) for length in picture.shape[:2])
        crop = picture[top : top + size, left : left + size]
        return {"images": crop[:, ::-1] if rng.random() < 0.5 else crop}

    def export(params: Tree, out: Path) -> None:
        # A linear encoder's latents have variance 1 as they are, and must not change while its decoder is trained.
        scale = 1.0 if model.vae.linear_encoder else measured_scale(model, params, pictures(64))
        folder.save_part(
            out, "vae", params["vae"], dataclasses.replace(model.vae, scaling_factor=scale), dtype=config.export_dtype
        )

    def columns(params: Tree, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        latents = encode(params, batch["images"].astype(np.float32) / 127.5 - 1.0)
        restored = decode(params, latents, config=model, dtype=jnp.float32)
        return np.stack([batch["images"], restored], axis=1)

    encode = jax.jit(lambda params, images: composer.encode_images(params, model, images))
    return Task(
        params, data, transform, transform, autoencoder_loss(model, config.vae_loss, _dtype(config)), export, columns
    )


def linear_start(params: Tree, model: ComposerConfig, pictures: np.ndarray) -> Tree:
    """The VAE's parameters with the principal components of `pictures` uint8 (b, H, W, 3); its network adds nothing."""
    decoder = params["decoder"]
    silent = {**decoder, "conv_out": jax.tree.map(np.zeros_like, decoder["conv_out"])}
    linear = principal_components(jnp.asarray(pictures, jnp.float32) / 127.5 - 1.0, model.vae)
    return {**params, **linear, "decoder": silent}


def quiet_start(params: Tree, log_variance: float = -6.0) -> Tree:
    """The VAE's parameters with the encoder's log variance starting at `log_variance`.

    At 0, where it would start, the noise drowns the colours: training then spends its first thousands of steps grey.
    """
    quiet = params["quant_conv"]["bias"].copy()
    quiet[len(quiet) // 2 :] = log_variance
    return {**params, "quant_conv": {**params["quant_conv"], "bias": quiet}}


def measured_scale(model: ComposerConfig, params: Tree, pictures: np.ndarray) -> float:
    """1 / standard deviation of the latents of `pictures` uint8 (b, H, W, 3), as SD's scaling_factor was found."""
    unscaled = dataclasses.replace(model, vae=dataclasses.replace(model.vae, scaling_factor=1.0))
    encode = jax.jit(lambda params, images: composer.encode_images(params, unscaled, images))
    latents = [encode(params, picture[None].astype(np.float32) / 127.5 - 1.0) for picture in pictures]
    return float(1.0 / np.std(np.concatenate(latents)))


def _compose(config: TrainConfig) -> Task:
    """Both UNets, the binder and the text encoder, on latents or pictures. The result is a whole model folder.

    For try-on, too, which may start from a composing model.
    """
    model, tokenizer, data = config.model, Tokenizer.load(config.tokenizer), _data(config)
    if config.vae is None:
        raise ValueError("composing needs --vae, the folder of the VAE that encoded the data: it joins what is trained")
    vae_config = folder.load_part_config(config.vae, "vae")
    vae = folder.load_part(config.vae, "vae", vae_config, host=True)
    model = dataclasses.replace(model, vae=vae_config)
    encoding, pictures_given = composer.encoding_parameters(vae), data.index["source"] != "latents"
    encoded, given = data.index["settings"].get("vae"), trees.digest(encoding)
    if not pictures_given and encoded != given:
        raise ValueError(f"{data.folder} was encoded by the VAE {encoded}, but {config.vae} holds {given}")
    if not pictures_given:
        check_sizes(data.index, data.folder, model, config.name)
    data.require(model.condition)
    if pictures_given and model.takes_pose and config.augment.flip and config.augment.symmetry is None:
        data.require_own_charts()
    if config.start:
        started, drawn = folder.load(config.start, dtype=jnp.float32, host=True)
        if model.tries_on and not started.tries_on:
            started, drawn = for_tryon(started, drawn, model.condition)
        if differ := differing(*map(network_fields, (started, model))):
            raise ValueError(
                f"{config.start} holds a model of another configuration than {config.name!r}; these fields differ: "
                f"{', '.join(differ)}"
            )
    else:
        drawn = init_parameters(model, jax.random.key(config.seed))
    params = {part: drawn[part] for part in drawn if part != "vae"}
    if (made_by := data.index["settings"].get("text")) is not None:
        check_text(config, params, made_by)
    if pictures_given:
        params["vae"] = encoding
    height, width = model.latent_height, model.latent_width
    empty_ids = tokenizer.encode("", model.text_encoder.max_position_embeddings)

    def export(params: Tree, out: Path) -> None:
        folder.save(out, {**params, "vae": vae, "binder": params.get("binder", {})}, model, dtype=config.export_dtype)
        shutil.copytree(config.tokenizer, out / "tokenizer", dirs_exist_ok=True)

    def columns(params: Tree, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Canvas, UV map (for try-on the cloth-agnostic person), what DDIM composes in the model's own steps, truth."""
        params, count, dtype = {**params, "vae": vae}, len(batch["ids"]), _dtype(config)
        batch = encode(params, batch)
        given = {name: jnp.asarray(batch[name]) for name in composer.condition_arrays(model)}
        channels = composer.condition_channels(model, given)
        inputs = Inputs(batch["ids"], empty_ids, batch["spans"], batch["canvas"], batch["masks"], channels)
        branches = guidance_branches(model.guidance)
        mixing, table = make_guidance(branches, model.guidance), sampler_table(model.diffusion, model.steps)
        keys = image_keys(0, count)
        conditions = prepare(params, inputs, branches=branches)
        noise = initial_latents(table, keys, height, width, model.vae.latent_channels)
        composed = generate(params, conditions, table, mixing, keys, noise, config=model, dtype=dtype)
        canvas = batch["canvas"]
        if model.canvas_in_pixels:
            shown = to_bytes(composer.show_canvas(canvas))
        else:
            shown = decode(params, canvas, config=model, dtype=dtype)
        if model.tries_on:
            condition = decode(params, batch["person_latents"], config=model, dtype=dtype)
        else:
            condition = uv_pictures(batch["uv"], model.height, model.width)
        truth = decode(params, batch["latents"], config=model, dtype=dtype)
        return np.stack([shown, condition, composed, truth], axis=1)

    prepare = jax.jit(
        lambda params, inputs, branches: make_conditions(params, model, inputs, branches, dtype=_dtype(config)),
        static_argnames="branches",
    )
    encode = jax.jit(lambda params, batch: with_latents(params, model, batch, _dtype(config)))
    loss = composing_loss(model, config.loss, _dtype(config), channel_weights(vae), config.remat)
    transform = example_of(model, tokenizer, data.index, config.augment)
    return Task(params, data, transform, example_of(model, tokenizer, data.index), loss, export, columns)


def network_fields(model: ComposerConfig) -> Tree:
    """A configuration's fields but for those that no network depends on, so that a run may go on where they differ.

    These are the sizes of pictures, how they are sampled, and the token ids of the text encoder's file, which the
    tokenizer has of its own: Stable Diffusion's files name ids (0, 2 and 1) that are not its tokenizer's.
    """
    fields = dataclasses.asdict(model)
    for part in (fields, *fields.values()):
        for name in ("height", "width", "sample_size", *OWN_SAMPLING, *_TOKEN_IDS):
            if isinstance(part, dict):
                part.pop(name, None)
    return fields


def check_sizes(index: Mapping[str, Any], where: Any, model: ComposerConfig, name: str) -> None:
    """ValueError where the latents of a set (its index, and where it lies) were made for a model of other sizes."""
    encoded = index["settings"].get("encoded", {})
    expected = latent_sizes(model)
    differ = {key: (size, expected[key]) for key, size in encoded.items() if size != expected[key]}
    if differ:
        told = ", ".join(f"{key} {found} (the configuration's: {own})" for key, (found, own) in differ.items())
        raise ValueError(
            f"the latents in {where} do not fit the configuration {name!r}: they have {told}; prepare them with "
            f"train.prepare latents --config {name}"
        )


def check_text(config: TrainConfig, params: Tree, made_by: str) -> None:
    """ValueError where prepared embeddings are not those of the run's own text encoder, or do not stay so."""
    own = trees.digest(params["text_encoder"])
    trained = trees.match_rules({"text_encoder": params["text_encoder"]}, config.optimizer.trainable)
    if made_by != own or any(trees.flatten(trained).values()):
        why = f"the run starts with {own}" if made_by != own else "the run trains its text encoder"
        raise ValueError(
            f"{config.data} holds embeddings of the text encoder {made_by}, but {why}: prepare the latents without "
            "--text, or with the model that the run starts from, and keep its text encoder frozen"
        )


def uv_pictures(uv: np.ndarray, height: int, width: int) -> np.ndarray:
    """UV maps (b, y, x, 2), -1 off the body, as pictures uint8 (b, height, width, 3): u red, v green, black around."""
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), uv.shape[1:3], strict=True))
    near = np.asarray(uv, np.float32)[:, rows][:, :, columns]
    colours = np.concatenate([255 * near, np.full((*near.shape[:3], 1), 128, np.float32)], axis=-1)
    return np.where(near[..., :1] < 0, 0, colours).astype(np.uint8)


def channel_weights(vae: Tree) -> np.ndarray | float:
    """What an error in each latent channel of a linear encoder counts: the mean squared CIEDE2000 difference that it
    makes to pixels of all colours, 1 on average. 1 for other encoders.
    """
    if "linear_decoder" not in vae:
        return 1.0
    kernel = np.asarray(vae["linear_decoder"]["kernel"], np.float64)
    # What a tenth of a channel's unit changes each pixel of a square by, in sRGB of 0 to 1 (latents' is -1 to 1).
    changes = 0.05 * kernel.reshape(len(kernel), 1, -1, 3)
    colours = np.stack(np.meshgrid(*[np.linspace(0.1, 0.9, 5)] * 3), axis=-1).reshape(-1, 1, 3)
    seen = np.square(ciede2000(lab(colours), lab(colours + changes))).mean(axis=(1, 2))
    return (seen / seen.mean()).astype(np.float32)
