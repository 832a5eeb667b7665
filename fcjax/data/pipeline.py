"""Prepared records to batches: a deterministic, shuffled, resumable stream through Grain."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from fcjax.config import Condition
from fcjax.data.records import decode_record, read_index, shards

Batch = dict[str, np.ndarray]


class Prepared:
    """A prepared data set as a sequence of decoded samples.

    A sample is what `records.decode_record` gives, and the set's `charts` beside it.
    `transform` turns a decoded sample and a generator into the arrays of one training example; the generator's stream
    depends on the sample's place in the epoch alone.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index = read_index(folder)
        if not self.index["count"]:
            raise ValueError(f"the prepared data set {folder} is empty: prepare at least one sample")
        self._source: Any = grain.sources.ArrayRecordDataSource(shards(folder))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**decode_record(self._source[index]), "charts": self.charts}

    @property
    def charts(self) -> Literal["own", "densepose"] | None:
        """Whose charts the body maps follow: fcjax's own where Wardrobe drew them, else DensePose's. None of latents,
        which do not say, and which nothing mirrors.

        Choice: a folder of one's own pictures counts as DensePose's, too, wherever its maps are from.
        """
        source = self.index.get("source")
        return None if source == "latents" else "own" if source == "wardrobe" else "densepose"

    def require_own_charts(self) -> None:
        """ValueError where body maps follow DensePose's own charts, which a rule does not mirror."""
        if self.charts == "densepose":
            raise ValueError(
                f"the body maps in {self.folder} follow DensePose's own charts, whose mirroring is a table: give "
                "--augment.symmetry FILE, which is DensePose's UV_symmetry_transforms.mat, or leave --augment.flip at 0"
            )

    @property
    def content(self) -> str | None:
        """The hash of its shards and of how they were made; None of a set that was prepared without."""
        return self.index.get("sha256")

    def require(self, condition: Condition) -> None:
        """ValueError where samples lack what models of that condition go by: a body map, or a person to dress."""
        if condition != "tryon" and not self.index["settings"].get("need_pose", True):
            raise ValueError(
                f"{self.folder} was prepared with --no-need-pose, so that samples without a body map are in it, and "
                "the model goes by that map: prepare the set anew without the flag (try-on as in the paper needs none)"
            )
        if condition != "pose" and not {"agnostic", "mask"} <= self[0].keys():
            raise ValueError(
                f"{self.folder} has no cloth-agnostic people and masks: prepare it anew with them (wardrobe: --tryon; "
                "other sets: without --no-agnostic)"
            )


class Mixed:
    """Several prepared sets of one kind, each giving its share of the samples.

    weights: of the sets, in any unit; equal by default. ValueError where the sets are not of one kind: pictures of one
    size, or latents of one autoencoder.
    """

    def __init__(self, sets: Sequence[Prepared], weights: Sequence[float] = ()):
        self.sets, self.weights = list(sets), list(weights) or [1.0] * len(sets)
        if not self.sets or len(self.weights) != len(self.sets) or min(self.weights) <= 0:
            raise ValueError(
                f"every data set takes one positive weight, got {len(self.sets)} sets and the weights {self.weights}"
            )
        first = self.sets[0]
        for other in self.sets[1:]:
            for name in ("vae", "encoded", "text", "height", "width", "layouts"):
                expected, found = (one.index["settings"].get(name) for one in (first, other))
                if expected != found:
                    raise ValueError(
                        f"sets of one run must agree in {name}: {first.folder} has {expected}, {other.folder} {found}; "
                        "prepare them alike"
                    )

    @property
    def index(self) -> dict[str, Any]:
        """That of the first set, which speaks for all."""
        return self.sets[0].index

    @property
    def folder(self) -> str:
        """The sets' folders, for messages."""
        return ", ".join(str(one.folder) for one in self.sets)

    @property
    def content(self) -> str | None:
        """The sets' hashes in their order."""
        known = [one.content for one in self.sets]
        return None if None in known else " ".join(map(str, known))

    def require(self, condition: Condition) -> None:
        """ValueError, as of one set."""
        for one in self.sets:
            one.require(condition)

    def require_own_charts(self) -> None:
        """ValueError, as of one set."""
        for one in self.sets:
            one.require_own_charts()

    def __len__(self) -> int:
        return sum(len(one) for one in self.sets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for one in self.sets:
            if index < len(one):
                return one[index]
            index -= len(one)
        raise IndexError(index)


def training_batches(
    data: Prepared | Mixed,
    transform: Callable[[dict[str, Any], np.random.Generator], Mapping[str, np.ndarray]],
    batch_size: int,
    seed: int,
    workers: int = 2,
    first_step: int = 0,
    rows: Sequence[int] | None = None,
    lay: Callable[[Batch], Any] | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of batches (dicts of stacked arrays), every set shuffled anew in each of its epochs.

    lay: what lays a batch on the devices. A thread calls it for two batches ahead of the one that was asked for last,
      and the iterator, to be closed then, gives pairs: the batch, and what `lay` made of it.

    The same seed and step give the same batch; `first_step` starts at the batch of that step. So the position in the
    data is the number of steps alone, on any number of processes: each reads the `rows` of every batch that it needs
    (all by default) and nothing else. Raises ValueError where the set is smaller than a batch.
    """
    if len(data) < batch_size:
        raise ValueError(f"a batch of {batch_size} needs at least as many samples, {data.folder} has {len(data)}")
    sets, weights = (data.sets, data.weights) if isinstance(data, Mixed) else ([data], [1.0])
    streams = [
        grain.MapDataset.source(one).seed(seed + number).shuffle().repeat().random_map(transform)
        for number, one in enumerate(sets)
    ]
    examples = grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]
    chosen = list(range(batch_size)) if rows is None else list(rows)
    batches = grain.MapDataset.source(_Rows(examples, batch_size, chosen, first_step)).batch(len(chosen))
    # Threads suffice: PNG decoding and NumPy release the interpreter lock.
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers))
    if lay is None:
        return iter(stream)
    # Beside the one in the buffer the thread holds another, which waits for its place there.
    return iter(ThreadPrefetchIterDataset(stream.map(lambda batch: (batch, lay(batch))), prefetch_buffer_size=1))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some rows of every batch, from that of `first_step` on, as one sequence of examples."""

    examples: Any
    batch_size: int
    rows: Sequence[int]
    first_step: int

    def __len__(self) -> int:
        return (len(self.examples) // self.batch_size - self.first_step) * len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        step, row = divmod(index, len(self.rows))
        return self.examples[(self.first_step + step) * self.batch_size + self.rows[row]]
