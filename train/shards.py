"""Shards of any source of samples: made by many processes or machines, continued where they were stopped.

A folder being prepared holds `settings.json`, and for every finished shard NUMBER.arrayrecord with NUMBER.json beside
it: how many samples it holds, its SHA-256, and which samples were left out and why. When all are there, `report.json`
gathers what was left out and `index.json` makes the folder a finished set. Every file is written aside and renamed, so
that what is there is whole: a run that was killed continues with the shards that are missing.
"""

import collections
import hashlib
import json
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from fcjax.data.records import INDEX, RECORD_VERSION, read_index, write_index, write_shard
from fcjax.whole_files import PARTIAL, write_json
from train.lock import alone

REPORT = "report.json"
SETTINGS = "settings.json"
LOST_WORKERS = 10
"""How often one shard is begun anew on a cluster because the machine or process that made it was lost."""

Note = dict[str, Any]


class LeftOut(NamedTuple):
    """A sample that the set does without."""

    name: str
    reason: str


class Job(Protocol):
    """What is made into shards. It goes to other processes by pickle; a shard depends on the job and its number alone.

    source: what the index says that this is. settings: all that decides what the shards hold, for JSON. samples: how
    many are gone through; some of them may be left out.
    """

    @property
    def source(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def samples(self) -> int: ...
    @property
    def shards(self) -> int: ...
    def records(self, number: int) -> Iterator[bytes | LeftOut]: ...


def write_set(job: Job, out: Path, workers: int = 1, ray: str = "", retry: bool = False) -> dict[str, Any]:
    """Writes what is missing of the job's shards into `out`, then the report and the index, which is returned.

    Args:
        workers: processes; 1 stays in this one.
        ray: the address of a Ray cluster whose workers make the shards instead ("auto", "local", HOST:PORT). Code and
            `out` must then have the same path on all its machines.
        retry: makes shards that left samples out once more.

    ValueError: a source without samples, a folder begun with other settings, a run in which every sample was left out.
    OSError: a folder that cannot be written, a full disk; finished shards stay.
    """
    if job.samples < 1:
        raise ValueError(f"there is nothing to prepare: the source {job.source} has no samples")
    settings = json.loads(json.dumps(dict(job.settings)))
    with alone(out):
        _begin(out, settings)
        return _write(job, settings, out, workers, ray, retry)


def _write(job: Job, settings: dict[str, Any], out: Path, workers: int, ray: str, retry: bool) -> dict[str, Any]:
    notes = {number: note for number in range(job.shards) if (note := _finished(out, number, retry)) is not None}
    numbers = [number for number in range(job.shards) if number not in notes]
    if numbers:
        # A folder without it is an unfinished one.
        (out / INDEX).unlink(missing_ok=True)
    made = _by_ray(job, out, numbers, ray) if ray else _by_processes(job, out, numbers, workers)
    passed = sum(map(_passed, notes.values()))
    try:
        with tqdm(total=job.samples, initial=passed, unit="sample", smoothing=0.1) as bar:
            for number, note in made:
                notes[number] = note
                bar.set_postfix(left_out=sum(len(one["left_out"]) for one in notes.values()), refresh=False)
                bar.update(_passed(note))
    except OSError as error:
        note = (
            f"{error.strerror or error} ({len(notes)} of {job.shards} shards are finished and stay: mend it, run again)"
        )
        raise OSError(error.errno, note, error.filename or str(out)) from error
    finally:
        _remove_partial(out)
    return _finish(job, settings, out, [notes[number] for number in range(job.shards)])


# ---------------------------------------------------------------------------------------------------------------------
# One shard


def _shard_path(out: Path, number: int) -> Path:
    return out / f"{number:05d}.arrayrecord"


def _note_path(out: Path, number: int) -> Path:
    return out / f"{number:05d}.json"


def make_shard(job: Job, out: Path, number: int) -> tuple[int, Note]:
    """Writes one shard and, last, the note that it is finished. Returns its number and the note."""
    left_out: list[LeftOut] = []

    def kept() -> Iterator[bytes]:
        for one in job.records(number):
            if isinstance(one, LeftOut):
                left_out.append(one)
            else:
                yield one

    path = _shard_path(out, number)
    count = write_shard(path, kept())
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    note = {
        "version": RECORD_VERSION,
        "count": count,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "left_out": [one._asdict() for one in left_out],
    }
    write_json(_note_path(out, number), note)
    return number, note


def _passed(note: Note) -> int:
    return note["count"] + len(note["left_out"])


def _finished(out: Path, number: int, retry: bool) -> Note | None:
    """The note of a shard that is there whole, or None."""
    path, shard = _note_path(out, number), _shard_path(out, number)
    try:
        note = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if note["version"] != RECORD_VERSION:
        raise ValueError(
            f"{shard} holds records of version {note['version']}, this program writes version {RECORD_VERSION}: "
            f"remove {out} or choose another folder"
        )
    whole = shard.is_file() and shard.stat().st_size == note["bytes"]
    if whole and not (retry and note["left_out"]):
        return note
    # The note of a shard that is made anew must not be taken for the new one's, should this run be killed in between.
    path.unlink()
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Notes the folder's settings. Shards made with other settings must not be taken for ours."""
    note = out / SETTINGS
    if note.exists():
        before = json.loads(note.read_text())
        differ = sorted(key for key in settings.keys() | before.keys() if before.get(key) != settings.get(key))
        if differ:
            raise ValueError(
                f"{out} was begun with other settings ({', '.join(differ)}): remove it or choose another --out"
            )
    elif (out / INDEX).exists():
        raise ValueError(f"{out} holds a prepared set of {read_index(out)['source']} already: choose another --out")
    else:
        write_json(note, settings)
    _remove_partial(out)


def _remove_partial(out: Path) -> None:
    for path in out.glob("*" + PARTIAL):
        path.unlink(missing_ok=True)


def _finish(job: Job, settings: dict[str, Any], out: Path, notes: list[Note]) -> dict[str, Any]:
    absent = [_shard_path(out, number).name for number in range(job.shards) if not _shard_path(out, number).is_file()]
    if absent:
        raise ValueError(
            f"workers wrote {', '.join(absent[:5])} where this machine finds no such file: "
            f"{out} must be one folder for all machines"
        )
    left_out = [one for note in notes for one in note["left_out"]]
    reasons = commonest(LeftOut(**one) for one in left_out)
    count = sum(note["count"] for note in notes)
    report = {"samples": count + len(left_out), "kept": count, "reasons": dict(reasons), "left_out": left_out}
    write_json(out / REPORT, report)
    if not count:
        # Whoever mends the source and runs again must not meet these shards.
        for number in range(job.shards):
            _note_path(out, number).unlink()
            _shard_path(out, number).unlink()
        often = "; ".join(f"{times} times: {reason}" for reason, times in reasons[:3])
        raise ValueError(f"all {len(left_out)} samples were left out ({often}): {out / REPORT} lists them")
    shards = {_shard_path(out, number).name: note["sha256"] for number, note in enumerate(notes) if note["count"]}
    content = hashlib.sha256(json.dumps([job.source, settings, list(shards.values())], sort_keys=True).encode())
    write_index(
        out,
        source=job.source,
        settings=settings,
        shards=list(shards),
        count=count,
        left_out=len(left_out),
        sha256=content.hexdigest(),
    )
    return read_index(out)


def commonest(left_out: Iterable[LeftOut]) -> list[tuple[str, int]]:
    """The reasons with how often each was given, the most frequent first; a sample's own name in them counts not."""
    reasons = (re.sub(rf"(?<!\w){re.escape(one.name)}(?!\w)", "NAME", one.reason) for one in left_out)
    return collections.Counter(reasons).most_common()


# ---------------------------------------------------------------------------------------------------------------------
# Processes of this machine


def _by_processes(job: Job, out: Path, numbers: list[int], workers: int) -> Iterator[tuple[int, Note]]:
    """Shards as they are finished, by spawned processes: a fork of a process that runs JAX may hang."""
    if workers == 1 or len(numbers) < 2:
        yield from (make_shard(job, out, number) for number in numbers)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, _begin_worker, (job, out))
    try:
        for future in as_completed([pool.submit(_make_given, number) for number in numbers]):
            yield future.result()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
            process.join()
        if isinstance(error, BrokenProcessPool):
            raise ValueError(
                f"a worker process died, which mostly means that memory ran out: run again with fewer than {workers} "
                "workers; finished shards stay"
            ) from error
        raise
    pool.shutdown()


_GIVEN: list[tuple[Job, Path]] = []


def _begin_worker(job: Job, out: Path) -> None:
    """Takes the job once, leaves interruptions to the process that began this one, and ends when that does."""
    _GIVEN.append((job, out))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_given(number: int) -> tuple[int, Note]:
    return make_shard(*_GIVEN[0], number)


# ---------------------------------------------------------------------------------------------------------------------
# Many machines


def _by_ray(job: Job, out: Path, numbers: list[int], address: str) -> Iterator[tuple[int, Note]]:
    """Shards as the workers of a Ray cluster finish them; one whose worker was lost is made anew elsewhere."""
    try:
        import ray as found  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise ValueError("--ray needs Ray: pip install 'fcjax[ray]'") from None
    ray: Any = found
    if not numbers:
        return
    begun = not ray.is_initialized()
    if begun:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        make = ray.remote(num_cpus=1, max_retries=LOST_WORKERS)(make_shard)
        given, folder = ray.put(job), out.absolute()
        waiting = [make.remote(given, folder, number) for number in numbers]
        while waiting:
            (done,), waiting = ray.wait(waiting)
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise ValueError(f"one shard lost its worker {LOST_WORKERS} times: {error}; finished shards stay") from error
    finally:
        if begun:
            ray.shutdown()


def shard_range(number: int, size: int, samples: int) -> range:
    """The samples of a shard where all but the last hold `size`."""
    return range(number * size, min((number + 1) * size, samples))


def shard_count(size: int, samples: int) -> int:
    """How many shards of `size` hold all samples."""
    return -(-samples // size)
