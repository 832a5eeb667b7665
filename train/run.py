"""The training program: `python -m train.run --config NAME --out DIR [overrides]`.

DIR holds `checkpoints/` (parameters, moving average, optimiser, step), `config.json`, `log.jsonl` and other logs
(`train.logs`), `samples/` (pictures of held-out samples) and, at the end, `model/`: what was trained, with the averaged
parameters, as a model folder. A DIR that holds a run is continued: from the newest checkpoint that is whole, to the
same numbers that an uninterrupted run would have. SIGTERM saves and ends with 0; SIGUSR1 traces the next steps into
`profile/`.
A configuration without a data set (tiny) draws a few samples into DIR/data.
The loop dispatches step N before it reads step N-1's numbers; meanwhile the next batches are laid on the devices.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import multihost_utils

from configs import CONFIGS, load_config
from fcjax import processor
from fcjax.cli import exit_codes
from fcjax.data import training_batches
from train.alarm import Alarm
from train.checkpoints import Checkpoints, newest, steps_of
from train.config import TrainConfig
from train.documents import check_continues, write_config
from train.lock import alone
from train.logs import Log
from train.own_data import with_data
from train.placement import Placement, mesh_of
from train.progress import Progress
from train.step import TrainState, initial_state, make_step, parameters
from train.tasks import Task, make_task
from train.tracing import Tracer
from train.watch import Watch

Start = Callable[[dict[str, Any]], TrainState]


def train(config: TrainConfig, out: Path) -> bool:
    """Trains until `config.steps`, from the newest checkpoint in `out` if there is one, and writes `out/model`.

    Returns False where SIGTERM ended the run early; what is new of its state is saved then. ValueError: another run is
    writing into `out`, it holds one of another configuration or no checkpoint that can be read, one could not be
    written, or a loss is no number or explodes.
    """
    # From here on, as reading weights and writing what was trained take their time, too.
    with _preemption() as asked_to_stop:
        return _train(config, out, asked_to_stop)


def _train(config: TrainConfig, out: Path, asked_to_stop: Callable[[int], bool]) -> bool:
    # Several processes can agree on a step only once they have been asked about one of that size.
    if asked_to_stop(max(steps_of(out / "checkpoints"), default=0)):
        return False
    before = check_continues(out, config)
    # What no data is needed to see.
    mesh_of(config)
    config = with_data(config, out)
    task = make_task(config)
    placement = Placement(config, task.parameters)
    with alone(out) if jax.process_index() == 0 else contextlib.nullcontext():
        # Others may still be reading what was there.
        multihost_utils.sync_global_devices("config")
        if jax.process_index() == 0:
            write_config(out, config)
        return _go_on(config, out, task, placement, before, asked_to_stop)


def _go_on(
    config: TrainConfig,
    out: Path,
    task: Task,
    placement: Placement,
    before: TrainConfig | None,
    asked_to_stop: Callable[[int], bool],
) -> bool:
    """From the newest checkpoint, or the start. before: the configuration of the run that is there."""
    warnings: list[str] = []
    found = newest(out / "checkpoints", placement.abstract(start_of(config), task.parameters), warnings.append)
    step, state = (0, placement.initial(start_of(config), task.parameters)) if found is None else found
    # The state has them, or later ones: the memory of those that the run began with is given back.
    task = dataclasses.replace(task, parameters=jax.eval_shape(lambda params: params, task.parameters))
    with Log(out, step, config.tensorboard) as log:
        for warning in (*warnings, *advice(config)):
            log.warn(step, warning)
        if found is not None:
            if before and config.optimizer.final_rate != 1.0 and config.steps != before.steps:
                log.warn(step, f"the learning rate now falls over {config.steps} steps, no longer over {before.steps}")
            state = placement.unshared(state)
            log.say(f"continuing {out} at step {step}")
            if step > config.steps:
                log.warn(step, f"the run has {step} steps, more than the {config.steps} that were asked for")
        run = _Run(config, out, task, placement, log, asked_to_stop)
        state, whole = run.steps(state, step, continued=found is not None)
        if whole:
            params = placement.gathered(parameters(state, averaged=True))
            if jax.process_index() == 0:
                task.export(params, out / "model")
            log.say(f"wrote {out / 'model'}")
    return whole


def advice(config: TrainConfig) -> list[str]:
    """What of a configuration will do, but badly."""
    told, warmup = [], config.optimizer.warmup_steps
    if config.compute_dtype == "bfloat16" and jax.default_backend() == "cpu" and not processor.multiplies_bfloat16():
        told.append(
            "this processor has no bfloat16 instructions; --compute-dtype float32 may be many times faster on it"
        )
    if warmup >= config.steps:
        told.append(
            f"the learning rate rises for {warmup} steps and the run has {config.steps}: it ends before the rate is "
            "reached; --optimizer.warmup-steps sets how long it rises"
        )
    return told


def start_of(config: TrainConfig) -> Start:
    """What makes the state that a run begins with of its parameters."""
    dtype = jnp.dtype(config.compute_dtype)
    return functools.partial(initial_state, config.optimizer, config.steps, frozen_dtype=dtype)


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that was dispatched and whose numbers were not read yet."""

    step: int
    metrics: Mapping[str, jax.Array]
    batch: Mapping[str, np.ndarray]


class _Run:
    """The loop over the steps, and what reads along."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        task: Task,
        placement: Placement,
        log: Log,
        asked_to_stop: Callable[[int], bool],
    ):
        self._config, self._out, self._task, self._placement, self._log = config, out, task, placement, log
        self._asked_to_stop = asked_to_stop
        self._watch = Watch(config, task, placement, out, log)
        self._alarm = Alarm(out, config.explode)
        self._pending: _Pending | None = None

    def steps(self, state: TrainState, start: int, continued: bool) -> tuple[TrainState, bool]:
        """The state after the last step or the one at which SIGTERM came, and whether it was the last."""
        config = self._config
        shardings = self._placement.mesh and (self._placement.shardings(state), self._placement.batch)
        step = make_step(config, self._task.loss, shardings)
        devices = 1 if self._placement.mesh is None else self._placement.mesh.size
        self._progress = Progress(config, self._task, start, devices)

        def warn(text: str) -> None:
            self._log.warn(start, text)

        folder, data = self._out / "checkpoints", self._task.data
        with (
            Checkpoints(folder, config, len(data), data.content, warn) as checkpoints,
            Tracer(config, self._out, self._log) as tracer,
            contextlib.closing(self._batches(start)) as batches,
        ):
            if continued:
                checkpoints.check(start)
            if start < config.steps:
                if self._asked_to_stop(start):
                    return state, False
                self._log.say("compiling the step, minutes where no run has left it in the cache; then the steps come")
            for number in range(start + 1, config.steps + 1):
                with self._progress.waiting():
                    batch, laid = next(batches)
                tracer.before(number)
                with self._placement.context():
                    state, metrics = step(state, laid)
                tracer.after(number, metrics)
                self._read()
                self._pending = _Pending(number, metrics, batch)
                checkpoints.poll()
                stop = self._asked_to_stop(number)
                self._pause(number, state, checkpoints, stop)
                if stop:
                    return state, number == config.steps
        return state, True

    def _batches(self, start: int) -> grain.DatasetIterator:
        """Batches from that of step `start` + 1 on, each as it was read and as it lies on the devices."""
        config, task, placement = self._config, self._task, self._placement
        return training_batches(
            task.data,
            task.transform,
            config.batch_size,
            config.seed,
            config.workers,
            first_step=start,
            rows=placement.rows,
            lay=placement.put_batch,
        )

    def _read(self) -> None:
        """Fetches the numbers of the step before, which may end the run, and logs them when it is time."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(pending.metrics)).items()}
        try:
            self._alarm.check(pending.step, values, pending.batch)
        except ValueError as stopped:
            self._log.note(pending.step, str(stopped))
            raise
        self._progress.add(pending.step, values)
        if pending.step % self._config.log_every == 0:
            self._log.line(pending.step, self._progress.line())

    def _pause(self, done: int, state: TrainState, checkpoints: Checkpoints, stop: bool) -> None:
        """Saves and shows the state after `done` steps, where it is time to."""
        config = self._config
        last = stop or done == config.steps
        saved = last or done % config.checkpoint_every == 0
        # A machine that is about to be taken away waits for nothing else.
        shown = done == config.steps or (done % config.watch_every == 0 and not stop)
        if not (saved or shown):
            return
        # Nothing is saved whose loss was not seen to be a number.
        self._read()
        if last and self._progress.unlogged:
            self._log.line(done, self._progress.line())
        with self._progress.paused():
            averaged = parameters(state, averaged=True)
            measured = shown or (saved and config.keep_best and not stop)
            loss = self._watch.measure(done, averaged) if measured else None
            if saved:
                checkpoints.save(done, state, loss)
            if shown:
                self._watch.draw(done, averaged)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m train.run --config NAME --out DIR`, then any field of the configuration to override."""
    usage = "python -m train.run --config NAME --out DIR [--help] [fields to override]; NAME is one of "
    parser = argparse.ArgumentParser(prog="python -m train.run", usage=usage + ", ".join(CONFIGS), add_help=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--distributed", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    # Orbax prints the traceback of what it raises, once for each of its threads.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with exit_codes():
        if known.distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
            # JAX reads the address alone from the environment; without the others it asks the cluster.
            given = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
            counts: dict[str, Any] = {name: int(value) for name, value in given.items() if value is not None}
            jax.distributed.initialize(**counts)
        config = tyro.cli(TrainConfig, default=load_config(known.config), args=rest, prog="python -m train.run")
        train(config, known.out)


if __name__ == "__main__":
    main()
