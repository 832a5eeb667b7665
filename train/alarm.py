"""Ends a run whose loss is no number or explodes, and keeps the batch at which it did."""

import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

_MEMORY = 200
# Before so many steps a median says little, and losses still fall steeply.
_LEARNED = 20


class Alarm:
    """Looks at the numbers of one step after the other. explode: see `TrainConfig.explode`."""

    def __init__(self, out: Path, explode: float):
        self._out, self._explode = out, explode
        self._losses: deque[float] = deque(maxlen=_MEMORY)

    def check(self, step: int, values: Mapping[str, float], batch: Mapping[str, np.ndarray]) -> None:
        """ValueError where the run must not go on; the batch (of this process) then lies next to the log."""
        loss, wrong = values["loss"], sorted(name for name, value in values.items() if not np.isfinite(value))
        if wrong:
            found = f"step {step} has loss {loss} and gradient norm {values['gradient_norm']}"
            found += "" if {"loss", "gradient_norm"} & set(wrong) else f"; {', '.join(wrong)} is no number"
            raise ValueError(f"{found}. {self._kept(step, batch)} {self._advice()}")
        if self._explode and len(self._losses) >= _LEARNED:
            usual = statistics.median(self._losses)
            if loss > self._explode * usual:
                raise ValueError(
                    f"step {step} has loss {loss:.6g}, more than {self._explode:g} times the {usual:.6g} of the median "
                    f"of {len(self._losses)} steps before. {self._kept(step, batch)} {self._advice()}, or let it pass "
                    "with --explode 0"
                )
        self._losses.append(loss)

    def _kept(self, step: int, batch: Mapping[str, np.ndarray]) -> str:
        share = f"_process{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._out / f"stopped_{step:08d}{share}.safetensors"
        try:
            save_file({name: np.ascontiguousarray(rows) for name, rows in batch.items()}, path)
        except OSError as error:
            return f"Its batch could not be written into {path} ({error})."
        return f"Its batch is in {path}."

    def _advice(self) -> str:
        return (
            "The same command begins again at the last checkpoint and comes to the same numbers: go on by "
            f"`python -m train.export {self._out} MODEL --raw` and a new run with --start MODEL and a lower "
            "--optimizer.learning-rate or another --seed"
        )
