"""How fast the input pipeline gives training batches, and how many hosts feed a step of a given rate.

    python -m train.prepare wardrobe --out data/wardrobe_512 --count 64 --height 512 --width 384
    python -m benchmarks.pipeline --config sd15 --data data/wardrobe_512 --step-rate 389

Reading, decoding, augmentation and assembling alone, without a model: samples a second by the clock, and the processor
time of one, of which follows what a host of `--host-cores` gives. --step-rate: samples a second that the step takes;
by default a v5p-8 slice's (4 chips, one host of 208 virtual cores) at the 97 samples/s a chip of docs/sharding.md.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from configs import load_config
from fcjax.data import Prepared, training_batches
from fcjax.data.augment import AS_THEY_ARE, Augmentation
from fcjax.pretrained import MINI
from fcjax.tokenizer import Tokenizer
from train.examples import example_of


@dataclass
class Settings:
    """What to read."""

    data: Path
    config: str = "sd15"
    batch_size: int = 16
    batches: int = 20
    workers: int = 2
    augment: bool = True
    """Mirror (maps of our own charts alone), crop and leave assets out at random, where the set holds pictures."""
    tokenizer: Path = MINI / "tokenizer"
    step_rate: float = 389.0
    host_cores: int = 208


def main(settings: Settings) -> None:
    config, data = load_config(settings.config), Prepared(settings.data)
    pictures = data.index["source"] != "latents"
    flip = 0.5 if data.charts == "own" else 0.0
    augment = Augmentation(flip=flip, crop=0.2, drop_asset=0.1) if settings.augment and pictures else AS_THEY_ARE
    transform = example_of(config.model, Tokenizer.load(settings.tokenizer), data.index, augment)
    batches = training_batches(data, transform, settings.batch_size, 0, settings.workers)
    for _ in range(2):  # fills the buffers
        next(batches)
    # What was read ahead counts at the end as at the beginning.
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(settings.batches):
        batch = next(batches)
    wall, busy = time.perf_counter() - started, time.process_time() - worked
    count = settings.batches * settings.batch_size
    held = sum(array.nbytes for array in batch.values()) / settings.batch_size
    cost = busy / count
    kind = "pictures" if pictures else "latents"
    print(f"{kind} of {settings.data}, {settings.workers} threads, {os.cpu_count()} cores")
    print(f"{count / wall:.1f} samples/s, {1000 * cost:.1f} ms of processor time and {held / 2**20:.2f} MiB a sample")
    hosts = settings.step_rate * cost / settings.host_cores
    print(
        f"a step of {settings.step_rate:.0f} samples/s keeps {settings.step_rate * cost:.1f} such cores busy: "
        f"{hosts:.2f} of a host of {settings.host_cores} cores, {math.ceil(hosts)} host(s)"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
