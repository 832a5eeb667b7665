"""What reading a Stable Diffusion 1.5 folder takes: seconds, and memory beyond what the programs hold before.

    python -m benchmarks.loading --dtype bfloat16

A folder of random weights (UNet, VAE, text encoder: 1,066 M parameters) is written first, to --folder or aside. Then
`fcjax.pretrained.load` reads it, as it is stored, in a process of its own, and so do diffusers and transformers where
they are installed. Printed are seconds, and memory beside what is promised: the model and its largest tensor once more.
(Tracing the networks' shapes takes about 34 MiB whatever their size, as --preset tiny shows.)
Memory is the largest of the anonymous resident memory that a thread sees every few milliseconds, beyond what is held
once JAX or torch has started: files that are mapped do not count, as the system takes their pages back whenever it
needs them (diffusers maps its files and reads them when they are used). Linux alone.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass
class Settings:
    """What to write and read."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    folder: Path | None = None
    """Where the model is written, or is already."""
    preset: Literal["sd15", "tiny"] = "sd15"
    """tiny: to try things."""
    reader: Literal["both", "fcjax", "diffusers"] = "both"
    """One of them reads in this very process."""


def write(path: Path, settings: Settings) -> None:
    """A Stable Diffusion folder of random weights."""
    import numpy as np

    from fcjax import folder, part_config, presets, trees
    from fcjax.models.parameters import abstract_part

    config, generator = getattr(presets, settings.preset)(), np.random.default_rng(0)
    plain = dataclasses.replace(config.unet, in_channels=config.vae.latent_channels, ff_mult=4)
    for name, part in (("unet", plain), ("vae", config.vae), ("text_encoder", config.text_encoder)):
        drawn = trees.map_paths(
            lambda _, leaf: 0.02 * generator.standard_normal(leaf.shape, np.float32), abstract_part(part)
        )
        folder.save_part(path, name, drawn, part, dtype=settings.dtype)
    (path / "scheduler").mkdir()
    scheduler = part_config.config_dict("scheduler", config.diffusion)
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (path / "tokenizer").mkdir()
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def read_with_fcjax(path: Path) -> Callable[[], Any]:
    import jax

    from fcjax import pretrained

    jax.block_until_ready(jax.numpy.zeros(()))
    return lambda: pretrained.load(path, binding="none")


def read_with_diffusers(path: Path) -> Callable[[], Any]:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    stored = getattr(torch, json.loads((path / "dtype.json").read_text()))
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    return lambda: [reader.from_pretrained(path / name, dtype=stored) for name, reader in classes.items()]


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@dataclass
class Watched:
    """The most bytes beyond those held at the start."""

    most: int = 0


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Look at this process's memory every few milliseconds while the block runs."""
    before, found, done = anonymous_bytes(), Watched(), threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            found.most = max(found.most, anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        found.most = max(found.most, anonymous_bytes() - before)
        done.set()
        watcher.join()


def stored_bytes(path: Path) -> tuple[int, int]:
    """Of all tensors, and of the largest."""
    sizes = []
    for file in path.glob("*/*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        sizes += [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
    lengths = [end - start for start, end in sizes]
    return sum(lengths), max(lengths)


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def main(settings: Settings) -> None:
    if settings.reader != "both":
        assert settings.folder is not None
        reader = read_with_fcjax if settings.reader == "fcjax" else read_with_diffusers
        read = reader(settings.folder)
        with watched() as memory:
            started = time.perf_counter()
            model = read()
            seconds = time.perf_counter() - started
        del model
        print(json.dumps({"seconds": seconds, "memory": memory.most}))
        return
    with tempfile.TemporaryDirectory() as aside:
        path = settings.folder or Path(aside) / "sd15"
        if not (path / "dtype.json").exists():
            write(path, settings)
            (path / "dtype.json").write_text(json.dumps(settings.dtype))
        total, largest = stored_bytes(path)
        print(f"the model {mib(total)}, its largest tensor {mib(largest)}: {mib(total + largest)} promised")
        peers = ["diffusers"] if all(map(find_spec, ("torch", "diffusers"))) else []
        found = {}
        for reader in ("fcjax", *peers):
            command = [sys.executable, "-m", "benchmarks.loading", "--reader", reader, "--folder", str(path)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[reader] = json.loads(done.stdout.splitlines()[-1])
            print(f"{reader:>10}: {found[reader]['seconds']:.1f} s, at most {mib(found[reader]['memory'])}", flush=True)
        ours = found["fcjax"]
        print(f"fcjax: {ours['memory'] / (total + largest):.2f} times what is promised")
        if peers:
            print(f"fcjax: {ours['seconds'] / found['diffusers']['seconds']:.1f} times diffusers' seconds")


if __name__ == "__main__":
    main(tyro.cli(Settings))
