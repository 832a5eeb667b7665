"""Scores pairs of picture files by a protocol: a map over pairs that keeps what is done, so that a killed run goes on.

Decoding, resizing, SSIM and PSNR run in as many processes as are asked for; networks run in this one, in batches. A
picture is held only while it is scored.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from tqdm import tqdm

from fcjax.metrics.protocols import DISTRIBUTION, PAIRWISE, Metric, Protocol
from fcjax.pictures import open_mask, open_rgb
from infer.folders import Pair

Picture = UInt8[ndarray, "h w 3"]
Features = Callable[[UInt8[ndarray, "b h w 3"]], Float[ndarray, "b d"]]
Distance = Callable[[UInt8[ndarray, "b h w 3"], UInt8[ndarray, "b h w 3"]], Float[ndarray, "b"]]
SIDES = ("predictions", "truth")


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """What LPIPS and FID need, and by which files it can be known."""

    lpips: Distance | None = None
    inception: Features | None = None
    names: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """One pair: its figures so far, and what the networks are to see of it."""

    place: int
    figures: dict[str, float | None]
    for_lpips: tuple[Picture, Picture] | None
    for_inception: tuple[Picture | None, Picture | None]


def measure(place: int, pair: Pair, protocol: Protocol, metrics: Sequence[Metric]) -> Measured:
    """Everything about one pair that needs no network."""
    paths = (pair.prediction, pair.truth)
    stored = [None if path is None else open_rgb(path) for path in paths]
    jpegs = tuple(path is not None and path.suffix.lower() in (".jpg", ".jpeg") for path in paths)
    wanted, features = [m for m in metrics if m in PAIRWISE], any(m in DISTRIBUTION for m in metrics)
    figures: dict[str, float | None] = {}
    for_lpips = None
    compared: tuple[Picture | None, Picture | None] = (None, None)
    if wanted or pair.mask is not None:
        assert stored[0] is not None and stored[1] is not None
        mask = None if pair.mask is None else open_mask(pair.mask)
        compared = made, true = protocol.pair(stored[0], stored[1], mask, (jpegs[0], jpegs[1]))
        if "ssim" in wanted or "psnr" in wanted:
            try:
                similarity = protocol.similarity(made, true)
            except ValueError as error:
                raise ValueError(f"{pair.prediction} cannot be compared: {error}") from None
            figures = {name: _finite(value) for name, value in similarity.items() if name in wanted}
        if "lpips" in wanted:
            for_lpips = protocol.for_lpips(made), protocol.for_lpips(true)
    if not features:
        return Measured(place, figures, for_lpips, (None, None))
    if protocol.reference == "native":
        return Measured(place, figures, for_lpips, (stored[0], stored[1]))
    made, true = (
        done if done is not None or picture is None else protocol.alone(picture, jpeg)
        for done, picture, jpeg in zip(compared, stored, jpegs, strict=True)
    )
    return Measured(place, figures, for_lpips, (made, true))


def _finite(value: float) -> float | None:
    """None for the PSNR of equal pictures, which is infinite and has no mean."""
    return value if np.isfinite(value) else None


def score_pairs(
    pairs: Sequence[Pair],
    protocol: Protocol,
    metrics: Sequence[Metric],
    networks: Networks,
    scratch: "Scratch",
    *,
    workers: int = 1,
    batch: int = 8,
    quiet: bool = False,
) -> None:
    """Fills the scratch with every pair's figures and features; those that it holds already are left alone."""
    left = [place for place, pair in enumerate(pairs) if pair.name not in scratch.figures]
    with tqdm(total=len(pairs), initial=len(pairs) - len(left), unit="pair", desc="scoring", disable=quiet) as bar:
        for group in _groups(_measured(pairs, left, protocol, metrics, workers), batch):
            figures = [dict(one.figures) for one in group]
            if "lpips" in metrics:
                assert networks.lpips is not None
                couples = [one.for_lpips for one in group if one.for_lpips is not None]
                values = _in_batches(networks.lpips, *zip(*couples, strict=True), batch=batch)
                for own, value in zip(figures, values, strict=True):
                    own["lpips"] = float(value)
            for number, side in enumerate(SIDES):
                seen = [(one.place, shown) for one in group if (shown := one.for_inception[number]) is not None]
                if seen:
                    assert networks.inception is not None
                    found = _in_batches(networks.inception, [shown for _, shown in seen], batch=batch)
                    scratch.keep(side, [place for place, _ in seen], found)
            scratch.note([pairs[one.place].name for one in group], figures)
            bar.update(len(group))


def _measured(
    pairs: Sequence[Pair], places: Sequence[int], protocol: Protocol, metrics: Sequence[Metric], workers: int
) -> Iterator[Measured]:
    """In order; no more of them wait than a few a process."""
    if workers == 1:
        for place in places:
            yield measure(place, pairs[place], protocol, metrics)
        return
    # Forked processes would share this one's threads and devices.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Any] = deque()
        for place in places:
            waiting.append(pool.submit(measure, place, pairs[place], protocol, metrics))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _groups(stream: Iterator[Measured], size: int) -> Iterator[list[Measured]]:
    group = []
    for one in stream:
        group.append(one)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _in_batches(function: Callable[..., Any], *columns: Sequence[Picture], batch: int) -> Float[ndarray, "n *d"]:
    """The function of pictures, one call for those of a shape, filled up so that every call has the same size."""
    shapes = [tuple(picture.shape for picture in row) for row in zip(*columns, strict=True)]
    found: list[Any] = [None] * len(shapes)
    for shape in dict.fromkeys(shapes):
        own = [place for place, other in enumerate(shapes) if other == shape]
        filled = [own[min(place, len(own) - 1)] for place in range(batch)]
        values = np.asarray(function(*(np.stack([column[place] for place in filled]) for column in columns)))
        for place, value in zip(own, values, strict=False):
            found[place] = value
    return np.stack(found)


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


class Scratch:
    """A folder with the figures of pairs as JSON lines and both sides' features as arrays of one row a pair.

    It knows what it was made from: ValueError where that has changed.
    """

    def __init__(self, folder: Path, pairs: Sequence[Pair], settings: Any):
        self.folder, self.count = folder, len(pairs)
        self.figures: dict[str, dict[str, float | None]] = {}
        self._arrays: dict[str, Any] = {}
        claim(folder, {"settings": settings, "files": _fingerprint(pairs)})
        self._lines = folder / "pairs.jsonl"
        if self._lines.is_file():
            for line in self._lines.read_text().splitlines():
                # The last line of a killed run may be cut off.
                with contextlib.suppress(json.JSONDecodeError):
                    name, figures = json.loads(line)
                    self.figures[name] = figures
            self._rewrite()

    def _rewrite(self) -> None:
        self._lines.write_text("".join(f"{json.dumps(one)}\n" for one in self.figures.items()))

    def keep(self, side: str, places: Sequence[int], rows: Float[ndarray, "n d"]) -> None:
        """Features of some pairs."""
        path = self.folder / f"{side}.npy"
        if side not in self._arrays:
            shape = (self.count, rows.shape[1])
            self._arrays[side] = np.lib.format.open_memmap(
                path, "r+" if path.is_file() else "w+", None if path.is_file() else np.float32, shape=shape
            )
        self._arrays[side][list(places)] = rows
        self._arrays[side].flush()

    def note(self, names: Sequence[str], figures: Sequence[dict[str, float | None]]) -> None:
        """Pairs that are done; their features must be kept already."""
        with self._lines.open("a") as file:
            for name, own in zip(names, figures, strict=True):
                self.figures[name] = own
                file.write(f"{json.dumps([name, own])}\n")

    def features(self, side: str, pairs: Sequence[Pair]) -> Float[ndarray, "n d"]:
        """One side's features, of the pairs that have a picture on it."""
        held = np.load(self.folder / f"{side}.npy", mmap_mode="r")
        paths = [pair.prediction if side == SIDES[0] else pair.truth for pair in pairs]
        return held[[place for place, path in enumerate(paths) if path is not None]]


def claim(folder: Path, made_from: Any) -> None:
    """Makes a folder for what is done of a run. ValueError where it is that of another run."""
    folder.mkdir(parents=True, exist_ok=True)
    head, said = folder / "made-from.json", json.dumps(made_from)
    if not head.is_file():
        # Of processes that start together one is the first, and nobody reads half of what it writes.
        aside = folder / f"{head.name}.{uuid.uuid4().hex}"
        aside.write_text(said)
        try:
            os.link(aside, head)
        except FileExistsError:
            pass
        except OSError:  # file systems without links
            os.replace(aside, head)
        aside.unlink(missing_ok=True)
    if head.read_text() != said:
        raise ValueError(
            f"{folder} holds what is done of a run with other pictures or settings: delete it to start anew, or name "
            "another folder with --work"
        )


def _fingerprint(pairs: Sequence[Pair]) -> str:
    """Of all files' names, sizes and times."""
    digest = hashlib.sha256()
    for pair in pairs:
        for path in (pair.prediction, pair.truth, pair.mask):
            state = None if path is None else path.stat()
            said = (pair.name, str(path), state and state.st_size, state and state.st_mtime_ns)
            digest.update(json.dumps(said).encode())
    return digest.hexdigest()
