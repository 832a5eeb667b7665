"""What tests of training share: a tiny prepared set, and the composing task on it."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from configs import load_config
from fcjax import folder
from fcjax.config import ComposerConfig
from fcjax.models.parameters import init_parameters
from train.config import OptimizerConfig, TrainConfig
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe
from train.tasks import Task, make_task


def one_level(model: ComposerConfig, width: int = 8) -> ComposerConfig:
    """The tiny model with a single level in its UNets: compiles three times faster."""
    change = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unets = {
        name: dataclasses.replace(getattr(model, name), block_out_channels=(width,), **change)
        for name in ("unet", "reference_unet")
    }
    return dataclasses.replace(model, **unets)


def prepared(root: Path, count: int = 8) -> Path:
    """Wardrobe samples, prepared into `root`, with latents of an untrained autoencoder beside them."""
    job = WardrobeJob(out=root / "pictures", count=count, height=64, width=48, shard_size=4, workers=1)
    prepare_wardrobe(job)
    model = load_config("tiny").model
    folder.save_part(root / "model", "vae", init_parameters(model, jax.random.key(0))["vae"], model.vae)
    prepare_latents(LatentsJob(data=job.out, model=root / "model", out=root / "latents", batch_size=3), model)
    return root


def composing_task(data: Path) -> tuple[TrainConfig, Task, dict[str, np.ndarray]]:
    """The composing task on one batch: (config, task, batch)."""
    config = dataclasses.replace(load_config("tiny"), data=data / "latents", vae=data / "model")
    config = dataclasses.replace(config, model=one_level(config.model))
    config = dataclasses.replace(
        config,
        optimizer=OptimizerConfig(
            learning_rate=1e-2, warmup_steps=1, trainable=(("text_encoder/.*", False), (".*", True))
        ),
        loss=dataclasses.replace(config.loss, noises=2),
    )
    task = make_task(config)
    rng = np.random.default_rng(0)
    examples = [task.transform(task.data[index], rng) for index in range(4)]
    return config, task, {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}
