"""How long the body's maps take: shape, pose, z-buffer and charts, each alone and together.

    python benchmarks/rasterizer.py --height 512 --width 384

Set OMP_NUM_THREADS=1 for the figure of one core. The goal is at most 50 ms for all maps of a full body at 512x384; the
share of the picture that the body covers is printed because it drives the time. Printed are medians by the clock and of
processor time, which other work on the machine inflates less.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro

from fcjax.body import Body, embedded_model, rasterize
from fcjax.body.charts import embedded_charts


@dataclass
class Settings:
    """What to draw and how often."""

    height: int = 512
    width: int = 384
    pose: str = "walking"
    repeats: int = 30


def milliseconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """A call's median time by the clock and on the processor, after one call that warms caches."""
    function()
    times = []
    for _ in range(repeats):
        started, worked = time.perf_counter(), time.process_time()
        function()
        times.append((time.perf_counter() - started, time.process_time() - worked))
    wall, busy = 1000 * np.median(times, axis=0)
    return float(wall), float(busy)


def main(settings: Settings) -> None:
    height, width = settings.height, settings.width
    body, model = Body(pose=settings.pose), embedded_model()
    embedded_charts()
    maps, camera = body.render(height, width), body.camera(height, width)
    projected = camera.project(maps.posed)
    stages: dict[str, Callable[[], object]] = {
        "shape": body.shaped,
        "shape and pose": body.posed,
        "project": lambda: camera.project(maps.posed),
        "rasterize": lambda: rasterize(projected, maps.faces, height, width),
        "all maps, request to result": lambda: body.render(height, width),
        "all maps and normals": lambda: body.render(height, width).normals,
    }
    triangles = len(model.faces["body"])
    covered = f"body on {maps.foreground.mean():.0%} of the picture"
    print(f"{height}x{width}, {settings.pose}, {triangles} triangles, {covered}")
    for name, function in stages.items():
        wall, busy = milliseconds(function, settings.repeats)
        print(f"  {name:28s} {wall:6.1f} ms, processor {busy:6.1f} ms")


if __name__ == "__main__":
    main(tyro.cli(Settings))
