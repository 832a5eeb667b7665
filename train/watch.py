"""What a run shows of itself while it trains: the losses on held-out samples, and a grid of pictures.

Both use the averaged parameters and the same samples and noise every time, so that steps can be compared.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from fcjax.data import Prepared
from train.config import TrainConfig
from train.placement import Placement
from train.tasks import Task

HELDOUT_BATCHES = 8
GRID_ROWS = 8


class Watch:
    """Writes a line to OUT/log.jsonl and OUT/samples/STEP.png, if the configuration names a held-out set."""

    def __init__(self, config: TrainConfig, task: Task, placement: Placement, out: Path):
        self._task, self._placement, self._out, self._seed = task, placement, out, config.seed
        self._batches: list[dict[str, np.ndarray]] = []
        if config.heldout is None:
            return
        data = Prepared(config.heldout)
        if len(data) < config.batch_size:
            raise ValueError(
                f"{config.heldout} has {len(data)} samples, held-out losses need a batch: {config.batch_size}"
            )
        if data.index["settings"].get("vae") != task.data.index["settings"].get("vae"):
            raise ValueError(f"{config.heldout} was not encoded by the VAE that encoded {config.data}")
        for number in range(min(HELDOUT_BATCHES, len(data) // config.batch_size)):
            first = number * config.batch_size
            rows = range(config.batch_size) if placement.rows is None else placement.rows
            self._batches.append(self._examples(data, [first + row for row in rows]))
        self._first = self._examples(data, range(min(GRID_ROWS, config.batch_size)))
        self._measure = jax.jit(task.loss)

    def _examples(self, data: Prepared, places: Iterable[int]) -> dict[str, np.ndarray]:
        examples = [self._task.plain_transform(data[place], np.random.default_rng(place)) for place in places]
        return {name: np.stack([one[name] for one in examples]) for name in examples[0]}

    def __call__(self, step: int, params: dict[str, Any]) -> None:
        """Losses and pictures of the (averaged) parameters after `step` steps."""
        if not self._batches:
            return
        sums: dict[str, float] = {}
        for number, batch in enumerate(self._batches):
            key = jax.random.fold_in(jax.random.key(self._seed), number)
            with self._placement.context():
                loss, metrics = jax.device_get(self._measure(params, self._placement.put_batch(batch), key))
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(self._batches)
        params = self._placement.gathered(params)
        if jax.process_index() > 0:
            return
        line = {"step": step, **{f"heldout_{name}": round(value, 6) for name, value in sums.items()}}
        with (self._out / "log.jsonl").open("a") as log:
            print(json.dumps(line), file=log)
        print(" ".join(f"{key} {value}" for key, value in line.items()), flush=True)
        grid = self._task.pictures(params, self._first)
        rows, columns, height, width, _ = grid.shape
        page = grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
        (self._out / "samples").mkdir(exist_ok=True)
        Image.fromarray(page).save(self._out / "samples" / f"{step:08d}.png")
