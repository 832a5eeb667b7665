"""What is trained: where a task's parameters start, what it reads, its loss, and how its result is written."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcjax import folder, trees
from fcjax.body import atlas_uv
from fcjax.config import ComposerConfig
from fcjax.data import Prepared
from fcjax.models import composer
from fcjax.models.parameters import init_parameters
from fcjax.tokenizer import Tokenizer
from train.config import TrainConfig
from train.step import Loss, autoencoder_loss, composing_loss

Tree = dict[str, Any]
TRAINED_PARTS = ("unet", "reference_unet", "text_encoder", "binder")
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of training, put together from a `TrainConfig`."""

    parameters: Tree
    data: Prepared
    transform: Transform
    loss: Loss
    export: Callable[[Tree, Path], None]


def make_task(config: TrainConfig) -> Task:
    """The task that `config.task` names."""
    return {"vae": _autoencoder, "compose": _compose}[config.task](config)


def _dtype(config: TrainConfig):
    return jnp.bfloat16 if config.compute_dtype == "bfloat16" else jnp.float32


def _autoencoder(config: TrainConfig) -> Task:
    """The VAE alone, on crops of people and of canvases; its scaling factor is measured when it is written."""
    model = config.model
    if config.start:
        params = {"vae": folder.load_part(config.start, "vae", model.vae, dtype=jnp.float32)}
    else:
        params = {"vae": quiet_start(init_parameters(model, jax.random.key(config.seed))["vae"])}
    data = Prepared(config.data)
    size, layouts = config.vae_loss.crop, data.index["settings"]["layouts"]
    names = ["image"] * layouts + [f"canvas{layout}" for layout in range(layouts)]

    def transform(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        picture = sample[names[rng.integers(len(names))]]
        top, left = (rng.integers(0, length - size + 1) for length in picture.shape[:2])
        crop = picture[top : top + size, left : left + size]
        return {"images": crop[:, ::-1] if rng.random() < 0.5 else crop}

    def export(params: Tree, out: Path) -> None:
        pictures = np.stack([data[index][names[index % len(names)]] for index in range(min(len(data), 64))])
        scale = measured_scale(model, params, pictures)
        folder.save_part(out, "vae", params["vae"], dataclasses.replace(model.vae, scaling_factor=scale))

    return Task(params, data, transform, autoencoder_loss(model, config.vae_loss, _dtype(config)), export)


def quiet_start(params: Tree, log_variance: float = -6.0) -> Tree:
    """The VAE's parameters with the encoder's log variance starting at `log_variance`.

    At 0, where it would start, the noise drowns the colours: training then spends its first thousands of steps grey.
    """
    bias = params["quant_conv"]["bias"]
    quiet = bias.at[bias.shape[0] // 2 :].set(log_variance)
    return {**params, "quant_conv": {**params["quant_conv"], "bias": quiet}}


def measured_scale(model: ComposerConfig, params: Tree, pictures: np.ndarray) -> float:
    """1 / standard deviation of the latents of `pictures` uint8 (b, H, W, 3), as SD's scaling_factor was found."""
    unscaled = dataclasses.replace(model, vae=dataclasses.replace(model.vae, scaling_factor=1.0))
    encode = jax.jit(lambda images: composer.encode_images(params, unscaled, images))
    latents = [encode(picture[None].astype(np.float32) / 127.5 - 1.0) for picture in pictures]
    return float(1.0 / np.std(np.concatenate(latents)))


def _compose(config: TrainConfig) -> Task:
    """Both UNets, the binder and the text encoder, on prepared latents. The result is a whole model folder."""
    model = config.model
    tokenizer = Tokenizer.load(config.tokenizer)
    data = Prepared(config.data)
    if config.vae is None:
        raise ValueError("composing needs --vae, the folder of the VAE that encoded the data: it joins what is trained")
    vae_config = folder.load_part_config(config.vae, "vae")
    vae = folder.load_part(config.vae, "vae", vae_config)
    model = dataclasses.replace(model, vae=vae_config)
    encoded, given = data.index["settings"].get("vae"), trees.digest(vae)
    if encoded != given:
        raise ValueError(f"{config.data} was encoded by the VAE {encoded}, but {config.vae} holds {given}")
    if config.start:
        started, drawn = folder.load(config.start, dtype=jnp.float32)
        if started != model:
            raise ValueError(f"{config.start} holds a model of another configuration than {config.name!r}")
    else:
        drawn = init_parameters(model, jax.random.key(config.seed))
    params = {part: drawn[part] for part in TRAINED_PARTS}
    empty_ids = tokenizer.encode("")
    layouts, patch = data.index["settings"]["layouts"], model.pose_patch
    height, width = model.latent_height, model.latent_width

    def transform(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        layout = rng.integers(layouts)
        tokens = tokenizer.encode_prompt(sample["caption"], sample["phrases"], max_assets=model.max_assets)
        points = atlas_uv(sample["iuv"]).reshape(height, patch, width, patch, 2)
        return {
            "latents": sample["image"].astype(np.float32),
            "canvas_latents": sample[f"canvas{layout}"].astype(np.float32),
            "masks": sample[f"masks{layout}"].astype(np.float32) / 255.0,
            "foreground": sample["foreground"].astype(np.float32) / 255.0,
            "condition": points.transpose(0, 2, 1, 3, 4).reshape(height, width, 2 * patch**2),
            "ids": tokens.ids,
            "empty_ids": empty_ids,
            "spans": tokens.spans,
        }

    def export(params: Tree, out: Path) -> None:
        folder.save(out, {**params, "vae": vae, "binder": params.get("binder", {})}, model)
        shutil.copytree(config.tokenizer, out / "tokenizer", dirs_exist_ok=True)

    return Task(params, data, transform, composing_loss(model, config.loss, _dtype(config)), export)
