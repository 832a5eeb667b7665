"""What a training step, or sampling, takes on hardware that need not be there.

    JAX_PLATFORMS=cpu python -m train.plan --config sd15 --hardware v5p:2x2x2 h100:8 --strategy data fsdp --batch 4 8
    JAX_PLATFORMS=cpu python -m train.plan --what sample --config sd15 --hardware h100:1 --batch 1 4 --plot plan.png
    JAX_PLATFORMS=cpu python -m train.plan --what unet --size 512 512 --config sd15 --strategy data --batch 8 32
    JAX_PLATFORMS=cpu python -m train.plan --config sd15 --hardware v5e:16x16 --strategy fsdp:data=32 --accumulate 2

The real programs are compiled ahead of time for every combination of hardware, strategy, batch (per device) and remat.
Every other field of the configuration can be set as for `train.run`: `--optimizer.ema-decay 0`, `--task tryon`.
Needs the compilers: `pip install "jax[tpu]"` for TPUs, `pip install "jax[cuda13]"` for GPUs; `--plot` matplotlib.
`train.forecast` says where each figure comes from. A second planner beside one that compiles for TPUs needs
ALLOW_MULTIPLE_LIBTPU_LOAD=1.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import tyro

from configs import load_config
from fcjax.cli import exit_codes
from fcjax.hardware import HARDWARE
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
    """Kind and size: v5p:4x4x4, v5e:4x4, v5e:4x4:2 (two slices), h100:8, cpu:8 (simulated)."""
    strategy: tuple[str, ...] = ("fsdp",)
    """Of `configs.sharding`, sizes of axes behind it: fsdp:data=32."""
    batch: tuple[int, ...] = (8,)
    """Samples, or pictures, per device."""
    remat: tuple[Literal["none", "layers", "dots", "all"], ...] = ("none",)
    """For training."""
    steps: int | None = None
    """Of sampling; the configuration's by default."""
    quick: bool = False
    """For TPUs about half the time: the same memory but for the program's own, and no count of cycles."""
    json: Path | None = None
    plot: Path | None = None
    """A PNG, SVG or PDF: samples/s and memory of every combination."""


_MEMORY = {
    "params": ("trained", "frozen", "weights"),
    "optimiser": ("optimizer", "average"),
    "grads": ("gradients",),
    "acts": ("activations", "temporaries"),
    "other": ("batch", "conditions", "padding", "program"),
}
_SECONDS = ("compute", "memory", "attention", "collectives")
_COLUMNS = ("hardware", "strategy", "remat", "batch", "MiB", *_MEMORY, "fits", "GB moved", "ms", *_SECONDS)
_COLUMNS += ("MFU", "samples/s", "compiled in")


def _row(one: Plan) -> list[str]:
    kinds = [sum(one.memory_by_kind.get(kind, 0.0) for kind in group) for group in _MEMORY.values()]
    times = [one.seconds, *(one.seconds_by_kind.get(kind) for kind in _SECONDS)]
    return [
        one.hardware,
        one.strategy,
        one.remat,
        str(one.batch),
        *(f"{size / MIB:.0f}" for size in (one.memory, *kinds)),
        "yes" if one.fits else "NO",
        _number(one.compiled_bytes, "{:.1f}", 1e-9),
        *(_number(value, "{:.1f}", 1000) for value in times),
        _number(one.mfu, "{:.1%}"),
        _number(one.samples_per_second, "{:.1f}"),
        f"{one.compile_seconds:.0f} s",
    ]


def _number(value: float | None, form: str, times: float = 1.0) -> str:
    return "-" if value is None else form.format(value * times)


def _notes(one: Plan) -> list[str]:
    """What no column has room for: the collectives by kind, and the FLOPs that XLA does not count."""
    sums: dict[str, list[float]] = {}
    for found in one.collectives:
        total = sums.setdefault(f"{found['kind']} over {len(found['members'])}", [0.0, 0.0, 0.0])
        for place, field in enumerate(("count", "bytes", "seconds")):
            total[place] += found["runs"] * found[field]
    notes = [
        f"{kind}: {count:.0f}, {size / 1e9:.2f} GB, {1000 * seconds:.1f} ms"
        for kind, (count, size, seconds) in sums.items()
    ]
    if one.kernel_flops:
        notes.append(
            f"attention kernels: {one.kernel_flops / 1e12:.2f} TFLOP; XLA counts none, their time is added here"
        )
    peak = HARDWARE[one.hardware.partition(":")[0]].flops
    if one.what != "sample" and one.xla_seconds_counted_ahead and one.xla_seconds and one.seconds:
        # Of kernels that it cannot time XLA takes whole seconds off.
        ahead = (one.xla_seconds_counted_ahead - one.xla_seconds) % 1.0
        whole = one.seconds + ahead
        notes.append(
            f"were copies ahead time of their own, as XLA counts them: {ahead * 1000:.1f} ms more, "
            f"{whole * 1000:.1f} ms, MFU {one.flops / whole / peak:.1%}"
        )
    if one.cycle_seconds:
        share = one.flops / one.cycle_seconds / peak
        notes.append(f"by the compiler's count of cycles: {one.cycle_seconds * 1000:.1f} ms, MFU {share:.1%}")
    return notes


_PLANNED = {
    "strategy": "--strategy",
    "axes": "--strategy NAME:AXIS=SIZE",
    "devices": "--hardware",
    "batch_size": "--batch",
}
"""Fields of a configuration that the planner's own flags decide."""


def _config(settings: Settings, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration as asked for. SystemExit(2) for an override that is none; ValueError for one in vain."""
    given = load_config(settings.config)
    config = tyro.cli(TrainConfig, default=given, args=overrides, prog="python -m train.plan")
    for field, flag in _PLANNED.items():
        if getattr(config, field) != getattr(given, field):
            raise ValueError(f"the planner takes no --{field.replace('_', '-')}: give {flag}")
    if settings.size is None:
        return config
    height, width = settings.size
    return dataclasses.replace(config, model=dataclasses.replace(config.model, height=height, width=width))


def plans(settings: Settings, config: TrainConfig) -> Iterable[Plan]:
    """Every combination, one after the other, as they are asked for.

    One that does not suit is printed with its reason and left out; ValueError where there is no other.
    """
    remats = ("none",) if settings.what == "sample" else settings.remat
    grid = list(itertools.product(settings.hardware, settings.strategy, settings.batch, remats))
    for name, chosen, batch, remat in grid:
        try:
            if settings.what == "sample":
                steps = config.model.steps if settings.steps is None else settings.steps
                yield plan_sampling(config.model, name, chosen, batch, steps=steps, quick=settings.quick)
            else:
                alone = settings.what == "unet"
                yield plan_training(config, name, chosen, batch, remat, alone=alone, quick=settings.quick)
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
        rows, [one.samples_per_second or 0.0 for one in found], color=["C0" if one.fits else "C7" for one in found]
    )
    labels = [_number(one.mfu, "{:.0%}") if one.fits else "does not fit" for one in found]
    speed.bar_label(bars, labels, padding=3)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m train.plan`, then any field of the configuration to override."""
    with exit_codes():
        given = sys.argv[1:] if arguments is None else arguments
        settings, overrides = tyro.cli(Settings, description=__doc__, args=given, return_unknown_args=True)
        config, found = _config(settings, overrides), []
        print(f"{settings.config}, {settings.what}, all per device", end="")
        if settings.what != "sample":
            flops = model_flops(config, alone=settings.what == "unet")
            print(f"; a sample's step takes {flops / 1e12:.3g} TFLOP", end="")
        print("\n" + " ".join(f"{column:>11}" for column in _COLUMNS), flush=True)
        for one in plans(settings, config):
            found.append(one)
            print(" ".join(f"{cell:>11}" for cell in _row(one)), flush=True)
            for note in _notes(one):
                print(f"{'':>11} {note}", flush=True)
            # At once, as a later combination may take minutes or not suit.
            if settings.json:
                settings.json.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=1) + "\n")
        if not found:
            raise ValueError("no combination suits; the reasons stand above")
        if settings.plot:
            plot(found, settings.plot)


if __name__ == "__main__":
    main()
