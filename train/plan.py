"""What a training step, or sampling, takes on hardware that need not be there.

    JAX_PLATFORMS=cpu python -m train.plan --config sd15 --hardware v5p:2x2x2 h100:8 --strategy data fsdp --batch 4 8
    JAX_PLATFORMS=cpu python -m train.plan --what sample --config sd15 --hardware h100:1 --batch 1 4 --plot plan.png
    JAX_PLATFORMS=cpu python -m train.plan --what unet --size 512 512 --config sd15 --strategy data --batch 8 32

The real programs are compiled ahead of time for every combination of hardware, strategy, batch (per device) and remat.
Needs the compilers: `pip install "jax[tpu]"` for TPUs, `pip install "jax[cuda13]"` for GPUs; `--plot` matplotlib.
`train.forecast` says where each figure comes from.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from configs import load_config
from fcjax.cli import run
from train.config import TrainConfig
from train.forecast import Plan, model_flops, plan_sampling, plan_training

MIB = 2**20


@dataclasses.dataclass
class Settings:
    """What to compile."""

    config: str = "sd15"
    what: Literal["train", "unet", "sample"] = "train"
    """unet: training the denoiser alone, all of it, as plain Stable Diffusion is; sample: pictures, with guidance."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures; the configuration's by default."""
    hardware: tuple[str, ...] = ("v5p:2x2x2",)
    """Kind and size: v5p:4x4x4, v5e:4x4, h100:8, cpu:8 (simulated)."""
    strategy: tuple[str, ...] = ("fsdp",)
    batch: tuple[int, ...] = (8,)
    """Samples, or pictures, per device."""
    remat: tuple[Literal["none", "layers", "dots", "all"], ...] = ("none",)
    """For training."""
    steps: int = 20
    """Of sampling."""
    json: Path | None = None
    plot: Path | None = None
    """A PNG, SVG or PDF: samples/s and memory of every combination."""


_COLUMNS = ("hardware", "strategy", "remat", "batch", "MiB", "held", "temps", "fits", "ms", "xla", "attn", "comm")
_COLUMNS += ("MFU", "samples/s", "compiled in")


def _row(one: Plan) -> list[str]:
    temps = one.memory_by_kind["temporaries"]
    milliseconds = [1000 * one.seconds_by_kind[kind] for kind in ("xla", "attention", "collectives")]
    return [
        one.hardware,
        one.strategy,
        one.remat,
        str(one.batch),
        *(f"{size / MIB:.0f}" for size in (one.memory, one.memory - temps, temps)),
        "yes" if one.fits else "NO",
        *(f"{value:.1f}" for value in (1000 * one.seconds, *milliseconds)),
        f"{one.mfu:.1%}",
        f"{one.samples_per_second:.1f}",
        f"{one.compile_seconds:.0f} s",
    ]


def _config(settings: Settings) -> TrainConfig:
    config = load_config(settings.config)
    if settings.size is None:
        return config
    height, width = settings.size
    return dataclasses.replace(config, model=dataclasses.replace(config.model, height=height, width=width))


def plans(settings: Settings) -> Iterable[Plan]:
    """Every combination, one after the other, as they are asked for.

    One that does not suit is printed with its reason and left out; ValueError where there is no other.
    """
    config = _config(settings)
    remats = ("none",) if settings.what == "sample" else settings.remat
    grid = list(itertools.product(settings.hardware, settings.strategy, settings.batch, remats))
    for name, chosen, batch, remat in grid:
        try:
            if settings.what == "sample":
                yield plan_sampling(config.model, name, chosen, batch, steps=settings.steps)
            else:
                yield plan_training(config, name, chosen, batch, remat, alone=settings.what == "unet")
        except ValueError as error:
            if len(grid) == 1:
                raise
            print(f"{name} {chosen} {remat} x{batch}: {error}", flush=True)


def plot(found: list[Plan], path: Path) -> None:
    """Bars of samples/s per device, and of memory by kind, a row for every plan.

    ValueError, naming what to install, without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("--plot needs matplotlib: pip install 'fcjax[plot]'") from error
    figure = Figure(figsize=(11, 1.5 + 0.35 * len(found)), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    rows = range(len(found))
    names = [f"{one.hardware} {one.strategy} {one.remat} x{one.batch}" for one in found]
    bars = speed.barh(
        rows, [one.samples_per_second for one in found], color=["C0" if one.fits else "C7" for one in found]
    )
    speed.bar_label(bars, [f"{one.mfu:.0%}" if one.fits else "does not fit" for one in found], padding=3)
    speed.set_yticks(rows, names)
    speed.invert_yaxis()
    speed.set_xlabel("samples/s per device (MFU beside)")
    before = [0.0] * len(found)
    for kind in dict.fromkeys(kind for one in found for kind in one.memory_by_kind):
        sizes = [one.memory_by_kind.get(kind, 0.0) / 2**30 for one in found]
        memory.barh(rows, sizes, left=before, label=kind)
        before = [sum(pair) for pair in zip(before, sizes, strict=True)]
    memory.set_xlabel("GiB per device")
    memory.legend(fontsize="small")
    figure.savefig(path)


def main(settings: Settings) -> None:
    found = []
    print(f"{settings.config}, {settings.what}, all per device", end="")
    if settings.what != "sample":
        flops = model_flops(_config(settings), alone=settings.what == "unet")
        print(f"; a sample's step takes {flops / 1e12:.2f} TFLOP", end="")
    print("\n" + " ".join(f"{column:>11}" for column in _COLUMNS), flush=True)
    for one in plans(settings):
        found.append(one)
        print(" ".join(f"{cell:>11}" for cell in _row(one)), flush=True)
        # At once, as a later combination may take minutes or not suit.
        if settings.json:
            settings.json.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=1) + "\n")
    if settings.plot:
        plot(found, settings.plot)


if __name__ == "__main__":
    run(main)
