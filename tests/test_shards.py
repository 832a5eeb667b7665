"""The engine that writes shards: any number of processes, killed and continued, full disks, broken samples."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] (no stubs)

from fcjax.data import Prepared, encode_record, read_index
from fcjax.data.records import decode_record, read_shard
from train.shards import LeftOut, make_shard, shard_count, shard_range, write_set


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Samples that are their own numbers; it notes every shard that it makes in the folder `made`."""

    made: Path
    samples: int = 11
    broken: tuple[int, ...] = ()
    # Once, on the way through this shard, the process is killed.
    killed: int = -1
    # Seconds that a sample takes.
    slow: float = 0.0
    meaning: str = "numbers"

    source = "numbers"

    @property
    def settings(self):
        return {"samples": self.samples, "meaning": self.meaning, "layouts": 1}

    @property
    def shards(self):
        return shard_count(3, self.samples)

    def records(self, number: int) -> Iterator[bytes | LeftOut]:
        (self.made / f"{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
        for index in shard_range(number, 3, self.samples):
            time.sleep(self.slow)
            if number == self.killed and index % 3 == 1 and not (self.made / "killed").exists():
                (self.made / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            name = f"{index:03d}.jpg"
            yield LeftOut(name, f"no person in {name}") if index in self.broken else a_record(index)


def a_record(index: int) -> bytes:
    return encode_record({}, {}, {"number": index})


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def made_shards(job: Numbers) -> list[int]:
    """Which shards were made so far, as often as they were; they are forgotten then."""
    numbers = []
    for path in job.made.glob("*-*"):
        numbers.append(int(path.name.split("-")[0]))
        path.unlink()
    return sorted(numbers)


@pytest.fixture
def job(tmp_path: Path) -> Numbers:
    (tmp_path / "made").mkdir()
    return Numbers(tmp_path / "made", broken=(1, 4, 5, 3, 10))


@pytest.fixture
def whole(tmp_path: Path, job: Numbers) -> Path:
    """The job's set, written by one process."""
    write_set(job, tmp_path / "whole")
    assert made_shards(job) == [0, 1, 2, 3]
    return tmp_path / "whole"


def test_what_is_written_is_read_and_what_is_left_out_is_listed(whole: Path):
    data = Prepared(whole)
    assert [data[index]["number"] for index in range(len(data))] == [0, 2, 6, 7, 8, 9]
    # The second shard holds nothing, so that readers need not know it.
    assert data.index["shards"] == ["00000.arrayrecord", "00002.arrayrecord", "00003.arrayrecord"]
    assert (data.index["count"], data.index["left_out"], data.index["source"]) == (6, 5, "numbers")
    report = json.loads((whole / "report.json").read_text())
    assert (report["samples"], report["kept"], report["reasons"]) == (11, 6, {"no person in NAME": 5})
    assert report["left_out"][0] == {"name": "001.jpg", "reason": "no person in 001.jpg"}
    assert [one["name"] for one in report["left_out"]] == ["001.jpg", "003.jpg", "004.jpg", "005.jpg", "010.jpg"]


def test_the_hash_tells_sets_apart(whole: Path, job: Numbers, tmp_path: Path):
    others = [{"broken": (2,)}, {"meaning": "other"}, {}]
    hashes = [
        write_set(dataclasses.replace(job, **other), tmp_path / str(number))["sha256"]
        for number, other in enumerate(others)
    ]
    assert hashes[2] == read_index(whole)["sha256"] and len(set(hashes)) == 3


def test_several_processes_write_the_same_bytes(whole: Path, job: Numbers, tmp_path: Path):
    write_set(job, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(whole)
    assert made_shards(job) == [0, 1, 2, 3]


@pytest.mark.parametrize("lost", ["00002.arrayrecord", "00002.json"])
def test_what_is_missing_alone_is_made(whole: Path, job: Numbers, lost: str):
    before = contents(whole)
    for name in (lost, "index.json"):
        (whole / name).unlink()
    (whole / "00001.arrayrecord.elsewhere-7.partial").write_bytes(b"half")
    write_set(job, whole)
    assert contents(whole) == before and made_shards(job) == [2]
    # A file that is shorter than its note says is none.
    os.truncate(whole / "00000.arrayrecord", 100)
    write_set(job, whole)
    assert contents(whole) == before and made_shards(job) == [0]


def test_a_lost_worker_is_told_and_what_it_lacked_is_made(whole: Path, job: Numbers, tmp_path: Path):
    killed, out = dataclasses.replace(job, killed=2, slow=0.05), tmp_path / "out"
    with pytest.raises(ValueError, match="a worker process died, .* fewer than 2 workers; finished shards stay"):
        write_set(killed, out, workers=2)
    assert not (out / "index.json").exists() and not (out / "00002.json").exists()
    assert not list(out.glob("*.partial"))
    # A worker may be ended between a shard and what tells that it is whole.
    finished = len(list(out.glob("0*.json")))
    made_shards(job)
    write_set(killed, out)
    assert contents(out) == contents(whole) and len(made_shards(job)) == 4 - finished


PROGRAM = """
from pathlib import Path
from tests.test_shards import Numbers
from train.shards import write_set
if __name__ == "__main__":
    write_set(Numbers(Path({made!r}), broken=(1, 4, 5, 3, 10), slow=0.5), Path({out!r}), workers=2)
"""


def test_a_killed_run_leaves_no_worker_and_is_continued(whole: Path, job: Numbers, tmp_path: Path):
    out, program = tmp_path / "out", tmp_path / "program.py"
    program.write_text(PROGRAM.format(made=str(job.made), out=str(out)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    with subprocess.Popen([sys.executable, str(program)], env=environment, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not list(out.glob("0*.json")):
            time.sleep(0.01)
        running.kill()
    workers = {int(path.name.split("-")[1]) for path in job.made.glob("*-*")}
    assert workers and not (out / "index.json").exists()
    while any(alive(worker) for worker in workers):
        time.sleep(0.01)
    finished = len(list(out.glob("0*.json")))
    made_shards(job)
    write_set(job, out)
    assert contents(out) == contents(whole) and len(made_shards(job)) == 4 - finished


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not asked for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Stopped(Numbers):
    """The disk is full before the first sample."""

    def records(self, number: int) -> Iterator[bytes | LeftOut]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_set_is_unfinished_while_shards_are_made_again(whole: Path, job: Numbers):
    with pytest.raises(OSError, match="shards are finished and stay"):
        write_set(Stopped(job.made, broken=(10,)), whole, retry=True)
    with pytest.raises(ValueError, match="index.json|unfinished|no prepared"):
        read_index(whole)
    write_set(dataclasses.replace(job, broken=(10,)), whole, retry=True)
    assert read_index(whole)["count"] == 10


def test_shards_that_left_samples_out_are_made_again_when_asked(whole: Path, job: Numbers):
    mended = dataclasses.replace(job, broken=(10,))
    assert write_set(mended, whole)["left_out"] == 5 and made_shards(job) == []
    assert write_set(mended, whole, retry=True)["left_out"] == 1 and made_shards(job) == [0, 1, 3]
    assert json.loads((whole / "report.json").read_text())["left_out"] == [
        {"name": "010.jpg", "reason": "no person in 010.jpg"}
    ]


def test_a_run_that_leaves_everything_out_quotes_the_reasons(job: Numbers, tmp_path: Path):
    broken, out = dataclasses.replace(job, broken=tuple(range(11))), tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"all 11 samples were left out \(11 times: no person in NAME\): .*report.json"
    ):
        write_set(broken, out)
    assert len(json.loads((out / "report.json").read_text())["left_out"]) == 11
    assert write_set(job, out)["count"] == 6


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_an_empty_source_is_refused(job: Numbers, tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to prepare: the source numbers has no samples"):
        write_set(dataclasses.replace(job, samples=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings_is_refused(whole: Path, job: Numbers):
    before = contents(whole)
    with pytest.raises(ValueError, match=r"begun with other settings \(meaning, samples\): remove it or choose"):
        write_set(dataclasses.replace(job, meaning="other", samples=9), whole)
    (whole / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds a prepared set of numbers already: choose another"):
        write_set(job, whole)
    assert {**contents(whole), "settings.json": before["settings.json"]} == before


@pytest.mark.parametrize("place", [".", "set", "set/of/mine"])
def test_a_path_below_a_file_is_refused(job: Numbers, tmp_path: Path, place: str):
    (tmp_path / "file").write_text("here")
    with pytest.raises(ValueError, match=f"expected a folder to write into, but {tmp_path}/file is a file"):
        write_set(job, tmp_path / "file" / place)


def test_shards_of_another_version_are_refused(whole: Path, job: Numbers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.shards.RECORD_VERSION", 7)
    with pytest.raises(ValueError, match="00000.arrayrecord holds records of version 2, this program writes version 7"):
        write_set(job, whole)


class FullDisk:
    """ArrayRecord's writer on a disk that has room for the first `room` records, and what it then says."""

    room, says = 0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __init__(self, *arguments):
        self.writer = array_record_module.ArrayRecordWriter(*arguments)

    def write(self, record: bytes):
        type(self).room -= 1
        if self.room < 0:
            raise self.says
        self.writer.write(record)

    def close(self):
        self.writer.close()


@pytest.mark.parametrize(
    "says",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        # What ArrayRecord says.
        RuntimeError(
            "write() failed: No space left on device; writing 00001.arrayrecord; Failed to close chunk_writer"
        ),
    ],
)
def test_a_full_disk_is_told_and_finished_shards_stay(
    whole: Path, job: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Exception
):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        writer = type("FullDisk", (FullDisk,), {"room": 4, "says": says})
        patched.setattr("fcjax.data.records.array_record_module", type("Module", (), {"ArrayRecordWriter": writer}))
        with pytest.raises(OSError, match=r"No space left on device \(2 of 4 shards are finished and stay") as error:
            write_set(job, out)
    assert error.value.errno == errno.ENOSPC
    assert sorted(path.name for path in out.iterdir()) == [
        *("00000.arrayrecord", "00000.json", "00001.arrayrecord", "00001.json", "settings.json")
    ]
    made_shards(job)
    write_set(job, out)
    assert contents(out) == contents(whole) and made_shards(job) == [2, 3]


def test_a_mistake_in_a_job_keeps_its_own_error(job: Numbers, tmp_path: Path):
    with pytest.raises(TypeError, match="NoneType"):
        write_set(dataclasses.replace(job, broken=None), tmp_path / "out")  # type: ignore[arg-type]
    assert not list((tmp_path / "out").glob("*.arrayrecord*"))


def test_a_shard_holds_its_records_in_order(job: Numbers, tmp_path: Path):
    number, note = make_shard(job, tmp_path, 2)
    records = read_shard(tmp_path / "00002.arrayrecord")
    assert number == 2 and note["count"] == 3 and note["left_out"] == []
    assert [decode_record(record)["number"] for record in records] == [6, 7, 8]


def test_two_runs_do_not_write_into_one_folder(job: Numbers, tmp_path: Path):
    """The second is told so, and the first goes on."""
    out = tmp_path / "out"

    @dataclasses.dataclass(frozen=True)
    class Meeting(Numbers):
        def records(self, number: int) -> Iterator[bytes | LeftOut]:
            with pytest.raises(ValueError, match="another run is writing into"):
                write_set(job, out)
            return super().records(number)

    index = write_set(Meeting(job.made, samples=3), out)
    assert index["count"] == 3 and not list(out.glob(".*"))
