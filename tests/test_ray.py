"""Shards made by a Ray cluster of this machine; they must be those that one process makes."""

import dataclasses
import errno
import os
import sys
from pathlib import Path

import pytest

from fcjax.data.sources import DeepFashion
from tests import miniatures
from tests.test_shards import Numbers, contents, made_shards
from train.raw_records import RawJob, RawOptions
from train.shards import write_set

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class FullDisk(Numbers):
    """A job on whose way the disk is full."""

    def records(self, number: int):
        if number == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")
        return super().records(number)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    # Workers import this package from where the tests do.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def job(tmp_path: Path) -> Numbers:
    (tmp_path / "made").mkdir()
    return Numbers(tmp_path / "made", broken=(1, 3, 10))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_worker_makes_the_same_set(cluster, job: Numbers, tmp_path: Path):
    write_set(job, tmp_path / "alone")
    assert made_shards(job) == [0, 1, 2, 3]
    index = write_set(dataclasses.replace(job, killed=2), tmp_path / "cluster", ray="auto")
    assert (job.made / "killed").exists()
    # The shard on whose way a worker was killed is begun twice, every other once.
    assert made_shards(job) == [0, 1, 2, 2, 3]
    assert contents(tmp_path / "cluster") == contents(tmp_path / "alone") and index["count"] == 8
    full = FullDisk(job.made)
    with pytest.raises(OSError, match=r"No space left on device \(. of 4 shards are finished and stay"):
        write_set(full, tmp_path / "full", ray="auto")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_prepares_a_real_set_as_one_machine_does(cluster, tmp_path: Path):
    source = DeepFashion(miniatures.deepfashion(tmp_path / "source"))
    job = RawJob(source, "deepfashion", RawOptions(height=64, width=48, shard_size=1))
    write_set(job, tmp_path / "alone", workers=1)
    index = write_set(job, tmp_path / "cluster", ray="auto")
    assert contents(tmp_path / "cluster") == contents(tmp_path / "alone") and index["count"] == 2


def test_ray_is_an_extra(job: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--ray needs Ray: pip install 'fcjax\[ray\]'"):
        write_set(job, tmp_path / "out", ray="auto")
