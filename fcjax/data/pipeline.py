"""Prepared records to batches: a deterministic, shuffled, resumable stream through Grain."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from fcjax.data.records import decode_record, read_index, shards

Batch = dict[str, np.ndarray]


class Prepared:
    """A prepared data set as a sequence of decoded samples.

    `transform` turns a decoded sample (see `records.decode_record`) and a generator into the arrays of one training
    example; the generator's stream depends on the sample's place in the epoch alone.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index = read_index(folder)
        self._source: Any = grain.sources.ArrayRecordDataSource(shards(folder))
        if not len(self._source):
            raise ValueError(f"the prepared data set {folder} is empty: prepare at least one sample")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return decode_record(self._source[index])


def training_batches(
    data: Prepared,
    transform: Callable[[dict[str, Any], np.random.Generator], Mapping[str, np.ndarray]],
    batch_size: int,
    seed: int,
    workers: int = 2,
    first_step: int = 0,
    rows: Sequence[int] | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of batches (dicts of stacked arrays), shuffled anew every epoch.

    The same seed and step give the same batch; `first_step` starts at the batch of that step. So the position in the
    data is the number of steps alone, on any number of processes: each reads the `rows` of every batch that it needs
    (all by default) and nothing else. Raises ValueError where the set is smaller than a batch.
    """
    if len(data) < batch_size:
        raise ValueError(f"a batch of {batch_size} needs at least as many samples, {data.folder} has {len(data)}")
    examples = grain.MapDataset.source(data).seed(seed).shuffle().repeat().random_map(transform)
    chosen = list(range(batch_size)) if rows is None else list(rows)
    batches = grain.MapDataset.source(_Rows(examples, batch_size, chosen, first_step)).batch(len(chosen))
    # Threads suffice: PNG decoding and NumPy release the interpreter lock.
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)))


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
