"""How long `python -m infer.compose` takes from start to picture: with an empty cache of programs, and again.

    python -m benchmarks.start
    python -m benchmarks.start --model path/to/model --steps 20

Every run is a process of its own; the cache is a folder of its own, gone afterwards.
"""

import os
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
    steps: int = 20
    runs: int = 3
    """The first has nothing to read."""


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as aside:
        environment = {**os.environ, "FCJAX_COMPILATION_CACHE": str(Path(aside) / "cache")}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-m", "infer.compose", "--model", settings.model, "--steps", str(settings.steps)]
        command += ["--prompt", "a woman on a plain grey background", "--out", str(Path(aside) / "out.png")]
        for run in range(settings.runs):
            started = time.perf_counter()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            what = "another start" if run else "the first start"
            print(f"{what}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
