"""How long `python -m infer.compose` takes from start to picture: with an empty cache of programs, and again.

    python -m benchmarks.start
    python -m benchmarks.start --model path/to/model --steps 20

Every run is a process of its own; the cache is a folder of its own, gone afterwards.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class Settings:
    """What to start."""

    model: str = "mini"
    steps: int | None = None
    """The model's own by default."""
    runs: int = 3
    """The first has nothing to read."""


def processor_seconds() -> float:
    """Of all processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as aside:
        environment = {**os.environ, "FCJAX_COMPILATION_CACHE": str(Path(aside) / "cache")}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-m", "infer.compose", "--model", settings.model]
        command += [] if settings.steps is None else ["--steps", str(settings.steps)]
        command += ["--prompt", "a woman on a plain grey background", "--out", str(Path(aside) / "out.png")]
        walls, busy = [], []
        for run in range(settings.runs):
            started, before = time.perf_counter(), processor_seconds()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            walls.append(time.perf_counter() - started)
            busy.append(processor_seconds() - before)
            what = "another start" if run else "the first start"
            print(f"{what}: {walls[-1]:.1f} s, {busy[-1]:.1f} s of processor time", flush=True)
        if settings.runs > 1:
            later = statistics.median(walls[1:]) / walls[0], statistics.median(busy[1:]) / busy[0]
            print(f"a later start takes {later[0]:.2f} of the first one's time, {later[1]:.2f} of its processor time")


if __name__ == "__main__":
    main(tyro.cli(Settings))
