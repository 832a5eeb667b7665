"""Pictures of sets drawn into a working folder, where they stay: a killed run goes on, and many share the drawing."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import jax
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from tqdm import tqdm

from fcjax.local_devices import accelerators
from infer.arms import Arm
from infer.compose import save_png
from infer.sets import EvaluationSet


class Sets(Protocol):
    """What is drawn: `sets[index]`."""

    def __getitem__(self, index: int) -> EvaluationSet: ...


def picture_file(folder: Path, place: int | str, index: int) -> Path:
    """Where the picture of a set lies that a column of the table (by its place) drew, or that is the truth."""
    return folder / str(place) / f"{index:06d}.png"


def draw(
    sets: Sets, columns: Sequence[Arm], folder: Path, count: int, seed: int, shard: tuple[int, int], quiet: bool = False
) -> None:
    """Every column's picture of every set of this shard, on all accelerators at once; those that are there stay.

    Of a try-on the model's own picture lies in the folder beside, PLACE-raw, before the one with the person outside the
    mask, so that where the second is the first is, too.
    """
    devices = accelerators()
    # One alone needs no copy of the model.
    devices = devices if len(devices) > 1 else [None]
    free: SimpleQueue[Any] = SimpleQueue()
    for device in devices:
        free.put(device)

    def make(index: int) -> None:
        if all(picture_file(folder, place, index).exists() for place in range(len(columns))):
            return
        one, device = sets[index], free.get()
        try:
            with jax.default_device(device):
                for place, column in enumerate(columns):
                    drawn(one, column, folder, place, index, seed)
        finally:
            free.put(device)

    pool, own = ThreadPoolExecutor(len(devices)), range(shard[0], count, shard[1])
    try:
        for _ in tqdm(pool.map(make, own), total=len(own), unit="set", desc="drawing", disable=quiet):
            pass
    finally:
        # Of a failure or a Ctrl+C, what has not begun is not waited for.
        pool.shutdown(cancel_futures=True)


def drawn(
    one: EvaluationSet,
    column: Arm,
    folder: Path,
    place: int,
    index: int,
    seed: int,
    exchanged: tuple[int, int] | None = None,
) -> Path:
    """The file of a column's picture of a set, drawn where it is not there, with two phrases exchanged if so asked."""
    path = picture_file(folder, place if exchanged is None else f"{place}-exchanged", index)
    if index in column.drawn:
        return column.drawn[index]
    if not path.exists():
        assets = one.assets if exchanged is None else one.exchanged(exchanged)
        picture = column.draw(one, assets, seed + (index if one.seed is None else one.seed))
        if one.person is not None and column.composes:
            save(picture, picture_file(folder, f"{place}-raw", index))
            picture = one.person.restored(picture)
        save(picture, path)
    return path


def save(picture: UInt8[ndarray, "h w 3"], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(Image.fromarray(picture), path, None)
