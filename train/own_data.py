"""Data for a run that names none: a few samples of Wardrobe, drawn into the run's own folder in seconds."""

import dataclasses
from pathlib import Path

from train.config import TrainConfig

SAMPLES = 16


def with_data(config: TrainConfig, out: Path) -> TrainConfig:
    """The configuration as it is, or, where it names no data, with OUT/data, and OUT/vae if it lacks a VAE too.

    That VAE has random weights: enough to see a run work, not to learn from. What is there already stays.
    """
    if config.data is not None:
        return config
    import jax
    from jax.experimental import multihost_utils

    from fcjax import folder
    from fcjax.models.parameters import init_parameters
    from train.shards import write_set
    from train.wardrobe_records import WardrobeJob

    model, data, vae = config.model, out / "data", config.vae
    if jax.process_index() == 0:
        sizes = {"height": model.height, "width": model.width, "max_assets": model.max_assets}
        tryon = config.task == "tryon"
        write_set(WardrobeJob(data, SAMPLES, tryon=tryon, shard_size=SAMPLES, workers=1, **sizes), data, workers=1)
    if vae is None and config.task != "vae":
        vae = out / "vae"
        if jax.process_index() == 0 and not vae.is_dir():
            aside = out / "vae.part"
            folder.save_part(aside, "vae", init_parameters(model, jax.random.key(0))["vae"], model.vae)
            aside.rename(vae)
    multihost_utils.sync_global_devices("data")
    return dataclasses.replace(config, data=data, vae=vae)
