"""How a run gets on: means of what its steps report, its speed, its share of the hardware's, and its memory."""

import functools
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from fcjax import trees
from fcjax.hardware import HARDWARE
from train.config import OptimizerConfig, TrainConfig
from train.cost import flops_of
from train.forecast import model_flops
from train.step import initial_state
from train.tasks import Task

GIB = 2**30
# Counting a model's FLOPs takes a trace, seconds, which a run of seconds has no use for.
COUNT_AFTER = 30.0
# What a device calls itself, and its row of HARDWARE. Others have no MFU: a peak is not guessed.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
    # The same chip with more memory.
    "NVIDIA H200": "h100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}


class Progress:
    """Adds up what steps report. Its clock starts after the first step, so that compiling does not count."""

    def __init__(self, config: TrainConfig, task: Task, step: int, devices: int):
        self._config, self._task, self._devices, self._step = config, task, devices, step
        self._sums: dict[str, float] = {}
        self._counted = self._timed = 0
        self._began: float | None = None
        self._started = self._waited = 0.0
        self._flops: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: its time does not count."""
        began = time.perf_counter()
        yield
        if self._began is not None:
            self._began += time.perf_counter() - began

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """What step number `step` reported, once it is done."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._step, self._counted = step, self._counted + 1
        if self._began is None:
            self._began = self._started = time.perf_counter()
            self._waited = 0.0
        else:
            self._timed += 1

    @property
    def unlogged(self) -> bool:
        """Whether steps were added since the last line."""
        return self._counted > 0

    def line(self) -> dict[str, float]:
        """The means since the last line, and what the run takes."""
        means = {name: value / self._counted for name, value in self._sums.items()}
        line = {"loss": means.pop("loss"), **means}
        line["learning_rate"] = learning_rate(self._config.optimizer, self._config.steps, self._step - 1)
        now = time.perf_counter()
        seconds = now - (self._began or now)
        if self._timed and seconds > 0:
            speed = self._timed * self._config.batch_size / seconds
            line |= {"samples_per_second": speed, **self._use(speed), "data_wait": min(self._waited / seconds, 1.0)}
        self._began = time.perf_counter()
        self._sums, self._counted, self._timed, self._waited = {}, 0, 0, 0.0
        return line | memory()

    def _use(self, speed: float) -> dict[str, float]:
        """Of each device, at `speed` samples a second; MFU where its peak is known."""
        if time.perf_counter() - self._started < COUNT_AFTER or jax.process_index() > 0:
            return {}
        if self._flops is None:
            self._flops = sample_flops(self._config, self._task)
        each = speed * self._flops / self._devices
        peak = peak_flops(jax.local_devices()[0].device_kind)
        return {"tflops_per_device": each / 1e12, **({"mfu": each / peak} if peak else {})}


def peak_flops(kind: str) -> float | None:
    """The FLOP/s in bfloat16 of a device that calls itself `kind`, as its maker says; None where that is not known.

    Choice: bfloat16's also for a run in float32, so that runs compare.
    """
    return HARDWARE[KINDS[kind]].flops if kind in KINDS else None


def sample_flops(config: TrainConfig, task: Task) -> float:
    """A sample's FLOPs in one step, forward and backward, without what is computed anew. Takes a trace."""
    if config.task != "vae":
        return model_flops(config)
    size = config.vae_loss.crop
    batch = {"images": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)}
    state = jax.eval_shape(functools.partial(initial_state, config.optimizer, config.steps), task.parameters)

    def gradients(trained: Any, frozen: Any, batch: Any) -> Any:
        return jax.grad(lambda some: task.loss(trees.merge(some, frozen), batch, jax.random.key(0))[0])(trained)

    return flops_of(gradients, state.trained, state.frozen, batch)


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """The rate of the update that follows `step` updates, as `fcjax.optim.make_optimizer` schedules it.

    On the host, as a device would come to it only after the steps that it has been given.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * step / warmup
    share = min((step - warmup) / (max(steps, warmup + 1) - warmup), 1.0)
    falling = 0.5 * (1.0 + math.cos(math.pi * share))
    return config.learning_rate * (config.final_rate + (1.0 - config.final_rate) * falling)


def memory() -> dict[str, float]:
    """GiB at the peak: of the fullest device of this process, or of the process where devices do not tell."""
    stats = [one for one in (device.memory_stats() for device in jax.local_devices()) if one]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        return {"device_gib": max(peaks) / GIB}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_gib": peak * (1 if sys.platform == "darwin" else 1024) / GIB}
