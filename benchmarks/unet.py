"""A guided step of Stable Diffusion's UNet on this machine, beside diffusers' with the same weights and precision.

    python -m benchmarks.unet --dtype float32
    XLA_FLAGS=--xla_cpu_experimental_onednn_custom_call=true python -m benchmarks.unet --dtype bfloat16
    python -m benchmarks.unet --dtype bfloat16 --size 64 64 --calls 200 --runners fcjax diffusers dual    # on a GPU

Both run in processes of their own, one after the other and so again for --rounds, on the same random weights, noise,
text and timestep, a batch of 2 (the two branches of guidance). Printed are the fastest and the median of all calls
behind the first, which compiles, and the ratio of the medians: above 1 ours is faster. Outputs are compared, too.
Needs torch and diffusers (`pip install -e ".[test]"`); on a GPU that torch sees, theirs is compiled by torch.compile
(max-autotune). "dual" is ours with one asset image's keys and values, which diffusers does not have, by default at
512x384 pixels; `--size 64 64` gives the other two the 512x512 that Stable Diffusion is timed at.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

RUNNERS = ("fcjax", "diffusers", "dual")


@dataclass
class Settings:
    """What to time."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    size: tuple[int, int] = (64, 48)
    """Of the latents."""
    dual_size: tuple[int, int] = (64, 48)
    """Of the latents of "dual", 512x384 pixels as the paper's."""
    preset: Literal["sd15", "small"] = "sd15"
    """small: a quarter of the channels, to try things."""
    rounds: int = 3
    calls: int = 3
    runners: tuple[Literal["fcjax", "diffusers", "dual"], ...] = ("fcjax", "diffusers")
    folder: Path | None = None
    """Where weights are written, or are already."""
    peer_python: str = sys.executable
    """Runs diffusers, where it and torch are installed for another interpreter."""
    run: Literal["", "fcjax", "diffusers", "dual"] = ""
    """Time this one in this very process."""


def configuration(settings: Settings) -> Any:
    from fcjax.network_config import UNetConfig

    return UNetConfig() if settings.preset == "sd15" else UNetConfig(block_out_channels=(96, 160, 320, 320))


def inputs(settings: Settings) -> tuple[np.ndarray, float, np.ndarray]:
    generator = np.random.default_rng(0)
    noisy = generator.standard_normal((2, *settings.size, 4), np.float32)
    return noisy, 500.0, generator.standard_normal((2, 77, 768), np.float32)


def with_fcjax(settings: Settings, path: Path) -> Callable[[], np.ndarray]:
    import jax
    import jax.numpy as jnp

    from fcjax import folder
    from fcjax.models.unet import UNet

    config, dtype = configuration(settings), jnp.dtype(settings.dtype)
    params = folder.load_part(path, "unet", config, dtype=dtype)
    noisy, time_, text = inputs(settings)
    unet = UNet(config, dtype=dtype)
    given = {"params": params}, jnp.asarray(noisy), jnp.full(2, time_), jnp.asarray(text, dtype)
    features = {}
    if settings.run == "dual":
        emitted = jax.jit(lambda *arguments: unet.apply(*arguments, emit=True))(*given)
        masks = tuple(jnp.ones(key.shape[:2], bool) for key, _ in emitted)
        features = {"reference": jax.block_until_ready(emitted), "reference_mask": masks}
    step = jax.jit(unet.apply)
    return lambda: np.asarray(step(*given, **features), np.float32)


def with_diffusers(settings: Settings, path: Path) -> Callable[[], np.ndarray]:
    import torch
    from diffusers import UNet2DConditionModel

    dtype = getattr(torch, settings.dtype)
    unet = UNet2DConditionModel.from_pretrained(path / "unet", torch_dtype=dtype).eval()
    unet = unet.to(memory_format=torch.channels_last)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = unet.to(device)
    if device == "cuda":
        unet = torch.compile(unet, mode="max-autotune", fullgraph=True)
    noisy, time_, text = inputs(settings)
    noise = torch.tensor(noisy.transpose(0, 3, 1, 2)).to(device, dtype, memory_format=torch.channels_last)
    words = torch.tensor(text).to(device, dtype)

    def step() -> np.ndarray:
        with torch.inference_mode():
            return unet(noise, time_, words).sample.float().cpu().numpy().transpose(0, 2, 3, 1)

    return step


def timed(settings: Settings, path: Path) -> dict[str, Any]:
    make = with_diffusers if settings.run == "diffusers" else with_fcjax
    step = make(settings, path)
    started = time.perf_counter()
    output = step()
    first = time.perf_counter() - started
    seconds = []
    for _ in range(settings.calls):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    np.save(path / f"{settings.run}.npy", output)
    return {"first": first, "seconds": seconds}


def write(settings: Settings, path: Path) -> None:
    """The UNet's folder, of random weights with no zeros among them, which would hide what comes before."""
    import jax.numpy as jnp

    from fcjax import folder, trees
    from fcjax.models.parameters import abstract_part

    generator = np.random.default_rng(0)

    def draw(path: str, leaf: Any) -> Any:
        values = generator.standard_normal(leaf.shape, np.float32)
        if path.endswith("kernel"):
            return jnp.asarray(values * np.prod(leaf.shape[:-1]) ** -0.5)
        return jnp.asarray(0.1 * values + path.endswith("scale"))

    config = configuration(settings)
    folder.save_part(path, "unet", trees.map_paths(draw, abstract_part(config)), config)


def main(settings: Settings) -> None:
    if settings.run:
        assert settings.folder is not None
        print(json.dumps(timed(settings, settings.folder)))
        return
    with tempfile.TemporaryDirectory() as aside:
        path = settings.folder or Path(aside)
        if not (path / "unet" / "config.json").exists():
            write(settings, path)
        seconds: dict[str, list[float]] = {name: [] for name in settings.runners}
        for _ in range(settings.rounds):
            for name in settings.runners:
                size = settings.dual_size if name == "dual" else settings.size
                flags = ["--dtype", settings.dtype, "--size", *map(str, size), "--preset", settings.preset]
                flags += ["--calls", str(settings.calls), "--folder", str(path), "--run", name]
                python, environment = sys.executable, dict(os.environ)
                if name == "diffusers" and settings.peer_python != python:
                    python = settings.peer_python
                    environment.pop("PYTHONPATH", None)  # this interpreter's packages
                command = [python, "-m", "benchmarks.unet", *flags]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                found = json.loads(done.stdout.splitlines()[-1])
                seconds[name] += found["seconds"]
                fastest = " ".join(f"{one:.4g}" for one in sorted(found["seconds"])[:5])
                print(f"{name:>10}: first call {found['first']:.1f} s, then {fastest}")
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, values in seconds.items():
            print(
                f"{name:>10}: fastest {min(values):.4g} s, median {medians[name]:.4g} s, "
                f"{1 / medians[name]:.3g} steps/s"
            )
        if {"fcjax", "diffusers"} <= medians.keys():
            ours, theirs = (np.load(path / f"{name}.npy") for name in ("fcjax", "diffusers"))
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            ratio = medians["diffusers"] / medians["fcjax"]
            print(f"{settings.dtype}: {ratio:.2f} times diffusers' speed; outputs differ by {error:.1e} of their scale")


if __name__ == "__main__":
    main(tyro.cli(Settings))
