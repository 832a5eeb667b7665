"""The training program: `python -m train.run --config NAME --out DIR [overrides]`.

DIR holds `checkpoints/` (Orbax: parameters, moving average, optimiser, step), `config.json`, `log.jsonl` (one object a
line), `samples/` (pictures of held-out samples) and, at the end, `model/`: what was trained, with the averaged
parameters, as a model folder. A DIR that holds a
run is continued. The loop dispatches step N before it reads step N-1's numbers.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tyro
from jax.experimental import multihost_utils

from configs import load_config
from fcjax.cli import exit_codes
from fcjax.data import training_batches
from train.config import TrainConfig
from train.placement import Placement
from train.step import TrainState, initial_state, make_step, parameters
from train.tasks import Task, make_task
from train.watch import Watch

# What may change when a run is continued.
FREE_FIELDS = ("steps", "log_every", "watch_every", "checkpoint_every", "keep", "workers")
FREE_FIELDS += ("strategy", "axes", "devices")
FREE_FIELDS += ("data", "heldout", "start", "tokenizer", "vae", "export_dtype")


def train(config: TrainConfig, out: Path) -> bool:
    """Trains until `config.steps`, from the newest checkpoint in `out` if there is one, and writes `out/model`.

    Returns False where SIGTERM ended the run early; its state is saved then. ValueError: `out` holds a run of another
    configuration, or a loss that is no number.
    """
    _check_config(out, config)
    task = make_task(config)
    placement = Placement(config, task.parameters)
    _note_config(out, config)
    start = functools.partial(
        initial_state, config.optimizer, config.steps, frozen_dtype=jnp.dtype(config.compute_dtype)
    )
    options = ocp.CheckpointManagerOptions(max_to_keep=config.keep)
    with ocp.CheckpointManager((out / "checkpoints").absolute(), options=options) as manager:
        newest = manager.latest_step()
        if newest is None:
            state = placement.initial(start, task.parameters)
        else:
            abstract = placement.abstract(start, task.parameters)
            state = placement.unshared(manager.restore(newest, args=ocp.args.StandardRestore(abstract)))
            _say(f"continuing {out} at step {newest}")
        state, whole = _loop(config, task, placement, state, out, manager)
    if whole:
        params = placement.gathered(parameters(state, averaged=True))
        if _leads():
            task.export(params, out / "model")
        _say(f"wrote {out / 'model'}")
    return whole


def _leads() -> bool:
    """Whether this process is the one of all that writes and speaks."""
    return jax.process_index() == 0


def _say(line: str) -> None:
    if _leads():
        print(line, flush=True)


def _document(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _note_config(out: Path, config: TrainConfig) -> None:
    # Others may still be reading what was there.
    multihost_utils.sync_global_devices("config")
    if _leads():
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
    config: TrainConfig,
    task: Task,
    placement: Placement,
    state: TrainState,
    out: Path,
    manager: ocp.CheckpointManager,
) -> tuple[TrainState, bool]:
    shardings = placement.mesh and (placement.shardings(state), placement.batch)
    step = make_step(config, task.loss, shardings)
    watch = Watch(config, task, placement, out)
    start = int(state.step)
    if start >= config.steps:
        return state, True
    batches = training_batches(
        task.data, task.transform, config.batch_size, config.seed, config.workers, first_step=start, rows=placement.rows
    )
    pending: tuple[int, dict[str, jax.Array]] | None = None
    began, waited, reported = time.perf_counter(), 0.0, start
    sums: dict[str, float] = {}
    with _preemption() as asked_to_stop, (out / "log.jsonl" if _leads() else Path(os.devnull)).open("a") as log:
        for number in range(start, config.steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            with placement.context():
                state, metrics = step(state, placement.put_batch(batch))
            if pending is not None:
                _add(sums, pending, out)
            pending = (number + 1, metrics)
            done = number + 1
            stop = asked_to_stop(done)
            last = stop or done == config.steps
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
                _say(" ".join(f"{key} {value}" for key, value in line.items()))
                began, waited, reported, sums = time.perf_counter(), 0.0, done, {}
            if done % config.checkpoint_every == 0 or last:
                manager.save(done, args=ocp.args.StandardSave(state))
            if done % config.watch_every == 0 or done == config.steps:
                watch(done, parameters(state, averaged=True))
                began = time.perf_counter()
            if stop:
                break
    manager.wait_until_finished()
    return state, int(state.step) >= config.steps


@contextlib.contextmanager
def _preemption() -> Iterator[Callable[[int], bool]]:
    """Gives what tells after a step whether SIGTERM asks to save and stop; all processes stop at the same step."""
    if jax.process_count() > 1:
        # JAX's own handler of the signal makes the processes agree.
        yield multihost_utils.reached_preemption_sync_point
        return
    asked: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield lambda _: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, previous)


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
    parser.add_argument("--distributed", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    with exit_codes():
        if known.distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
            # JAX reads the address alone from the environment; without the others it asks the cluster.
            given = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
            jax.distributed.initialize(**{name: int(value) for name, value in given.items() if value is not None})
        config = tyro.cli(TrainConfig, default=load_config(known.config), args=rest, prog="python -m train.run")
        train(config, known.out)


if __name__ == "__main__":
    main()
