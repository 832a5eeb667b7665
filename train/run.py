"""The training program: `python -m train.run --config NAME --out DIR [overrides]`.

DIR holds `checkpoints/` (Orbax: parameters, moving average, optimiser, step), `config.json`, `log.jsonl` (one object a
line), `samples/` (pictures of held-out samples) and, at the end, `model/`: what was trained, with the averaged
parameters, as a model folder. A DIR that holds a
run is continued. The loop dispatches step N before it reads step N-1's numbers.
"""

import argparse
import dataclasses
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

from configs import load_config
from fcjax.cli import exit_codes
from fcjax.data import training_batches
from train.config import TrainConfig
from train.step import TrainState, initial_state, make_step, parameters
from train.tasks import Task, make_task
from train.watch import Watch

# What may change when a run is continued.
FREE_FIELDS = ("steps", "log_every", "watch_every", "checkpoint_every", "keep", "workers")
FREE_FIELDS += ("data", "heldout", "start", "tokenizer", "vae", "export_dtype")


def train(config: TrainConfig, out: Path) -> bool:
    """Trains until `config.steps`, from the newest checkpoint in `out` if there is one, and writes `out/model`.

    Returns False where SIGTERM ended the run early; its state is saved then. ValueError: `out` holds a run of another
    configuration, or a loss that is no number.
    """
    _check_config(out, config)
    task = make_task(config)
    _note_config(out, config)
    state = initial_state(config.optimizer, config.steps, task.parameters)
    options = ocp.CheckpointManagerOptions(max_to_keep=config.keep)
    with ocp.CheckpointManager((out / "checkpoints").absolute(), options=options) as manager:
        newest = manager.latest_step()
        if newest is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(newest, args=ocp.args.StandardRestore(abstract))
            print(f"continuing {out} at step {newest}", flush=True)
        state, whole = _loop(config, task, state, out, manager)
    if whole:
        task.export(parameters(state, averaged=True), out / "model")
        print(f"wrote {out / 'model'}", flush=True)
    return whole


def _document(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _note_config(out: Path, config: TrainConfig) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(_document(config), indent=1) + "\n")


def _check_config(out: Path, config: TrainConfig) -> None:
    """A run continues only with what it began with; its length, paths and logging may change."""
    path, document = out / "config.json", _document(config)
    if path.exists():
        before = json.loads(path.read_text())
        differ = sorted(key for key in document if key not in FREE_FIELDS and document[key] != before.get(key))
        if differ:
            raise ValueError(
                f"{out} holds a run with another configuration; these fields differ: {', '.join(differ)}. "
                "Choose another --out or restore the fields"
            )


def _loop(
    config: TrainConfig, task: Task, state: TrainState, out: Path, manager: ocp.CheckpointManager
) -> tuple[TrainState, bool]:
    step = make_step(config, task.loss)
    watch = Watch(config, task, out)
    start = int(state.step)
    if start >= config.steps:
        return state, True
    batches = training_batches(
        task.data, task.transform, config.batch_size, config.seed, config.workers, first_step=start
    )
    stop = {"asked": False}
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    pending: tuple[int, dict[str, jax.Array]] | None = None
    began, waited, reported = time.perf_counter(), 0.0, start
    sums: dict[str, float] = {}
    try:
        with (out / "log.jsonl").open("a") as log:
            for number in range(start, config.steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                state, metrics = step(state, batch)
                if pending is not None:
                    _add(sums, pending, out)
                pending = (number + 1, metrics)
                done = number + 1
                last = done == config.steps or stop["asked"]
                if done % config.log_every == 0 or last:
                    _add(sums, pending, out)
                    pending = None
                    seconds = time.perf_counter() - began
                    count = done - reported
                    line = {
                        "step": done,
                        **{name: round(value / count, 6) for name, value in sums.items()},
                        "samples_per_second": round(count * config.batch_size / seconds, 2),
                        "data_wait": round(waited / seconds, 3),
                    }
                    print(json.dumps(line), file=log, flush=True)
                    print(" ".join(f"{key} {value}" for key, value in line.items()), flush=True)
                    began, waited, reported, sums = time.perf_counter(), 0.0, done, {}
                if done % config.checkpoint_every == 0 or last:
                    manager.save(done, args=ocp.args.StandardSave(state))
                if done % config.watch_every == 0 or done == config.steps:
                    watch(done, parameters(state, averaged=True))
                    began = time.perf_counter()
                if stop["asked"]:
                    break
    finally:
        signal.signal(signal.SIGTERM, previous)
    manager.wait_until_finished()
    return state, int(state.step) >= config.steps


def _add(sums: dict[str, float], pending: tuple[int, dict[str, jax.Array]], out: Path) -> None:
    """Fetches a step's numbers and adds them up; a loss that is no number ends the run."""
    number, metrics = pending
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not all(np.isfinite(value) for value in values.values()):
        raise ValueError(
            f"step {number} has loss {values['loss']} and gradient norm {values['gradient_norm']}: lower the learning "
            f"rate and continue {out} from its last checkpoint"
        )
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m train.run --config NAME --out DIR`, then any field of the configuration to override."""
    parser = argparse.ArgumentParser(prog="python -m train.run", add_help=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    known, rest = parser.parse_known_args(arguments)
    with exit_codes():
        config = tyro.cli(TrainConfig, default=load_config(known.config), args=rest, prog="python -m train.run")
        train(config, known.out)


if __name__ == "__main__":
    main()
