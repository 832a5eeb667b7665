"""Traces of JAX's profiler: of the steps that the configuration names, or of the next ones after SIGUSR1."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from fcjax.cli import one_line
from train.config import TrainConfig
from train.logs import Log


class Tracer:
    """A context around a run's steps. Traces go to OUT/profile/STEP, for TensorBoard, XProf or Perfetto."""

    def __init__(self, config: TrainConfig, out: Path, log: Log):
        self._config, self._out, self._log = config, out, log
        self._asked = False
        self._until: int | None = None
        self._step = 0

    def __enter__(self) -> "Tracer":
        self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR1, self._previous)
        self._stop()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def before(self, step: int) -> None:
        """Before step number `step` is begun."""
        if self._until is None and (self._asked or step == self._config.profile_at):
            self._asked = False
            self._step, self._until = step, step + self._config.profile_steps - 1
            jax.profiler.start_trace(self._folder())

    def after(self, step: int, result: Any) -> None:
        """After it was begun; waits for `result` where it is the last that is traced."""
        if self._until is not None and step >= self._until:
            jax.block_until_ready(result)
            self._stop()

    def _folder(self) -> Path:
        return self._out / "profile" / f"{self._step:08d}"

    def _stop(self) -> None:
        if self._until is not None:
            self._until = None
            try:
                jax.profiler.stop_trace()
            except (RuntimeError, OSError) as error:
                # A run does not end for want of a trace.
                self._log.warn(self._step, f"no trace in {self._folder()}: {one_line(error)}")
            else:
                self._log.say(f"traced from step {self._step} on: {self._folder()}")
