"""What a run shows of itself while it trains: the losses on held-out samples, and a grid of pictures.

Both use the averaged parameters and the same samples, timesteps and noise every time, so that steps can be compared.
"""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from PIL import Image

from fcjax.data import Prepared
from train.config import TrainConfig
from train.draws import drawn_timesteps
from train.logs import Log
from train.placement import Placement
from train.step import SAMPLE_LOSSES
from train.tasks import Task

HELDOUT_BATCHES = 8
GRID_ROWS = 8
# Equal parts of the noise schedule whose losses are told apart.
BUCKETS = 5


class Watch:
    """Logs held-out losses and draws OUT/samples/STEP.png, if the configuration names a held-out set."""

    def __init__(self, config: TrainConfig, task: Task, placement: Placement, out: Path, log: Log):
        self._config, self._task, self._placement, self._out, self._log = config, task, placement, out, log
        self._batches: list[dict[str, np.ndarray]] = []
        if config.heldout is None:
            return
        data = Prepared(config.heldout)
        if config.task != "vae":
            data.require(config.model.condition)
        if len(data) < config.batch_size:
            raise ValueError(
                f"{config.heldout} has {len(data)} samples, held-out losses need a batch: {config.batch_size}"
            )
        if data.index["settings"].get("vae") != task.data.index["settings"].get("vae"):
            raise ValueError(f"{config.heldout} was not encoded by the VAE that encoded {config.data}")
        for number in range(min(HELDOUT_BATCHES, len(data) // config.batch_size)):
            first = number * config.batch_size
            rows = range(config.batch_size) if placement.rows is None else placement.rows
            batch = self._examples(data, [first + row for row in rows])
            self._batches.append(batch | self._timesteps(number, list(rows)))
        self._first = self._examples(data, range(min(GRID_ROWS, config.batch_size)))
        self._measure = jax.jit(self._losses)

    def _examples(self, data: Prepared, places: Iterable[int]) -> dict[str, np.ndarray]:
        examples = [self._task.plain_transform(data[place], np.random.default_rng(place)) for place in places]
        return {name: np.stack([one[name] for one in examples]) for name in examples[0]}

    def _key(self, number: int) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.key(self._config.seed), number)

    def _timesteps(self, number: int, rows: list[int]) -> dict[str, np.ndarray]:
        """Those of a batch's rows, spread as in training, that their losses may be told apart by them."""
        if self._config.task == "vae":
            return {}
        loss, total = self._config.loss, self._config.model.diffusion.num_train_timesteps
        # The key from which the loss would draw them.
        key = jax.random.split(self._key(number), 4)[0]
        drawn = drawn_timesteps(loss, key, self._config.batch_size * loss.noises, total)
        return {"timesteps": np.asarray(drawn).reshape(-1, loss.noises)[rows]}

    def _losses(
        self, params: dict[str, Any], batch: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """A batch's losses, and of every part of the schedule the sum of its samples' losses and their number."""
        loss, metrics = self._task.loss(params, batch, key)
        metrics = {"loss": loss, **metrics}
        if SAMPLE_LOSSES not in metrics:
            return metrics, {}
        each, timesteps = metrics.pop(SAMPLE_LOSSES), batch["timesteps"].reshape(-1)
        bucket = timesteps * BUCKETS // self._config.model.diffusion.num_train_timesteps
        inside = bucket[:, None] == jnp.arange(BUCKETS)
        return metrics, {"sums": jnp.sum(inside * each[:, None], axis=0), "counts": jnp.sum(inside, axis=0)}

    def measure(self, step: int, params: dict[str, Any]) -> float | None:
        """Logs the held-out losses of the (averaged) parameters after `step` steps; the loss, None without a set."""
        if not self._batches:
            return None
        sums: dict[str, float] = {}
        parts = {"sums": np.zeros(BUCKETS), "counts": np.zeros(BUCKETS)}
        for number, batch in enumerate(self._batches):
            with self._placement.context():
                given = self._placement.put_batch(batch)
                metrics, by_time = jax.device_get(self._measure(params, given, self._key(number)))
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(self._batches)
            parts = {name: parts[name] + by_time.get(name, 0.0) for name in parts}
        line = {f"heldout_{name}": value for name, value in sums.items()}
        self._log.line(step, line | self._by_time(**parts), "heldout")
        return sums["loss"]

    def _by_time(self, sums: np.ndarray, counts: np.ndarray) -> dict[str, float]:
        """The mean loss in every part of the schedule in which there are samples."""
        total = self._config.model.diffusion.num_train_timesteps
        edges = [-(-total * part // BUCKETS) for part in range(BUCKETS + 1)]
        names = [f"heldout_loss_t{first}-{end - 1}" for first, end in itertools.pairwise(edges)]
        return {name: float(sums[part] / counts[part]) for part, name in enumerate(names) if counts[part]}

    def draw(self, step: int, params: dict[str, Any]) -> None:
        """Draws what the (averaged) parameters make of the first held-out samples."""
        if not self._batches:
            return
        params = self._placement.gathered(params)
        if jax.process_index() > 0:
            return
        grid = self._task.pictures(params, self._first)
        rows, columns, height, width, _ = grid.shape
        page = grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
        (self._out / "samples").mkdir(exist_ok=True)
        Image.fromarray(page).save(self._out / "samples" / f"{step:08d}.png")
        self._log.picture(step, page)
