"""How fast Wardrobe draws: samples a second in one process, with the shares of its stages.

    python -m benchmarks.wardrobe --count 30 --height 256 --width 192

Set OMP_NUM_THREADS=1 for the figure of one core.
"""

import time
from dataclasses import dataclass

import tyro

from fcjax.wardrobe import POSES_PER_OUTFIT, Wardrobe


@dataclass
class Settings:
    """What to draw."""

    count: int = 30
    height: int = 256
    width: int = 192
    split: str = "train"
    seed: int = 0


def main(settings: Settings) -> None:
    wardrobe = Wardrobe(settings.split, settings.seed, settings.height, settings.width)
    wardrobe[0]  # loads the body and draws the noise tables
    # Whole outfits, so that the first sample of each (which cuts and paints) and the others count as they occur.
    first = POSES_PER_OUTFIT[settings.split]
    started, worked = time.perf_counter(), time.process_time()
    for index in range(first, first + settings.count):
        wardrobe[index]
    wall, busy = time.perf_counter() - started, time.process_time() - worked
    print(
        f"{settings.height}x{settings.width}, {settings.count} samples of {settings.split}: "
        f"{settings.count / wall:.1f} a second by the clock, {settings.count / busy:.1f} a second of processor time "
        f"({1000 * busy / settings.count:.0f} ms each)"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
